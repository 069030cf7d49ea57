"""Builds what a release publishes, checks it, and uses it as a stranger would.

    python tools/release.py                                    # dist/: the source archive, and the wheel made from it
    python tools/release.py --try python3.11 python3.13        # ... then the wheel in a fresh environment of each
    python tools/release.py --try python3.13 --newest          # ... with the newest release of everything

A try installs the wheel, imports every module with deprecations of ours as errors, makes a red apple by the command in
an empty folder, and runs a notebook that shows a live cell and a dashboard. It asks the package registry, and takes
some minutes a Python, most of them for installing."""
import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import newcomer
from constraints import settings

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT/'constraints.txt'
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith('torch=='))
BUILDERS = ['build', 'twine', 'check-wheel-contents']
NOT_PACKED = ('.', 'Dockerfile', 'binder/')    # of the repository alone
MADE = ('model.glb', 'preview.png', 'turntable.mp4', 'history.jsonl')

IMPORTS = """
import importlib, pkgutil, warnings
warnings.filterwarnings('error', category=DeprecationWarning, module=r'dreamfusion_nb')
warnings.filterwarnings('error', category=FutureWarning, module=r'dreamfusion_nb')
import dreamfusion_nb
names = sorted(m.name for m in pkgutil.iter_modules(dreamfusion_nb.__path__))
for name in names: importlib.import_module('dreamfusion_nb.' + name)
for name in dreamfusion_nb.__all__: getattr(dreamfusion_nb, name)
print(f'{len(names)} modules from {dreamfusion_nb.__path__[0]}')
"""
CELLS = ["from dreamfusion_nb import train\ntrain('a red apple', iters=4, out='apple', **{'data.test.size': 4})",
         "from dreamfusion_nb.dashboard import StepDashboard\nStepDashboard('a red apple')"]
NOTEBOOK = f"""
import nbformat
from nbconvert.preprocessors import ExecutePreprocessor
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in {CELLS}])
book, _ = ExecutePreprocessor(timeout=600, kernel_name='python3').preprocess(book)
for cell in book.cells:
    kinds = {{kind for output in cell.outputs for kind in output.get('data', {{}})}}
    assert any('widget' in kind for kind in kinds) and 'text/html' in kinds, (cell.source, kinds)
print(f'a notebook with {{len(book.cells)}} live cells')
"""


def run(*words, **options):
    "Runs a program; returns its last line, and shows all of it if it fails"
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, **options)
    command = ' '.join(map(str, words))[:300]
    if done.returncode: sys.exit(f'{command}: exit code {done.returncode}\n{done.stdout[-5000:]}')
    return done.stdout.strip().rpartition('\n')[2]


def environment(python, folder, *requirements):
    "A fresh environment with some packages; its folder of programs"
    run(python, '-m', 'venv', folder)
    if requirements: run(folder/'bin/pip', 'install', '-q', '--disable-pip-version-check', *requirements)
    return folder/'bin'


def build(out, scratch):
    "(source archive, wheel) of the checkout: the wheel is made from what the archive holds"
    programs = environment(sys.executable, scratch/'build', *BUILDERS)
    tree = newcomer.copy_of_the_tree(scratch, pages=True)
    run(programs/'python', '-m', 'build', '--outdir', out, tree)
    version = settings()['version']
    made = out/f'dreamfusion_nb-{version}.tar.gz', out/f'dreamfusion_nb-{version}-py3-none-any.whl'
    run(programs/'twine', 'check', '--strict', *made)
    run(programs/'check-wheel-contents', made[1])
    return made


def metadata(wheel):
    "What a wheel says of itself"
    with zipfile.ZipFile(wheel) as file:
        name, = (name for name in file.namelist() if name.endswith('.dist-info/METADATA'))
        return message_from_bytes(file.read(name))


def missing_in_archive(archive, tracked):
    "Files of the repository that a source archive lacks, of those that belong into it"
    with tarfile.open(archive) as file: held = {name.partition('/')[2] for name in file.getnames()}
    return sorted(name for name in tracked if not name.startswith(NOT_PACKED) and name not in held)


def try_wheel(python, wheel, scratch, newest, iters):
    "Uses a wheel in a fresh environment of a Python; lines that say what came of it"
    pins = [] if newest else ['-c', CONSTRAINTS]
    programs = environment(python, scratch, *pins, TORCH)    # first, so that nothing else chooses a build of it
    pip = [programs/'pip', '--disable-pip-version-check']
    run(*pip, 'install', '-q', *pins, wheel, 'nbconvert', 'ipykernel')
    run(*pip, 'check')
    empty = scratch/'empty'
    empty.mkdir()    # so that nothing comes from the checkout
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'JUPYTER_PATH')}
    there = dict(cwd=empty, env=env | dict(HF_HUB_OFFLINE='1'))
    yield run(programs/'python', '-c', IMPORTS, **there)
    run(programs/'dreamfusion', 'a red apple', '--iters', iters, **there)
    small = [name for name in MADE if not (empty/'outputs/a-red-apple'/name).stat().st_size]
    assert not small, small
    yield f'a red apple of {iters} steps'
    yield run(programs/'python', '-c', NOTEBOOK, **there)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT/'dist')
    parser.add_argument('--try', dest='pythons', nargs='*', default=[], metavar='PYTHON')
    parser.add_argument('--newest', action='store_true', help='of everything, but for torch; not constraints.txt')
    parser.add_argument('--iters', default='60')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='dreamfusion-wheel-') as name:
        scratch = Path(name)
        archive, wheel = build(args.out.absolute(), scratch)
        missing = missing_in_archive(archive, newcomer.tracked())
        if missing: sys.exit(f'MANIFEST.in forgets {", ".join(missing)}')
        for path in (archive, wheel): print(f'{path}  {path.stat().st_size:,} bytes', flush=True)
        for i, python in enumerate(args.pythons):
            for line in try_wheel(python, wheel, scratch/f'try-{i}', args.newest, args.iters):
                print(f'{python}: {line}', flush=True)


if __name__ == '__main__': main()
