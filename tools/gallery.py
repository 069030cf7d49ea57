"""Makes the pictures of the README with the default settings and the default seed: python tools/gallery.py

Each prompt runs once, as `dreamfusion PROMPT` would; nothing is chosen afterwards."""
import argparse
import time
from pathlib import Path

from PIL import Image

from dreamfusion_nb import train
from dreamfusion_nb.trainer import slug

PROMPTS = ('a hamburger', 'a snowman', 'a red car', 'a duck', 'a green teapot', 'a purple mushroom', 'a house')
IMAGES = Path(__file__).parents[1]/'nbs/images'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='outputs/gallery', help='folder of the results')
    parser.add_argument('--prompts', nargs='*', default=PROMPTS)
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    for prompt in options.prompts:
        began = time.time()
        folder = Path(options.out)/slug(prompt)
        train(prompt, out=folder, overwrite=True)
        picture = Image.open(folder/'preview.png').convert('RGB')
        picture.thumbnail((480, 480))
        picture.save(IMAGES/f'{slug(prompt)}.jpg', quality=88)
        print(f'{prompt}: {time.time() - began:.0f} s, {folder/"preview.png"}', flush=True)


if __name__ == '__main__': main()
