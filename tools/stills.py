"""Keeps of saved notebooks what a page without a kernel can show: no live widget and no state of one, of a still
picture only the plain one, of a picture that IPython kept as PNG and as JPEG the smaller one, and of that no more than
470 pixels across and JPEG quality 28. So all pages together stay small enough for a checkout.

    python tools/stills.py [notebook ...]          # default: all below nbs
"""
import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

LIVE = 'application/vnd.jupyter.widget-view+json'
PICTURES = ('image/jpeg', 'image/png')
STILL = 'class="dfnb-still"'    # of the HTML that `viewer.StillWidget` shows before a live widget
QUALITY = 28
WIDTH = 470     # pixels


def as_jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def coarseness(jpeg):
    "Grows as the quality falls: the sum of the steps in which a JPEG counts brightness"
    return sum(Image.open(io.BytesIO(jpeg)).quantization[0])


ENOUGH = coarseness(as_jpeg(Image.new('RGB', (8, 8))))


def lighter(data):
    """The one picture of an output's data, as (kind, base64): no wider than `WIDTH`, a JPEG at `QUALITY`, if that is
    smaller; one that was made lighter stays as it is"""
    kind = next(kind for kind in PICTURES if kind in data)
    held = base64.b64decode(data[kind])
    picture = Image.open(io.BytesIO(held)).convert('RGB')
    fits = picture.width <= WIDTH
    if fits and (kind == 'image/png' or coarseness(held) >= ENOUGH): return kind, data[kind]
    if not fits: picture = picture.resize((WIDTH, round(picture.height*WIDTH/picture.width)), Image.LANCZOS)
    made = as_jpeg(picture)
    return ('image/jpeg', base64.b64encode(made).decode()) if len(made) < len(held) else (kind, data[kind])


def is_only_live(output):
    "Whether an output is the second one of `viewer.StillWidget`: a live widget, without anything else to see"
    data = output.get('data', {})
    return LIVE in data and set(data) <= {LIVE, 'text/plain'} and not ''.join(data.get('text/plain', ''))


def main():
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
                kind, picture = lighter(data)
                del data[kept[0]]
                data[kind] = picture
            if data.pop(LIVE, None) and kept: data['text/plain'] = 'a live widget: run the notebook'
        made = nbformat.writes(book, version=4)
        made = made if made.endswith('\n') else made + '\n'
        if made != text: path.write_text(made, encoding='utf-8')


if __name__ == '__main__': main()
