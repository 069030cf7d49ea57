"""What each choice of the default preset does to the scores, one change at a time, on prompts for tuning (never the
held-out ones).

    python benchmarks/ablation.py [--only NAME ...] [--prompts seen12] [--count 12] [--seeds 0] [--jobs 2]
        [--work outputs/ablation] [--out benchmarks/results/NAME.json]

Every variant is a benchmark of its own (`dreamfusion_nb.benchmark.benchmark`) in a folder below --work, so that an
interrupted ablation goes on, and a variant that is added later runs alone. The result file holds the summary and the
per-prompt scores of every variant that is finished, and beside it lies a picture with a row of results for each;
notebook 21b_ablation reads both."""
import argparse
import json
import os
import time
from pathlib import Path

from dreamfusion_nb.benchmark import benchmark, origin, prompt_set, read_views
from dreamfusion_nb.prior_training import write_json
from dreamfusion_nb.show import image_grid

# name -> (what it asks, overrides)
VARIANTS = {
    'default': ('', ()),
    # guidance
    'no Perp-Neg': ('views only named, not kept apart', ('guidance.perp_neg=0',)),
    'Perp-Neg 2': ('', ('guidance.perp_neg=2',)),
    'scale 10 to the end': ('words stay strong', ('guidance.scale_decay=1',)),
    'scale 4 throughout': ('words are weak from the start', ('guidance_scale=4',)),
    'scale 20': ('twice as strong at the start', ('guidance_scale=20',)),
    'w = 1 - a': ("DreamFusion's own weighting", ('guidance.weighting=sds',)),
    'no first part': ('lower noise from the first step', ('guidance.t_range_first=null',)),
    'noise from .5': ('no first part, but a higher start',
                      ('guidance.t_range=[.5,.98]', 'guidance.t_range_first=null')),
    'all noise levels': ('no schedule of t', ('guidance.t_range=[.02,.98]', 'guidance.t_range_end=null',
                                              'guidance.t_range_first=null')),
    'low noise at once': ('detail may come first', ('guidance.t_range=[.02,.98]', 'guidance.t_range_first=null')),
    'high noise to the end': ('', ('guidance.t_range_end=[.02,.58]',)),
    'annealed t': ('HiFA, one path down', ('guidance.timesteps=annealed',)),
    'CSD': ('classifier score distillation', ('guidance.kind=csd',)),
    'NFSD': ('noise-free score distillation', ('guidance.kind=nfsd',)),
    'rescale 0.7': ('CFG rescale', ('guidance.rescale=0.7',)),
    'clamp x0': ('clamped clean latents', ('guidance.clamp_x0=2.5',)),
    # light
    'albedo only': ('no light at all', ('albedo_iter_ratio=1',)),
    'light at once': ('light from the first step', ('albedo_iter_ratio=0',)),
    'never textureless': ('', ('textureless_ratio=0',)),
    # losses
    'no entropy': ('', ('loss.lambda_entropy=0',)),
    'no orientation': ('', ('loss.lambda_orientation=0',)),
    # optimisation
    'steps 500': ('', ('iters=500',)),
    'steps 1500': ('', ('iters=1500',)),
    '2 views, half the steps': ('two cameras a step at the same cost', ('data.train.batch_size=2', 'iters=500')),
    'lr 0.005': ('', ('optim.lr=0.005',)),
    'lr 0.02': ('', ('optim.lr=0.02',)),
    'no lr decay': ('', ('optim.lr_decay=1',)),
    'lr 0.1 from half': ('slower earlier', ('optim.lr_decay=.1', 'optim.lr_decay_start=.5')),
    'fine normals': ('', ('nerf.normal_eps=.01',)),
    'fine grid': ('twice the detail that the latents see', ('nerf.desired_resolution=96',)),
    'from 32 pixels': ('pictures grow over half the run', ('data.train.start_size=32',)),
    'background fixed': ('always white', ('background.random_ratio=0',)),
}


def folder_of(work, name, seed): return Path(work)/f'{name.replace(" ", "-").replace("/", "-")}-seed{seed}'


def write_sheet(path, work, names, seed, view=2, most=6):
    """A row for each variant whose folder is still there, its first prompts in colour and without, seen from one side;
    returns the names of the rows"""
    names = [n for n in names if (folder_of(work, n, seed)/'scores.json').exists()]
    rows = [[v[view] for f in sorted(folder_of(work, n, seed).glob('[0-9]*'))[:most] for v in read_views(f)]
            for n in names]
    tmp = path.with_name('sheet.tmp.png')
    image_grid([picture for row in rows for picture in row], len(rows[0]), pad=0).quantize(128).save(tmp)
    os.replace(tmp, path)
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='*', choices=list(VARIANTS), metavar='NAME', help=', '.join(VARIANTS))
    parser.add_argument('--prompts', default='seen12')
    parser.add_argument('--count', type=int, help='only so many of the prompts, spread evenly')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0])
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--work', default='outputs/ablation')
    parser.add_argument('--out', help='result file (default: below --work)')
    o = parser.parse_args()
    every = prompt_set(o.prompts)
    count = min(o.count or len(every), len(every))
    prompts = [every[i*len(every)//count] for i in range(count)]
    out = Path(o.out or Path(o.work)/'ablation.json')
    found = json.loads(out.read_text()) if out.exists() else dict(prompts=prompts, variants={})
    if found['prompts'] != prompts: parser.error(f'{out} holds scores of other prompts')
    for name in o.only or VARIANTS:
        asks, overrides = VARIANTS[name]
        began = time.time()
        for seed in o.seeds:
            folder = folder_of(o.work, name, seed)
            benchmark(prompts, folder, overrides=[*overrides, f'seed={seed}'], jobs=o.jobs)
            scores = json.loads((folder/'scores.json').read_text())
            entry = found['variants'].setdefault(name, dict(asks=asks, overrides=list(overrides), seeds={}))
            entry['seeds'][str(seed)] = dict(summary=scores['summary'], rows=scores['rows'],
                                             r_color=scores['r_color']['each'], r_geometry=scores['r_geometry']['each'])
            found |= origin() | dict(pictured=write_sheet(out.with_suffix('.png'), o.work, found['variants'],
                                                          o.seeds[0]))
            write_json(out, found)
            print(f'{name}, seed {seed}: {json.dumps(scores["summary"])} ({time.time() - began:.0f} s)', flush=True)


if __name__ == '__main__': main()
