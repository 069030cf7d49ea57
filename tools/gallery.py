"""Makes the pictures of the README with the default settings and the default seed: python tools/gallery.py

Each prompt runs once, as `dreamfusion PROMPT` would, and two go on as meshes, as with --refine; nothing is chosen
afterwards.

    python tools/gallery.py --scored FOLDER    the two pictures of the held-out prompts instead, from a folder of
                                               `python -m dreamfusion_nb.metrics --prompts heldout24`"""
import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from dreamfusion_nb import load, train
from dreamfusion_nb.benchmark import contact_sheet
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.checkpoints import is_finished
from dreamfusion_nb.run import slug
from dreamfusion_nb.show import image_grid

PROMPTS = ('a hamburger', 'a snowman', 'a red car', 'a duck', 'a green teapot', 'a purple mushroom', 'a house')
REFINED = ('a hamburger', 'a house')
IMAGES = Path(__file__).parents[1]/'nbs/images'


def before_and_after(results, size=192):
    "A row for each result: NeRF and mesh, each in colour and in white light"
    camera = orbit(1, elevation=20, azimuth_start=30)
    views = [r.views(camera, size, shading=s)[0] for pair in results for r in pair for s in ('albedo', 'textureless')]
    return image_grid(torch.stack(views), 4)


def scored(folder):
    "The two pictures of scored prompts"
    folders = sorted(Path(folder).glob('[0-9]*'))
    for i, name in enumerate('ab'):
        contact_sheet(folders[i::2], cols=1).save(IMAGES/f'heldout24-{name}.jpg', quality=60, optimize=True,
                                                  progressive=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='outputs/gallery', help='folder of the results')
    parser.add_argument('--prompts', nargs='*', default=PROMPTS)
    parser.add_argument('--keep', action='store_true', help='what is finished there is not made again')
    parser.add_argument('--scored', metavar='FOLDER',
                        help='make the pictures of the held-out prompts, and nothing else')
    options = parser.parse_args()
    if options.scored: return scored(options.scored)
    def made(folder): return options.keep and is_finished(folder)
    IMAGES.mkdir(exist_ok=True)
    for prompt in options.prompts:
        began = time.time()
        folder = Path(options.out)/slug(prompt)
        if not made(folder): train(prompt, out=folder, overwrite=True)
        picture = Image.open(folder/'preview.png').convert('RGB')
        picture.thumbnail((480, 480))
        picture.save(IMAGES/f'{slug(prompt)}.jpg', quality=76, optimize=True, progressive=True)
        print(f'{prompt}: {time.time() - began:.0f} s, {folder/"preview.png"}', flush=True)
    pairs = []
    for prompt in (p for p in REFINED if p in options.prompts):
        began, folder = time.time(), Path(options.out)/slug(prompt)
        nerf, finer = load(folder), folder.with_name(f'{folder.name}-refined')
        pairs.append((nerf, load(finer) if made(finer) else nerf.refine(overwrite=True)))
        print(f'{prompt} refined: {time.time() - began:.0f} s, {finer/"preview.png"}', flush=True)
    if not pairs: return
    before_and_after(pairs).convert('RGB').save(IMAGES/'refined.jpg', quality=76, optimize=True, progressive=True)


if __name__ == '__main__': main()
