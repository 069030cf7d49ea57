"Splats: the compiled loops against their definitions, runs from start to file, and what is refused"
import gc
import json
import math
import re
import struct
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from conftest import CHEAP, MESH, assert_same_with_a_break, toy_splats

from dreamfusion_nb import ConfigError, Trainer, load, load_config, splats, train
from dreamfusion_nb.background import StaticBackground
from dreamfusion_nb.cameras import orbit, rays, sample_cameras
from dreamfusion_nb.cli import main
from dreamfusion_nb.config import mesh_preset
from dreamfusion_nb.dashboard import CompareDashboard, FieldDashboard, MeshDashboard, SplatDashboard, StepDashboard
from dreamfusion_nb.estimate import expected_cost
from dreamfusion_nb.result import Result
from dreamfusion_nb.splat_files import read_splats, write_splats
from dreamfusion_nb.splat_renderer import (
    SplatRenderer,
    Splats,
    density_numba,
    density_torch,
    depth_normal,
    relocate,
)
from dreamfusion_nb.splats import (
    blend,
    blend_gsplat,
    blend_tiles,
    blend_torch,
    covariance,
    front_to_back,
    gsplat_trouble,
    project,
)
from dreamfusion_nb.surfaces import pieces_of
from dreamfusion_nb.viewer import Viewer

SMALL = {k: v for k, v in CHEAP.items() if not k.startswith(('nerf.', 'renderer.'))}
SMALL |= {'splats.count': 60, 'update_extra_interval': 2, 'iters': 12}


def gen(seed=0): return torch.Generator().manual_seed(seed)


def scene(n, seed=0, dtype=torch.float64):
    "Random splats: mean, scale, quaternion, opacity, feature"
    def draw(*shape): return torch.randn(*shape, generator=g, dtype=dtype)
    g = gen(seed)
    return [.4*draw(n, 3), (.5*draw(n, 3) - 2).exp(), draw(n, 4), draw(n).sigmoid(), draw(n, 5)]


def seen(camera, how, mean, scale, quaternion, opacity, feature, height=20, width=28):
    prints = project(mean, covariance(scale, quaternion), camera, height, width)
    return how(prints, opacity, feature, front_to_back(prints, height, width), height, width)


@pytest.mark.parametrize('seed', range(4))
def test_the_compiled_blend_is_the_definition(seed):
    camera = sample_cameras(1, radius_range=(2., 4.), theta_range=(10, 170), fovy_range=(15, 60), generator=gen(seed))
    parts = [value.requires_grad_() for value in scene(70, seed)]
    ours, wanted = (seen(camera, how, *parts) for how in (blend, blend_torch))
    assert torch.allclose(ours, wanted, atol=1e-12)
    pull = torch.randn(ours.shape, generator=gen(seed + 9), dtype=torch.float64)
    grads = [torch.autograd.grad((picture*pull).sum(), parts) for picture in (ours, wanted)]
    for ours, wanted in zip(*grads): assert torch.allclose(ours, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize('seed', range(3))
def test_gradients_are_those_of_finite_differences(seed):
    parts = [value.requires_grad_() for value in scene(4, seed)]
    assert torch.autograd.gradcheck(lambda *v: seen(orbit(7)[seed], blend, *v, height=9, width=11), parts)


@pytest.mark.parametrize('size', [(20, 28), (33, 70)])
def test_tiles_are_the_definition(size):
    camera = sample_cameras(1, radius_range=(2., 4.), fovy_range=(15, 60), generator=gen(3))
    parts = [value.requires_grad_() for value in scene(70, 3)]
    counts = torch.zeros(3, *size, dtype=torch.int32)
    hows = [lambda *given, how=how, count=count: how(*given, count)
            for how, count in zip((blend_tiles, blend_torch, blend), counts)]
    tiles, wanted, _ = (seen(camera, how, *parts, height=size[0], width=size[1]) for how in hows)
    assert torch.allclose(tiles, wanted, atol=1e-12) and torch.equal(counts[0], counts[1]) and counts[0].max() > 2
    assert torch.equal(counts[1], counts[2])
    pull = torch.randn(tiles.shape, generator=gen(4), dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad((picture*pull).sum(), parts) for picture in (tiles, wanted))):
        assert torch.allclose(ours, theirs, atol=1e-9)


needs_gsplat = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')


@needs_gsplat
def test_gsplat_is_nearly_the_definition():
    "Its footprint is another; pictures differ by hundredths, gradients point the same way"
    pytest.importorskip('gsplat')
    assert gsplat_trouble(torch.device('cuda')) == ('', True)
    parts = [value.float().cuda().requires_grad_() for value in scene(200)]
    pictures = [seen(orbit(1, device='cuda'), how, *parts, height=96, width=96) for how in (blend_gsplat, blend_torch)]
    assert (pictures[0] - pictures[1]).abs().mean() < .02
    for ours, theirs in zip(*(torch.autograd.grad(picture.square().sum(), parts) for picture in pictures)):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > .95


@needs_gsplat
def test_a_gpu_draws_what_a_processor_draws():
    here, there = (SplatRenderer(Splats(300, generator=gen()), StaticBackground((1., 1., 1.)), backend=backend)
                   for backend in ('auto', 'torch'))
    wanted, drawn = here(orbit(1), 40, 40), there.cuda()(orbit(1, device='cuda'), 40, 40)
    assert torch.allclose(wanted.image, drawn.image.cpu(), atol=1e-4)


def test_gsplat_that_breaks_in_mid_run_is_said_once(monkeypatch):
    "Out of memory, say: plain torch draws the picture, unless gsplat was asked for by name"
    def breaks(*given): raise torch.OutOfMemoryError('no room\nat all')
    monkeypatch.setattr(splats, 'blend_backend', lambda device, backend: 'gsplat')
    monkeypatch.setattr(splats, 'blend_gsplat', breaks)
    parts = scene(9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        drawn = [seen(orbit(1), blend, *parts) for _ in range(2)]
    assert [str(w.message).count('plain torch takes its place: OutOfMemoryError: no room at all') for w in said] == [1]
    assert all(torch.allclose(picture, seen(orbit(1), blend_torch, *parts), atol=1e-12) for picture in drawn)
    with pytest.raises(torch.OutOfMemoryError):
        seen(orbit(1), lambda *given: blend(*given, backend='gsplat'), *parts)


def test_a_run_in_plain_torch(model):
    "The same as compiled, but for rounding"
    runs = [Trainer(config(iters=3, **{'splats.backend': name}), model) for name in ('auto', 'torch')]
    for trainer in runs: trainer.fit()
    assert torch.allclose(runs[0].field.mean, runs[1].field.mean, atol=1e-3)
    assert runs[0].history[0]['opacity'] == pytest.approx(runs[1].history[0]['opacity'], abs=1e-5)


def test_extreme_splats():
    "None in sight, one that fills the picture, one smaller than a pixel, one that is a needle, one quite opaque"
    camera = orbit(1, elevation=0.)
    mean = torch.tensor([[0., 0, 9.], [0, 0, 0], [.1, 0, .1], [-.1, .1, 0], [0, -.2, .5]], dtype=torch.float64)
    scale = torch.tensor([[.1]*3, [5.]*3, [1e-5]*3, [1e-4, .5, 1e-4], [.05]*3], dtype=torch.float64)
    turned = F.normalize(torch.randn(5, 4, generator=gen(), dtype=torch.float64), dim=-1)
    opacity = torch.tensor([.9, .3, 1., .5, 1.], dtype=torch.float64)
    parts = [v.requires_grad_() for v in (mean, scale, turned, opacity, torch.eye(5, dtype=torch.float64))]
    ours, wanted = (seen(camera, how, *parts) for how in (blend, blend_torch))
    assert torch.allclose(ours, wanted, atol=1e-12) and ours.isfinite().all() and ours[..., 0].max() == 0
    for grad in torch.autograd.grad(ours.square().sum(), parts): assert grad.isfinite().all()
    empty = seen(camera, blend, *(v[:1].detach() for v in parts))
    assert not empty.any()


@pytest.mark.parametrize('n', [1, 300])
def test_the_compiled_density_is_the_definition(n):
    mean, scale, turned, opacity, _ = scene(n, n)
    cov = covariance(scale, turned)
    what = mean, torch.linalg.inv(cov), opacity.exp(), torch.rand(n, 3, generator=gen(), dtype=torch.float64)
    points = torch.randn(3000, 3, generator=gen(1), dtype=torch.float64)
    for ours, wanted in zip(density_numba(points, *what, cov), density_torch(points, *what)):
        assert torch.allclose(ours, wanted, atol=1e-9)


def test_a_field_with_gradients_and_without():
    splats, x = Splats(50, generator=gen()), .4*torch.randn(40, 3, generator=gen(1))
    with torch.no_grad(): compiled = splats(x)
    defined = splats(x)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(compiled, defined))
    assert defined[0].requires_grad and not compiled[0].requires_grad
    assert splats.mean.grad is None
    defined[0].sum().backward()
    assert splats.mean.grad.abs().sum() > 0


# a run

def config(**more): return load_config('splats', dict(prompt='a hamburger') | SMALL | more)


@pytest.fixture(scope='module')
def result(model, tmp_path_factory):
    "A cheap run's result. Not to be changed"
    folder = tmp_path_factory.mktemp('splats')/'run'
    return train('a hamburger', preset='splats', guidance=model, out=folder, progress=False, **SMALL)


def test_a_run_from_a_sentence_to_files(result, tmp_path):
    assert isinstance(result.field, Splats) and len(result.field) == 60 and len(result.history) == 12
    assert {'model.glb', 'preview.png', 'turntable.mp4'} <= {path.name for path in result.folder.iterdir()}
    again = load(result.folder, guidance=None)
    assert all(torch.equal(a, b) for a, b in zip(again.renderer.state_dict().values(),
                                                 result.renderer.state_dict().values()))
    assert again.render(size=16) == result.render(size=16)
    assert result.mesh(32).is_watertight
    listed = read_splats(result.export(tmp_path/'list.ply', splats=True))
    assert torch.allclose(listed.mean, result.field.mean) and len(listed) == 60
    again = read_splats(result.export(tmp_path/'list.glb', splats=True))
    assert torch.equal(again.mean, result.field.mean) and torch.equal(again.log_scale, result.field.log_scale)
    assert len(trimesh.load(result.export(tmp_path/'mesh.ply')).faces) > 0


def test_a_break_changes_nothing(model, tmp_path):
    "Also when dead splats have been moved before it and are moved after it"
    straight, broken = (Trainer(config(**{'splats.start_opacity': .5}), model, folder=tmp_path/name)
                        for name in ('straight', 'broken'))
    for trainer in (straight, broken):
        with torch.no_grad(): trainer.field.raw_opacity[::2] = -9.    # moved at the second step
    moved = []
    straight.fit(callbacks=[lambda trainer, record: moved.append((trainer.field.raw_opacity > -6).all().item())])
    assert moved[0] is False and moved[-1] is True
    assert_same_with_a_break(straight, broken, model, 5)


def test_a_step_that_fails_moves_no_splat(model, monkeypatch):
    trainer = Trainer(config(), model)
    trainer.fit(2)
    with torch.no_grad(): trainer.field.raw_opacity[:9] = -9.
    before = {name: value.clone() for name, value in trainer.renderer.state_dict().items()}
    monkeypatch.setattr(trainer, 'distill', lambda *args: 1/0)
    with pytest.raises(ZeroDivisionError): trainer.step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.renderer.state_dict().items())


# a list whose number changes

GROWS = {'splats.max_count': 75, 'splats.when_dead': 'remove', 'splats.split_above': .03}


def kill(trainer, rows):
    with torch.no_grad(): trainer.field.raw_opacity[rows] = -9.


@pytest.mark.parametrize('options, optimizer', [
    ({}, None), ({'splats.when_dead': 'move', 'data.train.batch_size': 2}, None),
    ({'optim.name': 'adan', 'optim.betas': None, 'splats.sh_degree': 1}, None),
    ({}, lambda parameters: torch.optim.SGD(parameters, 1e-3, momentum=.9))])
def test_a_break_changes_nothing_while_the_number_changes(model, tmp_path, options, optimizer):
    own = {} if optimizer is None else dict(optimizer=optimizer)
    straight, broken = (Trainer(config(**GROWS | options), model, folder=tmp_path/name, **own)
                        for name in ('straight', 'broken'))
    for trainer in (straight, broken): kill(trainer, slice(7))
    counts = []
    straight.fit(callbacks=[lambda trainer, record: counts.append(len(trainer.field))])
    assert counts[0] == 60 and counts[-1] == 75 and len(set(counts)) > 3
    broken.fit(5)
    broken.save()
    mended = Trainer.resume(broken.folder, model, **own)
    assert len(mended.field) == len(broken.field) != 60
    mended.fit()
    assert mended.history == straight.history
    for name, value in straight.renderer.state_dict().items():
        assert torch.equal(value, mended.renderer.state_dict()[name]), name
    straight.save()
    again = load(straight.folder, guidance=None)
    assert len(again.field) == 75
    assert again.render(size=12) == Result(straight.config, straight.renderer).render(size=12)


def test_moments_follow_their_splats(model):
    "A splat that stays learns on as it did; a new one begins without any"
    trainer = Trainer(config(**GROWS), model)
    trainer.fit(2)
    kill(trainer, slice(7))
    before = {p: trainer.optimizer.state[p]['exp_avg'].clone() for p in trainer.field.parameters()}
    trainer.update_extra()
    rows = trainer.renderer.changes.rows
    assert rows[:53].tolist() == list(range(7, 60)) and (rows[53:] == -1).all()
    assert len(rows) == len(trainer.field) == 59
    for p, moments in before.items():
        now = trainer.optimizer.state[p]['exp_avg']
        assert torch.equal(now[:53], moments[7:]) and not now[53:].any() and now.shape == p.shape


def test_a_step_that_fails_keeps_the_number(model, monkeypatch):
    straight, broken = (Trainer(config(**GROWS), model) for _ in range(2))
    for trainer in (straight, broken): kill(trainer, slice(7))
    for trainer in (straight, broken): trainer.fit(2)
    with monkeypatch.context() as patch:
        patch.setattr(broken, 'distill', lambda *args: 1/0)
        with pytest.raises(ZeroDivisionError): broken.step()
    assert len(broken.field) == 60
    for trainer in (straight, broken): trainer.fit(4)
    assert straight.history == broken.history and len(straight.field) == len(broken.field) > 60


def test_a_new_run_begins_with_as_many_as_there_are(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        first = Trainer(config(**GROWS), model, folder=tmp_path/'first')
        first.fit(6)
        first.save()
        more = {'resume_from_checkpoint': str(tmp_path/'first'), 'splats.max_count': 90}
        second = Trainer(config(**GROWS | more), model)
    assert len(second.field) == len(first.field) > 60 and torch.equal(second.field.mean, first.field.mean)
    second.fit(3)
    assert len(second.field) > len(first.field)


def test_preset_dreamgaussian(pipeline, tmp_path):
    "With a Stable Diffusion that knows nothing, from the sentence to the files, and as the mesh stage that follows"
    small = {k: v for k, v in SMALL.items() if not k.startswith('update')} | {
        'iters': 4, 'splats.count': 80, 'update_extra_interval': 2, 'data.train.start_size': 8}
    result = train('a hamburger', preset='dreamgaussian', guidance=str(pipeline), out=tmp_path/'run', progress=False,
                   **small)
    kept = load_config(tmp_path/'run')
    assert kept.preset == 'dreamgaussian' and len(result.field) == 80 + 12
    assert [row['shading'] for row in result.history] == ['albedo']*4
    assert [row['t'] for row in result.history] == [pytest.approx(t, abs=1) for t in (980, 740, 500, 260)]
    assert mesh_preset(kept) == 'dreamfusion-dmtet'
    assert 'sized for a GPU' in expected_cost(kept, 'cpu') and not expected_cost(kept, 'cuda')


def test_what_a_picture_says_of_its_splats(model):
    "Where each is, and how many touch a pixel; and a loss of one's own may use it"
    def middle(out, field, generator): return out.splat_center.square().mean()
    trainer = Trainer(config(), model, losses=dict(middle=middle))
    out = trainer.step().render
    assert out.splat_center.shape == out.splat_extent.shape == (1, 60, 2) and out.splat_count.shape == (1, 1, 24, 24)
    assert [name for name, value in vars(out).items() if value is None] == ['weights', 't', 'dt', 'ray_index',
        'positions', 'directions', 'density', 'normals', 'vertices', 'faces', 'sides']
    assert ((out.opacity > 0) == (out.splat_count > 0)).all() and 'middle' in trainer.history[0]
    away = Splats(2, generator=gen())
    with torch.no_grad(): away.mean[1] = torch.tensor([0., 0, 9.])    # behind the camera
    out = SplatRenderer(away, StaticBackground((1., 1., 1.)))(orbit(1), 16, 16)
    assert (out.splat_extent[0, 0] > 0).all() and not out.splat_extent[0, 1].any()


def test_normals_of_the_density_are_drawn(model):
    trainers = [Trainer(config(**{'splats.normals_from': name}), model) for name in ('axis', 'density')]
    axis, density = (trainer.renderer(orbit(1), 24, 24, shading='normal') for trainer in trainers)
    assert torch.equal(axis.opacity, density.opacity) and not torch.allclose(axis.normal, density.normal)
    inside = density.opacity[0, 0] > .5
    ball = density.normal[0, :, inside]
    where = F.normalize(axis.splat_center[0].mean(0) - torch.nonzero(inside).flip(1) - .5, dim=-1)
    assert (ball[:2]*torch.stack([-where[:, 0], where[:, 1]])).sum(0).mean() > .1    # they lean out of the ball


def test_learning_rates_are_the_lists_own(model):
    trainer = Trainer(config(), model)
    scales = {id(p): group['lr_scale'] for group in trainer.optimizer.param_groups for p in group['params']}
    wanted = Splats.lr_scales
    assert {name: scales[id(p)] for name, p in trainer.field.named_parameters()} == {
        name: wanted[name] for name, _ in trainer.field.named_parameters()}


def test_dashboards_and_the_mesh_stage(result, model, tmp_path):
    trainer = Trainer(config(), model)
    steps = StepDashboard(trainer)
    steps.driver.step()
    looks = SplatDashboard(trainer), MeshDashboard(result, resolution=16)
    assert trainer.step_count == 1
    compared = CompareDashboard([trainer])
    assert compared.viewers[0].draws_splats and not compared.viewers[0].mesh_data
    for board in (steps, *looks, compared): board.close()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fine = result.refine(guidance=model, progress=False, out=tmp_path/'fine', **MESH)
    assert fine.is_mesh and 'learned its colours' in (tmp_path/'fine'/'log.txt').read_text()


def test_a_dashboard_that_looks_on_changes_nothing(model):
    "While the list grows, and a hand is on every control; it follows what another dashboard does"
    alone, watched = (Trainer(config(**GROWS), model) for _ in range(2))
    board, steps = SplatDashboard(watched), StepDashboard(watched)
    assert 'the list has not been changed' in board.figures.value
    for n in range(6):
        shown = board.pictures['splats'].value
        (board.button if n % 2 else steps.button)['step'].click()
        assert board.pictures['splats'].value != shown
        board.controls['azimuth'].value += 20
        board.controls['kind'].value, board.controls['factor'].value = 'points', 2.
        board.controls['least'].value, board.picture.x = .05, .4
        assert watched.renderer.training and not board.error.value
    alone.fit(6)
    assert alone.history == watched.history and len(alone.field) == len(watched.field) > 60
    assert 'at step 5: 0 moved, ' in board.figures.value and f'{len(watched.field)} splats' in board.figures.value
    watched.step = lambda: 1/0
    board.button['step'].click()
    assert 'ZeroDivisionError' in board.error.value
    gone = weakref.ref(watched)
    for each in (board, steps): each.close()
    del watched, board, steps, each
    gc.collect()
    assert gone() is None


def test_a_dashboard_of_a_result(result):
    board = SplatDashboard(result, size=64)
    assert set(board.button) == {'refresh'} and board.still().width > 5*64
    board.close()


def test_dashboards_name_their_siblings(model, cloud, refined):
    assert 'SplatDashboard shows it' in says(lambda: FieldDashboard(Trainer(config(), model)))
    assert 'FieldDashboard shows it' in says(lambda: SplatDashboard(cloud))
    assert 'MeshDashboard shows it' in says(lambda: SplatDashboard(refined))
    assert 'size must be a whole number' in says(lambda: SplatDashboard(cloud, size=.5))


@pytest.mark.parametrize('shading', ['albedo', 'textureless', 'lambertian', 'normal'])
def test_pictures_have_gradients(shading):
    renderer = SplatRenderer(Splats(40, sh_degree=1, generator=gen()), StaticBackground((1., 1., 1.)))
    out = renderer(orbit(2), 12, 10, shading=shading, ambient=.3)
    assert out.image.shape == (2, 3, 12, 10) and out.normal.shape == (2, 3, 12, 10)
    out.image.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in renderer.parameters() if p.grad is not None)
    assert renderer.field.raw_opacity.grad.abs().sum() > 0


def test_harmonics_turn_with_the_eye():
    splats = Splats(1, sh_degree=1, generator=gen())
    with torch.no_grad(): splats.harmonics[0, 0] = .5    # -y
    sides = [splats.color(torch.tensor([[0., y, 0.]])) for y in (-1., 1.)]
    assert torch.allclose(sides[0] - splats.color(), torch.tensor(.5*math.sqrt(3/(4*math.pi))), atol=1e-5)
    assert (sides[1] < splats.color()).all()


def test_a_viewer_offers_splats_and_mesh(result, tmp_path):
    viewer = result.show(32)
    assert viewer.draws_splats and viewer.mesh_data and sum(map(len, viewer.splat_data.values())) == 26*60
    bundle = viewer._repr_mimebundle_()[0]
    assert 'image/jpeg' in bundle and 'of 60 splats' in bundle['text/plain']
    for ending in ('ply', 'glb'):
        path = result.export(tmp_path/f'list.{ending}', splats=True)
        assert len(Viewer(splats=path).splats) == 60
        assert 'Viewer(splats=...) shows them' in says(lambda: Viewer(path))
    main(['view', str(result.folder), '--no-browser'])
    page = (result.folder/'view.html').read_text()
    assert re.search(r'"splat_data": {"centers": "[A-Za-z0-9+/=]{960}"', page) and '"positions": "' in page


def test_a_viewer_follows_a_run(model):
    "It is given the splats as they are at the moment, and keeps them; the camera stays where it was put"
    viewer, trainer, sent = Viewer(azimuth=77.), Trainer(config(), model), []
    viewer.observe(lambda change: sent.append(change['new']['centers']), 'splat_data')
    trainer.fit(8, callbacks=[viewer.follow(4)])
    assert len(sent) == 2 and sent[0] != sent[1] and viewer.azimuth == 77
    before = viewer.still(32)
    trainer.fit(1)
    assert viewer.still(32) == before and not torch.equal(viewer.splats.mean, trainer.field.mean)


def test_the_mesh_is_closed_and_in_one_piece_without_haze():
    "A toy in a ball of faint splats, a few strong ones beside it: only the toy is cut, and it is whole"
    parts = toy_splats(), Splats(400, radius=.9, opacity=.01, generator=gen()), Splats(5, radius=.05, opacity=.9,
                                                                                     generator=gen(1))
    with torch.no_grad(): parts[2].mean.add_(.75)
    splats = Splats(sum(map(len, parts)))
    splats.load_state_dict({name: torch.cat([part.state_dict()[name] for part in parts])
                            for name in parts[0].state_dict()})
    result = Result(config(), SplatRenderer(splats, StaticBackground((1., 1., 1.))))
    mesh = result.mesh(64)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0 and len(pieces_of(mesh)[1]) == 1
    away = torch.cdist(torch.tensor(mesh.vertices).float(), parts[0].mean.detach()).amin(1)
    assert away.max() < .15 and (mesh.bounds[1] - mesh.bounds[0] > .9*np.ptp(parts[0].mean.detach().numpy(), 0)).all()
    assert len(pieces_of(result.mesh(64, min_share=0.))[1]) > 1


# bad input

def says(act):
    with pytest.raises(ConfigError) as error: act()
    assert '\n' not in str(error.value)
    return str(error.value)


def test_what_is_refused(model, result, tmp_path):
    with torch.no_grad(): (gone := Splats(20, generator=gen())).raw_opacity.fill_(-20.)
    assert 'all of them have become transparent' in says(lambda: relocate(gone, .01))
    assert 'draws a list of Splats, not Linear' in says(lambda: SplatRenderer(torch.nn.Linear(3, 3), None))
    assert 'splats.count' in says(lambda: config(**{'splats.count': 0}))
    assert 'splats.sh_degree' in says(lambda: config(**{'splats.sh_degree': 4}))
    trainer = Trainer(config(), model)
    with torch.no_grad(): trainer.field.mean[3, 0] = math.nan
    assert '1 of 60 have a mean that is not finite, the first is number 3; go on' in says(trainer.step)
    with torch.no_grad(): (flat := Splats(20, generator=gen())).log_scale[:2] = -99.
    assert '2 of 20 have no size' in says(lambda: SplatRenderer(flat, None))
    trainer = Trainer(config(**GROWS), model)
    trainer.fit(2)
    kill(trainer, slice(None))
    assert 'all of them have become transparent' in says(trainer.step) and len(trainer.field) == 60
    assert 'no levels' in says(lambda: config(**{'nerf.encoder_max_level': .5}))
    assert 'splats.max_count must be at least splats.count, 60' in says(lambda: config(**{'splats.max_count': 59}))
    assert 'nearest right value: remove' in says(lambda: config(**{'splats.when_dead': 'remov'}))
    assert 'it needs a CUDA device' in says(lambda: Trainer(config(**{'splats.backend': 'gsplat'}), model).step())
    assert 'cannot follow a list' in says(lambda: Trainer(config(**GROWS), model, optimizer=torch.optim.Adafactor))
    nerf = Trainer(load_config('toybox', dict(prompt='a hamburger') | CHEAP), model)
    assert 'is a NeRF' in says(lambda: Result(nerf.config, nerf.renderer).export(tmp_path/'x.ply', splats=True))
    assert 'written as .ply, .glb, not' in says(lambda: result.export(tmp_path/'x.obj', splats=True))
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path):
    whole = write_splats(Splats(9, sh_degree=2, generator=gen()), tmp_path/'whole.ply').read_bytes()
    for name, data, line in (('short', whole[:-1], 'is cut off'), ('text', b'ply', 'does not begin as a PLY file'),
                             ('column', whole.replace(b'opacity', b'opacitx'), 'lacks opacity'),
                             ('kind', whole.replace(b'float opacity', b'uchar opacity'), 'not all of its columns'),
                             ('no count', whole.replace(b'vertex 9', b'vertex'), 'something else than vertices'),
                             ('no name', whole.replace(b'vertex 9', b''), 'something else than vertices'),
                             ('many', whole.replace(b'vertex 9', b'vertex ' + b'9'*5000), 'something else'),
                             ('endian', whole.replace(b'little', b'bigger'), 'binary_little_endian')):
        (tmp_path/name).write_bytes(data)
        assert line in says(lambda: read_splats(tmp_path/name))
    assert 'No such file' in says(lambda: read_splats(tmp_path/'none.ply'))


def tree_of(data, change):
    "A GLB file with another tree, made by a function that changes it"
    length, = struct.unpack('<I', data[12:16])
    change(tree := json.loads(data[20:20 + length]))
    text = json.dumps(tree).encode()
    text += b' '*(-len(text) % 4)
    rest = data[20 + length:]
    return struct.pack('<4sIIII', b'glTF', 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def with_numbers(data, name, values):
    "A GLB file with other numbers at the beginning of one list"
    length, = struct.unpack('<I', data[12:16])
    tree = json.loads(data[20:20 + length])
    number = tree['meshes'][0]['primitives'][0]['attributes'][name]
    at = 28 + length + tree['bufferViews'][tree['accessors'][number]['bufferView']]['byteOffset']
    packed = struct.pack(f'<{len(values)}f', *values)
    return data[:at] + packed + data[at + len(packed):]


KHR = 'KHR_gaussian_splatting'


def test_gltf_files_that_are_none(tmp_path):
    whole = write_splats(Splats(9, sh_degree=2, generator=gen()), tmp_path/'whole.glb').read_bytes()
    def part(tree): return tree['meshes'][0]['primitives'][0]
    def lists(tree): return [tree['accessors'][i] for i in part(tree)['attributes'].values()]
    cases = [
        (whole[:-1], 'is cut off'), (b'glTF', 'does not begin as a GLB file'), (b'glTF' + bytes(40), 'does not begin'),
        (tree_of(whole, lambda t: part(t).pop('extensions')), f'nothing in it has the extension {KHR}'),
        (tree_of(whole, lambda t: t['meshes'].append(t['meshes'][0])), 'more than one list'),
        (tree_of(whole, lambda t: part(t)['extensions'][KHR].update(kernel='cube')), 'of an unknown kind'),
        (tree_of(whole, lambda t: part(t)['extensions'][KHR].update(colorSpace='lin_rec709_display')), 'colours'),
        (tree_of(whole, lambda t: t['nodes'][0].update(scale=[2, 2, 2])), 'nodes move, turn or scale'),
        (tree_of(whole, lambda t: part(t)['attributes'].pop(f'{KHR}:SCALE')), 'lacks a part'),
        (tree_of(whole, lambda t: lists(t)[0].update(count=10**12)), 'does not lie in it'),
        (tree_of(whole, lambda t: lists(t)[1].update(count=5)), 'its lists differ'),
        (tree_of(whole, lambda t: [a.update(count=0) for a in lists(t)]), 'has no splats'),
        (tree_of(whole, lambda t: t['bufferViews'][0].update(byteStride=0)), 'packed'),
        (tree_of(whole, lambda t: t.update(meshes=7)), 'lacks a part'),
        (with_numbers(whole, f'{KHR}:OPACITY', [math.nan]), 'splat 0 has an opacity that is not finite'),
        (with_numbers(whole, 'POSITION', [0, 0, 0, math.inf]), 'splat 1 has a centre that is not finite'),
        (with_numbers(whole, f'{KHR}:SCALE', [1, 0, 1]), 'splat 0 has no size'),
        (with_numbers(whole, f'{KHR}:SCALE', [1, 1, 1, 1, -1, 1]), 'splat 1 has no size'),
        (with_numbers(whole, f'{KHR}:ROTATION', [0, 0, 0, 0]), 'splat 0 has no rotation')]
    path = tmp_path/'made.glb'
    for data, line in cases:
        path.write_bytes(data)
        assert line in says(lambda: read_splats(path)), line


def test_gltf_of_whole_numbers_and_of_rows(tmp_path):
    "As other programs may write it: opacity in bytes, positions with a gap after each"
    splats = Splats(8, generator=gen())
    with torch.no_grad(): splats.raw_opacity.copy_(torch.linspace(-3, 3, 8))
    whole = write_splats(splats, tmp_path/'whole.glb').read_bytes()
    length, = struct.unpack('<I', whole[12:16])
    body = whole[28 + length:]
    more = b''.join(struct.pack('<3f4x', *mean) for mean in splats.mean.tolist())
    more += splats.opacity.mul(255).round().byte().detach().numpy().tobytes()
    def change(tree):
        for name, view, kind in (('POSITION', dict(byteLength=128, byteStride=16), 5126),
                                 (f'{KHR}:OPACITY', dict(byteLength=8), 5121)):
            number = tree['meshes'][0]['primitives'][0]['attributes'][name]
            at = len(body) if name == 'POSITION' else len(body) + 128
            tree['bufferViews'].append(dict(buffer=0, byteOffset=at, **view))
            tree['accessors'][number].update(bufferView=len(tree['bufferViews']) - 1, componentType=kind,
                                             normalized=kind == 5121)
    made = tree_of(whole, change)
    path = tmp_path/'rows.glb'
    path.write_bytes(made[:8] + struct.pack('<I', len(made) + len(more)) + made[12:] + more)
    read = read_splats(path)
    assert torch.equal(read.mean, splats.mean) and torch.allclose(read.opacity, splats.opacity, atol=.5/255 + 1e-6)
    assert torch.equal(read.log_scale, splats.log_scale)


@pytest.mark.parametrize('ending', ['ply', 'glb'])
def test_a_list_that_cannot_be_drawn_is_not_written(tmp_path, ending):
    for name, value, line in (('mean', math.nan, 'splat 3 has a centre that is not finite'),
                              ('log_scale', -math.inf, 'splat 3 has no size'), ('log_scale', -200., 'has no size'),
                              ('log_scale', math.inf, 'has a size that is not finite'),
                              ('log_scale', math.nan, 'has a size that is not finite'),
                              ('log_scale', 100., 'has a size that is not finite'),
                              ('quaternion', 1e30, 'has a rotation that is not finite'),
                              ('quaternion', 0., 'splat 3 has no rotation')):
        splats = Splats(9, generator=gen())
        with torch.no_grad(): getattr(splats, name)[3] = value
        assert line in says(lambda: write_splats(splats, tmp_path/f'list.{ending}'))
    assert not list(tmp_path.iterdir())


def test_normals_of_depth():
    "A plane has one normal, whoever looks; the gradient is that of finite differences; where nothing is, none is told"
    camera = orbit(1, elevation=20., azimuth_start=30.)
    origins, directions = (v.double() for v in rays(camera, 6, 7))
    for normal in torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        normal = F.normalize(normal, dim=0)
        normal = normal*torch.sign(normal@origins[0])    # the side that the eye is on
        if (directions@normal).abs().min() < .2: continue    # seen from its edge
        depth = (-(origins@normal)/(directions@normal)).view(6, 7)
        found = depth_normal(depth, torch.ones_like(depth), origins, directions)
        assert torch.allclose(found, normal.expand_as(found), atol=1e-9)
    opacity = torch.ones(6, 7, dtype=torch.float64)
    opacity[:, 4:] = 0.    # behind the edge there is nothing
    bumpy = (3 + .1*torch.rand(6, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: depth_normal(d, opacity, origins, directions), bumpy)
    found = depth_normal(bumpy, opacity, origins, directions).view(6, 7, 3)
    assert torch.equal(found[:, 4:], -directions.view(6, 7, 3)[:, 4:]) and found.isfinite().all()


def test_a_run_with_light_on_the_depth(model):
    "All modes of light, with gradients to the centres"
    trainer = Trainer(config(**{'splats.normals_from': 'depth', 'material.phong_ratio': .5}), model)
    before = trainer.field.mean.detach().clone()
    trainer.fit(6)
    assert not torch.equal(before, trainer.field.mean) and len({row['shading'] for row in trainer.history}) > 1
    with torch.no_grad():
        for shading in ('albedo', 'textureless', 'lambertian', 'phong', 'normal'):
            picture = trainer.renderer(orbit(1), 16, 16, shading=shading).image
            assert picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 1.001
