"""Notebooks in a real browser, for the tests and for pictures of the dashboards.

    python tools/pages.py --out /tmp/pages          # a picture of every dashboard, in JupyterLab's light and dark theme
    python tools/pages.py --readme                  # the one in the README, nbs/images/dashboard.jpg
"""
import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from glb import browser

ROOT = Path(__file__).parents[1]


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
        names = ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')
        env = os.environ | {name: f'{own}/{name.lower()}' for name in names}
        env |= dict(PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}', OMP_NUM_THREADS='1', NUMBA_NUM_THREADS='1', MPLBACKEND='module://matplotlib_inline.backend_inline')
        settings = Path(own)/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'
        settings.mkdir(parents=True)
        (settings/'themes.jupyterlab-settings').write_text(json.dumps(dict(theme=f'JupyterLab {"Dark" if dark else "Light"}')))
        (settings/'notification.jupyterlab-settings').write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))
        options = [f'--port={port}', '--no-browser', '--ip=127.0.0.1']
        if kind == 'lab': command = ['-m', 'jupyterlab', *options, '--allow-root', '--IdentityProvider.token=', f'--ServerApp.root_dir={folder}']
        else: command = ['-m', 'voila', *options, '--token=', str(folder)]
        log = open(Path(own)/'log', 'w+')
        server = subprocess.Popen([sys.executable, *command], env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
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
            yield f'http://127.0.0.1:{port}'
        finally:
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


def open_lab(opened, address, name, width=1280, height=1000):
    "A page with a notebook in JupyterLab, its kernel ready"
    page = opened.new_page(viewport=dict(width=width, height=height))
    page.goto(f'{address}/lab/tree/{name}?reset')
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
    page.wait_for_selector('.jp-NotebookPanel-toolbar [data-status="idle"], .jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    return page


def run_all(page):
    "Run, Run All Cells; again if the page was not ready to be told"
    for _ in range(6):
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.locator('.lm-Menu-item', has_text='Run All Cells').first.click()
        try: return page.wait_for_selector('.jp-InputPrompt:has-text("*"), .jp-InputPrompt:has-text("1")', timeout=10_000)
        except Exception: page.keyboard.press('Escape')
    raise RuntimeError('the notebook did not run')


DASHBOARDS = dict(
    viewer="from dreamfusion_nb import toybox\nfrom dreamfusion_nb.viewer import Viewer\nviewer = Viewer(toybox.mesh('a blue penguin'))\nviewer",
    step="from dreamfusion_nb.dashboard import StepDashboard\ndashboard = StepDashboard('a hamburger', iters=300)\nfor _ in range(40): dashboard.driver.step(show=False)\ndashboard",
    field="from dreamfusion_nb.dashboard import FieldDashboard, StepDashboard\nsteps = StepDashboard('a hamburger', iters=300)\nfor _ in range(60): steps.driver.step(show=False)\nFieldDashboard(steps.trainer)",
    mesh="from dreamfusion_nb.dashboard import MeshDashboard, StepDashboard\nsteps = StepDashboard('a hamburger', iters=300)\nfor _ in range(60): steps.driver.step(show=False)\nMeshDashboard(steps.trainer)",
    compare="from dreamfusion_nb.dashboard import CompareDashboard\ncompare = CompareDashboard(['a red mug', 'a blue penguin', 'a hamburger'], iters=200)\nfor _ in range(30): compare.step()\ncompare")


def pictures(out, names=DASHBOARDS, themes=(False, True)):
    "A PNG of each dashboard in each theme"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        for name in names: write_notebook(Path(folder)/f'{name}.ipynb', DASHBOARDS[name])
        for dark in themes:
            with served('lab', folder, dark) as address:
                for name in names:
                    page = open_lab(opened, address, f'{name}.ipynb', height=1300)
                    run_all(page)
                    widget = page.locator('.jp-OutputArea-output .dfnb-viewer, .jp-OutputArea-output .dfnb-dashboard').first
                    widget.wait_for(timeout=120_000)
                    page.wait_for_timeout(4000)
                    path = out/f'{name}-{"dark" if dark else "light"}.png'
                    page.screenshot(path=path)
                    print(path, widget.bounding_box(), flush=True)
                    page.close()


def readme_picture():
    "The step dashboard in mid-run, without the page around it, as nbs/images/dashboard.jpg"
    path = ROOT/'nbs/images/dashboard.jpg'
    with tempfile.TemporaryDirectory() as folder, browser() as opened, served('lab', folder) as address:
        write_notebook(Path(folder)/'step.ipynb', DASHBOARDS['step'].replace('iters=300', 'iters=1000').replace('range(40)', 'range(500)'))
        page = open_lab(opened, address, 'step.ipynb', height=1200)
        run_all(page)
        widget = page.locator('.dfnb-step-dashboard').first
        widget.wait_for(timeout=300_000)
        page.wait_for_timeout(4000)
        widget.screenshot(path=path.with_suffix('.tmp.jpg'), type='jpeg', quality=60)
        os.replace(path.with_suffix('.tmp.jpg'), path)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='outputs/pages', help='folder of the pictures')
    parser.add_argument('--only', nargs='*', choices=DASHBOARDS, default=DASHBOARDS)
    parser.add_argument('--theme', choices=['light', 'dark'], help='only this one')
    parser.add_argument('--readme', action='store_true', help='the picture of the README instead')
    o = parser.parse_args()
    if o.readme: return readme_picture()
    pictures(Path(o.out), o.only, {'light': (False,), 'dark': (True,)}.get(o.theme, (False, True)))


if __name__ == '__main__': main()
