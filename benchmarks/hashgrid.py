"""Hash grid, forward + backward: every backend that is there against plain torch, taken in turns in one run.

    python benchmarks/hashgrid.py [--points 131072] [--rounds 5] [--threads 2] [--device cuda]

All compute the same thing from the same inputs, with the same number of threads (but Warp, which takes one of a
processor): features of random points, then the gradient of the tables, freshly allocated, as a training step does it.
The torch side is the definition in `dreamfusion_nb.hashgrid`: one loop over levels, all points and corners of a level
at once, `index_select` (its backward, `index_add_`, was the fastest of torch's gathers here). Times beside other jobs
mean little; the ratio holds.
"""
import os

# torch's threads then sleep rather than spin: beside another job that is a hundred times fairer to torch
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import argparse
import statistics
import time

import torch

from dreamfusion_nb.hashgrid import ENCODERS, HashGrid, encoder_trouble

SETTINGS = {'16 levels x 2, 2^19 entries, 16 to 2048': dict(),
            '8 levels x 2, 2^15 entries, 8 to 96 (toybox)': dict(n_levels=8, log2_hashmap_size=15, base_resolution=8,
                per_level_scale=12**(1/7))}


def step(grid, backend, x, weight):
    "Seconds of wall time and of processor time for one forward + backward pass"
    grid.backend, grid.params.grad = backend, None
    if x.device.type == 'cuda': torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    grid(x).backward(weight)
    if x.device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--points', type=int, default=131072)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--device', default='cpu')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    g, device = torch.Generator().manual_seed(0), torch.device(a.device)
    backends = [b for b in ENCODERS if not encoder_trouble(b, device)]
    print(f'{a.points:,} random points, forward + backward, {device}, {a.threads} threads, median of {a.rounds} rounds '
          f'taken in turns')
    for name, kw in SETTINGS.items():
        grid = HashGrid(**kw, generator=g).to(device)
        x = torch.rand(a.points, 3, generator=g).to(device)
        weight = torch.randn(a.points, grid.n_output_dims, generator=g).to(device)
        times, weights = {b: [] for b in backends}, {}
        for b in times:  # compile; and lay the gradient out like the features, as the network behind them does
            grid.backend = b
            weights[b] = torch.empty_like(grid(x)).copy_(weight)
            step(grid, b, x, weights[b])
        for _ in range(a.rounds):
            for b in times: times[b].append(step(grid, b, x, weights[b]))
        print(f'{name}:')
        for b in times:
            wall, cpu = (statistics.median(t) for t in zip(*times[b]))
            ratio = statistics.median(t[0]/n[0] for n, t in zip(times[b], times['torch']))
            print(f'  {b:10} {wall:.4f} s (processor {cpu:.4f} s)   torch/{b} {ratio:.1f}')


if __name__ == '__main__': main()
