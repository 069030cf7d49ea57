"""Kernels of Warp, compiled for the CPU, against plain torch in float64: what runs on a GPU has the same source.

Each of the four modules of kernels is compiled once, and kept on disk for the next time."""
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import trimesh

from dreamfusion_nb import hashgrid, kernels, raster_kernels, ray_kernels, splats
from dreamfusion_nb.background import StaticBackground
from dreamfusion_nb.cameras import orbit, projection
from dreamfusion_nb.dmtet import MeshRenderer
from dreamfusion_nb.errors import ConfigError
from dreamfusion_nb.field import Field
from dreamfusion_nb.hashgrid import ENCODERS, HashGrid, encode_torch, encode_warp, grid_levels, pick_encoder
from dreamfusion_nb.kernels import kernels_trouble, warp_trouble
from dreamfusion_nb.raster_kernels import NOBODY, triangles_come_out_right, visible_warp
from dreamfusion_nb.rasterize import VISIBLE, Sides, antialias, interpolate, rasterize
from dreamfusion_nb.ray_kernels import rays_come_out_right
from dreamfusion_nb.raymarch import OccupancyGrid, VolumeRenderer, composite, march, visible
from dreamfusion_nb.shading import _by_warp, _SumNormals, normals_come_out_right, sum_normals
from dreamfusion_nb.splats import Footprints, blend_backend, blend_torch, blend_warp, splats_come_out_right

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device('cpu'), torch.device('cuda', 0)

needs_warp = pytest.mark.skipif(bool(warp_trouble(CPU)), reason=warp_trouble(CPU))


def gen(seed=0): return torch.Generator().manual_seed(seed)


CHECKS = rays_come_out_right, triangles_come_out_right, splats_come_out_right, normals_come_out_right


def off(got, true):
    "The largest difference, as a share of the largest true value"
    assert got.shape == true.shape and got.isfinite().all()
    return ((got.double() - true).abs().max()/true.abs().max().clamp(min=1e-12)).item() if true.numel() else 0.


def answers(function, inputs, dtype):
    "What a function returns, and the slopes of a random mixture of it by those inputs that are floating"
    given = [v.detach().to(dtype).requires_grad_() if v.is_floating_point() else v for v in inputs]
    out = function(*given)
    out = [out] if torch.is_tensor(out) else list(out)
    pull = gen(99)
    loss = sum((v*torch.randn(v.shape, generator=pull, dtype=torch.float64).to(v)).sum() for v in out)
    wanted = [v for v in given if v.requires_grad]
    slopes = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [v.detach() for v in out], [torch.zeros_like(w) if v is None else v for v, w in zip(slopes, wanted)]


# Hash grid

def points(kind):
    if kind == 'none': return torch.zeros(0, 3)
    if kind == 'corners': return torch.cartesian_prod(*[torch.tensor([0., .5, 1.])]*3)
    return torch.rand(700, 3, generator=gen(3))*1.4 - .2    # some outside


@needs_warp
@pytest.mark.parametrize('kind', ['random', 'corners', 'none'])
@pytest.mark.parametrize('smooth', [True, False])
@pytest.mark.parametrize('width', [1, 2, 4, 8])
def test_hash_grid(width, smooth, kind):
    levels, x = grid_levels(4, 5, 1.7, 9), points(kind)
    assert levels.hashed.any() and not levels.hashed.all()
    params = torch.randn(int(levels.size.sum())*width, generator=gen(1))
    (got, slopes), (true, exact) = (answers(lambda x, p: encode(x, p, levels, width, smooth), (x, params), dtype)
                                    for encode, dtype in ((encode_warp, torch.float32), (encode_torch, torch.float64)))
    assert off(got[0], true[0]) < 1e-5 and off(slopes[1], exact[1]) < 1e-5
    # with linear weights the slope jumps where the grid has a vertex
    if smooth or kind == 'random': assert off(slopes[0], exact[0]) < 1e-4


@needs_warp
def test_hash_grid_of_nan_and_infinity():
    "NaN stays with its point and reads no wrong address; infinity is on the surface"
    levels = grid_levels(4, 5, 1.7, 9)
    params = torch.randn(int(levels.size.sum())*2, generator=gen(1))
    x = torch.tensor([[.2, torch.nan, .4], [torch.inf, .3, -torch.inf], [1e30, .3, -1e30], [.2, .3, .4]])
    out, plain = encode_warp(x, params, levels), encode_torch(x, params, levels)
    assert out[0].isnan().all() and torch.allclose(out[1:], plain[1:], atol=1e-5) and out[1].equal(out[2])


@needs_warp
def test_hash_grid_in_a_scene():
    "The module with the backend, fewer levels, gradients and second derivatives: the same as Numba's"
    grid = HashGrid(n_levels=4, base_resolution=5, per_level_scale=1.7, log2_hashmap_size=9, generator=gen())
    with torch.no_grad(): grid.params.normal_(generator=gen(1))
    found = {}
    for grid.backend in ('numba', 'warp'):
        for grid.max_level in (None, .6):
            x = points('random').requires_grad_()
            slope, = torch.autograd.grad(grid(x).sin().sum(), x, create_graph=True)
            curved = torch.autograd.grad(slope.square().sum(), [x, grid.params])
            found.setdefault(grid.max_level, []).append(torch.cat([v.flatten() for v in (grid(x), slope, *curved)]))
    for numba, warp in found.values(): assert off(warp.detach(), numba.detach().double()) < 1e-3


def test_who_encodes():
    x = torch.rand(4, 3)
    assert pick_encoder('auto', x, x) == 'numba' and pick_encoder('auto', x.double(), x) == 'torch'
    with pytest.raises(ConfigError, match='"warp": it needs float32'): pick_encoder('warp', x.double(), x)
    with pytest.raises(ConfigError, match='"tinycudann": it needs float32 on CUDA'): pick_encoder('tinycudann', x, x)
    with pytest.raises(ConfigError, match="did you mean 'warp'"): pick_encoder('wrap', x, x)


@pytest.fixture
def card(monkeypatch):
    "Warp says that it runs on a CUDA device; whoever asks for one gets the CPU"
    monkeypatch.setattr(hashgrid, 'warp_trouble', lambda device: '')
    monkeypatch.setattr(kernels, 'warp_trouble', lambda device: '')
    monkeypatch.setattr(torch.Tensor, 'to', lambda self, *a, _to=torch.Tensor.to, **k:
                        self if a and a[0] == CUDA else _to(self, *a, **k))
    for cached in (hashgrid.encoder_trouble, kernels.kernels_trouble, kernels.notice_once): cached.cache_clear()
    yield
    for cached in (hashgrid.encoder_trouble, kernels.kernels_trouble, kernels.notice_once): cached.cache_clear()


@needs_warp
def test_a_card_is_tried_before_it_is_taken(card, monkeypatch):
    assert hashgrid.encoder_trouble('tinycudann', CUDA) == 'it is not installed'
    assert hashgrid.encoder_trouble('warp', CUDA) == ''


@pytest.mark.parametrize('broken', [lambda *given: 1.1*encode_torch(*given), None])
def test_a_backend_that_breaks_on_a_card_is_told_once(card, monkeypatch, broken):
    "One that is wrong, one that raises"
    def breaks(*given): raise RuntimeError('no kernel image is available\nfor execution')
    monkeypatch.setitem(ENCODERS, 'warp', broken or breaks)
    with pytest.warns(UserWarning, match='warp does not work here') as told:
        for _ in range(3): why = hashgrid.encoder_trouble('warp', CUDA)
    assert len(told) == 1 and '\n' not in str(told[0].message)
    assert why.startswith('a small grid differs' if broken else 'RuntimeError: no kernel image is available for')


# Rays

@needs_warp
@pytest.mark.parametrize('cascades', [1, 3])
@pytest.mark.parametrize('options', [dict(), dict(perturb=True), dict(radius=.8), dict(dt_gamma=.02, longest=.05),
                                     dict(perturb=True, near=1., dt_gamma=.02)])
def test_march(cascades, options):
    "Bit for bit, with rays that miss, start inside, or run along a wall"
    o, d = torch.randn(300, 3, generator=gen(1))*1.5, F.normalize(torch.randn(300, 3, generator=gen(2)), dim=-1)
    o[:3], d[:3] = torch.tensor([-3., 1, 0]), torch.tensor([1., 0, 0])
    grid = OccupancyGrid(16, bound=1. if cascades == 1 else 2., cascades=cascades)
    for _, _, cells in grid.cascades: cells.copy_(torch.rand(cells.shape, generator=gen()) < .5)
    mine, plain = (march(o, d, grid, step=.03, backend=name, generator=gen(), **options) for name in ('warp', 'torch'))
    assert len(plain) > 200
    for a, b in zip(vars(mine).values(), vars(plain).values()): assert a.dtype == b.dtype and a.equal(b)


@needs_warp
@pytest.mark.parametrize('options', [{}, dict(dt_gamma=.02, longest=.05)])
@pytest.mark.parametrize('more', [-10**6, -40, 0, 1, 500])
def test_march_with_room(options, more):
    "What fits is what is there, and what fills has no length and no ray"
    o, d = torch.randn(60, 3, generator=gen()), F.normalize(torch.randn(60, 3, generator=gen(1)), dim=-1)
    grid, shift = OccupancyGrid(16), torch.rand(60, generator=gen(2))
    grid.occupied.copy_(torch.rand(16, 16, 16, generator=gen(3)) < .5)
    plain = march(o, d, grid, step=.03, perturb=shift, backend='torch', **options)
    room = max(1, len(plain) + more)
    n = min(room, len(plain))
    for backend in ('warp', 'torch'):
        mine = march(o, d, grid, step=.03, perturb=shift, backend=backend, room=room, **options)
        for a, b in zip(vars(mine).values(), vars(plain).values()): assert a.dtype == b.dtype and a[:n].equal(b[:n])
        assert len(mine) == room and not mine.dt[n:].any() and (mine.ray_index[n:] == 60).all() and (plain.dt > 0).all()


@needs_warp
def test_march_of_nothing():
    o, d = torch.zeros(5, 3), F.normalize(torch.ones(5, 3), dim=-1)
    grid = OccupancyGrid(4)
    assert len(march(o[:0], d[:0], grid, step=.1, backend='warp')) == 0
    assert len(march(o + 9, d, grid, step=.1, backend='warp')) == 0
    grid.occupied.zero_()
    assert len(march(o, d, grid, step=.1, backend='warp')) == 0


@needs_warp
@pytest.mark.parametrize('stop', [0., 1e-4, 1e-2])
@pytest.mark.parametrize('thick', [1e-6, 3., 90., 1e6])
@pytest.mark.parametrize('channels', [0, 1, 6])
def test_composite(channels, thick, stop):
    g, n = gen(int(thick)), 400
    ray = (torch.rand(3000, generator=g)*n).long().sort().values
    ray = ray[(ray != 1) & (ray != n - 2)]    # two rays without samples
    m = len(ray)
    a, t, dt = torch.rand(3, m, generator=g)
    density, t, dt = thick*a, 2 + t, .05 + .1*dt
    def see(backend):
        return lambda density, color: vars(composite(density, color, t, dt, ray, n, backend, stop)).values()
    inputs = density, torch.rand(m, channels, generator=g)
    (got, slopes), (true, exact) = (answers(see(b), inputs, d)
                                    for b, d in (('warp', torch.float32), ('torch', torch.float64)))
    for a, b in zip([*got, *slopes], [*true, *exact]): assert off(a, b) < 1e-4
    assert got[1][1] == got[1][n - 2] == 0


@needs_warp
def test_visible():
    o, d = torch.tensor([[0., 0, 3]]).repeat(50, 1), torch.randn(50, 3, generator=gen()) - torch.tensor([0, 0, 6.])
    d = F.normalize(d, dim=-1)
    s = march(o, d, OccupancyGrid(8), step=.05)
    def solid(x): return 200*torch.sigmoid((.5 - x.norm(dim=-1))*60)
    kept = [visible(solid, s, 50, 1e-4, backend=name) for name in ('warp', 'torch')]
    assert kept[0].equal(kept[1]) and 0 < len(kept[0]) < len(s)


def test_who_marches():
    o, grid = torch.zeros(1, 3, dtype=torch.float64), OccupancyGrid(4)
    with pytest.raises(ValueError, match="'warp': it needs float32"): march(o, o + 1, grid, step=.1, backend='warp')
    with pytest.raises(ValueError, match="'torch', 'numba' or 'warp'"): march(o, o, grid, step=.1, backend='wrap')


# Triangles

def soup(n, g, size=24):
    "Clip positions of random triangles: in front of the eye, across it, behind it; half of them on pixel centres"
    p = torch.randn(3*n, 4, generator=g)
    p[:, 3] += .7
    p[:3*n//2, :2], p[:3*n//2, 3] = (p[:3*n//2, :2]*size).round()/size, 1.
    return p, torch.arange(3*n).view(n, 3)


@needs_warp
@pytest.mark.parametrize('seed', range(3))
def test_what_is_visible(seed):
    p, tri = soup(60, gen(seed))
    tri = torch.cat([tri, tri[:20]])    # of two equal ones the first is seen
    p[5], p[7, 0], p[11, 2] = 0., torch.nan, torch.inf
    both = torch.stack([p, p.flip(1)])
    found = visible_warp(both, tri, 24, 31)
    assert torch.where(found == NOBODY, -1, found).equal(VISIBLE['torch'](both, tri, 24, 31).int())
    for large in (1e17, 1e30):
        huge = torch.cat([p[:, :2]*large, p[:, 2:]], 1)[None]
        found = visible_warp(huge, tri, 24, 24)
        assert torch.where(found == NOBODY, -1, found).equal(VISIBLE['numba'](huge, tri, 24, 24).int())


def scene(kind):
    "Vertices and triangles: a ball, two that cross and touch the eye, or nothing"
    if kind == 'nothing': return torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long)
    ball = trimesh.creation.icosphere(2)
    v, f = torch.tensor(ball.vertices, dtype=torch.float32), torch.tensor(ball.faces)
    if kind == 'ball': return v, f
    return torch.cat([v, .7*v + torch.tensor([.5, .2, 2.2])]), torch.cat([f, f.flip(1) + len(v)])


@needs_warp
@pytest.mark.parametrize('attributes', ['one', 'each', 'shared'])
@pytest.mark.parametrize('kind', ['ball', 'two', 'nothing'])
def test_triangles(kind, attributes):
    v, tri = scene(kind)
    shape = dict(one=(), each=(2,), shared=(1,))[attributes]
    carried = torch.rand(*shape, len(v), 3, generator=gen())
    def draw(backend):
        def picture(v, carried):
            matrix = projection(orbit(2, radius=3., fovy=50.), 40, 32).mT.to(v)
            p = torch.cat([v, torch.ones_like(v[:, :1])], 1)@matrix
            rast = rasterize(p, tri, (40, 32), backend)
            mixed = interpolate(carried, rast, tri, backend)
            return rast[..., 3].detach(), rast[..., :3], mixed, antialias(mixed, rast, p, tri, backend)
        return picture
    (got, slopes), (true, exact) = (answers(draw(b), (v, carried), d)
                                    for b, d in (('warp', torch.float32), ('torch', torch.float64)))
    assert got[0].double().equal(true[0])
    for a, b in zip([*got[1:], *slopes], [*true[1:], *exact]): assert off(a, b) < 2e-4
    if kind != 'nothing': assert got[0].any() and slopes[0].any() and not got[3].equal(got[2])


@needs_warp
def test_a_gradient_that_is_no_array_of_its_own():
    "An expanded gradient has strides of zero, a transposed one others"
    v, tri = scene('ball')
    p = (torch.cat([v, torch.ones(len(v), 1)], 1)@projection(orbit(1, radius=3.), 16, 16).mT).requires_grad_()
    slopes = [torch.autograd.grad(rasterize(p.expand(2, -1, -1), tri, (16, 16), b)[..., :2].sum(), p)[0]
              for b in ('warp', 'numba')]
    assert torch.allclose(*slopes, atol=1e-3)
    color = torch.rand(1, 3, 16, 16, generator=gen()).movedim(1, -1).requires_grad_()
    rast = rasterize(p.detach(), tri, (16, 16))
    slopes = [torch.autograd.grad(antialias(color, rast, p, tri, b).square().sum(), [color, p])
              for b in ('warp', 'numba')]
    for a, b in zip(*slopes): assert torch.allclose(a, b, atol=1e-3)


@needs_warp
def test_a_sheet_has_an_outline_and_a_fold_too():
    "Open surfaces, and one that turns back on itself"
    p = torch.tensor([[-.7, -.6, 0, 1], [.6, -.7, .1, 1], [.5, .6, 0, 1], [-.2, .4, .3, 1]])[None]
    for tri in ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [2, 1, 3]], [[0, 1, 2], [0, 1, 3], [0, 2, 3]]):
        tri = torch.tensor(tri)
        rast = rasterize(p.double(), tri, (20, 24))
        mask = (rast[..., 3:] > 0).double()
        (got, slopes), (true, exact) = (
            answers(lambda c, q: antialias(c, rast.to(c), q, tri, b), (mask, p), d)
            for b, d in (('warp', torch.float32), ('torch', torch.float64)))
        for a, b in zip([*got, *slopes], [*true, *exact]): assert off(a, b) < 1e-4
    assert (Sides(tri, 4).across >= 0).any()


def test_who_rasterizes():
    p, tri = torch.zeros(1, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match='"warp": it needs float32'): rasterize(p, tri, (4, 4), 'warp')
    with pytest.raises(ValueError, match="did you mean 'warp'"): rasterize(p, tri, (4, 4), 'wrap')


@needs_warp
@pytest.mark.parametrize('by_angle', [True, False])
def test_normals_of_vertices(by_angle):
    "Of a shaken ball, with triangles that have no area or repeat, and a vertex that has none"
    ball = trimesh.creation.icosphere(2)
    v = torch.tensor(ball.vertices) + .05*torch.randn(ball.vertices.shape, generator=gen(), dtype=torch.float64)
    f = torch.cat([torch.tensor(ball.faces), torch.tensor([[3, 3, 7], [0, 1, 5], [4, 4, 4]])])
    v = torch.cat([v, v[:1]])
    pull, found = torch.randn(v.shape, generator=gen(1), dtype=torch.float64), []
    for dtype, total_of in ((torch.float32, lambda x: _SumNormals.apply(x, f, by_angle, _by_warp)),
                            (torch.float64, lambda x: sum_normals(x, f, by_angle))):
        x = v.to(dtype).requires_grad_()
        total = total_of(x)
        found.append([total.detach(), *torch.autograd.grad((total*pull.to(dtype)).sum(), x)])
    for got, true in zip(*found): assert off(got, true) < 1e-5
    assert not any(values[-1].any() for values in found[0])


# Splats

def footprints(kind, n=80):
    "Ellipses on a picture of 37 x 50, an opacity and five features each; some off the picture, one of them endless"
    if kind == 'none': n = 0
    center = torch.rand(n, 2, generator=gen(1))*70 - 10
    inverse = torch.randn(n, 2, 2, generator=gen(2))*.25
    spread = inverse@inverse.mT + .02*torch.eye(2)
    conic = spread[:, [0, 0, 1], [0, 1, 1]]
    extent = (9*torch.linalg.inv(spread)[:, [0, 1], [0, 1]]).sqrt()
    opacity = torch.rand(n, generator=gen(3))*(1.2 if kind == 'solid' else .6)
    if kind == 'odd': center[3], center[5], center[7, 0], extent[9] = torch.nan, 1e30, -torch.inf, 1e9
    return center, conic, opacity, torch.rand(n, 5, generator=gen(4)), extent


@needs_warp
@pytest.mark.parametrize('kind', ['thin', 'solid', 'none', 'odd'])
def test_splats(kind):
    *inputs, extent = footprints(kind)
    order, counts = torch.arange(len(extent)).flip(0), torch.zeros(2, 37, 50, dtype=torch.int32)
    if kind == 'odd': order = order[torch.isfinite(inputs[0][order]).all(1)]
    def draw(how, count):
        def picture(center, conic, opacity, feature):
            prints = Footprints(center, conic, torch.ones(len(center)), extent.to(center))
            return how(prints, opacity, feature, order, 37, 50, count)
        return picture
    (got, slopes), (true, exact) = (answers(draw(how, n), inputs, dtype) for how, n, dtype in
                                    ((blend_warp, counts[0], torch.float32), (blend_torch, counts[1], torch.float64)))
    for a, b in zip(got + slopes, true + exact): assert off(a, b) < 2e-4
    assert (counts[0] != counts[1]).float().mean() < .01    # where the last light runs out
    assert kind == 'none' or counts.max() > 3


@needs_warp
def test_a_splat_that_is_no_number_is_nowhere():
    *inputs, extent = footprints('odd')
    prints = Footprints(*inputs[:2], torch.ones(80), extent)
    rest = torch.tensor([i for i in range(80) if i not in (3, 5, 7)])
    whole, fewer = (blend_warp(prints, *inputs[2:], order, 37, 50) for order in (torch.arange(80), rest))
    assert whole.equal(fewer)


def test_who_blends(monkeypatch):
    assert blend_backend(CPU) == 'numba'
    with pytest.raises(ConfigError, match="'gsplat' or 'warp', not 'wrap'"): blend_backend(CPU, 'wrap')
    monkeypatch.setattr('dreamfusion_nb.splats.kernels_trouble', lambda check, device: 'too old')
    with pytest.raises(ConfigError, match='splats.backend warp: too old'): blend_backend(CPU, 'warp')
    assert blend_backend(CUDA) == 'torch'
    monkeypatch.setattr('dreamfusion_nb.splats.kernels_trouble', lambda check, device: '')
    assert blend_backend(CUDA) == blend_backend(CPU, 'warp') == 'warp'


# All together

def learned(make, backend):
    "Losses of a few steps of a renderer, and what it then draws"
    g = gen()
    field = Field(HashGrid(n_levels=4, log2_hashmap_size=10, generator=g, backend=backend), generator=g)
    renderer, losses = make(field, StaticBackground((1., 1., 1.)), backend), []
    optimizer = torch.optim.Adam(renderer.parameters(), 1e-2)
    for step in range(4):
        renderer.update(step, g)
        out = renderer(orbit(1), 24, 24, shading='lambertian', ambient=.5, perturb=True, generator=g)
        loss = (out.image - .3).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), out.image.detach()


def rays_of(field, background, backend):
    return VolumeRenderer(field, background, grid_resolution=16, max_steps=48, backend=backend)


def mesh_of(field, background, backend):
    renderer = MeshRenderer(field, background, resolution=12, backend=backend)
    renderer.init_from_sphere(.6)
    return renderer


@needs_warp
@pytest.mark.parametrize('make', [rays_of, mesh_of])
def test_a_scene_learns_as_with_numba(make):
    (losses, picture), (wanted, drawn) = (learned(make, backend) for backend in ('warp', 'auto'))
    assert torch.allclose(losses, wanted, rtol=1e-3) and losses[-1] < losses[0]
    assert (picture - drawn).abs().mean() < 1e-3


# What can be wrong

@needs_warp
def test_the_checks_for_a_card_hold_here():
    assert all(check(CPU) for check in CHECKS)
    assert kernels_trouble(rays_come_out_right, CPU) == ''


def test_a_check_that_fails_on_a_card_is_told_once(card):
    def raises(device): raise RuntimeError('CUDA error\n 700')
    with pytest.warns(UserWarning, match='Warp does not work here') as told:
        for _ in range(2):
            assert kernels_trouble(lambda device: True, CUDA) == ''
            assert kernels_trouble(raises, CUDA) == 'RuntimeError: CUDA error 700'
    assert len(told) == 1


def fresh(monkeypatch):
    for cached in (kernels._warp, kernels.warp_trouble, kernels.kernels_trouble): cached.cache_clear()


@pytest.fixture
def asked_anew(monkeypatch):
    fresh(monkeypatch)
    yield monkeypatch
    monkeypatch.undo()
    fresh(monkeypatch)


@needs_warp
def test_a_driver_that_is_too_old(asked_anew):
    import warp
    asked_anew.setattr(warp, 'is_cuda_available', lambda: False)
    why = warp_trouble(CUDA)
    assert 'needs a driver for CUDA 1' in why and '\n' not in why and warp_trouble(CPU) == ''
    assert 'not on meta' in warp_trouble(torch.device('meta'))


@needs_warp
def test_a_warp_that_is_too_old(asked_anew):
    import warp
    asked_anew.setattr(warp.config, 'version', '1.9.1')
    with pytest.raises(ConfigError, match=r'"warp": Warp 1.9.1 is too old, at least 1.19 is needed \(pip'):
        pick_encoder('warp', torch.rand(2, 3), torch.rand(2))


def test_without_warp(asked_anew):
    asked_anew.setitem(sys.modules, 'warp', None)
    assert 'not installed (pip install "dreamfusion_nb[cuda]")' in warp_trouble(CPU)
    for call in (lambda: rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), (4, 4), 'warp'),
                 lambda: march(torch.zeros(1, 3), torch.ones(1, 3), OccupancyGrid(4), step=.1, backend='warp')):
        with pytest.raises(ValueError, match='not installed'): call()


def test_a_machine_without_warp_runs_as_ever():
    "In a process of its own, where an import of Warp fails: nothing asks for it"
    code = ('import sys; sys.modules["warp"] = None\n'
            'import torch\nfrom dreamfusion_nb.hashgrid import HashGrid\n'
            'from dreamfusion_nb.raymarch import OccupancyGrid, march\nfrom dreamfusion_nb.rasterize import rasterize\n'
            'HashGrid(2, log2_hashmap_size=8)(torch.rand(3, 3)).sum().backward()\n'
            'march(torch.zeros(2, 3), torch.eye(3)[:2], OccupancyGrid(4), step=.1)\n'
            'print(rasterize(torch.rand(1, 3, 4), torch.tensor([[0, 1, 2]]), (4, 4)).shape[1])\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('4\n', '')


@needs_warp
def test_arrays_are_checked():
    levels = grid_levels(2, 4, 2., 8)
    params = torch.zeros(int(levels.size.sum())*2)
    with pytest.raises(TypeError, match='takes 2 dimensions of torch.float32'):
        encode_warp(torch.zeros(3), params, levels)
    with pytest.raises(TypeError, match='on cpu, not .* on meta'):
        encode_warp(torch.zeros(3, 3), params.to('meta'), levels)


@needs_warp
def test_launches_from_two_threads():
    "Autograd's threads launch too"
    levels = grid_levels(4, 5, 1.7, 9)
    params = torch.randn(int(levels.size.sum())*2, generator=gen(1))
    xs = [torch.rand(2000, 3, generator=gen(i)) for i in range(4)]
    alone, together = [encode_warp(x, params, levels) for x in xs], {}
    def work(i):
        for _ in range(5): together[i] = encode_warp(xs[i], params, levels)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(300)
    for i in range(4): assert together[i].equal(alone[i])


@needs_warp
def test_a_quiet_start():
    "No greeting, no warning, no word about a driver"
    code = ('import torch\nfrom dreamfusion_nb.ray_kernels import rays_come_out_right\n'
            'from dreamfusion_nb.kernels import warp_trouble\nprint(repr(warp_trouble(torch.device("cpu"))))')
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("''\n", '')


@needs_warp
@pytest.mark.skipif(sys.platform == 'darwin', reason='no compiler for CUDA there')
@pytest.mark.parametrize('page', [hashgrid, ray_kernels, raster_kernels, splats], ids=lambda page: page.__name__)
def test_every_kernel_compiles_for_a_card(page, tmp_path):
    "Warp brings CUDA's compiler along, and that needs no card: code for the oldest that it knows (Turing)"
    import warp
    page._page.build()
    warp.compile_aot_module(warp.get_module(page._page.name), arch=75, module_dir=tmp_path, use_ptx=True)
    made, = tmp_path.glob('*.ptx')
    kernels = {name for name, (_, types) in page._page.built.items() if types}
    assert len(kernels) > 1 and all(f'{name}_' in made.read_text() for name in kernels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@needs_warp
def test_on_a_card():
    "The same source there: a hash grid with its slopes, rays, triangles, on a stream that is not the first"
    device = torch.device('cuda', torch.cuda.current_device())
    assert not warp_trouble(device)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert hashgrid.encoder_trouble('warp', device) == ''
        for check in CHECKS: assert check(device)
