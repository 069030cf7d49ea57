"""A prior of four views: attention over all of them against a second reading, the same by diffusers' UNet, rings of
cameras, runs that stop and go on, and what is refused"""
import copy
import math

import numpy as np
import pytest
import torch
from conftest import CHEAP, assert_same_with_a_break

from dreamfusion_nb import ConfigError, Trainer, load_config
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.dashboard import StepDashboard
from dreamfusion_nb.guidance import facing, sds
from dreamfusion_nb.multiview import AcrossViews, Told, across_views, camera_numbers, multiview_prior
from dreamfusion_nb.prior import PRIOR_DIR, toybox_prior
from dreamfusion_nb.small_diffusion import Attention
from dreamfusion_nb.step import Stepper

VIEWS = {'guidance.name': 'toybox-multiview', 'data.train.batch_size': 4, 'data.train.n_view': 4, 'prompt': 'a duck'}


@pytest.fixture(scope='module')
def prior(): return multiview_prior()


def rows(n, seed=0):
    "Noisy latents, one noise level, texts"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 16, 16, generator=g), torch.full((n,), 400), torch.randn(n, 16, 128, generator=g)


def test_attention_over_all_views_is_the_formula():
    "In float64, written out with numpy: each place of each view asks all places of all views"
    g = torch.Generator().manual_seed(0)
    layer, told = Attention(8, 8, 2).double(), Told()
    told.views = 3
    x = torch.randn(6, 5, 8, generator=g, dtype=torch.float64)    # two objects of three views of five places
    found = AcrossViews(layer, told)(x, x).detach().numpy()
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    for thing in range(2):
        places = x[3*thing:3*thing + 3].reshape(15, 8).numpy()
        q, k, v = (places @ w[f'to_{part}.weight'].T for part in 'qkv')
        out = []
        for head in (slice(0, 4), slice(4, 8)):
            asked = np.exp(q[:, head] @ k[:, head].T/math.sqrt(4))
            out.append(asked/asked.sum(1, keepdims=True) @ v[:, head])
        wanted = np.concatenate(out, 1) @ w['to_out.0.weight'].T + w['to_out.0.bias']
        np.testing.assert_allclose(found[3*thing:3*thing + 3].reshape(15, 8), wanted, rtol=1e-10)


def test_without_cameras_and_before_it_has_learnt_it_is_the_unet_it_came_from():
    unet = toybox_prior(backend='torch').unet
    network, told = across_views(unet)
    x, t, text = rows(4)
    with torch.no_grad():
        assert network(x, t, text)[0].equal(unet(x, t, text)[0])
        told.tell(orbit(4).c2w, 1)
        assert network(x, t, text)[0].equal(unet(x, t, text)[0])    # the last layer of the camera is zero
    assert next(network.parameters()).data_ptr() == next(unet.parameters()).data_ptr()    # no memory of its own


def test_diffusers_unet_says_the_same(prior):
    "The same weights in diffusers' own network, where the same two layers are put in, in float64"
    from diffusers import UNet2DConditionModel
    unet, told = across_views(UNet2DConditionModel.from_pretrained(PRIOR_DIR/'unet').double())
    unet.load_state_dict({name: p.double() for name, p in prior.unet.state_dict().items()})
    mine, box = copy.deepcopy(prior.unet).double(), None
    x, t, text = rows(8)
    cameras = orbit(8, elevation=20., radius=3.).c2w
    box = next(m.told for m in mine.modules() if isinstance(m, AcrossViews))
    for each in told, box: each.tell(cameras.double(), 4)
    with torch.no_grad():
        other = unet(x.double(), t, encoder_hidden_states=text.double(), return_dict=False)[0]
        assert (mine(x.double(), t, text.double())[0] - other).abs().max() < 1e-5    # frequencies of t are float32


def test_views_hear_of_each_other_and_of_their_cameras(prior):
    x, t, text = rows(4)
    cameras = orbit(4, elevation=15.).c2w
    told = prior.predict_noise(x, t, text, cameras)
    other = x.clone()
    other[3] += 1
    assert (prior.predict_noise(other, t, text, cameras) - told)[:3].abs().amax((1, 2, 3)).min() > 1e-3
    assert (prior.predict_noise(x, t, text, orbit(4, elevation=60.).c2w) - told).abs().max() > 1e-3
    turned = prior.predict_noise(x[[1, 2, 3, 0]], t, text[[1, 2, 3, 0]], cameras[[1, 2, 3, 0]])
    assert (turned - told[[1, 2, 3, 0]]).abs().max() < 1e-4    # in which order they come does not matter
    far = orbit(4, elevation=15., radius=9.).c2w
    assert (prior.predict_noise(x, t, text, far) - told).abs().max() < 1e-4    # nor how far away they are
    single = prior.predict_noise(other, t, text)
    assert single[:3].equal(prior.predict_noise(x, t, text)[:3])    # without cameras each is by itself


def test_views_that_are_alike_are_still_told_apart(prior):
    "Rows that repeat are computed once, but not where their cameras differ"
    x, t, text = rows(4)
    same, texts = x[:1].repeat(4, 1, 1, 1), text[:1].repeat(4, 1, 1)
    both = prior.predict_noise(torch.cat([same]*2), torch.cat([t]*2), torch.cat([texts, texts + 1]), orbit(4).c2w)
    assert (both[0] - both[1]).abs().max() > 1e-3
    assert (both[:4] - prior.predict_noise(same, t, texts, orbit(4).c2w)).abs().max() < 1e-4


def test_two_threads_do_not_hear_what_the_other_is_told(prior):
    import threading
    x, t, text = rows(4)
    before, seen = prior.predict_noise(x, t, text), []
    with prior.telling(orbit(4).c2w):
        thread = threading.Thread(target=lambda: seen.append(prior.predict_noise(x, t, text)))
        thread.start()
        thread.join()
    assert seen[0].equal(before)


def test_sds_shares_the_noise_level_of_a_ring_and_tells_the_cameras(prior):
    g = torch.Generator().manual_seed(0)
    pictures, texts = torch.rand(8, 3, 64, 64, generator=g), torch.randn(16, 16, 128, generator=g)
    cameras = orbit(8, elevation=10.).c2w
    out = sds(prior, pictures, texts, guidance_scale=3., cameras=cameras, generator=g)
    assert out.t[:4].unique().numel() == 1 and out.t[4:].unique().numel() == 1 and out.t[0] != out.t[4]
    u, c = prior.predict_noise(torch.cat([out.noisy]*2), torch.cat([out.t]*2), texts, cameras).chunk(2)
    assert (out.noise_pred - (u + 3*(c - u))).abs().max() < 1e-4
    with pytest.raises(ValueError, match='multiple of 4, not 6'):
        sds(prior, pictures[:6], texts[:12], guidance_scale=3., cameras=cameras[:6])
    plain = toybox_prior()
    assert facing(plain, cameras) is plain


def counted(guidance):
    "The guidance, which notes how many rows it is asked about"
    asked, rest = [], guidance.predict_noise
    def predict_noise(noisy, *more, **told):
        asked.append(len(noisy))
        return rest(noisy, *more, **told)
    guidance.predict_noise = predict_noise
    return asked


def test_a_step_asks_two_rows_a_view_and_sees_a_ring(tmp_path):
    config = load_config('multiview', VIEWS, CHEAP)
    run = Stepper(config)
    asked = counted(run.guidance)
    record = run.step()
    assert asked == [8]
    azimuth = record.cameras.azimuth
    assert torch.allclose((azimuth[1:] - azimuth[:-1]) % 360, torch.full((3,), 90.), atol=1e-3)
    assert record.cameras.polar.unique().numel() == record.t.unique().numel() == 1


def test_a_ring_stands_before_one_background():
    "Its colour is drawn once for four views; without rings once a view"
    def corners(**keys):
        keys = {'background.random_ratio': 1, 'nerf.blob_density': 0, 'nerf.density_bias': -20} | keys
        run = Stepper(load_config('toybox', CHEAP, dict(prompt='a duck'), keys))
        return run.step().image[:, :, 0, 0]
    ring = corners(**{'data.train.batch_size': 8, 'data.train.n_view': 4})
    assert (ring[:4] - ring[0]).abs().max() < 1e-4 > (ring[4:] - ring[4]).abs().max()
    assert (ring[0] - ring[4]).abs().max() > 1e-2
    apart = corners(**{'data.train.batch_size': 4})
    assert (apart[1:] - apart[0]).abs().amax(1).min() > 1e-2


def test_it_goes_on_where_it_stopped(tmp_path):
    config = load_config('multiview', CHEAP, VIEWS)
    straight = Trainer(config, folder=tmp_path/'a')
    straight.fit()
    assert_same_with_a_break(straight, Trainer(config, folder=tmp_path/'b'), None, 5)


@pytest.mark.parametrize('keys, words', [
    ({'data.train.batch_size': 5}, 'data.train.batch_size must be a multiple of data.train.n_view, 4, not 5'),
    ({'data.train.n_view': 2}, 'data.train.n_view must be 4'),
    ({'guidance.low_memory': True}, 'guidance.low_memory must be false'),
    ({'guidance.kind': 'vsd'}, 'guidance.kind must not be vsd')])
def test_what_does_not_fit_is_refused_in_a_line(keys, words):
    with pytest.raises(ConfigError, match=words) as said: Stepper(load_config('multiview', VIEWS, keys))
    assert '\n' not in str(said.value)


def test_a_guidance_object_is_asked_how_many_views_it_draws(prior):
    "Of an object the configuration knows nothing, so the parts are asked"
    from dreamfusion_nb.own_parts import OwnParts
    with pytest.raises(ConfigError, match='data.train.n_view must be 4'):
        Stepper(load_config('toybox', dict(prompt='a duck')), OwnParts(prior))


def test_workers_are_refused_and_auto_has_none(tmp_path):
    "A ring is not split, whoever draws it"
    for keys in {}, {'guidance.name': 'toybox'}:
        config = load_config('multiview', CHEAP, VIEWS, keys)
        for asked in 1, 2:
            with pytest.raises(ConfigError, match='workers .* must be left out'): Trainer(config, workers=asked)
        run = Trainer(config, folder=tmp_path/keys.get('guidance.name', 'four'), workers='auto')
        assert run.team is None and len(run.step().cameras) == 4


def test_a_damaged_difference_is_one_line(tmp_path):
    (tmp_path/'multiview.safetensors').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match='cannot read'): multiview_prior(folder=tmp_path)


def test_numbers_of_a_camera_are_those_of_mvdream():
    "By angles: x to the right, z up, the front seen from -y"
    for azimuth, elevation in ((0., 0.), (30., 20.), (200., 65.)):
        c2w = orbit(1, azimuth_start=azimuth, elevation=elevation, radius=4.).c2w
        at = camera_numbers(c2w).view(4, 4)[:3, 3].double()
        a, e = math.radians(azimuth), math.radians(elevation)
        wanted = [math.cos(e)*math.sin(a), -math.cos(e)*math.cos(a), math.sin(e)]
        assert torch.allclose(at, torch.tensor(wanted, dtype=torch.float64), atol=1e-6)


def test_the_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    "Of two steps, the second in a second session: the same bytes; and only what is no convolution has changed"
    from safetensors.torch import load_file

    from dreamfusion_nb import multiview_training, prior_training
    monkeypatch.setattr(prior_training, 'SHARD', 16)
    monkeypatch.setattr(multiview_training, 'SAVE_EVERY', 1)
    loss, called = multiview_training.ring_loss, []

    def train(name):
        multiview_training.train_multiview(tmp_path/name, pictures=16, steps=2, batch=2, out=tmp_path/name)
        return load_file(tmp_path/name/'multiview.safetensors')

    def interrupted(*args):
        called.append(args)
        if len(called) == 2: raise KeyboardInterrupt
        return loss(*args)
    whole = train('whole')
    monkeypatch.setattr(multiview_training, 'ring_loss', interrupted)
    with pytest.raises(KeyboardInterrupt): train('broken')
    mended = train('broken')
    assert len(called) == 3    # the step that was interrupted, and no other, was taken again
    assert whole.keys() == mended.keys() and all(whole[name].equal(mended[name]) for name in whole)
    learnt = dict(multiview_prior(folder=tmp_path/'whole').unet.named_parameters())
    assert {name for name, p in learnt.items() if p.ndim < 4} == whole.keys()
    before = dict(across_views(toybox_prior(backend='torch').unet)[0].named_parameters())
    assert all(learnt[name].equal(p) for name, p in before.items() if p.ndim == 4)


def test_the_step_dashboard_takes_the_preset():
    board = StepDashboard('a duck', preset='multiview', **CHEAP)
    board.step()
    assert len(board.driver.trainer.step().cameras) == 4
    with pytest.raises(ConfigError, match="did you mean 'multiview'"): StepDashboard('a duck', preset='multivew')
