"""NeMo's bugs in backgrounds, shading and losses, each with a test that it would have failed (B numbers as in the
project's list)"""
import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

from dreamfusion_nb import losses
from dreamfusion_nb.background import (
    LearnedBackground,
    MixedBackground,
    RandomBackground,
    StaticBackground,
)
from dreamfusion_nb.cameras import orbit, rays
from dreamfusion_nb.field import Field
from dreamfusion_nb.hashgrid import HashGrid
from dreamfusion_nb.shading import SHADINGS, Material, shade

TETRAHEDRON = torch.tensor([[1., 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3],
    [0, 3, 1], [1, 3, 2]])


def generator(seed=0): return torch.Generator().manual_seed(seed)


def directions(*shape): return F.normalize(torch.randn(*shape, 3, generator=generator()), dim=-1)


def small_grid(): return HashGrid(n_levels=4, base_resolution=4, log2_hashmap_size=10, generator=generator())


def backgrounds():
    sky = LearnedBackground(generator=generator())
    return dict(static=StaticBackground((0, 0, 1)), random=RandomBackground((0, 0, 1)), frequency=sky,
        hash=LearnedBackground(small_grid(), n_hidden_layers=2, generator=generator()), mixed=MixedBackground(sky))


each_background = pytest.mark.parametrize('name', backgrounds())


# Backgrounds

@each_background
def test_one_colour_an_image_not_a_ray(name):
    _, d = rays(orbit(1)[torch.zeros(50, dtype=torch.long)], 3, 3)     # fifty pictures from one place
    colors = backgrounds()[name](d, n_images=50, generator=generator()).view(50, 9, 3)
    # rows of a product round by their place
    own = (colors - backgrounds()[name].eval()(d).view(50, 9, 3)).abs().amax((1, 2)) > 1e-6
    assert (colors[own] == colors[own, :1]).all()
    if name in ('random', 'mixed'): assert 10 < own.sum() < 40 and len(colors[own, 0].unique(dim=0)) == own.sum()
    else: assert not own.any()


@each_background
def test_b13_batches(name):
    bg, (_, d) = backgrounds()[name].eval(), rays(orbit(3), 4, 5)
    together = bg(d, n_images=3, generator=generator())
    assert together.shape == d.shape and together.min() >= 0 and together.max() <= 1
    for i, alone in enumerate(d.split(20)):
        torch.testing.assert_close(bg(alone, n_images=1, generator=generator()), together[20*i:20*i + 20], rtol=0,
                                   atol=1e-6)


@each_background
def test_b14_integer_colours_are_colours(name):
    bg = backgrounds()[name]
    assert all(b.dtype == torch.float32 for n, b in bg.named_buffers() if 'color' in n)
    assert bg(directions(4), generator=generator()).dtype == torch.float32


@pytest.mark.parametrize('name', ['frequency', 'hash'])
def test_b18_directions_are_normalised_and_mapped(name):
    bg, d = backgrounds()[name], directions(200)
    if name == 'hash':
        with torch.no_grad(): bg.encoding.params.normal_(generator=generator())
    seen = []
    bg.encoding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert (bg(d) - bg(7*d)).abs().max() < 1e-5
    low = 0 if name == 'hash' else -1
    assert all(v.min() >= low and v.max() <= 1 for v in seen) and seen[0].min() < low + .1
    torch.testing.assert_close((seen[0]*2 - 1 if name == 'hash' else seen[0]).norm(dim=-1), torch.ones(200))
    below = F.normalize(torch.tensor([[3., -1, 4], [3., -2, 4]]), dim=-1)
    assert not bg(below)[0].equal(bg(below)[1])     # unmapped, both would lie on one wall of the grid


def test_learned_background_has_the_documented_size():
    assert sum(p.numel() for p in backgrounds()['frequency'].parameters()) == 1379


# Shading

def test_b3_every_mode_works_on_the_last_axis():
    n, l, v = directions(3, 2, 4, 5)
    a = torch.rand(2, 4, 5, 3, generator=generator())
    for mode in SHADINGS:
        image = shade(a, n, l, .3, mode, v, .5, 20.)
        points = shade(a.view(-1, 3), n.view(-1, 3), l.view(-1, 3), .3, mode, v.view(-1, 3), .5, 20.)
        torch.testing.assert_close(image.view(-1, 3), points, rtol=0, atol=0)


def test_b12_nothing_is_brighter_than_its_paint():
    n, l = directions(2, 500)
    a = torch.rand(500, 3, generator=generator())
    for k in (0., .1, .5, 1.):
        lit = k + (1 - k)*torch.einsum('ij,ij->i', n, l).clamp(min=0)
        torch.testing.assert_close(shade(a, n, l, k, 'lambertian'), a*lit[:, None])
        torch.testing.assert_close(shade(None, n, l, k, 'textureless'), lit[:, None].expand(-1, 3))
        for mode in ('textureless', 'lambertian', 'phong'): assert shade(a, n, l, k, mode, -n, .9, 3.).max() <= 1
    assert shade(None, n, l, .1, 'textureless').unique().numel() > 100      # not a constant


def test_phong_moves_with_the_eye_and_its_gradients_are_right():
    n, l = directions(2, 40).double()
    v = directions(80)[40:].double()
    a = torch.rand(40, 3, generator=generator()).double()*.5
    s = torch.full((3,), .3, dtype=torch.float64)
    p = torch.tensor([4.], dtype=torch.float64)
    assert not shade(a, n, l, .2, 'phong', v, s, p).equal(shade(a, n, l, .2, 'phong', v.flip(0), s, p))
    assert torch.autograd.gradcheck(lambda s, p: shade(a, n, l, .2, 'phong', v, s, p),
                                    (s.requires_grad_(), p.requires_grad_()))
    dark = (n*l).sum(-1) <= 0
    torch.testing.assert_close(shade(a, n, l, .2, 'phong', v, s, p)[dark], .2*a[dark])


def test_b17_phong_uses_every_parameter_of_its_material():
    m, (n, l) = Material(), directions(2, 50)
    loss = shade(torch.zeros(3), n, l, .1, 'phong', n.flip(0), m.specular, m.shininess).sum()
    assert all(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(loss, m.parameters()))
    assert [tuple(p.shape) for p in m.parameters()] == [(3,), (1,)]


def test_b17_the_learned_sky_is_in_every_graph():
    bg = MixedBackground(LearnedBackground(generator=generator()), 1.)
    assert all(g is not None for g in torch.autograd.grad(bg(directions(8), 2, generator()).sum(),
                                                          list(bg.parameters())))


# Losses

def test_b4_the_laplacian_is_there():
    v, f = TETRAHEDRON
    v = v.clone().requires_grad_()
    loss = losses.mesh_laplacian(v, f)
    torch.testing.assert_close(loss, torch.tensor(4*3**.5))
    assert torch.autograd.grad(loss, v)[0].norm() > .1
    with pytest.raises(TypeError, match='verts'): losses.mesh_laplacian(verts=v, faces=f)


def test_b10_smoothness_in_space_reaches_the_field():
    field = Field(small_grid(), hidden_dims=8, n_hidden_layers=1, generator=generator())
    x = .3*directions(64)
    near = losses.jitter_points(x, 1e-2, generator())
    assert .5e-2 < (near - x).std() < 2e-2 and near.equal(losses.jitter_points(x, 1e-2, generator()))
    losses.normal_smooth_3d(field.normal(x), field.normal(near)).backward()
    assert field.encoding.params.grad.norm() > 0


def test_mesh_losses_take_any_device_dtype_and_open_meshes():
    assert '.cuda(' not in inspect.getsource(losses)
    v, f = TETRAHEDRON
    for vertices in (v, v.double()):
        for faces in (f, f.int(), f[:3]):
            for loss in (losses.mesh_normal, losses.mesh_laplacian):
                assert loss(vertices, faces).dtype == vertices.dtype
    torch.testing.assert_close(losses.mesh_normal(v, f[:3]), torch.tensor(4/3))      # borders don't count
    # nor does winding
    torch.testing.assert_close(losses.mesh_normal(v, torch.cat([f[:2], f[2:].flip(1)])), torch.tensor(4/3))
    for loss in (losses.mesh_normal, losses.mesh_laplacian): assert loss(v, f[:0]) == 0


def test_fading_does_not_smooth():
    w, n = torch.rand(9, generator=generator()).requires_grad_(), directions(9).requires_grad_()
    losses.normal_smooth_2d(losses.normal_picture(w, n, torch.arange(9), (1, 3, 3))).backward()
    assert w.grad is None and n.grad.norm() > 0


def test_losses_leave_their_inputs_alone():
    v, f = TETRAHEDRON
    before = copy.deepcopy((v, f))
    for loss in (losses.mesh_normal, losses.mesh_laplacian): loss(v, f)
    assert v.equal(before[0]) and f.equal(before[1])
