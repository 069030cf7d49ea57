"""Splats or a NeRF first, and how many views a step? Every prompt of both sets by each, and each as a mesh; paired.

    python benchmarks/first_stage.py [--sets heldout24 seen12] [--seeds 0 1 2] [--variants nerf splats ...] [--no-mesh]
        [--jobs 2] [--work outputs/first_stage] [--out FILE.json] [--table]

Interrupted, the same command goes on; `--table` prints what is finished so far and makes nothing. `splats` is the
preset: 500 steps, which with all that is around them take half the time of the NeRF's 1000. `splats-equal` has 1,200
and takes as long as the NeRF; `splats-grow` begins with a third of the splats and adds where the pull is strong.
`multiview` is a NeRF by the prior of four views, `rings` the same four views a step by the prior of single pictures,
with Perp-Neg."""
import argparse
import json
from pathlib import Path

import numpy as np

from dreamfusion_nb.benchmark import benchmark, prompt_set
from dreamfusion_nb.prior_training import write_json

GROW = ('splats.count=1000', 'splats.max_count=3000', 'splats.grow_share=.3')
RINGS = ('iters=350', 'data.train.batch_size=4', 'data.train.n_view=4')
VARIANTS = {'nerf': ('toybox', ()), 'splats': ('splats', ()), 'splats-equal': ('splats', ('iters=1200',)),
            'splats-grow': ('splats', GROW), 'multiview': ('multiview', ()), 'rings': ('toybox', RINGS)}
MEASURES = {'r_geometry': 'R geometry', 'r_color': 'R colour', 'f_score': 'F', 'iou': 'IoU', 'psnr': 'PSNR',
            'shape_psnr': 'PSNR shape', 'one_front': 'one front', 'agreement': 'views'}


def folder_of(work, variant, prompts, seed, mesh): return work/f'{variant}-{prompts}-{seed}{"-mesh"*mesh}'


def make(work, variant, prompts, seed, mesh, jobs):
    "Train and score a set of prompts with one variant and seed, and as meshes"
    preset, overrides = VARIANTS[variant]
    first = folder_of(work, variant, prompts, seed, False)
    benchmark(prompt_set(prompts), first, preset, (*overrides, f'seed={seed}'), jobs=jobs)
    if mesh: benchmark(prompt_set(prompts), folder_of(work, variant, prompts, seed, True), 'toybox-dmtet', nerfs=first,
                       jobs=jobs)


def scores(folder):
    "One row a prompt of a finished set: measure -> values (views only of what has a front, NaN elsewhere)"
    if not (folder/'scores.json').exists(): return None
    found = json.loads((folder/'scores.json').read_text())
    def of(row, key):
        if key in ('one_front', 'agreement') and not row['has_front']: return np.nan
        value = row['fronts'] == 1 if key == 'one_front' else row[key]
        return np.nan if value is None else float(value)
    rows = {key: np.array([of(row, key) for row in found['rows']]) for key in MEASURES if not key.startswith('r_')}
    rows |= {key: np.array(found[key]['each'], float) for key in ('r_color', 'r_geometry')}
    seconds = [row['seconds'] for row in found['rows'] if row['seconds']]
    return rows | dict(seconds=np.array(seconds))


def collect(work, sets, seeds, mesh):
    "{variant: {(set, seed): scores}}, only what is finished"
    found = {variant: {(prompts, seed): scores(folder_of(work, variant, prompts, seed, mesh)) for prompts in sets
                       for seed in seeds} for variant in VARIANTS}
    return {variant: {key: rows for key, rows in runs.items() if rows} for variant, runs in found.items()}


def interval(differences, rounds=10_000):
    "Mean of paired differences, and its bootstrap interval of 95 %"
    d = differences[~np.isnan(differences)]
    means = np.random.default_rng(0).choice(d, (rounds, len(d))).mean(1)
    return d.mean(), *np.quantile(means, [.025, .975])


def table(runs, base='nerf'):
    "Markdown: a line for each variant; means, medians of F and PSNR, and paired differences from the base"
    lines = ['| variant | runs | F median | PSNR median | PSNR shape median | '
             + ' | '.join(f'{title}, mean (difference)' for title in MEASURES.values()) + ' | s |',
             '|'.join(['', *['---']*(len(MEASURES) + 6), ''])]
    for variant, found in runs.items():
        if not found: continue
        together = {key: np.concatenate([rows[key] for rows in found.values()]) for key in (*MEASURES, 'seconds')}
        shared = [key for key in found if key in runs[base]]
        cells = []
        for key in MEASURES:
            cell = f'{np.nanmean(together[key]):.3f}'
            if variant != base and shared:
                pairs = np.concatenate([found[run][key] - runs[base][run][key] for run in shared])
                mean, low, high = interval(pairs)
                cell += f' ({mean:+.3f}, {low:+.3f} to {high:+.3f})'
            cells.append(cell)
        medians = [f'{np.nanmedian(together[key]):.3f}' for key in ('f_score', 'psnr', 'shape_psnr')]
        seconds = f'{np.median(together["seconds"]):.0f}' if len(together['seconds']) else ''
        names = ', '.join(f'{prompts} {seed}' for prompts, seed in found)
        lines.append(f'| {variant} | {names} | ' + ' | '.join([*medians, *cells, seconds]) + ' |')
    return '\n'.join(lines)


def as_json(runs):
    "variant -> run -> measure -> values, None where there is none"
    def plain(values): return [None if np.isnan(value) else value for value in values.tolist()]
    def named(each): return {f'{prompts}-{seed}': {key: plain(values) for key, values in rows.items()}
                             for (prompts, seed), rows in each.items()}
    return {variant: named(each) for variant, each in runs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sets', nargs='+', default=['heldout24', 'seen12'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument('--no-mesh', dest='mesh', action='store_false')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--work', type=Path, default=Path('outputs/first_stage'))
    parser.add_argument('--out', type=Path, help='also write all scores as JSON')
    parser.add_argument('--table', action='store_true', help='print what is finished, make nothing')
    o = parser.parse_args()
    if not o.table:
        for seed in o.seeds:
            for prompts in o.sets:
                for variant in o.variants: make(o.work, variant, prompts, seed, o.mesh, o.jobs)
    found = {stage: collect(o.work, o.sets, o.seeds, mesh) for stage, mesh in (('first stage', False), ('mesh', True))}
    for stage, runs in found.items():
        if any(runs.values()): print(f'\n{stage}\n\n{table(runs)}')
    if o.out: write_json(o.out, {stage: as_json(runs) for stage, runs in found.items()})


if __name__ == '__main__': main()
