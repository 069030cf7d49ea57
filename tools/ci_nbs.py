"""Runs every notebook as `nbdev_test` does, but each in a process of its own, with its time, its skipped cells and a
count at the end.

python tools/ci_nbs.py [notebooks] [--flags 'cuda slow'] [--workers 2]"""
import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.processors import NBProcessor
from nbdev.test import test_nb


def skipped(path, flags):
    "Number of cells that a test leaves out"
    cells = NBProcessor(path, process=True).nb.cells
    return sum(bool(flags & cell.directives_.keys()) or cell.directives_.get('eval:') == ['false']
               for cell in cells if cell.cell_type == 'code')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path)
    parser.add_argument('--flags', default='')
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    cfg = get_config()
    flags = set(cfg.tst_flags.split()) - set(args.flags.split())
    paths = [path.absolute() for path in args.notebooks] or sorted(path.absolute()
        for path in nbglob(cfg.nbs_path, as_path=True))
    assert paths, 'no notebooks found'
    failed = 0
    with ProcessPoolExecutor(args.workers, max_tasks_per_child=1) as pool:
        for path, (ok, seconds) in zip(paths, pool.map(partial(test_nb, skip_flags=flags, basepath=cfg.config_path),
                                                       paths)):
            failed += not ok
            left_out = skipped(path, flags)
            print(f'{"ok  " if ok else "FAIL"} {seconds:6.1f}s  {path.name}'
                  + (f'  ({left_out} cells skipped)' if left_out else ''), flush=True)
    print(f'{len(paths) - failed} passed, {failed} failed')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
