"""What a picture of the front does for an object, and for the sides that it does not show: the same prompts and seeds
with words alone and with a picture, in turns.

    python benchmarks/picture.py [--prompts heldout24] [--first N] [--seed 0] [--work outputs/picture] [--table]
        [key=value ...]

The pictures are renderings of the toys, so all sides are known. Interrupted, the same command goes on; `--table` prints
what is finished. Unseen are the pictures from more than 60° beside the front, at 15° of elevation."""
import argparse
import json
from pathlib import Path

import numpy as np

from dreamfusion_nb import load, toybox
from dreamfusion_nb.benchmark import prompt_set, run_prompt
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.metrics import around, psnr
from dreamfusion_nb.prior_training import write_json

VARIANTS = 'words', 'picture'
MEASURES = dict(f_score='F', iou='IoU', unseen='PSNR unseen', shape_psnr='PSNR shape', one_front='one front',
                agreement='views', seconds='s')


def unseen(folder, prompt):
    "PSNR of the pictures from beside and behind, dB"
    cameras = around()
    beside = ((cameras.azimuth + 180) % 360 - 180).abs() > 60
    cameras = cameras[beside]
    return psnr(load(folder).views(cameras, 128, background=(1., 1., 1.)),
                toybox.render(prompt, cameras, 128)).mean().item()


def make(work, prompts, overrides):
    "Train and score every prompt, first with words, then with its picture"
    pictures = work/'pictures'
    pictures.mkdir(parents=True, exist_ok=True)
    for prompt in prompts:
        name = prompt.replace(' ', '-')
        toybox.cut_out(prompt, orbit(1, elevation=15.)).save(pictures/f'{name}.png')
        for variant in VARIANTS:
            folder = work/variant/name
            known = f'reference.images={pictures}/{name}.png', 'reference.fit=null'
            run_prompt(prompt, folder, 'toybox', (*overrides, *known) if variant == 'picture' else overrides)
            if not (folder/'unseen.json').exists(): write_json(folder/'unseen.json', unseen(folder, prompt))


def scores(work, prompts):
    "{variant: one row a prompt that both have finished}"
    def row(variant, name):
        found = json.loads((work/variant/name/'score.json').read_text())
        return found | dict(unseen=json.loads((work/variant/name/'unseen.json').read_text()))
    names = [prompt.replace(' ', '-') for prompt in prompts]
    names = [name for name in names if all((work/variant/name/'unseen.json').exists() for variant in VARIANTS)]
    return {variant: [row(variant, name) for name in names] for variant in VARIANTS}


def value(row, key):
    if key in ('one_front', 'agreement') and not row['has_front']: return np.nan
    found = row['fronts'] == 1 if key == 'one_front' else row[key]
    return np.nan if found is None else float(found)


def table(found):
    "Markdown: means and, below, in how many prompts the picture is better"
    lines = ['| | ' + ' | '.join(MEASURES.values()) + ' |', '| --- '*(len(MEASURES) + 1) + '|']
    each = {variant: {key: np.array([value(row, key) for row in rows]) for key in MEASURES}
            for variant, rows in found.items()}
    for variant, columns in each.items():
        lines.append(f'| {variant} | ' + ' | '.join(f'{np.nanmean(v):.3f}' for v in columns.values()) + ' |')
    pairs = [(each['words'][key], each['picture'][key]) for key in MEASURES]
    better = [f'{(b > a).sum()} of {(~np.isnan(b - a)).sum()}' for a, b in pairs]
    lines.append('| picture is higher in | ' + ' | '.join(better) + ' |')
    lines += ['', f'{len(found["words"])} prompts, means']
    for key in ('f_score', 'unseen'):
        lines += ['', f'{MEASURES[key]}, words and picture: ' + '; '.join(
            f'{row["prompt"]} {a:.3g}, {b:.3g}' for row, a, b in zip(found['words'], each['words'][key],
                                                                    each['picture'][key]))]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prompts', default='heldout24')
    parser.add_argument('--first', type=int, help='so many of them')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work', type=Path, default=Path('outputs/picture'))
    parser.add_argument('--table', action='store_true', help='print what is finished, make nothing')
    parser.add_argument('overrides', metavar='key=value', nargs='*')
    o = parser.parse_args()
    prompts = prompt_set(o.prompts)[:o.first]
    if not o.table: make(o.work, prompts, (*o.overrides, f'seed={o.seed}'))
    print(table(scores(o.work, prompts)))


if __name__ == '__main__': main()
