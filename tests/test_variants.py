"""Variants of score distillation: each against a second reading of its paper in float64, what it costs, runs of it that
stop and go on, and what it refuses to be combined with"""
import copy
import math
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import CHEAP, assert_same_with_a_break

from dreamfusion_nb import ConfigError, Trainer, load_config
from dreamfusion_nb.cameras import view_weights
from dreamfusion_nb.config import Config
from dreamfusion_nb.guidance import GaussianWorld, sds
from dreamfusion_nb.inversion import ISM, SDI
from dreamfusion_nb.noise_map import fixed_noise, noise_map
from dreamfusion_nb.own_parts import OwnParts
from dreamfusion_nb.schedules import annealed_timestep
from dreamfusion_nb.step import Stepper, own_noise
from dreamfusion_nb.variants import ASD, VARIANTS, X0, Consistent3D
from dreamfusion_nb.vsd import VSD, LoRA, attention_layers

ALPHAS = GaussianWorld(dtype=torch.float64).alphas_cumprod
SCALE = 3.


class Crooked:
    "A guidance that no straight line describes: text and level bend what it says"
    alphas_cumprod, image_size, latent_shape = ALPHAS, 8, (4, 3, 3)
    def encode_image(self, image, generator=None): return image

    def predict_noise(self, noisy, t, embeddings):
        text = embeddings.mean((1, 2)).view(-1, 1, 1, 1)
        return (noisy*(1 + t.view(-1, 1, 1, 1)/1000) + text).sin() + .3*noisy.flip(1)


def numbers(kind, t, weighting='uniform', seed=0, **options):
    "What `sds` gives for random input; and the input, as a reading needs it: z, noise, e(x, t, text), a generator"
    g = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn(len(t), 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    texts = torch.randn(2*len(t), 5, 6, generator=g, dtype=torch.float64)
    model = Crooked()
    out = sds(model, z, texts, guidance_scale=SCALE, t=torch.tensor(t), noise=noise, kind=kind, weighting=weighting,
        generator=torch.Generator().manual_seed(9), **options)
    assert out.grad.dtype == torch.float64

    def e(i, x, level, text):    # of picture i: 0 no text, 1 the text
        row = texts[[i + text*len(t)]]
        return model.predict_noise(torch.as_tensor(x)[None], torch.tensor([level]), row)[0].numpy()
    return out, z.numpy(), noise.numpy(), e, torch.Generator().manual_seed(9)


def a(t): return float(ALPHAS[t])
def sigma(t): return math.sqrt((1 - a(t))/a(t))    # of x = z + sigma*noise, before it is scaled
def noised(z, noise, t): return math.sqrt(a(t))*z + math.sqrt(1 - a(t))*noise
def guided(e, i, x, t, scale=SCALE): return (1 - scale)*e(i, x, t, 0) + scale*e(i, x, t, 1)
def same(grad, wanted): np.testing.assert_allclose(grad.numpy(), np.stack(wanted), rtol=1e-9, atol=1e-11)


# Each against its paper

@pytest.mark.parametrize('rescale', [0., .5, 1.])
def test_x0(rescale):
    "MVDream: half the squared distance to the rescaled clean latents; the spread is that of all views"
    t = [30, 400, 870]
    out, z, noise, e, _ = numbers(X0(rescale), t)
    clean, plain = [], []
    for i, level in enumerate(t):
        x = noised(z[i], noise[i], level)
        for found, prediction in ((clean, guided(e, i, x, level)), (plain, e(i, x, level, 1))):
            found.append(x/math.sqrt(a(level)) - sigma(level)*prediction)
    factor = np.std(plain, ddof=1)/np.std(clean, ddof=1)
    target = [rescale*factor*v + (1 - rescale)*v for v in clean]
    same(out.grad, [z[i] - v for i, v in enumerate(target)])
    same(out.x0, target)


def test_asd():
    "ScaleDreamer: the second prediction has the text, a later level, the same noise and no guidance"
    t = [20, 300, 975]
    out, z, noise, e, g = numbers(ASD(.1, .02), t, 'sds')
    share, wanted = torch.rand(3, generator=g).double(), []
    for i, level in enumerate(t):
        later = min(level + int(.1*(level - 20)*share[i]), 999)
        first = guided(e, i, noised(z[i], noise[i], level), level)
        wanted.append((1 - a(level))*(first - e(i, noised(z[i], noise[i], later), later, 1)))
    same(out.grad, wanted)


def test_consistent3d():
    "Consistent3D: an Euler step of the probability flow, dz/dsigma = e, from level t to s; both ends guided"
    lower = [100, 500, 900]
    out, z, noise, e, g = numbers(Consistent3D(), lower)
    more, wanted = torch.randint(100, 300, (3,), generator=g).tolist(), []
    for i, s in enumerate(min(level, 880) for level in lower):
        t = min(s + more[i], 980)
        x = z[i] + sigma(t)*noise[i]
        first = guided(e, i, x/math.sqrt(1 + sigma(t)**2), t)
        x = x + (sigma(s) - sigma(t))*first
        wanted.append(first - guided(e, i, x/math.sqrt(1 + sigma(s)**2), s))
    same(out.grad, wanted)
    assert out.t.tolist() == [min(min(s, 880) + m, 980) for s, m in zip(lower, more)]


def ddim(x, prediction, now, then):
    "Song et al. 2021, equation 13, in the coordinates of its ordinary differential equation"
    return math.sqrt(a(then))*(x/math.sqrt(a(now)) + (sigma(then) - sigma(now))*prediction)


def test_ism():
    "LucidDreamer: without text to s and on to t, then what the text adds to what was said at s"
    t = [30, 320, 980]
    out, z, noise, e, _ = numbers(ISM(.1), t)
    wanted = []
    for i, level in enumerate(t):
        s, now = max(0, level - 100), 0
        x = noised(z[i], noise[i], 0)
        while now < s:
            then = min(now + 200, s)
            x, now = ddim(x, e(i, x, now, 0), now, then), then
        plain = e(i, x, s, 0)
        x = ddim(x, plain, s, level)
        wanted.append(sigma(level)*(guided(e, i, x, level) - plain))
    same(out.grad, wanted)


def test_sdi():
    "SDI, as threestudio has it: the scale on the way counts from the text, noise of every step has DDIM's variance"
    t = [150, 730]
    out, z, noise, e, g = numbers(SDI(), t)
    more = torch.randint(100, (2,), generator=g).tolist()
    # the pictures draw together, and one that is there draws in vain
    fresh = [torch.randn(2, 4, 3, 3, generator=g).numpy() for _ in range(8)]
    wanted = []
    for i, level in enumerate(t):
        x, path = z[i], [*range(0, level, 100), min(level + more[i], 999)]
        for k, (now, then) in enumerate(zip(path, path[1:])):
            text = e(i, x, now, 1)
            x = ddim(x, text - 7.5*(text - e(i, x, now, 0)), now, then)
            variance = (1 - a(now))/(1 - a(then))*(1 - a(then)/a(now))
            x = x + .3*math.sqrt(variance)*fresh[k][i]
        wanted.append(z[i] - (x/math.sqrt(a(level)) - sigma(level)*guided(e, i, x, level)))
    np.testing.assert_allclose(out.grad.numpy(), np.stack(wanted), rtol=1e-6, atol=1e-7)    # noise is float32
    assert out.noise.shape == out.latents.shape


def test_vsd():
    "ProlificDreamer: what a model of the renderings says of the same noisy latents, with the text and without guidance"
    t = [30, 400, 870]
    def of_renderings(x, level, text): return x.cos() + (level.double()/1000*text.sum((1, 2))).view(-1, 1, 1, 1)
    out, z, noise, e, _ = numbers(VSD(of_renderings), t, 'sds')
    g = torch.Generator().manual_seed(0)
    for _ in range(2): torch.randn(3, 4, 3, 3, generator=g, dtype=torch.float64)
    texts, wanted = torch.randn(6, 5, 6, generator=g, dtype=torch.float64).numpy(), []
    for i, level in enumerate(t):
        x = noised(z[i], noise[i], level)
        said = np.cos(x) + level/1000*texts[3 + i].sum()
        wanted.append((1 - a(level))*(guided(e, i, x, level) - said))
    same(out.grad, wanted)


SMALL = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
    cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4)


def double_lora(prediction='epsilon'):
    "A LoRA of a small UNet in float64, with numbers everywhere; and two pictures, texts and poses"
    from diffusers import UNet2DConditionModel
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL).double().eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    lora = LoRA(types.SimpleNamespace(unet=unet, dtype=torch.float64, prediction=prediction, alphas_cumprod=ALPHAS), 3,
        .01, g)
    for p in lora.weights.values(): p.data += .1*torch.randn(p.shape, generator=g, dtype=torch.float64)
    z, text, camera = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in
                       ((2, 4, 8, 8), (2, 5, 16), (2, 12)))
    return unet, lora, z, text, camera


def in_one(unet, lora):
    """A second reading of the network: diffusers' own, which can add an embedding of a class to that of the level, and
    with the sums W + BA for weights"""
    from diffusers import UNet2DConditionModel
    merged = UNet2DConditionModel(**SMALL, class_embed_type='projection',
        projection_class_embeddings_input_dim=12).double().eval()
    state, w = dict(unet.state_dict()), {name: p.detach() for name, p in lora.weights.items()}
    for name in attention_layers(unet):
        state[f'{name}.weight'] = state[f'{name}.weight'] + w[f'{name}.up']@w[f'{name}.down']
    told, first = 'time_embedding.linear_2', 'class_embedding.linear_1'
    state |= {f'{first}.weight': w[f'{told}.down'], f'{first}.bias': w[f'{told}.bias'],
              'class_embedding.linear_2.weight': w[f'{told}.up'], 'class_embedding.linear_2.bias': 0*w[f'{told}.bias']}
    merged.load_state_dict(state)
    return merged


@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_a_lora_is_that_of_its_paper(prediction):
    "What it predicts; the loss, its gradient and a first step of Adam, from the same draws"
    unet, lora, z, text, camera = double_lora(prediction)
    merged = in_one(unet, lora)
    def answer(x, t, pose): return merged(x, t, encoder_hidden_states=text, class_labels=pose, return_dict=False)[0]
    t = torch.tensor([150, 800])
    alpha = ALPHAS[t].view(-1, 1, 1, 1)
    wanted = answer(z, t, camera)
    if prediction == 'v_prediction': wanted = alpha.sqrt()*wanted + (1 - alpha).sqrt()*z
    torch.testing.assert_close(lora.predict(z, t, text, camera), wanted, rtol=1e-9, atol=1e-10)
    unseen = 0
    for seed in range(12):
        before = {name: p.detach().clone() for name, p in lora.weights.items()}
        loss = lora.learn(z, text, camera, torch.Generator().manual_seed(seed))
        g = torch.Generator().manual_seed(seed)
        t, noise = torch.randint(1000, (2,), generator=g), torch.randn(z.shape, generator=g).double()
        seen = torch.rand(2, 1, generator=g) >= .1
        unseen += 2 - int(seen.sum())
        alpha = ALPHAS[t].view(-1, 1, 1, 1)
        x = alpha.sqrt()*z + (1 - alpha).sqrt()*noise
        target = noise if prediction == 'epsilon' else alpha.sqrt()*noise - (1 - alpha).sqrt()*z
        merged.zero_grad()
        expected = torch.nn.functional.mse_loss(answer(x, t, camera*seen), target)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)
        of = dict(merged.named_parameters())
        for name in attention_layers(unet):
            whole, up, down = of[f'{name}.weight'].grad, before[f'{name}.up'], before[f'{name}.down']
            torch.testing.assert_close(lora.weights[f'{name}.up'].grad, whole@down.T, rtol=1e-7, atol=1e-12)
            torch.testing.assert_close(lora.weights[f'{name}.down'].grad, up.T@whole, rtol=1e-7, atol=1e-12)
        for ours, theirs in dict(down='linear_1.weight', bias='linear_1.bias', up='linear_2.weight').items():
            torch.testing.assert_close(lora.weights[f'time_embedding.linear_2.{ours}'].grad,
                of[f'class_embedding.{theirs}'].grad, rtol=1e-7, atol=1e-12)
    assert unseen    # the draws have met a camera that is not told
    lora.step(.5)
    for name, p in lora.weights.items():
        torch.testing.assert_close(p.detach(), before[name] - .005*p.grad/(p.grad.abs() + 1e-8), rtol=1e-6, atol=1e-9)


def test_a_lora_shares_what_is_frozen():
    "And changes nothing of it, and begins as the model itself"
    unet, lora, z, text, camera = double_lora()
    fresh, t = LoRA(lora.guidance, 2), torch.tensor([3, 500])
    plain = unet(z, t, encoder_hidden_states=text, return_dict=False)[0]
    assert torch.equal(fresh.predict(z, t, text, camera), plain)
    theirs, held = {p.data_ptr() for p in unet.parameters()}, {p.data_ptr() for p in lora.network.parameters()}
    assert theirs <= held and len(held) == len(theirs) + len(lora.weights)
    for _ in range(3):
        lora.learn(z, text, camera)
        lora.step()
    assert torch.equal(unet(z, t, encoder_hidden_states=text, return_dict=False)[0], plain)
    assert not any(p.requires_grad for p in unet.parameters())
    # it has learned in these three steps: what it says, and with another camera something else
    assert not torch.equal(lora.predict(z, t, text, camera), lora.predict(z, t, text, -camera))


def test_dreamtime():
    "The first level from above at which the weights so far are nearest to the step's share"
    config = load_config('toybox', {'guidance.timesteps': 'dreamtime', 'guidance.t_range': [.1, .98],
        'guidance.t_range_end': [.02, .5], 'iters': 37})
    def weight(t): return math.exp(-(t - 800)**2/(2*300**2) if t > 800 else -(500 - min(t, 500))**2/(2*100**2))
    total = sum(weight(t) for t in range(20, 981))
    for step in range(37):
        behind, best = 0., (2., 0)
        for t in range(980, 19, -1):
            behind += weight(t)
            best = min(best, (abs(behind/total - step/37), t), key=lambda pair: pair[0])
        assert annealed_timestep(step, config, 1000) == best[1], step
    # a model with fewer levels: the same parts of them
    few = [annealed_timestep(step, config, 100) for step in range(37)]
    assert all(abs(10*t - annealed_timestep(step, config, 1000)) <= 25 for step, t in enumerate(few))


def test_the_map_of_noise():
    "Pixel by pixel"
    azimuth, polar = torch.tensor([-170., 15., 400.]), torch.tensor([0., 77., 180.])
    opacity = torch.rand(3, 1, 24, 40, generator=torch.Generator().manual_seed(1))
    found = noise_map(5, (2, 6, 10), azimuth, polar, opacity)
    g = torch.Generator().manual_seed(5)
    around, behind = torch.randn(2, 12, 20, generator=g), torch.randn(2, 6, 10, generator=g)
    for n in range(3):
        top, left = int(polar[n]*6/180), math.floor(azimuth[n]*20/360)
        for i, j in np.ndindex(6, 10):
            there = opacity[n, 0, 4*i:4*i + 4, 4*j:4*j + 4].mean() >= .5
            wanted = around[:, top + i, (left + j) % 20] if there else behind[:, i, j]
            assert torch.equal(found[n, :, i, j], wanted)


# What it costs, and how it goes

def options_of(kind):
    "Keys that a kind needs"
    needed = {'guidance.kind': kind}
    if kind in ('fsd', 'consistent3d'): needed |= {'guidance.timesteps': 'linear'}
    if kind == 'fsd': needed |= {'guidance.kind': 'sds', 'guidance.noise': 'map'}
    if kind == 'consistent3d': needed |= {'guidance.noise': 'fixed', 'guidance.t_range': [.1, .7]}
    if kind == 'x0': needed |= {'guidance.rescale': .5}
    if kind == 'bridge': needed |= {'guidance.bridge_start': .5}
    return needed


KINDS = 'x0', 'asd', 'consistent3d', 'bridge', 'ism', 'sdi', 'fsd', 'vsd'


def cheap(kind, **options): return load_config('toybox', CHEAP, dict(prompt='a duck'), options_of(kind), options)


def test_every_kind_is_tested():
    assert set(KINDS) == {*VARIANTS, 'bridge', 'fsd'}
    assert set(Config.__dataclass_fields__['guidance'].type.__dataclass_fields__['kind'].metadata['choices']) == {
        *VARIANTS, 'bridge', 'sds', 'csd', 'nfsd'}


@pytest.mark.parametrize('perp_neg', [0., 1.])
@pytest.mark.parametrize('kind', KINDS)
def test_rows_of_a_step(kind, perp_neg, model, monkeypatch):
    asked, predict, followed, answer = [], model.predict_noise, [], LoRA._ask
    monkeypatch.setattr(model, 'predict_noise', lambda noisy, *rest: asked.append(len(noisy)) or predict(noisy, *rest))
    monkeypatch.setattr(LoRA, '_ask', lambda self, noisy, *rest: followed.append((len(noisy), torch.is_grad_enabled()))
        or answer(self, noisy, *rest))
    trainer = Stepper(cheap(kind, **{'guidance.perp_neg': perp_neg, 'iters': 4, 'data.train.batch_size': 2,
        'data.train.theta_range': [70, 100]}), OwnParts(model))    # no view from overhead, whose opposite has no weight
    for step in range(3):
        asked.clear(), followed.clear()
        t = trainer.step().t
        texts = 2 + (perp_neg > 0)
        rows = {'fsd': texts, 'x0': texts, 'vsd': texts, 'asd': texts + 1, 'consistent3d': 2*texts,
                'bridge': texts if step < 2 else 2,
                'ism': texts + 1 + max(math.ceil(max(0, level - 50)/200) for level in t.tolist()),
                'sdi': texts + 2*max(math.ceil(level/100) for level in t.tolist())}
        assert sum(asked) == 2*rows[kind], (kind, step, asked, t)
        # of the model of the renderings: a row a view is asked, and one is learned
        assert followed == ([(2, False), (2, True)] if kind == 'vsd' else [])


@pytest.mark.parametrize('kind', KINDS)
def test_stop_and_resume(kind, model, tmp_path):
    options = {'iters': 4, 'data.train.batch_size': 2 if kind in ('x0', 'fsd', 'vsd') else 1}
    straight = Trainer(cheap(kind, **options), model)
    straight.fit()
    assert all(math.isfinite(row['loss']) and row['grad_norm'] > 0 for row in straight.history)
    assert_same_with_a_break(straight, Trainer(cheap(kind, **options), model, folder=tmp_path), model, 2)


def all_have_learned(lora):    # the camera may not have been told yet
    return all(lora.weights[f'{name}.up'].abs().sum() > 0 for name in attention_layers(lora.guidance.unet))


def test_a_lora_is_in_the_checkpoint(model, tmp_path):
    "Weights and moments in a file of their own; a file that is gone, foreign or not finite is refused"
    from safetensors.torch import load_file, save_file
    run = Trainer(cheap('vsd', **{'iters': 4, 'guidance.lora_rank': 2}), model, folder=tmp_path)
    run.save()
    assert len(load_file(run.checkpoint/'lora.safetensors')) == len(run.lora.weights)    # no moments yet
    run.fit(2)
    run.save()
    again = Trainer.resume(tmp_path, model)
    assert all(torch.equal(again.lora.state()[name], value) for name, value in run.lora.state().items())
    assert all_have_learned(run.lora) and all(row['lora'] > 0 for row in run.history)
    run.fit()
    again.fit()
    for name, value in run.lora.state().items(): assert torch.equal(again.lora.state()[name], value), name
    assert [*tmp_path.rglob('*.pt'), *tmp_path.rglob('*.pkl')] == []
    file = run.checkpoint/'lora.safetensors'
    held = load_file(file)
    first = next(iter(run.lora.weights))
    for change in ({first: torch.zeros(3)}, {first: held[first]/0}, {f'{first} exp_avg': torch.zeros(1)}):
        save_file(held | change, file)
        with pytest.raises(ConfigError, match='damaged or does not belong.*of the LoRA') as error:
            Trainer.resume(tmp_path, model)
        assert '\n' not in str(error.value)
    save_file({name: value for name, value in held.items() if name != first}, file)
    with pytest.raises(ConfigError, match='damaged'): Trainer.resume(tmp_path, model)
    file.unlink()
    with pytest.raises(ConfigError, match='damaged'): Trainer.resume(tmp_path, model)


def test_a_step_that_fails_teaches_the_lora_nothing(model, monkeypatch):
    "Weights stay, and the same step can be taken again"
    run = Stepper(cheap('vsd'), OwnParts(model))
    run.step()
    before = {name: value.clone() for name, value in run.lora.state().items()}
    monkeypatch.setattr(LoRA, 'gradient', lambda self: torch.tensor([math.nan]))
    with pytest.raises(ConfigError, match='the gradient of the LoRA is not finite'): run.step()
    for name, value in run.lora.state().items(): assert torch.equal(value, before[name])


def test_vsd_needs_attention_and_memory(model):
    class Flat(Crooked):
        latent_shape, encode_text = (4, 8, 8), model.encode_text
    with pytest.raises(ConfigError, match='guidance.kind must not be vsd for a guidance without') as error:
        Stepper(cheap('vsd'), OwnParts(Flat()))
    assert '\n' not in str(error.value)
    frugal = copy.copy(model)
    frugal.one_by_one = True
    with pytest.raises(ConfigError, match='a guidance in low memory'): Stepper(cheap('vsd'), OwnParts(frugal))


def test_a_model_of_pixels_is_followed(pixels):
    "Attention of another kind, and an answer that holds a variance, too"
    from dreamfusion_nb.pixel import PixelDiffusion
    run = Stepper(cheap('vsd', **{'guidance_scale': 7.5}), OwnParts(PixelDiffusion.from_pretrained(pixels)))
    assert any(name.endswith('add_k_proj') for name in attention_layers(run.guidance.unet))
    for _ in range(3): assert run.step().grad_norm > 0
    assert all_have_learned(run.lora)


@pytest.mark.skipif(not find_spec('openvino'), reason='needs OpenVINO')
def test_openvino_goes_on_beside_a_lora():
    "It answers for the pretrained model; what learns is asked in PyTorch"
    from dreamfusion_nb.prior import toybox_prior
    runs = {backend: Stepper(cheap('vsd'), OwnParts(toybox_prior(backend=backend)))
            for backend in ('torch', 'openvino')}
    for _ in range(2): plain, quick = (run.step() for run in runs.values())
    torch.testing.assert_close(quick.grad, plain.grad, rtol=1e-3, atol=1e-3)
    assert runs['openvino'].guidance.unet._made[1] is not None and runs['openvino'].lora.network._made is None


def test_a_bridge_goes_from_one_text_to_another(model):
    "In its last part only; without guidance and without Perp-Neg"
    trainer = Stepper(cheap('bridge', **{'iters': 2, 'bridge_source': ', foggy'}), OwnParts(model))
    first, last = trainer.step(), trainer.step()
    weights = view_weights(last.cameras.azimuth, last.cameras.polar)[0]
    views = [f'a duck{view}' for view in (', front view', ', side view', ', back view', ', overhead view')]
    good, bad = (torch.einsum('v,vtw->tw', weights, model.encode_text([v + more for v in views]).float())[None]
                 for more in ('', ', foggy'))
    wanted = model.predict_noise(last.noisy, last.t, good) - model.predict_noise(last.noisy, last.t, bad)
    torch.testing.assert_close(last.grad, wanted.float(), rtol=.05, atol=.02*wanted.abs().max().item())
    assert first.grad.norm() > 5*last.grad.norm()    # and before it all of SDS, noise included


def test_rescale_of_x0_is_that_of_all_views(model):
    "So views in one step are not as views alone, and workers, which see their own views only, are refused"
    config = cheap('x0', **{'data.train.batch_size': 2, 'perp_neg': 0})
    record = Stepper(config, OwnParts(model)).step()
    texts = Stepper(config, OwnParts(model)).prompts
    e = texts.embeddings(view_weights(record.cameras.azimuth, record.cameras.polar))
    def alone(i, rescale):
        return sds(model, record.latents[i:i + 1]/2 + .5, e[[i, i + 2]], guidance_scale=config.guidance_scale,
            t=record.t[i:i + 1], noise=record.sds.noise[i:i + 1], kind=X0(rescale), as_latent=True).x0
    plain, each = (torch.cat([alone(i, rescale) for i in range(2)]) for rescale in (0., .5))
    share = (record.sds.x0/plain).flatten(1).median(1).values
    assert abs(share[0] - share[1]) < .01 and abs((each/plain).flatten(1).median(1).values.diff()) > .01
    with pytest.raises(ConfigError, match=r'workers \(--workers\) must be left out for guidance.kind x0'):
        Trainer(config, model, workers=1).step()
    Trainer(cheap('x0', **{'data.train.batch_size': 2, 'guidance.rescale': 0}), model, workers=1).step()


@pytest.mark.parametrize('kind', ['fsd', 'ism', 'vsd'])
def test_workers_change_nothing(kind):
    "Two processes draw the same noise and find the same as one"
    runs = [Trainer(cheap(kind, **{'iters': 2, 'data.train.batch_size': 2}), workers=n) for n in (1, 2)]
    for run in runs: run.fit()
    assert runs[0].history == runs[1].history
    for one, two in zip(*(run.renderer.parameters() for run in runs)): assert torch.equal(one, two)
    runs[1].team.stop()


def test_noise_of_a_run(model):
    "The same in every step and in a run that goes on; by camera where it is a map"
    runs = {noise: Stepper(cheap('fsd', **{'guidance.noise': noise, 'data.train.batch_size': 2}), OwnParts(model))
            for noise in ('fixed', 'map')}
    first, second = (runs['fixed'].step().sds.noise for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, fixed_noise(runs['fixed'].config.seed, (4, 8, 8), 2))
    record = runs['map'].step()
    assert not torch.equal(record.sds.noise[0], record.sds.noise[1])
    assert torch.equal(record.sds.noise, own_noise(runs['map'], record.cameras, record.render))


def test_rising_bounds(model):
    "D-SDS (Hong et al. 2023): each number of the gradient within ±2 at first, ±8 in the end"
    trainer = Stepper(cheap('asd', **{'clip_value': [0, 2, 8, 2], 'guidance_scale': 1000, 'scale_decay': 1}),
        OwnParts(model))
    assert [trainer.step().grad.abs().max().item() for _ in range(3)] == [2, 5, 8]


# What makes no sense

REFUSED = {
    'kind=asdf': 'did you mean|nearest right value',
    'kind=x0 weighting=sds': 'guidance.weighting must be uniform for guidance.kind x0',
    'kind=ism weighting=fantasia3d': 'guidance.weighting must be uniform for guidance.kind ism',
    'kind=consistent3d': 'guidance.noise must be fixed for guidance.kind consistent3d',
    'kind=consistent3d noise=map timesteps=linear': 'guidance.noise must be fixed for guidance.kind consistent3d',
    'kind=sdi noise=fixed timesteps=linear': 'guidance.noise must be drawn for guidance.kind sdi',
    'kind=csd noise=map timesteps=linear': 'guidance.noise must be drawn for guidance.kind csd',
    'noise=map': 'guidance.timesteps must be linear, dreamtime or annealed with guidance.noise map',
    'timesteps=dreamtime t_range=[[0,0.1,0.2,5],0.9] t_range_end=null t_range_first=null':
        'guidance.timesteps must be random',
    'asd_shift=0.3': 'guidance.asd_shift is read by guidance.kind asd alone',
    'kind=sdi ism_interval=0.1': 'guidance.ism_interval is read by guidance.kind ism alone',
    'lora_rank=8': 'guidance.lora_rank is read by guidance.kind vsd alone',
    'kind=asd lora_lr=0.1': 'guidance.lora_lr is read by guidance.kind vsd alone',
    'kind=vsd low_memory=true': 'guidance.low_memory must be false for guidance.kind vsd',
    'kind=vsd noise=fixed timesteps=linear': 'guidance.noise must be drawn for guidance.kind vsd',
    'bridge_source=foggy': 'guidance.bridge_source is read by guidance.kind bridge alone',
    'kind=bridge bridge_source=': 'guidance.bridge_source must be a text that is not empty',
    'kind=ism guidance.name=DeepFloyd/IF-I-XL-v1.0': 'guidance.kind must not be ism for a diffusion model',
}


@pytest.mark.parametrize('keys', REFUSED)
def test_refusals(keys):
    with pytest.raises(ConfigError, match=REFUSED[keys]) as error: load_config('toybox', *keys.split())
    assert '\n' not in str(error.value)
