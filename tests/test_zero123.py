"""A model that is shown a picture and draws the thing from elsewhere: what it is told, folders in the published layout,
training that stops and goes on, runs, and what is refused (nbs/11e_zero123.ipynb)"""
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import CHEAP, assert_same_with_a_break
from safetensors.torch import load_file, save_file
from torch import nn

from dreamfusion_nb import ConfigError, Trainer, load_config, toybox, train
from dreamfusion_nb import zero123_training as training
from dreamfusion_nb.cameras import orbit, sphere_cameras
from dreamfusion_nb.cli import main
from dreamfusion_nb.guidance import facing, sds
from dreamfusion_nb.model_cost import model_cost
from dreamfusion_nb.prior_training import write_json, write_tensors
from dreamfusion_nb.step import Stepper
from dreamfusion_nb.zero123 import Zero123, a_model, look, turn_numbers, turns_pictures


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A Zero123 in the published layout that has learned nothing, but whose new channels count"
    torch.manual_seed(0)
    modules = nn.ModuleDict(training.turning_modules())
    nn.init.normal_(modules['unet'].conv_in.weight, std=.05)
    out = tmp_path_factory.mktemp('zero123')/'prior'
    training.write_turning(out, modules, [])
    return out


@pytest.fixture(scope='module')
def model(folder):
    model = Zero123.from_pretrained(folder)
    model.look_at(toybox.render('a mug', orbit(1), 64), orbit(1).c2w)
    return model


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')/'cup.png'
    toybox.cut_out('a purple mug', orbit(1), 96).save(path)
    return path


def asked(folder, picture, **more):
    "Keys of a short run that is shown a picture"
    return CHEAP | {'prompt': 'a cup', 'guidance.name': str(folder), 'guidance.perp_neg': 0, 'guidance_scale': 3,
                    'reference.images': [str(picture)]} | more


# What it is told

def test_turns_are_those_of_the_paper():
    "By the spherical coordinates of the authors' data: z up, the angle from +z, the azimuth from +x towards +y"
    g = torch.Generator().manual_seed(0)
    azimuth, polar = 360*torch.rand(20, generator=g) - 180, 10 + 150*torch.rand(20, generator=g)
    c2w = sphere_cameras(azimuth, polar).c2w.double()
    c2w[:, :3, 3] *= torch.linspace(.5, 2, 20)[:, None].double()
    x, y, z = (c2w[:, 0, 3].numpy(), -c2w[:, 2, 3].numpy(), c2w[:, 1, 3].numpy())    # ours, with z up
    theta, phi, r = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x), np.sqrt(x*x + y*y + z*z)
    wanted = np.stack([theta - theta[0], np.sin(phi - phi[0]), np.cos(phi - phi[0]), r - r[0]], 1)
    np.testing.assert_allclose(turn_numbers(c2w[:1], c2w), wanted, atol=1e-6)


def test_its_answer_is_the_unets(model):
    "Put together by hand: noise first, then the picture; one token, or zeros where it is not shown"
    noisy = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t, cameras = torch.tensor([100, 400, 700, 900]), orbit(4, elevation=40.).c2w
    found = model.predict_noise(noisy, t, model.encode_text(['', 'x', 'y', ' ']), cameras)
    cup = toybox.render('a mug', orbit(1), 64)
    with torch.no_grad():
        beside = model.vae.encode(2*cup - 1).latents
        told = torch.cat([look(model.eye, cup).expand(4, -1), turn_numbers(orbit(1).c2w, cameras)], 1)
        context = nn.functional.linear(told, model.projection.weight, model.projection.bias)[:, None]
        shown = torch.tensor([0., 1, 1, 0]).view(4, 1, 1)
        wanted = model.unet(torch.cat([noisy, beside*shown[..., None]], 1), t, context*shown)[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    other = model.predict_noise(noisy, t, model.encode_text(['', 'x', 'y', '']), orbit(4, elevation=-10.).c2w)
    assert [not torch.equal(a, b) for a, b in zip(found, other)] == [False, True, True, False]


def test_at_first_it_is_the_prior_that_it_began_with():
    from dreamfusion_nb.prior import PRIOR_DIR
    from dreamfusion_nb.small_diffusion import read_small_diffusion
    plain = read_small_diffusion(PRIOR_DIR)['unet']
    g = torch.Generator().manual_seed(2)
    noisy, beside, words = (torch.randn(shape, generator=g) for shape in ((3, 4, 16, 16), (3, 4, 16, 16), (3, 1, 128)))
    t = torch.tensor([50, 500, 950])
    with torch.no_grad():
        found = training.turning_unet()(torch.cat([noisy, beside], 1), t, words).sample
        torch.testing.assert_close(found, plain(noisy, t, words)[0], atol=1e-3, rtol=1e-3)


def test_sds_asks_it_with_the_cameras_of_the_step(model):
    g = torch.Generator().manual_seed(3)
    pictures, words, cameras = torch.rand(2, 3, 64, 64, generator=g), model.encode_text(['']*2 + ['x']*2), orbit(8)[2:4]
    out = sds(model, pictures, words, guidance_scale=3., cameras=cameras.c2w, generator=g)
    told = facing(model, cameras.c2w)
    uncond, cond = told.predict_noise(torch.cat([out.noisy]*2), torch.cat([out.t]*2), words).chunk(2)
    torch.testing.assert_close(out.noise_pred, uncond + 3*(cond - uncond))
    assert len(set(out.t.tolist())) == 2    # views are asked about one by one, so each has a noise level of its own


# Folders

@pytest.mark.parametrize('name, layer', [('clip_camera_projection', 'proj'), ('cc_projection', 'projection')])
def test_both_published_layouts_are_read(folder, model, tmp_path, name, layer):
    copy = shutil.copytree(folder, tmp_path/'copy')
    shutil.rmtree(copy/'cc_projection')
    (copy/name).mkdir()
    save_file({f'{layer}.{k}': v.contiguous() for k, v in model.projection.state_dict().items()},
              copy/name/'diffusion_pytorch_model.safetensors')
    # a pipeline that comes with code of its own, which is not run
    write_json(copy/'model_index.json', dict(_class_name=['zero123', 'Zero123Pipeline']))
    read = a_model(copy)
    assert isinstance(read, Zero123) and turns_pictures(copy)
    assert torch.equal(read.projection.weight, model.projection.weight)


def broken(copy, how):
    layer, eye = copy/'cc_projection'/'diffusion_pytorch_model.safetensors', copy/'image_encoder'/'model.safetensors'
    if how == 'no layer': layer.unlink()
    elif how == 'pickled layer': layer.rename(layer.with_suffix('.bin'))
    elif how == 'narrow layer':
        save_file({'projection.weight': torch.zeros(3, 5), 'projection.bias': torch.zeros(3)}, layer)
    elif how == 'no eye': shutil.rmtree(copy/'image_encoder')
    elif how == 'no schedule': shutil.rmtree(copy/'scheduler')
    elif how == 'half an eye': save_file(dict(list(load_file(eye).items())[:5]), eye)
    elif how == 'damaged eye': eye.write_bytes(b'x'*40)
    elif how == 'settings': (copy/'image_encoder'/'config.json').write_text('{')


@pytest.mark.parametrize('how, said', [
    ('no layer', 'has no clip_camera_projection or cc_projection'), ('pickled layer', 'never loaded'),
    ('narrow layer', 'no layer with 128 outputs'), ('no eye', 'lacks image_encoder/config.json'),
    ('no schedule', 'lacks scheduler/'), ('half an eye', 'is incomplete'), ('damaged eye', 'cannot read'),
    ('settings', 'cannot read')])
def test_a_folder_that_is_not_whole_is_refused_in_one_line(folder, tmp_path, how, said):
    copy = shutil.copytree(folder, tmp_path/'copy')
    broken(copy, how)
    with pytest.raises(ConfigError, match=said) as error: a_model(copy)
    assert '\n' not in str(error.value)


def test_what_is_none_is_no_such_folder(tmp_path, pipeline):
    assert not turns_pictures(tmp_path) and not turns_pictures(pipeline) and not turns_pictures('toybox')
    with pytest.raises(ConfigError, match='lacks'): Zero123.from_pretrained(pipeline)


# Training

def world(path):
    "Four toys, four pictures of each"
    images, _, cams = toybox.draw(16, torch.Generator().manual_seed(1), views=4, known=True)
    (path/'world').mkdir(parents=True)
    write_tensors(path/'world'/'0000.safetensors', dict(images=images, azimuth=cams.azimuth, polar=cams.polar,
                                                        radius=cams.position.norm(dim=-1)))
    write_json(path/'world'/'0000.json', [])
    return cams


def test_the_cameras_of_the_world_come_back(tmp_path):
    from dreamfusion_nb.prior import PRIOR_DIR
    from dreamfusion_nb.small_diffusion import read_small_diffusion
    cams = world(tmp_path)
    turns = training.read_turns(tmp_path, read_small_diffusion(PRIOR_DIR)['vae'], 16)
    torch.testing.assert_close(turns.cameras.flatten(0, 1)[:, :3, 3], cams.position, atol=1e-5, rtol=1e-5)
    assert turns.pictures.shape == (4, 3, 64, 64) and (turns.pictures[:, :, 0, 0] == 255).all()


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    "To the bit; and what is finished is not made again"
    for name in 'ab': world(tmp_path/name)
    loss, called = training.turn_loss, []
    def run(name): return training.train_zero123(tmp_path/name, pictures=16, steps=2, batch=2)
    whole = run('a')

    def interrupted(*args):
        called.append(1)
        if len(called) == 2: raise KeyboardInterrupt
        return loss(*args)
    monkeypatch.setattr(training, 'turn_loss', interrupted)
    monkeypatch.setattr(training, 'SAVE_EVERY', 1)
    with pytest.raises(KeyboardInterrupt): run('b')
    assert not (tmp_path/'b'/'prior').exists()
    mended = run('b')
    assert len(called) == 3
    for path in whole.rglob('*.safetensors'):
        one, other = load_file(path), load_file(mended/path.relative_to(whole))
        assert all(torch.equal(one[k], other[k]) for k in one), path
    before = {p: p.stat().st_mtime_ns for p in whole.rglob('*')}
    assert run('a') == whole and before == {p: p.stat().st_mtime_ns for p in whole.rglob('*')}
    assert sorted(p.name for p in (tmp_path/'b').iterdir()) == ['latents-16.safetensors', 'prior', 'run', 'world']


# Runs

def test_a_run_is_shown_the_picture_and_goes_on_after_a_break(folder, picture, tmp_path):
    def trainer(name):
        return Trainer(load_config('toybox', asked(folder, picture) | {'iters': 6}), folder=tmp_path/name)
    straight = trainer('straight')
    straight.fit()
    assert straight.guidance.known is not None and straight.history[0]['reference'] > 0
    assert_same_with_a_break(straight, trainer('broken'), None, 3)


def test_without_words_the_file_names_the_object(folder, picture, tmp_path):
    keys = {k: v for k, v in asked(folder, picture).items() if k not in ('prompt', 'reference.images')} | {'iters': 2}
    result = train(image=picture, out=tmp_path/'result', progress=False, **keys)
    assert result.config.prompt == 'cup' and (tmp_path/'result'/'model.glb').exists() or result.history


@pytest.mark.parametrize('more, said', [
    ({'reference.images': None}, 'needs one: reference.images'),
    ({'guidance.perp_neg': 1}, 'guidance.perp_neg must be 0'),
    ({'negative_prompt': 'ugly'}, 'negative_prompt must be empty'), ({'guidance.kind': 'vsd'}, 'must not be vsd')])
def test_keys_that_cannot_be_are_refused_in_one_line(folder, picture, more, said):
    with pytest.raises(ConfigError, match=said) as error: Stepper(load_config('toybox', asked(folder, picture) | more))
    assert '\n' not in str(error.value)


def test_the_command_refuses_it_without_a_picture(folder, tmp_path, capsys):
    assert main(['a cup', '--guidance', str(folder), 'guidance.perp_neg=0', '--out', str(tmp_path/'out')]) == 2
    assert 'needs one: reference.images' in capsys.readouterr().err and not (tmp_path/'out').exists()


def test_its_cost_is_counted(folder, picture):
    "Two rows a step, as of the prior; the first convolution has four channels more, and there is one token to read"
    def cost(**keys): return model_cost(load_config('toybox', {'prompt': 'a cup', 'guidance.perp_neg': 0} | keys),
                                        torch.float32)
    ours, plain = cost(**{'guidance.name': str(folder)}), cost()
    assert .95 < ours.flops/plain.flops < 1.05
    assert ours.weights - plain.weights == 4*(4*64*3*3 + 133*128)    # bytes of 64 kernels, and of the projection


def test_measuring_compares_with_the_truth(model):
    found = training.measure_turns(model, [toybox.Caption('duck', 'white')])
    assert 3 < found['drawn'] < found['known'] < 60 and all(map(math.isfinite, found.values()))
