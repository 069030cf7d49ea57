"""What the mesh stage does to the scores: every prompt as a NeRF, then refined, both scored against the truth.

    python benchmarks/refine.py [--prompts heldout24] [--jobs 2] [--work outputs/refine] [--out
        benchmarks/results/refine.json]

Interrupted, the same command goes on. Beside the result file lies a picture, read by notebook 21c_refine: some prompts
as NeRFs and as meshes, in colour and without."""
import argparse
import json
import os
from pathlib import Path

from dreamfusion_nb.benchmark import benchmark, prompt_set, read_views
from dreamfusion_nb.prior_training import write_json
from dreamfusion_nb.show import image_grid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prompts', default='heldout24')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--work', default='outputs/refine')
    parser.add_argument('--out', help='result file (default: below --work)')
    o = parser.parse_args()
    prompts, work = prompt_set(o.prompts), Path(o.work)
    benchmark(prompts, work/'nerfs', jobs=o.jobs)
    benchmark(prompts, work/'meshes', 'toybox-dmtet', nerfs=work/'nerfs', jobs=o.jobs)
    found = {stage: json.loads((work/stage/'scores.json').read_text()) for stage in ('nerfs', 'meshes')}
    out = Path(o.out or work/'refine.json')
    pictured = prompts[::3]
    folders = [[sorted((work/stage).glob('[0-9]*'))[i] for stage in found] for i in range(0, len(prompts), 3)]
    rows = [[read_views(folder)[kind][2] for pair in folders for folder in pair] for kind in range(2)]
    tmp = out.with_name('refine.tmp.png')
    image_grid([picture for row in rows for picture in row], 2*len(folders), pad=0).quantize(128).save(tmp)
    os.replace(tmp, out.with_suffix('.png'))
    write_json(out, found | dict(prompts=prompts, pictured=pictured))
    for stage, scores in found.items(): print(stage, json.dumps(scores['summary']))


if __name__ == '__main__': main()
