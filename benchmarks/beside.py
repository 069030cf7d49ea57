"""A run alone, and beside one and two busy processes; and what threads give, alone and beside them.

    python benchmarks/beside.py [--busy 0 1 2] [--rounds 3] [--iters 40] [--out NAME.json] [key=value ...]
    python benchmarks/beside.py --threads 1 2 [--preset dreamfusion] [--steps 2] [--rounds 4] [key=value ...]

The first form times the whole command, from its start to its last file, with as many threads as it chooses. The second
one times steps of one trainer, with each number of threads. Both take turns: alone, beside one process that does
nothing but keep a core busy, beside two, and again; a ratio compares neighbours in a turn, and the median over the
turns is printed. On a machine that has other work, `alone` is not alone, and the ratios come out too small. `cpu` is
processor time.

How threads wait is fixed when PyTorch is imported. The package asks for passive waiting; to compare:

    OMP_WAIT_POLICY=active python benchmarks/beside.py --threads 2 --preset dreamfusion
"""
import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager

from dreamfusion_nb import Trainer, load_config    # isort: skip    before torch: it says how threads wait
import torch
from step import machine

BUSY = 'while True: pass'


@contextmanager
def busy_processes(n):
    "As many processes that keep a core busy each, stopped at first"
    processes = [subprocess.Popen([sys.executable, '-c', BUSY]) for _ in range(n)]
    try:
        for p in processes: p.send_signal(signal.SIGSTOP)
        yield processes
    finally:
        for p in processes: p.kill()


@contextmanager
def beside(processes):
    "A block beside which they run"
    for p in processes: p.send_signal(signal.SIGCONT)
    try: yield
    finally:
        for p in processes: p.send_signal(signal.SIGSTOP)


def one_run(args):
    "(seconds, processor seconds) of a whole command"
    with tempfile.TemporaryDirectory() as folder:
        words = [args.prompt, '--preset', args.preset, '--iters', str(args.iters), '--out', f'{folder}/out']
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, '-m', 'dreamfusion_nb.cli', *words, *args.overrides], check=True,
                       capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_steps(args):
    "What measures (seconds, processor seconds) of steps with a number of threads"
    trainer = Trainer(load_config(args.preset, dict(prompt=args.prompt), *args.overrides))
    trainer.fit(2)

    def measure(threads):
        torch.set_num_threads(threads)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(args.steps): trainer.step()
        return (time.perf_counter() - began)/args.steps, (time.process_time() - cpu)/args.steps
    return measure


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--busy', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--threads', nargs='*', type=int, default=[], help='measure steps, with these numbers')
    p.add_argument('--preset', default='toybox')
    p.add_argument('--prompt', default='a hamburger')
    p.add_argument('--rounds', type=int, default=3, help='turns')
    p.add_argument('--iters', type=int, default=40, help='of a whole run')
    p.add_argument('--steps', type=int, default=2, help='of a turn, with --threads')
    p.add_argument('--out', help='also write the numbers as JSON')
    p.add_argument('overrides', nargs='*', metavar='key=value')
    args = p.parse_args()
    if args.threads: os.environ['OMP_NUM_THREADS'] = str(max(args.threads))    # the user has chosen
    print(machine(), flush=True)
    measure = make_steps(args) if args.threads else lambda _: one_run(args)
    times, rows = defaultdict(list), []
    with busy_processes(max(args.busy)) as processes:
        for turn in range(args.rounds):
            order = [(threads, n) for threads in args.threads or [None] for n in args.busy]
            for threads, n in order[::-1] if turn % 2 else order:
                with beside(processes[:n]): times[threads, n].append(measure(threads))
    for (threads, n), found in sorted(times.items(), key=str):
        first = times[(args.threads or [None])[0], args.busy[0]]
        ratio = statistics.median(here[0]/alone[0] for here, alone in zip(found, first))
        wall, cpu = (statistics.median(part) for part in zip(*found))
        rows.append(dict(threads=threads, busy=n, seconds=wall, cpu=cpu, ratio=ratio))
        name = f'{threads} thread{"s"*(threads > 1)}, ' if threads else ''
        print(f'{name}beside {n}: {wall:7.2f} s   cpu {cpu:7.2f} s   {ratio:.2f} x the first', flush=True)
    if args.out:
        with open(args.out, 'w') as f: json.dump(dict(machine=machine(), rows=rows), f, indent=1)


if __name__ == '__main__': main()
