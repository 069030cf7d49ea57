"""Views a second for one to four workers, and how a step grows with splats, rays, levels and prompts.

    python benchmarks/scaling.py [--presets toybox splats] [--workers 1 2 3 4] [--views 4] [--formed 40] [--rounds 8]
        [--steps 2] [--out benchmarks/results/scaling] [key=value ...]

All trainers of a preset have the same seed, so they do the same steps, to the bit. They take them in turns, `--steps`
at a time; a ratio is that of neighbours in a turn, and the median over the turns is printed, because other programs on
the machine then slow all alike. `batch` is a run without workers, whose views are one batch. `waits` is the part of a
step in which the first process talks to the others or waits for them; it costs no processor time.

Growth is processor time on one thread, the median of a few steps of one view. With prompts it is that of whole runs of
`--steps` steps one after the other, with one diffusion model for all.

With `--out NAME` the numbers go to NAME.json and the plot to NAME.png. A machine with fewer cores than workers says
little about these."""
import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import torch
from step import machine

from dreamfusion_nb import Trainer, load_config, scale
from dreamfusion_nb.prior import toybox_prior

GROWTH = {    # what grows: (preset, values, the keys that a value sets)
    'splats': ('splats', (500, 1000, 2000, 4000, 8000), lambda n: {'splats.count': n}),
    'rays': ('toybox', (16, 32, 48, 64, 96), lambda n: {'data.train.width': n, 'data.train.height': n}),
    'levels': ('toybox', (2, 4, 8, 12, 16), lambda n: {'nerf.n_levels': n})}
PROMPTS = ('a hamburger', 'a duck', 'a robot', 'a snowman', 'a house', 'a red car')


def settings(preset, words, **more): return load_config(preset, dict(prompt='a hamburger'), *words, more)


class Waits:
    "Seconds in the functions that talk to the other workers"
    def __init__(self):
        self.spent = 0.
        for name in ('send_job', 'collect'): setattr(scale, name, self.timed(getattr(scale, name)))

    def timed(self, function):
        def run(*args):
            began = time.perf_counter()
            try: return function(*args)
            finally: self.spent += time.perf_counter() - began
        return run


def crew(preset, workers, args, model):
    "Trainers by their number of workers, after the same first steps, all workers there"
    trainers = {}
    for n in [None, *workers]:
        config = settings(preset, args.overrides, **{'data.train.batch_size': args.views})
        trainers[n] = Trainer(config, model if n in (None, 1) else None, workers=n)
    for n, trainer in trainers.items():
        while (n or 1) > 1 and not trainer.team.here(trainer): time.sleep(.05)
        trainer.fit(args.formed)
        # the lit part of a run, which costs most
        trainer.config = trainer.config.replace(dict(latent_iter_ratio=0, albedo_iter_ratio=0))
    return trainers


def views_a_second(preset, args, model, waits):
    "Rows (workers, views a second, times that of one worker, share of waiting), in turns"
    trainers, took, waited = crew(preset, args.workers, args, model), defaultdict(list), defaultdict(list)
    for turn in range(args.rounds):
        order = list(trainers)
        for n in order if turn % 2 else order[::-1]:    # there and back, so that a drift touches all alike
            waits.spent, began = 0., time.perf_counter()
            trainers[n].fit(args.steps)
            took[n].append(time.perf_counter() - began)
            waited[n].append(waits.spent/took[n][-1])
    for trainer in trainers.values():
        if trainer.team: trainer.team.rest()
    rows = []
    for n, times in took.items():
        ratio = statistics.median(one/this for one, this in zip(took[1], times))
        rows.append(dict(workers=n, views=args.views*args.steps/statistics.median(times), ratio=ratio,
                         waits=statistics.median(waited[n])))
    return rows


def step_cost(config, model, steps=4):
    "Processor milliseconds of a step"
    trainer, times = Trainer(config, model), []
    trainer.fit(2)
    trainer.config = trainer.config.replace(dict(latent_iter_ratio=0, albedo_iter_ratio=0))
    for _ in range(steps):
        began = time.process_time()
        trainer.fit(1)
        times.append(1000*(time.process_time() - began))
    return statistics.median(times)


def growth(args, model):
    "What grows -> [(value, processor milliseconds)]"
    found = {name: [(n, step_cost(settings(preset, [], **keys(n)), model)) for n in values]
             for name, (preset, values, keys) in GROWTH.items()}
    found['prompts'] = []
    for n in (1, 2, 4, 6):
        began = time.process_time()
        for prompt in PROMPTS[:n]: Trainer(load_config('splats', dict(prompt=prompt)), model).fit(args.steps)
        found['prompts'].append((n, 1000*(time.process_time() - began)))
    return found


def plot(scaling, grown, path):
    figure, (axes,) = plt.subplots(1, 1 + len(grown), figsize=(3*(1 + len(grown)), 2.6), squeeze=False)
    for preset, rows in scaling.items():
        rows = [row for row in rows if row['workers']]
        axes[0].plot([r['workers'] for r in rows], [r['views'] for r in rows], 'o-', label=preset)
    axes[0].set(xlabel='workers', ylabel='views a second', ylim=(0, None))
    axes[0].legend()
    for ax, (name, points) in zip(axes[1:], grown.items()):
        x, y = zip(*points)
        ax.plot(x, y, 'o-')
        ax.set(xlabel='pixels an edge' if name == 'rays' else name, ylim=(0, None),
               ylabel='ms of processor time' + ', all' * (name == 'prompts'))
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--presets', nargs='*', default=['toybox', 'splats'])
    p.add_argument('--workers', nargs='*', type=int, default=[1, 2, 3, 4])
    p.add_argument('--views', type=int, default=4, help='a step')
    p.add_argument('--formed', type=int, default=40, help='steps before the first measured one')
    p.add_argument('--rounds', type=int, default=8, help='turns')
    p.add_argument('--steps', type=int, default=2, help='of a turn, and of a prompt')
    p.add_argument('--no-growth', action='store_true', help='leave out how a step grows')
    p.add_argument('--out', help='name of the files to write, without ending')
    p.add_argument('overrides', nargs='*', metavar='key=value')
    args = p.parse_args()
    if 1 not in args.workers: args.workers.insert(0, 1)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    model, waits, scaling = toybox_prior('cpu'), Waits(), {}
    for preset in args.presets:
        scaling[preset] = views_a_second(preset, args, model, waits)
        for row in scaling[preset]:
            name = f'{row["workers"]} worker{"s"*(row["workers"] > 1)}' if row['workers'] else 'batch'
            print(f'{preset:10} {name:10} {row["views"]:6.1f} views/s   {row["ratio"]:.2f} x one worker   waits '
                  f'{row["waits"]:.0%}', flush=True)
    grown = {} if args.no_growth else growth(args, model)
    for name, points in grown.items():
        print(f'{name:10} ' + '   '.join(f'{n}: {ms:.0f} ms' for n, ms in points), flush=True)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        found = dict(machine=machine(), scaling=scaling, growth=grown)
        Path(f'{args.out}.json').write_text(json.dumps(found, indent=1))
        plot(scaling, grown, f'{args.out}.png')


if __name__ == '__main__': main()
