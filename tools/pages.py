"""Notebooks in a real browser, for the tests and for pictures of the dashboards.

    python tools/pages.py --out /tmp/pages          # pictures of every dashboard: light and dark, at three widths
    python tools/pages.py --only step --width 1024  # some of them
"""
import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import nbformat
from glb import browser

ROOT = Path(__file__).parents[1]
PATIENCE = 300_000    # milliseconds, for a state to come: a machine may be busy with other things
LOGS = {}    # of the servers that run: address -> file


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def served(kind,    # 'lab' or 'voila'
           folder,  # of notebooks
           dark=False):
    "A Jupyter server with settings of its own, on a free port of this machine; yields its address"
    port = free_port()
    with tempfile.TemporaryDirectory() as own:
        names = ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR',
                 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')
        env = os.environ | {name: f'{own}/{name.lower()}' for name in names}
        env |= dict(PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}', OMP_NUM_THREADS='1',
                    NUMBA_NUM_THREADS='1', MPLBACKEND='module://matplotlib_inline.backend_inline')
        settings = Path(own)/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'
        settings.mkdir(parents=True)
        choices = dict(themes=dict(theme=f'JupyterLab {"Dark" if dark else "Light"}'),
                       notification=dict(fetchNews='false', checkForUpdates=False))
        for name, choice in choices.items(): (settings/f'{name}.jupyterlab-settings').write_text(json.dumps(choice))
        options = [f'--port={port}', '--no-browser', '--ip=127.0.0.1']
        if kind == 'lab':
            # kernels talk over files: a port that is free when a kernel is asked for may be taken when it starts
            own_options = ['--allow-root', '--IdentityProvider.token=', f'--ServerApp.root_dir={folder}',
                           '--expose-app-in-browser', '--KernelManager.transport=ipc']
            command = ['-m', 'jupyterlab', *options, *own_options]
        else: command = ['-m', 'voila', *options, '--token=', str(folder)]
        log = open(Path(own)/'log', 'w+')
        server = subprocess.Popen([sys.executable, *command], env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
                                  start_new_session=True)
        try:
            for _ in range(240):
                if server.poll() is not None: break
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5)
                    break
                except OSError: time.sleep(.25)
            if server.poll() is not None:
                log.seek(0)
                raise RuntimeError(f'{kind} did not start: {log.read()[-2000:]}')
            LOGS[f'http://127.0.0.1:{port}'] = Path(log.name)
            yield f'http://127.0.0.1:{port}'
        finally:
            LOGS.pop(f'http://127.0.0.1:{port}', None)
            server.terminate()
            try: server.wait(10)
            except subprocess.TimeoutExpired: server.kill()
            log.close()


def write_notebook(path, *cells):
    "A notebook of code cells"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata['kernelspec'] = dict(display_name='Python 3', language='python', name='python3')
    nbformat.write(book, path)
    return path


# The notebook in front: read from its file, its kernel started and idle
READY = """name => {
  const panel = window.jupyterapp?.shell?.currentWidget
  return panel?.context?.path === name && panel.context.isReady && panel.sessionContext.isReady
    && panel.sessionContext.session?.kernel?.status === 'idle' && panel.content.isVisible
}"""


def new_page(opened, **how):
    "A page in a context of its own, which waits as long as a busy machine needs"
    page = opened.new_page(**how)
    page.set_default_timeout(PATIENCE)
    return page


def goto_lab(page, address, name):
    """Open a notebook in JupyterLab in a workspace of its own, where no other notebook is restored. (`?reset` does that
    too, but may load the page a second time when a person or a test has already begun.)"""
    page.goto(f'{address}/lab/workspaces/{uuid.uuid4().hex}/tree/{name}')


def open_lab(opened, address, name, width=1280, height=1000):
    "A page with a notebook in JupyterLab, its kernel ready"
    page = new_page(opened, viewport=dict(width=width, height=height))
    goto_lab(page, address, name)
    page.wait_for_function(READY, arg=name)
    page.locator('.jp-Notebook .jp-CodeCell').first.wait_for()
    return page


def shown_by(page):
    "What a page shows and has said, and where its server's kernels are; a page that does not answer says why"
    lines = [f'-- {page.url}']
    try:
        kernels = page.evaluate("() => fetch('/api/kernels').then(answer => answer.text()).catch(String)")
        lines += [page.locator('body').inner_text(timeout=10_000)[-1500:], f'-- kernels: {kernels[:600]}']
        lines += [f'-- {said.type}: {said.text[:300]}' for said in page.console_messages()[-15:]]
        lines += [f'-- error: {error}' for error in page.page_errors()[-5:]]
    except Exception as error: lines.append(f'-- {error}')
    return '\n'.join(lines)


def seen(opened):
    "What the open pages of a browser show, and what the servers say: for the report of a failed test"
    servers = [f'-- {address} says\n{log.read_text()[-2000:]}' for address, log in LOGS.items()]
    return '\n'.join([*(shown_by(page) for context in opened.contexts for page in context.pages), *servers])


def run_all(page):
    "What the menu does for Run, Run All Cells; told to JupyterLab itself, which a menu on a busy machine may not be"
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")


FIRST_STEPS = """from dreamfusion_nb.dashboard import CompareDashboard, FieldDashboard, MeshDashboard, StepDashboard
dashboard = StepDashboard('a hamburger', iters=300)
for _ in range(40): dashboard.driver.step(show=False)
"""
DASHBOARDS = dict(
    viewer="from dreamfusion_nb import toybox\n"
           "from dreamfusion_nb.viewer import Viewer\n"
           "viewer = Viewer(toybox.mesh('a purple owl', resolution=64), alt='a purple owl')\nviewer",
    step=FIRST_STEPS + 'dashboard',
    field=FIRST_STEPS + 'FieldDashboard(dashboard.trainer)',
    splats="from dreamfusion_nb import Trainer, load_config\n"
           "from dreamfusion_nb.dashboard import SplatDashboard\n"
           "trainer = Trainer(load_config('splats', dict(prompt='a hamburger', iters=300)))\n"
           "trainer.fit(60)\nSplatDashboard(trainer)",
    mesh=FIRST_STEPS + 'MeshDashboard(dashboard.trainer)',
    compare="from dreamfusion_nb.dashboard import CompareDashboard\n"
            "compare = CompareDashboard(['a red mug', 'a blue penguin', 'a hamburger'], iters=200)\n"
            "for _ in range(30): compare.step()\ncompare")
WIDTHS = (1024, 1440, 1920)
WIDGET = '.jp-OutputArea-output .dfnb-viewer, .jp-OutputArea-output .dfnb-dashboard'
# what of a widget lies outside the cell's output, or is a text that does not fit where it stands
CUT = """widget => {
  const room = widget.closest('.jp-OutputArea-output').getBoundingClientRect(), found = []
  for (const e of widget.querySelectorAll('*')) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e)
    const name = `${e.tagName.toLowerCase()}.${[...e.classList].at(-1) ?? ''} ${e.textContent.trim().slice(0, 30)}`
    if (!box.width || e.closest('svg')) continue
    if (box.right > room.right + 1) found.push(`${Math.round(box.right - room.right)} px beyond: ${name}`)
    const says = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    if (says && e.scrollWidth > e.clientWidth + 1 && style.overflowX !== 'visible' && style.display !== 'inline')
      found.push(`text cut: ${name}`)
  }
  return [...new Set(found)].slice(0, 12)
}"""


def set_theme(page, dark):
    "JupyterLab's own light or dark theme, from its menu"
    page.get_by_role('menuitem', name='Settings', exact=True).click()
    page.locator('.lm-Menu-item', has_text=re.compile('^Theme$')).first.click()
    page.locator('.lm-Menu-item', has_text=f'JupyterLab {"Dark" if dark else "Light"}').last.click()
    page.wait_for_selector(f'body[data-jp-theme-light="{"false" if dark else "true"}"]', state='attached')
    page.keyboard.press('Escape')
    page.wait_for_timeout(1500)


def pictures(out, names=DASHBOARDS, themes=(False, True), widths=WIDTHS):
    "A PNG of each dashboard in each theme and width of the window; prints what is cut off"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as opened, served('lab', folder) as address:
        for name in names: write_notebook(Path(folder)/f'{name}.ipynb', DASHBOARDS[name])
        for name in names:
            page = open_lab(opened, address, f'{name}.ipynb', width=1440, height=1300)
            run_all(page)
            widget = page.locator(WIDGET).first
            widget.wait_for(timeout=PATIENCE)
            page.wait_for_timeout(4000)
            for dark in themes:
                set_theme(page, dark)
                for width in widths:
                    page.set_viewport_size(dict(width=width, height=1300))
                    page.wait_for_timeout(1500)
                    path = out/f'{name}-{width}-{"dark" if dark else "light"}.png'
                    page.screenshot(path=path)
                    box = widget.bounding_box()
                    print(path, *(f'{box[side]:.0f}' for side in ('width', 'height')), widget.evaluate(CUT), flush=True)
            page.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='outputs/pages', help='folder of the pictures')
    parser.add_argument('--only', nargs='*', choices=DASHBOARDS, default=DASHBOARDS)
    parser.add_argument('--theme', choices=['light', 'dark'], help='only this one')
    parser.add_argument('--width', nargs='*', type=int, default=WIDTHS, help='of the window, pixels')
    o = parser.parse_args()
    pictures(Path(o.out), o.only, {'light': (False,), 'dark': (True,)}.get(o.theme, (False, True)), o.width)


if __name__ == '__main__': main()
