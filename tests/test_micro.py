"""The algorithm in one file: that it needs PyTorch alone, computes what the package computes, and is explained whole"""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import microdreamfusion as micro
from dreamfusion_nb.cameras import orbit, rays
from dreamfusion_nb.guidance import sds
from dreamfusion_nb.prior import toybox_prior

PATH = Path(micro.__file__)
TUTORIAL = PATH.parent/'nbs/tutorials/11_in_one_file.ipynb'


@pytest.fixture(scope='module')
def nets():
    return micro.UNet('unet'), micro.Encoder('vae'), micro.TextModel('text_encoder')


@pytest.fixture(scope='module')
def prior(): return toybox_prior('cpu', dtype=torch.float32, backend='torch')


def test_it_is_short_and_needs_pytorch_alone():
    source = PATH.read_text()
    assert len(source.splitlines()) <= 200 and max(map(len, source.splitlines())) <= 120
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {name.name.split('.')[0] for name in node.names}
        if isinstance(node, ast.ImportFrom): found.add(node.module.split('.')[0])
    assert found - set(sys.stdlib_module_names) == {'torch'}


def test_the_tutorial_explains_every_line():
    "By links to ranges of lines, which begin and end with a line of code or a heading"
    text = '\n'.join(''.join(cell['source']) for cell in json.loads(TUTORIAL.read_text())['cells'])
    links = re.findall(r'\[lines (\d+)–(\d+)\]\(\S+/microdreamfusion\.py#L(\d+)-L(\d+)\)', text)
    lines, told = PATH.read_text().splitlines(), set()
    for first, last, *linked in links:
        assert [first, last] == linked
        first, last = int(first), int(last)
        assert lines[first - 1].strip() and lines[last - 1].strip()
        assert first == 1 or not lines[first - 2].strip() or lines[first - 2].startswith('#')
        told |= set(range(first, last + 1))
    missing = [i for i, line in enumerate(lines, 1) if line.strip() and i not in told]
    assert len(links) > 8 and not missing, missing


def test_networks_are_those_of_the_package(nets, prior):
    unet, encoder, words = nets
    texts = ['', 'a red mushroom, front view', 'a striped cat, back view']
    text = words(texts)
    torch.testing.assert_close(text, prior.encode_text(texts), atol=1e-5, rtol=1e-5)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    latents = encoder(images)
    torch.testing.assert_close(latents, prior.encode_image(images, None), atol=1e-5, rtol=1e-4)
    t = torch.tensor([20, 500, 979])
    with torch.no_grad():
        torch.testing.assert_close(unet(latents, t.float(), text), prior.predict_noise(latents, t, text), atol=1e-4,
                                   rtol=1e-4)
    torch.testing.assert_close(micro.ALPHAS, prior.alphas_cumprod.float(), atol=1e-6, rtol=1e-4)


def test_its_gradient_is_that_of_the_package(nets, prior):
    "Up to the package's weights of the loss, which are one factor"
    unet, encoder, words = nets
    empty, text = words(['', 'a mushroom'])[:, None]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    latents = encoder(image).requires_grad_()
    torch.manual_seed(2)
    micro.sds(unet, latents, empty, text, 10., torch.tensor([400])).backward()
    torch.manual_seed(2)
    noise = torch.randn_like(latents)
    found = sds(prior, image, torch.cat([empty, text]), guidance_scale=10., t=torch.tensor([400]), noise=noise,
                weighting='uniform')
    torch.testing.assert_close(latents.grad, found.grad, atol=1e-3, rtol=1e-3)


def test_cameras_are_those_of_the_package():
    for azimuth, elevation in (0., 0.), (90., 10.), (-130., 60.):
        eye, directions = micro.look_from(azimuth, elevation)
        camera = orbit(1, elevation=elevation, azimuth_start=azimuth, radius=3.2, fovy=21.)
        origins, along = rays(camera, micro.SIZE, micro.SIZE)
        torch.testing.assert_close(eye, origins[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(directions, along, atol=1e-5, rtol=1e-5)


def test_a_picture_shows_the_voxels_that_are_there():
    "A red ball before a white wall: red where rays meet it, white elsewhere, brighter on the side of the light"
    coarse, fine = micro.fog()
    with torch.no_grad():
        fine[:, 0].mul_(3)
        fine[:, 1], fine[:, 2:] = 10, -10
        eye, directions = micro.look_from(0., 0.)
        image, opacity = micro.render(micro.volume(coarse, fine), eye, directions, torch.tensor([1., 0, 0]), .2,
                                      torch.ones(3))
    opacity = opacity.view(64, 64)
    assert opacity[32, 32] > .99 and opacity[0, 0] < .01 and opacity.min() > -1e-6 and opacity.max() < 1 + 1e-5
    assert image[0, 0, 2, 2] > .99 and image[0, 1:, 32, 32].max() < .05
    right, left = image[0, 0, 32, 36], image[0, 0, 32, 27]
    assert right > left + .1


def test_steps_and_the_file_they_leave(tmp_path):
    torch.manual_seed(0)
    picture = micro.train('a red mushroom', steps=1)
    assert picture.shape == (3, 64, 384) and picture.isfinite().all()
    micro.write_png(picture, tmp_path/'a.png')
    read = torch.from_numpy(np.array(Image.open(tmp_path/'a.png'))).permute(2, 0, 1)
    assert torch.equal(read, (picture.clamp(0, 1)*255).byte())


def test_an_unknown_word_is_named():
    done = subprocess.run([sys.executable, PATH, 'a', 'red', 'mushrom'], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == 'the small model does not know mushrom; try: a red mushroom'
