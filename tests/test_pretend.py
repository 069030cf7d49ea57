"""What a GPU would refuse, wait for and be asked, found on a pretended one: see `pretend`"""
import json
import math
import sys
import types
import warnings
from importlib.util import find_spec

import pytest
import torch
from conftest import CHEAP, MESH
from pretend import Gpu

from dreamfusion_nb import (
    ConfigError,
    Trainer,
    cameras,
    devices,
    dmtet,
    field,
    guidance,
    judge,
    load,
    load_config,
    metrics,
    parts,
    rasterize,
    raymarch,
    step,
    train,
)
from dreamfusion_nb.dashboard import FieldDashboard, MeshDashboard, SplatDashboard, StepDashboard
from dreamfusion_nb.guidance import LatentDiffusion
from dreamfusion_nb.presets import PRESETS
from dreamfusion_nb.prior import toybox_prior

SPLATS = {'splats.count': 80, 'splats.max_count': 100, 'data.train.start_size': None}
TINY = CHEAP | {'data.train.width': 16, 'data.train.height': 16, 'iters': 4, 'checkpoint.every_n_train_steps': 2,
                'data.val.size': 2, 'data.val.val_check_interval': 2, 'data.test.size': 2}
SURFACE = {'renderer.grid_resolution': 20, 'data.train.width': 24, 'data.train.height': 24}
EVERY = {name: {} for name in PRESETS} | {'toybox-dmtet': SURFACE, 'dreamfusion-dmtet': SURFACE} | dict.fromkeys(
    ('splats', 'dreamgaussian'), SPLATS)


@pytest.fixture(scope='module')
def device():
    with Gpu() as pretended: yield pretended


@pytest.fixture(autouse=True)
def gpu(device):
    "Every test has new books, and nothing may have been refused, also where a program went on"
    device.refused.clear()
    device.reset()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield device
    assert device.refused == []


@pytest.fixture(scope='module')
def teacher(device, pipeline): return LatentDiffusion.from_pretrained(pipeline, device='cuda')


@pytest.fixture(scope='module')
def prior(device): return toybox_prior('cuda', torch.float16)


def trainer(teacher, preset='toybox', **options):
    return Trainer(load_config(preset, TINY, EVERY[preset], dict(prompt='a hamburger'), options), teacher, 'cuda')


# The device itself

def test_numbers_are_real_and_places_are_told(gpu):
    x = torch.arange(6., device='cuda').view(2, 3)
    assert x.device == torch.device('cuda', 0) and x.is_cuda and not torch.zeros(2).is_cuda
    assert (x@x.T).tolist() == [[5., 14.], [14., 50.]] and x.cpu().numpy().sum() == 15
    assert gpu.waits.total() == 2 and all('test_pretend' in place for place in gpu.waits)
    assert x.new_zeros(2).is_cuda and torch.zeros_like(x, device='cpu').device.type == 'cpu'
    assert gpu.launches.total() >= 2


REFUSED = dict(
    two_devices=lambda x: x + torch.ones(2, 3), numpy=lambda x: x.numpy(), whole=lambda x: x.long()@x.long().T,
    generator=lambda x: torch.rand(2, generator=torch.Generator(), device='cuda'),
    in_place=lambda x: x.uniform_(generator=torch.Generator()), indexed=lambda x: torch.ones(9)[x.long()],
    values=lambda x: x.index_put((torch.tensor([0]),), torch.ones(1, 3)), weights=lambda x: torch.nn.Linear(3, 1)(x))


@pytest.mark.parametrize('name', REFUSED)
def test_what_cuda_refuses(gpu, name):
    x = torch.ones(2, 3, device='cuda')
    with pytest.raises((RuntimeError, TypeError)): REFUSED[name](x)
    assert len(gpu.refused) == 1
    gpu.refused.clear()


WAITS = dict(item=lambda x: x.sum().item(), truth=lambda x: bool(x[0, 0]), mask=lambda x: x[x > 0],
             nonzero=lambda x: x.nonzero(), unique=lambda x: x.unique(), there=lambda x: x.cpu(),
             here=lambda x: torch.ones(2).to(x.device), made=lambda x: torch.tensor([1.], device='cuda'),
             copied=lambda x: x.copy_(torch.ones(2, 3)), listed=lambda x: x[[0, 1]])


@pytest.mark.parametrize('name', WAITS)
def test_what_is_waited_for(gpu, name):
    x = torch.ones(2, 3, device='cuda')
    WAITS[name](x)
    assert gpu.waits.total() >= 1


def test_what_is_not_waited_for(gpu):
    x = torch.ones(2, 3, device='cuda')
    sent = devices.send(torch.ones(3), 'cuda')
    y = torch.where(x > 0, x*sent, 0.).sum(1)[None].repeat(2, 1)
    y[0] = 2.
    assert y.is_cuda and not gpu.waits and gpu.launches.total() > 4
    assert y.tolist() == [[2., 2.], [3., 3.]]


def test_memory_is_counted_and_runs_out(gpu):
    held, gpu.limit = gpu.bytes_held, gpu.bytes_held + 2**20
    for _ in range(3): torch.zeros(2**17, device='cuda')
    assert gpu.peak == held + 2**19
    with pytest.raises(torch.OutOfMemoryError): torch.zeros(2**19, device='cuda')
    gpu.limit = None


# Every preset

@pytest.mark.parametrize('preset', PRESETS)
def test_a_run_is_stopped_resumed_and_read_back(teacher, preset, tmp_path):
    "Steps, validation, checkpoints, stop and resume; then load, render and export"
    config = load_config(preset, TINY, EVERY[preset], dict(prompt='a hamburger'), {'splats.dead_below': 1e-6})
    Trainer(config, teacher, 'cuda', tmp_path).fit(2)
    assert (tmp_path/'validation'/'step-000002.png').exists()
    run = Trainer.resume(tmp_path, teacher, 'cuda')
    run.fit()
    assert [row['step'] for row in run.history] == [0, 1, 2, 3] and run.renderer.training
    result = load(tmp_path, 'cuda')
    assert result.device.type == 'cuda' and result.views(cameras.orbit(1), 12).is_cuda
    result.export(tmp_path/'a.glb', 12, texture=32 if result.is_mesh else None)


class Ball(torch.nn.Module):
    "A field of one's own"
    def __init__(self):
        super().__init__()
        self.radius, self.color = torch.nn.Parameter(torch.tensor(.4)), torch.nn.Parameter(torch.zeros(3))

    def density(self, x): return 40*torch.sigmoid(30*(self.radius - x.norm(dim=1)))

    def forward(self, x): return self.density(x), self.color.sigmoid().expand(len(x), 3)


def ball(config, generator): return Ball()


def test_the_whole_way_with_the_toybox_prior(prior, tmp_path):
    "What `train` writes, a mesh stage, and scores, for which there is a truth; the judge sits on the CPU"
    few = {'renderer.max_steps': 16, 'iters': 2}
    cloud = train('a hamburger', guidance=prior, field=ball, device='cuda', out=tmp_path/'cloud', progress=False,
                  **TINY | few)
    assert {'preview.png', 'turntable.mp4', 'model.glb'} <= {path.name for path in cloud.folder.iterdir()}
    found = metrics.score(cloud, judge.shipped_judge())
    assert 0 <= found['agreement'] <= 1 and found['psnr'] > 0
    options = {k: v for k, v in (MESH | TINY | SURFACE | few).items() if not k.startswith('nerf.')}
    mesh = cloud.refine(progress=False, device='cuda', **options)
    assert mesh.is_mesh and mesh.device.type == 'cuda'


OPTIONS = dict(
    several={'data.train.batch_size': 2, 'data.train.jitter': True, 'guidance.perp_neg': .5},
    autograd={'nerf.normal_type': 'autograd', 'albedo_iter_ratio': 0}, adan={'optim.name': 'adan', 'optim.betas': None},
    sky={'background.type': 'tcnn'}, waves={'background.type': 'torchngp', 'background.mix_ratio': .5},
    smooth={'loss.lambda_3d_normal_smooth': 1, 'loss.lambda_2d_normal_smooth': 1}, ruler={'renderer.dt_gamma': .01},
    nested={'nerf.bound': 2}, fading={'nerf.encoder_max_level': .5}, latent={'latent_iter_ratio': 1},
    phong={'material.phong_ratio': 1, 'albedo_iter_ratio': 0, 'textureless_ratio': 0},
    nfsd={'guidance.kind': 'nfsd', 'negative_prompt': 'a duck', 'guidance.clamp_x0': 2.},
    clipped={'optim.max_grad_norm': 1.}, waves_of_points={'nerf.encoder_type': 'frequency'})


@pytest.mark.parametrize('name', OPTIONS)
def test_options_learn(teacher, name):
    run = trainer(teacher, **OPTIONS[name])
    for _ in range(2): run.step()
    assert all(p.device.type == 'cuda' for p in run.renderer.parameters())


def test_own_parts_learn_on_a_gpu(teacher):
    config = load_config('toybox', TINY, dict(prompt='a hamburger', albedo_iter_ratio=0))
    def small(out, field, generator): return field.radius.square()
    def sky(directions, **how): return (directions + 1)/2
    run = Trainer(config, teacher, 'cuda', field=Ball(), background=lambda config, generator: sky,
                  losses=dict(small=small), optimizer=lambda p: torch.optim.SGD(p, lr=.1))
    for _ in range(2): record = run.step()
    assert record.losses['small'] > 0 and run.mesh(16).is_watertight


def test_dashboards_show_what_is_on_a_gpu(teacher):
    cloud, splats = trainer(teacher), trainer(teacher, 'splats')
    steps, inside, mesh = StepDashboard(cloud), FieldDashboard(cloud), MeshDashboard(cloud, resolution=16)
    steps.button['step'].click()
    inside.azimuth.value += 10
    mesh.button['auto'].click()
    list_of = SplatDashboard(splats)
    list_of.button['step'].click()
    for board in (steps, inside, mesh, list_of): assert board.error.value == ''


# Budgets: counts, not times

def book(gpu, run):
    "Launches beside those of the diffusion model, forward and backward, and waits, of a step"
    gpu.reset()
    run.step()
    ours = sum(n for place, n in gpu.launches.items() if not place.startswith(('small_diffusion', 'pipelines')))
    return ours, gpu.waits.total()


def books(gpu, make):
    "Books of a step with an update of the grid and of one without"
    make().step()    # kernels are tried at their first use
    run = make()
    return [book(gpu, run) for _ in range(2)]


def small_dreamfusion(prior, **options):
    "Preset dreamfusion as it is, but for the sizes: 16 levels, 1,024 steps a ray"
    sizes = {'prompt': 'a hamburger', 'data.train.width': 8, 'data.train.height': 8,
             'renderer.grid_resolution': 24, 'nerf.log2_hashmap_size': 8}
    return Trainer(load_config('dreamfusion', sizes, options), prior, 'cuda')


def test_a_step_of_dreamfusion_waits_twice(gpu, prior):
    """For the numbers of samples, and for those of the history: where latents are drawn, and later where pictures are,
    lit with and without paint. The first of all steps does not know how much room samples need"""
    most, with_update = (375, 450) if gpu.warp else (1400, 1900)
    run = small_dreamfusion(prior, **{'data.train.fovy_range': (20., 20.)})
    run.step()
    looks = set()
    for number in (1, 2, 16, 5008, 5009, 5010, 5011, 5012, 5013):
        run.step_count = number
        launches, waits = book(gpu, run)
        assert waits <= 2 and launches <= (with_update if number in (16, 5008) else most), gpu.report()
        looks.add((run.history[-1]['shading'], number > 5000))
    assert len(looks) == 3
    _, waits = book(gpu, small_dreamfusion(prior))
    assert waits <= 3, gpu.report()


@pytest.mark.parametrize('keys', [dict(kind='x0', rescale=.5), dict(kind='asd'), dict(kind='ism'), dict(kind='sdi'),
    dict(kind='consistent3d', noise='fixed', timesteps='linear'), dict(kind='bridge', bridge_start=0),
    dict(noise='map', timesteps='dreamtime'), dict(kind='vsd')])
def test_a_variant_waits_no_more_than_sds(gpu, prior, keys):
    "What it must know of noise levels it knows before they are sent to the GPU"
    options = {f'guidance.{key}': value for key, value in keys.items()} | {'guidance.weighting': 'uniform'}
    for _, waits in books(gpu, lambda: small_dreamfusion(prior, **options)): assert waits <= 3, gpu.report()


def test_steps_of_splats_and_meshes_wait_seldom(gpu, teacher):
    """A mesh waits for the sizes of the surface, for how many pixels see it, and for the numbers of the history; splats
    for two sizes and the history. Without Warp pixels and outlines are found on the CPU"""
    (_, waits), (launches, waits_then) = books(gpu, lambda: trainer(teacher, 'splats'))
    assert waits <= 4 and waits_then <= 3 and launches <= (770 if gpu.warp else 880), gpu.report()
    for preset in ('toybox-dmtet', 'dreamfusion-dmtet'):
        _, (launches, waits) = books(gpu, lambda: trainer(teacher, preset))
        assert waits <= (3 if gpu.warp else 14) and launches <= (600 if gpu.warp else 1000), gpu.report()


def test_large_pictures_need_no_more_launches(gpu, prior):
    "65,536 rays are one piece, so a view of 800 x 800 pixels is ten"
    run, counts = small_dreamfusion(prior, **{'renderer.max_steps': 64, 'nerf.n_levels': 4}), []
    for size in (8, 64):
        gpu.reset()
        run.glance(size)
        counts.append(gpu.launches.total())
    assert counts[1] < counts[0] + 60, counts
    assert run.renderer.chunk is None


@pytest.mark.parametrize('known', [0., .01, 1e3])
def test_pictures_do_not_depend_on_room(gpu, teacher, known):
    "Samples that do not fit are not lost, and those that fill are not seen: nothing is known, too little, too much"
    exact, other = trainer(teacher), trainer(teacher)
    for run in exact, other: run.step()
    exact.renderer.samples_a_ray, other.renderer.samples_a_ray = 0., known
    gpu.reset()
    a, b = exact.step().render, other.step().render
    assert a.ray_index.equal(b.ray_index) and a.t.equal(b.t) and len(a.t) > 100
    assert (a.image - b.image).abs().max() < 1e-5
    assert 0 < other.renderer.samples_a_ray and exact.renderer.samples_a_ray < 1e3


@pytest.mark.skipif(not find_spec('warp'), reason='plain torch needs three times as many')
def test_a_large_view_needs_few_launches(gpu, prior):
    "800 x 800 pixels of a solid ball, lit. Launches do not depend on how wide networks are, so these are narrow"
    run = small_dreamfusion(prior, **{
        'nerf.blob_radius': .25, 'nerf.blob_density': 40., 'nerf.density_bias': -20., 'nerf.n_levels': 1,
        'nerf.hidden_dims': 4, 'renderer.grid_resolution': 128})
    run.renderer.update(0, run.generator)
    run.glance(8)
    gpu.reset()
    with torch.no_grad(): view = run.renderer(cameras.orbit(1, device='cuda'), 800, 800, shading='lambertian')
    assert gpu.launches.total() <= 2000, gpu.report()
    assert run.renderer.max_steps == 1024 and .1 < (view.opacity > .99).float().mean()


def most_held(gpu, make, steps=2):
    "(bytes that the last of some steps of a trainer holds at most, beside the diffusion model; its record)"
    gpu.tidy()
    held, run = gpu.bytes_held, make()
    for _ in range(steps):
        gpu.reset()
        record = run.step()
    return gpu.peak - held, record


def ask_at_once(monkeypatch, points):
    "Let fields be asked about so many points at once"
    for page in (field, raymarch): monkeypatch.setattr(page, 'points_at_once', lambda device, learns=False: points)


def test_the_fog_of_the_first_steps_is_bounded(gpu, prior, monkeypatch):
    """Samples are asked in pieces, and each is computed anew for its gradient: what a step holds at most grows with the
    size of a piece, and little with the number of samples. So it is known for pictures that are too large for a test"""
    most = {}
    for piece in (2**30, 2**12, 2**13):
        ask_at_once(monkeypatch, piece)
        most[piece], record = most_held(gpu, lambda: small_dreamfusion(prior, **{'renderer.max_steps': 256}))
    assert len(record.render.t) > 1000 and most[2**12] < .7*most[2**30]
    of_piece = 2**30    # and no more, as in the next test
    assert (most[2**13] - most[2**12])/2**12*devices.points_at_once('cuda', learns=True) < of_piece
    # two moments and more of all the weights, in a table of the preset's size
    large = {'nerf.log2_hashmap_size': 19, 'renderer.max_steps': 64}
    of_weights, _ = most_held(gpu, lambda: small_dreamfusion(prior, **large))
    # all that is held by a step of small pieces, divided among its samples, is more than one of them needs
    ask_at_once(monkeypatch, 2**12)
    larger = {'data.train.width': 12, 'data.train.height': 12}
    held, record = most_held(gpu, lambda: small_dreamfusion(prior, **larger), steps=1)
    in_fog, each = len(record.render.t)/12**2, held/len(record.render.t)
    # a ball of soft rim, as if it had been learnt
    ball = {'nerf.blob_density': 14, 'nerf.density_bias': -6}
    formed = len(most_held(gpu, lambda: small_dreamfusion(prior, **ball), steps=1)[1].render.t)/8**2
    assert 10 < formed < in_fog/4 and each < 1000
    for size in (64, 128):
        fog, later = (of_weights + of_piece + each*samples*size**2 for samples in (in_fog, formed))
        assert fog < 4*2**30 and later < 2*2**30, (size, fog, later)


def test_a_refresh_of_the_grid_is_bounded(gpu, prior, monkeypatch):
    "Its points are asked in pieces too, without a gradient"
    most = []
    for piece in (2**12, 2**13):
        ask_at_once(monkeypatch, piece)
        run = small_dreamfusion(prior, **{'renderer.grid_resolution': 32})
        gpu.tidy()
        held = gpu.bytes_held
        gpu.reset()
        run.renderer.update(0, run.generator)
        most.append(gpu.peak - held)
    assert 0 < (most[1] - most[0])/2**12*devices.points_at_once('cuda') < 1.5*2**30


def test_the_memory_of_a_mesh_is_bounded(gpu, teacher):
    "Preset dreamfusion-dmtet as it is, 512 x 512 pixels and 80,000 triangles, seen from so near that they fill them"
    near = {'prompt': 'a hamburger', 'data.train.fovy_range': [10, 10], 'textureless_ratio': 0}
    most, record = most_held(gpu, lambda: Trainer(load_config('dreamfusion-dmtet', near), teacher, 'cuda'), steps=1)
    assert record.image.shape[2:] == (512, 512) and len(record.render.faces) > 80_000
    assert record.look.shading == 'lambertian' and record.opacity.mean() > .9 and most < 2**30, gpu.report(0)


# Ten bugs, planted one at a time

def one_step(gpu, teacher, preset='toybox', **options):
    run = trainer(teacher, preset, **options)
    run.step()
    gpu.reset()
    run.step()


def in_waves(density, samples, n_rays, min_weight, backend, stop):
    "How `visible` asked a GPU at first"
    first = raymarch._first(samples.ray_index, n_rays, check=False)
    sigma, tau = torch.zeros_like(samples.t), torch.zeros(n_rays, device=first.device)
    for begin in range(0, int(first.diff().max()), 16):
        lit = ((first.diff() > begin) & (tau < -math.log(stop))).nonzero()
        asked = first[lit] + begin + torch.arange(16, device=first.device)
        i = asked[asked < first[lit + 1]]
        sigma[i] = density(samples.positions[i])
        tau.index_add_(0, samples.ray_index[i], sigma[i]*samples.dt[i])
    weights = raymarch.composite(sigma, samples.positions[:, :0], samples.t, samples.dt, samples.ray_index, n_rays,
                                 first=first).weights
    return (weights > min_weight).nonzero()[:, 0], int((samples.ray_index < n_rays).sum())


def one_by_one(tensors): return {name: tensor.reshape(-1).tolist() for name, tensor in tensors.items()}


def product_of_matrices(tets, n_vertices):
    return (tets[:, :2]@torch.tensor([n_vertices, 1], device=tets.device)).unique()


def drawn_there(shape, generator, device): return torch.randn(shape, generator=generator, device=device)


def as_arrays(vertices, faces, **options): return __import__('trimesh').Trimesh(vertices.numpy(), faces.numpy())


def judged(gpu, teacher): judge.shipped_judge().read(torch.rand(2, 3, 64, 64, device='cuda'))


BUGS = dict(    # where, what stands there instead, what meets it
    cameras_stay_behind=(cameras.Cameras, 'send', lambda self, device: self, one_step),
    light_stays_behind=(step, 'sample_light', lambda position, generator: torch.randn(len(position), 3), one_step),
    noise_is_drawn_there=(guidance, '_randn', drawn_there, one_step),
    whole_numbers_are_multiplied=(dmtet, 'TetEdges', product_of_matrices,
                                  lambda gpu, teacher: one_step(gpu, teacher, 'toybox-dmtet')),
    a_table_stays_behind=(dmtet, 'send', lambda values, device: values,
                          lambda gpu, teacher: one_step(gpu, teacher, 'toybox-dmtet')),
    arrays_are_made_of_it=(dmtet, 'make_trimesh', as_arrays,
                           lambda gpu, teacher: trainer(teacher, 'toybox-dmtet').mesh()),
    the_judge_sits_elsewhere=(judge.Judge, 'features', lambda self, images: self.body(images*2 - 1), judged),
    densities_are_asked_in_waves=(raymarch, 'visible_in_room', in_waves, one_step),
    numbers_are_read_one_by_one=(step, 'read', one_by_one, one_step),
    copies_are_waited_for=(raymarch, 'send', lambda values, device: values.to(device), one_step),
    fields_are_asked_in_bits=(field, 'points_at_once', lambda device, learns=False: 64, one_step))


@pytest.mark.parametrize('name', BUGS)
def test_planted_bugs_are_found(gpu, teacher, monkeypatch, name):
    "It is refused, or shows in the books, where without it all is well"
    where, what, instead, trial = BUGS[name]
    trial(gpu, teacher)
    assert gpu.refused == []
    launches, waits = gpu.launches.total(), gpu.waits.total()
    monkeypatch.setattr(where, what, instead)
    try: trial(gpu, teacher)
    except (RuntimeError, TypeError): assert gpu.refused
    else: assert gpu.waits.total() > waits or gpu.launches.total() > 1.3*launches
    gpu.refused.clear()


# What is missing, or breaks

def test_a_resumed_adan_computes_as_before(teacher, tmp_path):
    "Whether by Triton's kernel is decided once, and not at the first step, which a resumed run has not"
    config = load_config('toybox', TINY, {'prompt': 'a hamburger', 'optim.name': 'adan', 'optim.betas': None})
    run = Trainer(config, teacher, 'cuda', tmp_path)
    run.fit(1)
    run.save()
    resumed = Trainer.resume(tmp_path, teacher, 'cuda')
    kernels = [[group['triton'] for group in t.optimizer.param_groups] for t in (run, resumed)]
    assert kernels[0] == kernels[1] and None not in kernels[0]


def test_adan_does_without_a_triton_that_does_not_work(teacher, monkeypatch):
    "As where there is no C compiler: one warning, and plain torch"
    monkeypatch.setattr('optimi.utils.HAS_TRITON', True)
    parts.triton_works.cache_clear()
    options = {'optim.name': 'adan', 'optim.betas': None}
    with pytest.warns(UserWarning, match='optim.name adan: its Triton kernel does not work here') as said:
        for _ in range(2): trainer(teacher, **options).step()
    assert len([w for w in said if 'Triton' in str(w.message)]) == 1
    parts.triton_works.cache_clear()


def test_nvdiffrast_that_does_not_work_is_done_without(teacher, monkeypatch):
    "It imports, and its first call fails, as where nothing can compile it"
    def fails(device): raise RuntimeError('Error building extension nvdiffrast_plugin')
    package, module = types.ModuleType('nvdiffrast'), types.ModuleType('nvdiffrast.torch')
    package.torch, module.rasterize, module.RasterizeCudaContext = module, fails, fails
    for name, made in {'nvdiffrast': package, 'nvdiffrast.torch': module}.items():
        monkeypatch.setitem(sys.modules, name, made)
    rasterize.nvdiffrast_trouble.cache_clear()
    with pytest.warns(UserWarning, match='nvdiffrast does not work here.*Error building') as said:
        trainer(teacher, 'toybox-dmtet').step()
    assert len([w for w in said if 'nvdiffrast' in str(w.message)]) == 1
    with pytest.raises(ValueError, match='must work'): rasterize.pick_rasterizer('nvdiffrast', torch.device('cuda'))
    rasterize.nvdiffrast_trouble.cache_clear()


def test_full_memory_is_one_line_and_loses_nothing(gpu, teacher, tmp_path):
    "The message says which settings need less; the checkpoint stays, and the run goes on when there is room"
    config = load_config('toybox', TINY, {'prompt': 'a hamburger'})
    run = Trainer(config, teacher, 'cuda', tmp_path)
    run.fit(2)
    before = {name: value.cpu().clone() for name, value in run.renderer.state_dict().items()}
    gpu.limit = gpu.bytes_held + 100_000
    with pytest.raises(ConfigError) as failed: run.step()
    gpu.limit = None
    message = str(failed.value)
    assert message.startswith('step 2 on cuda: out of memory (') and 'data.train.width' in message
    assert '\n' not in message and len(message) < 300
    assert all(torch.equal(value.cpu(), before[name]) for name, value in run.renderer.state_dict().items())
    assert [path.name for path in (tmp_path/'checkpoints').iterdir()] == ['step-000002']
    gpu.tidy()
    held = gpu.bytes_held
    run.fit()
    assert run.step_count == 4 and gpu.bytes_held < 4*held


@pytest.mark.parametrize('has, kind', [(True, torch.bfloat16), (False, torch.float32)])
def test_half_precision_on_a_cpu_is_what_it_computes_fastest(pipeline, monkeypatch, has, kind):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx512_bf16': has})
    config = load_config('dreamfusion', {'guidance.name': str(pipeline), 'prompt': 'a hamburger'})
    assert config.guidance.precision == '16' and parts.make_guidance(config, torch.device('cpu')).dtype == kind


def test_checkpoints_move_between_devices(teacher, model, tmp_path):
    "What a GPU has saved, a CPU goes on with, and the reverse"
    config = load_config('toybox', TINY, {'prompt': 'a hamburger'})
    Trainer(config, teacher, 'cuda', tmp_path).fit(2)
    on_cpu = Trainer.resume(tmp_path, model, 'cpu')
    on_cpu.fit()
    rows = [json.loads(line) for line in (tmp_path/'history.jsonl').read_text().splitlines()]
    assert len(rows) == 4 and Trainer.resume(tmp_path, teacher, 'cuda').field.encoding.params.is_cuda
