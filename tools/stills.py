"""Keeps of saved notebooks what a page without a kernel can show: no live widget and no state of one, of a still
picture only the plain one, of a picture that IPython kept as PNG and as JPEG the smaller one, without words that say
no more than that it is one. It is 440 pixels across at most: a JPEG of quality 28, or, where that is smaller and looks
no worse, as of a plot, a PNG of few colours. JPEGs, those of nbs/images as well, are packed as tight as their pixels
allow. So all pages together stay small enough for a checkout.

    python tools/stills.py [notebook ...]          # default: all below nbs, and nbs/images
"""
import base64
import io
import re
import sys
from pathlib import Path

import mozjpeg_lossless_optimization
import nbformat
import numpy as np
from mozjpeg_lossless_optimization import COPY_MARKERS
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

LIVE = 'application/vnd.jupyter.widget-view+json'
PICTURES = ('image/jpeg', 'image/png')
STILL = 'class="dfnb-still"'    # of the HTML that `viewer.StillWidget` shows before a live widget
OBJECT = re.compile(r'<(Figure|PIL)\b')    # what Python calls a picture, for those who do not see it
QUALITY = 28
WIDTH = 440     # pixels
PALETTES = 4, 8, 12, 16, 24, 32, 48, 64    # colours
SEEN = 7        # pixels: the edge of a spot, within which single pixels are not told apart
SHIFT = 6       # of 255: by how much a spot may be brighter or darker


def as_jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=QUALITY, optimize=True, progressive=True)
    return packed(buffer.getvalue())


def packed(jpeg):
    "The same pixels, packed tighter where that can be: MozJPEG tries other orders of a progressive JPEG's scans"
    return min(jpeg, mozjpeg_lossless_optimization.optimize(jpeg, COPY_MARKERS.NONE), key=len)


def as_palette(picture, colors):
    buffer = io.BytesIO()
    few = picture.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


class Likeness:
    "How like a picture an encoded one is"
    def __init__(self, data, picture):
        made = Image.open(io.BytesIO(data)).convert('RGB')
        error = np.asarray(made, float) - np.asarray(picture, float)    # [height, width, 3]
        self.error = np.square(error).mean()
        self.structure = structural_similarity(*(np.asarray(p.convert('L')) for p in (made, picture)), win_size=SEEN)
        # of nearly every spot: a shade that turned into steps, or the colour of an area that moved
        self.shift = np.quantile(np.abs(uniform_filter(error, (SEEN, SEEN, 1))), .999)

    def is_no_worse(self, other):
        return self.error <= other.error and self.structure >= other.structure and self.shift <= SHIFT


def smallest(picture):
    """(kind, bytes) of a picture: as a JPEG, or as a PNG with a palette if that is smaller and no less like the
    picture. A plot is, in a few colours; what is shaded is not."""
    jpeg = as_jpeg(picture)
    if min(picture.size) < SEEN: return 'image/jpeg', jpeg
    wanted = Likeness(jpeg, picture)
    pngs = (png for png in (as_palette(picture, colors) for colors in PALETTES) if len(png) < len(jpeg))
    good = [png for png in pngs if Likeness(png, picture).is_no_worse(wanted)]
    return ('image/png', min(good, key=len)) if good else ('image/jpeg', jpeg)


def coarseness(jpeg):
    "Grows as the quality falls: the sum of the steps in which a JPEG counts brightness"
    return sum(Image.open(io.BytesIO(jpeg)).quantization[0])


# a little finer is light, too: to encode it again would cost more to look at than it saves
ENOUGH = .9*coarseness(as_jpeg(Image.new('RGB', (8, 8))))


def is_light(data):
    "Whether a picture was made lighter before, or is as light as that: from then on its pixels stay"
    picture = Image.open(io.BytesIO(data))
    if picture.width > WIDTH: return False
    return picture.mode == 'P' if picture.format == 'PNG' else coarseness(data) >= ENOUGH


def lighter(held):
    "(kind, bytes) of a picture, no wider than `WIDTH`, if that is smaller; of a light one the same pixels"
    picture = Image.open(io.BytesIO(held))
    kind = f'image/{picture.format.lower()}'
    if is_light(held): return kind, packed(held) if kind == 'image/jpeg' else held
    picture = picture.convert('RGB')
    wide, high = picture.size
    if wide > WIDTH: picture = picture.resize((WIDTH, round(high*WIDTH/wide)), Image.LANCZOS)
    return min((kind, held), smallest(picture), key=lambda found: len(found[1]))


def embedded(html):
    "HTML whose own pictures are lighter"
    def made(match):
        kind, data = lighter(base64.b64decode(match[1]))
        return f'data:{kind};base64,{base64.b64encode(data).decode()}'
    return re.sub(r'data:image/(?:jpeg|png);base64,([\w+/=]+)', made, html)


def is_only_live(output):
    "Whether an output is the second one of `viewer.StillWidget`: a live widget, without anything else to see"
    data = output.get('data', {})
    return LIVE in data and set(data) <= {LIVE, 'text/plain'} and not ''.join(data.get('text/plain', ''))


def main():
    for path in [] if sys.argv[1:] else Path('nbs/images').glob('*.jpg'):
        held = path.read_bytes()
        if (made := packed(held)) != held: path.write_bytes(made)
    for path in map(Path, sys.argv[1:] or sorted(Path('nbs').rglob('*.ipynb'))):
        text = path.read_text(encoding='utf-8')
        if not any(word in text for word in (LIVE, *PICTURES, '"widgets"')): continue
        book = nbformat.reads(text, as_version=4)
        book.metadata.pop('widgets', None)
        for cell in book.cells:
            if 'outputs' in cell: cell.outputs = [output for output in cell.outputs if not is_only_live(output)]
        for output in (o for cell in book.cells for o in cell.get('outputs', [])):
            data = output.get('data', {})
            if 'image/jpeg' in data and STILL in ''.join(data.get('text/html', '')): del data['text/html']
            kept = sorted((kind for kind in PICTURES if kind in data), key=lambda kind: len(data[kind]))
            for kind in kept[1:]: del data[kind]
            if kept:
                kind, picture = lighter(base64.b64decode(data.pop(kept[0])))
                data[kind] = base64.b64encode(picture).decode()
                if OBJECT.match(''.join(data.get('text/plain', ''))): del data['text/plain']
            if 'text/html' in data: data['text/html'] = embedded(''.join(data['text/html']))
            if data.pop(LIVE, None) and kept: data['text/plain'] = 'a live widget: run the notebook'
        made = nbformat.writes(book, version=4)
        made = made if made.endswith('\n') else made + '\n'
        if made != text: path.write_text(made, encoding='utf-8')


if __name__ == '__main__': main()
