"""Runs the tutorials as a newcomer does who installed the package and JupyterLab, and nothing for its development.

    python tools/newcomer.py [notebooks] [--workers 2] [--env FOLDER]

It makes an environment in which the package is installed from its wheel, beside what `pip install .` and `pip install
jupyterlab` bring along and nothing else. Those packages are links into the environment that runs this, so it takes
seconds and no network. Each notebook is run by its Jupyter kernel in its own folder; cells that are marked slow, cuda
or `eval: false` are left out."""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

from constraints import closure, requirements
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT/'nbs/tutorials'
LEFT_OUT = r'^#\|\s*(slow|cuda|eval:\s*false)\b'

# run in the newcomer's Python: the notebook's path, then the names that must not be importable
RUN = f"""
import re, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
path, absent = Path(sys.argv[1]), sys.argv[2:]
book = nbformat.read(path, as_version=4)
check = f'''import importlib.util, sys, dreamfusion_nb
assert sys.prefix == {{sys.prefix!r}}, sys.prefix
assert dreamfusion_nb.__file__.startswith(sys.prefix), dreamfusion_nb.__file__
for name in {{absent}}: assert importlib.util.find_spec(name) is None, name'''
kept = [c for c in book.cells if c.cell_type == 'code' and not re.search(r'{LEFT_OUT}', c.source, re.M)]
book.cells = [nbformat.v4.new_code_cell(check), *kept]
book.metadata.pop('kernelspec', None)
NotebookClient(book, timeout=1200, kernel_name='python3', resources=dict(metadata=dict(path=path.parent))).execute()
"""


def tracked():
    "The files that git knows or would take"
    listed = subprocess.run(['git', 'ls-files', '-z', '-co', '--exclude-standard'], cwd=ROOT, check=True,
                            capture_output=True).stdout
    return [name for name in listed.decode().split('\0') if name and (ROOT/name).is_file()]


def copy_of_the_tree(folder, pages=False):
    "What git tracks, without the pages unless they are wanted: so a build leaves nothing in the checkout"
    for name in tracked():
        if name.startswith('nbs/') and not pages: continue
        target = folder/'tree'/name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT/name).read_bytes())
    return folder/'tree'


def build_wheel(folder):
    "The wheel of this checkout, built in an empty folder"
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder/'wheel']
    subprocess.run([*build, copy_of_the_tree(folder)], check=True)
    wheel, = (folder/'wheel').glob('*.whl')
    return wheel


def users_packages(): return closure([*requirements('requirements'), 'jupyterlab'])


def top_levels(dist):
    "First part of the path of each installed file, of those in site-packages"
    return {path.parts[0] for path in dist.files or [] if path.parts[0] not in ('..', '__pycache__')}


def modules_of(dist):
    return {n.split('.')[0] for n in top_levels(dist) if not n.endswith(('.dist-info', '.pth', '.libs'))}


def developers_modules():
    "Names that only an installation for development can import"
    users = users_packages()
    theirs = set().union(*map(modules_of, users.values()))
    others = {canonicalize_name(d.name): d for d in distributions()}
    only = set().union(*(modules_of(d) for n, d in others.items() if n not in users)) - theirs
    return sorted(n for n in only if n.isidentifier() and not n.startswith('_') and n not in ('dreamfusion_nb', 'pip'))


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists(): target.symlink_to(source)


def make_environment(folder):
    "The newcomer's Python, in an empty folder"
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    python = folder/'bin/python'
    where = subprocess.run([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], check=True,
                           capture_output=True, text=True)
    site, users = Path(where.stdout.strip()), users_packages().values()
    shared = Counter(name for dist in users for name in top_levels(dist))
    for dist in users:
        for name in top_levels(dist):
            if shared[name] == 1: link(Path(dist.locate_file(name)).resolve(), site/name)
        for path in dist.files:
            if shared[path.parts[0]] > 1 and '__pycache__' not in path.parts:
                link(Path(dist.locate_file(path)).resolve(), site/path)
    with zipfile.ZipFile(build_wheel(folder)) as wheel: wheel.extractall(site)
    return python


def run(python, path, absent=()):
    "(whether a notebook runs through, seconds, the end of what it says)"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'JUPYTER_PATH')}
    env |= dict(JUPYTER_DATA_DIR=str(python.parents[1]/'jupyter'), JUPYTER_PREFER_ENV_PATH='1', HF_HUB_OFFLINE='1')
    began = time.monotonic()
    done = subprocess.run([python, '-c', RUN, path, *absent], env=env, cwd=path.parent, capture_output=True, text=True)
    said = re.sub(r'\x1b\[[0-9;]*m', '', done.stdout + done.stderr)
    return done.returncode == 0, time.monotonic() - began, said[-3000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--env', type=Path,
                        help='make the environment here and keep it; one that exists is used as it is')
    args = parser.parse_args()
    paths = [path.absolute() for path in args.notebooks] or sorted(TUTORIALS.glob('*.ipynb'))
    # those that train most begin first, so that none of them is left over at the end
    paths.sort(key=lambda path: -path.read_text(encoding='utf-8').count(' train('))
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.env or Path(scratch)/'env').absolute()
        python = folder/'bin/python' if folder.exists() else make_environment(folder)
        absent = developers_modules()
        print(f'{len(users_packages())} packages; not there: {", ".join(absent)}', flush=True)
        failed = 0
        with ThreadPoolExecutor(args.workers) as pool:
            for path, (ok, seconds, said) in zip(paths, pool.map(lambda path: run(python, path, absent), paths)):
                failed += not ok
                print(f'{"ok  " if ok else "FAIL"} {seconds:6.1f}s  {path.name}' + ('' if ok else f'\n{said}'),
                      flush=True)
    print(f'{len(paths) - failed} passed, {failed} failed')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
