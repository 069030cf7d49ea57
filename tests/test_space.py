"""The page of space/, as a visitor meets it in a browser. Without gradio, which is no requirement of ours, it is left
out: pip install gradio; python -m pytest tests/test_space.py"""
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pages
import pytest
import trimesh
import yaml
from conftest import CHEAP, needs_browser, wait_until

SPACE = Path(__file__).parents[1]/'space'
needs_gradio = pytest.mark.skipif(not find_spec('gradio'), reason='needs gradio')
# one page whose runs end, and one whose runs don't
SERVE = """import sys
sys.path.insert(0, sys.argv[1])
import app
here = dict(server_name='127.0.0.1', quiet=True, prevent_thread_lock=True)
small = {small}
app.page(**small).launch(server_port=int(sys.argv[2]), **here)
app.page(**small | dict(iters=10**6)).launch(server_port=int(sys.argv[3]), **here)
print('both are there', flush=True)
sys.stdin.read()
"""


def test_header_names_what_is_there():
    "Hugging Face reads the top of the README"
    header = yaml.safe_load((SPACE/'README.md').read_text(encoding='utf-8').split('---\n')[1])
    assert header['sdk'] == 'gradio' and (SPACE/header['app_file']).exists()
    assert len(header['short_description']) <= 60 and header['license'] == 'apache-2.0'
    pinned = (SPACE.parent/'constraints.txt').read_text()
    for line in (SPACE/'requirements.txt').read_text().splitlines():
        if '==' in line: assert line in pinned


@pytest.fixture(scope='module')
def addresses():
    "Of a page whose runs end, and of one whose runs don't"
    ports = [pages.free_port(), pages.free_port()]
    keys = {k: v for k, v in CHEAP.items() if not k.startswith(('nerf', 'checkpoint'))} | dict(iters=30)
    command = [sys.executable, '-c', SERVE.format(small=keys), SPACE, *map(str, ports)]
    env = os.environ | dict(GRADIO_ANALYTICS_ENABLED='False')
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert any(line == 'both are there\n' for line in server.stdout), 'it did not start'
            yield [f'http://127.0.0.1:{port}/' for port in ports]
        finally: server.kill()


def visit(opened, address):
    "A visitor's page; `page.strange`: what it asked others for, and errors"
    page = pages.new_page(opened)
    page.strange = []
    page.on('request', lambda r: page.strange.append(r.url) if not r.url.startswith((address, 'data:', 'blob:')) else 0)
    page.on('pageerror', lambda error: page.strange.append(str(error)))
    page.goto(address)
    return page


def ask(page, prompt):
    page.get_by_label('What to make').fill(prompt)
    page.get_by_role('button', name='Make it').click()


def line(page): return page.locator('#line').inner_text()


@needs_gradio
@needs_browser
def test_a_sentence_becomes_an_object(opened, addresses, tmp_path):
    page = visit(opened, addresses[0])
    ask(page, 'a shiny red apple')
    wait_until(page, lambda: re.search(r'step \d+ of 30', line(page)) and page.locator('#picture img').count())
    wait_until(page, lambda: line(page).endswith('done'))
    assert "does not know 'shiny'" in line(page)
    view = page.frame_locator('#model iframe')
    view.locator('canvas').wait_for()
    with page.expect_download() as download: page.get_by_role('button', name='Download the GLB').click()
    download.value.save_as(tmp_path/'model.glb')
    assert len(trimesh.load(tmp_path/'model.glb', force='mesh').faces) > 500
    assert page.strange == []
    page.close()


@needs_gradio
@needs_browser
def test_what_cannot_be_made_is_one_line(opened, addresses):
    page = visit(opened, addresses[0])
    for prompt, says in (('', 'write what to make'), ('a mug '*900, '5,400 characters are too many: at most 200'),
                         ('a corgi', 'knows: hamburger, mug')):
        ask(page, prompt)
        wait_until(page, lambda: says in line(page))
        assert '\n' not in line(page)
    page.close()


@needs_gradio
@needs_browser
def test_ten_visitors_wait_in_a_queue_and_a_closed_page_leaves_it(opened, addresses):
    "Runs of this page take for ever: the next one can begin only when the one before has stopped"
    first, second, third, *others = visitors = [visit(opened, addresses[1]) for _ in range(10)]
    def runs(page): return 'of 1000000' in line(page)
    def waits(page, place): return re.search(rf'queue: {place}/\d', line(page))
    for place, page in enumerate(visitors):
        ask(page, 'a mug')
        wait_until(page, lambda: waits(page, place) if place else runs(page))
    assert runs(first)
    first.close()
    wait_until(second, lambda: runs(second))
    wait_until(third, lambda: waits(third, 1))
    wait_until(others[-1], lambda: waits(others[-1], 8))
    second.get_by_role('button', name='Stop').click()
    wait_until(second, lambda: line(second) == 'stopped')
    wait_until(third, lambda: runs(third))
    for page in (second, third, *others): page.close()
