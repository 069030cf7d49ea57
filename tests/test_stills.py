"Pictures of saved notebooks (tools/stills.py): smaller, and no worse to look at"
import base64
import io

import numpy as np
import stills
from PIL import Image, ImageDraw


def as_png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


def pixels(data): return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'), float)


def plot():
    "Lines and words on white, as large as a plot in a page"
    picture = Image.new('RGB', (400, 200), 'white')
    draw = ImageDraw.Draw(picture)
    draw.rectangle((30, 10, 390, 180), outline='black')
    for i, color in enumerate(('tab:blue', 'tab:orange')):
        x = np.arange(360)
        draw.line([*zip(x + 30, 95 + 70*np.sin(x/50 + i))], fill=['#1f77b4', '#ff7f0e'][i], width=2)
        draw.text((250, 20 + 15*i), f'a curve in {color}', fill='black')
    return picture


def ball(size=200):
    "Soft shades and no edge"
    y, x = np.mgrid[-1:1:size*1j, -1:1:size*1j]
    light = 255*np.exp(-2*(x**2 + y**2))
    return Image.fromarray(np.stack([light, .7*light, 255 - light], -1).astype('uint8'))


def test_plot_becomes_a_png_of_few_colors_and_a_shaded_thing_a_jpeg():
    kind, png = stills.smallest(plot())
    jpeg = stills.as_jpeg(plot())
    assert kind == 'image/png' and len(png) < len(jpeg)
    wanted = pixels(as_png(plot()))
    assert np.abs(pixels(png) - wanted).mean() < np.abs(pixels(jpeg) - wanted).mean()
    assert stills.smallest(ball())[0] == 'image/jpeg'


def test_a_palette_that_turns_shades_into_steps_is_worse():
    picture = ball()
    few, jpeg = (stills.Likeness(data, picture) for data in (stills.as_palette(picture, 8), stills.as_jpeg(picture)))
    assert not few.is_no_worse(jpeg) and few.shift > stills.SHIFT


def test_packing_keeps_the_pixels():
    buffer = io.BytesIO()
    ball().save(buffer, 'JPEG', quality=stills.QUALITY)
    packed = stills.packed(buffer.getvalue())
    assert len(packed) < len(buffer.getvalue()) and (pixels(packed) == pixels(buffer.getvalue())).all()
    assert stills.packed(packed) == packed


def test_a_light_picture_stays():
    "However often a page is saved"
    for picture in (plot(), ball()):
        kind, once = stills.lighter(as_png(picture.resize((940, 470))))
        assert Image.open(io.BytesIO(once)).width == stills.WIDTH and stills.lighter(once) == (kind, once)


def test_pictures_in_html_become_lighter():
    held = as_png(ball())
    text = f'<b>ball</b><img src="data:image/png;base64,{base64.b64encode(held).decode()}" alt="x">'
    made = stills.embedded(text)
    assert made.startswith('<b>ball</b><img src="data:image/jpeg;base64,/9j/') and made.endswith('" alt="x">')
    assert len(made) < len(text)/4 and stills.embedded(made) == made
