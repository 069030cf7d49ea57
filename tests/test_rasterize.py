"Rasterisation against a ray tracer, finite differences, areas and counting"
import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import Delaunay

from dreamfusion_nb.cameras import orbit, projection, rays
from dreamfusion_nb.rasterize import (
    VISIBLE,
    Sides,
    antialias,
    find_outlines,
    interpolate,
    nvdiffrast,
    rasterize,
    texture,
)

both = pytest.mark.parametrize('backend', list(VISIBLE))


def gen(seed=0): return torch.Generator().manual_seed(seed)


def clip(vertices, matrices): return torch.cat([vertices, torch.ones_like(vertices[:, :1])], 1)@matrices.to(vertices).mT


def random_mesh(seed, n=40):
    "Triangles across a box, three vertices each [3n, 3] float64"
    centre = 1.6*torch.rand(n, 1, 3, generator=gen(seed), dtype=torch.float64) - .8
    arms = .5*torch.randn(n, 3, 3, generator=gen(seed + 100), dtype=torch.float64)
    return (centre + arms).view(-1, 3), torch.arange(3*n).view(n, 3)


# What is visible

def traced(vertices, faces, camera, size, near):
    """First triangle along each ray (Möller & Trumbore 1997) and its distance along the axis of sight, by loops over
    triangles; row 0 is the top"""
    origin, direction = (v.double() for v in rays(camera, size, size))
    axis = -camera.c2w[0, :3, 2].double()
    best, found = torch.full((len(origin),), math.inf, dtype=torch.float64), torch.full((len(origin),), -1)
    for i, (a, b, c) in enumerate(vertices[faces]):
        p = torch.linalg.cross(direction, (c - a).expand_as(direction))
        det = p@(b - a)
        s = origin - a
        u = (s*p).sum(1)/det
        q = torch.linalg.cross(s, (b - a).expand_as(s))
        v, t = (direction*q).sum(1)/det, q@(c - a)/det
        z = t*(direction@axis)
        closer = (u >= 0) & (v >= 0) & (u + v <= 1) & (z > near) & (z < best)
        best[closer], found[closer] = z[closer], i
    return found.view(size, size).flip(0), best.view(size, size).flip(0)


@both
@pytest.mark.parametrize('seed', range(3))
def test_sees_what_a_ray_tracer_sees(backend, seed):
    "From inside the soup, so that triangles cross the near plane and lie behind the eye"
    vertices, faces = random_mesh(seed)
    camera = orbit(1, radius=.7, elevation=20, fovy=80., azimuth_start=33)
    p = clip(vertices, projection(camera, 40, 40, near=.05, far=50.)[0])[None]
    assert ((p[0, faces, 3] > 0).any(1) & (p[0, faces, 3] < 0).any(1)).sum() > 3
    rast = rasterize(p, faces, (40, 40), backend)[0]
    found, distance = traced(vertices, faces, camera, 40, .05)
    agree = rast[..., 3].long() - 1 == found
    assert agree.float().mean() > .999    # a ray that meets an edge may be on either side
    seen = agree & (found >= 0)
    w = interpolate(p[0, :, 3:], rast[None], faces)[0, ..., 0]
    assert torch.allclose(w[seen], distance[seen], rtol=1e-4)
    far, near = 50., .05
    # the matrix is float32
    assert torch.allclose(rast[..., 2][seen], ((far + near) - 2*far*near/distance[seen])/(far - near), atol=1e-4)


def test_backends_agree_on_bad_triangles():
    p = torch.randn(2, 60, 4, generator=gen(1))
    p[:, :6] = torch.tensor([[math.nan], [math.inf], [0.], [1e8], [-1e8], [1.]])
    p[:, 12:15] = p[:, 12:13]                      # no area
    p[:, 15:18] *= torch.tensor([1e6, 1e6, 1, 1])  # huge
    faces = torch.arange(60).view(20, 3)
    a, b = (rasterize(p, faces, (31, 17), backend) for backend in VISIBLE)
    assert torch.equal(a, b) and a.isfinite().all()
    assert not {1, 2, 5} & set(a[..., 3].unique().long().tolist())


@both
def test_a_huge_triangle_covers_everything(backend):
    for scale in (10., 1e6, 1e15, 1e17, 1e19, 1e30, 1e100):
        p = torch.tensor([[-scale, -scale, 0, 1], [3*scale, -scale, 0, 1], [-scale, 3*scale, 0, 1]],
                         dtype=torch.float64)[None]
        for size in ((9, 7), (64, 512)):
            assert (rasterize(p, torch.tensor([[0, 1, 2]]), size, backend)[..., 3] == 1).all()


@both
@pytest.mark.parametrize('seed', range(4))
def test_shared_edges_are_hit_once(backend, seed):
    """A sheet of triangles whose corners lie on pixel centres, on pixel borders or anywhere, wound at random, seen in
    perspective"""
    g = gen(seed)
    points = torch.cat([torch.randint(-7, 8, (40, 2), generator=g)/8,
                        torch.randint(-8, 9, (40, 2), generator=g)/8 + 1/16, 2*torch.rand(20, 2, generator=g) - 1,
        torch.tensor([[-2., -2], [2, -2], [-2, 2], [2, 2]])]).unique(dim=0)
    faces = torch.tensor(Delaunay(points.numpy()).simplices)
    turned = torch.rand(len(faces), generator=g) < .5
    faces[turned] = faces[turned].flip(1)
    w = 2.**torch.randint(-2, 3, (len(points), 1), generator=g)
    p = torch.cat([points*w, torch.zeros_like(w), w], 1)[None]
    hits = sum((rasterize(p, face[None], (16, 16), backend)[0, ..., 3] > 0).int() for face in faces)
    assert (hits == 1).all()


@both
def test_depth_order(backend):
    "Two triangles that cut each other: each pixel shows the nearer one, whatever the order of the list"
    p = torch.tensor([[-1., -1, -.5, 1], [1, -1, .5, 1], [0, 1, 0, 1], [-1, -1, .5, 1], [1, -1, -.5, 1],
                      [0, 1, 0, 1]])[None]
    for faces in (torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[3, 4, 5], [0, 1, 2]])):
        rast = rasterize(p, faces, (16, 16), backend)[0]
        assert rast[..., 2].max() <= 1e-6 and rast[..., 2].min() < -.3
    # beyond the far plane and before the near one nothing is seen
    for z in (-1.1, 1.1):
        assert not rasterize(p*torch.tensor([1, 1, 0, 1]) + torch.tensor([0, 0, z, 0]), faces, (16, 16), backend).any()


def test_nothing_to_see():
    p, none = torch.randn(2, 5, 4), torch.zeros(0, 3, dtype=torch.long)
    rast = rasterize(p, none, (4, 6))
    assert rast.shape == (2, 4, 6, 4) and not rast.any()
    assert antialias(torch.ones(2, 4, 6, 3), rast, p, none).eq(1).all() and not interpolate(torch.ones(5, 2), rast,
        none).any()


# Gradients

def slopes(f, x, g, n=40, eps=1e-6):
    "Derivatives of f at n random numbers of x: by torch and by central differences"
    x = x.clone().requires_grad_()
    grad, = torch.autograd.grad(f(x), x)
    pick = torch.randperm(x.numel(), generator=g)[:n]
    difference = []
    for i in pick:
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[i] = eps
        difference.append((f(x.detach() + step.view_as(x)) - f(x.detach() - step.view_as(x)))/(2*eps))
    return grad.flatten()[pick], torch.stack(difference)


def ball(n=2, radius=1.):
    mesh = trimesh.creation.icosphere(n, radius=radius)
    return torch.tensor(mesh.vertices), torch.tensor(mesh.faces)


def test_gradients_of_attributes_and_positions():
    "Inside the outlines: what is seen stays, and where in it moves"
    vertices, faces = ball()
    p = clip(vertices, projection(orbit(2, radius=2.5, elevation=15, fovy=40.), 24, 24))
    attr = torch.randn(len(vertices), 3, generator=gen(), dtype=torch.float64)
    weight = torch.randn(2, 24, 24, 3, generator=gen(1), dtype=torch.float64)
    rast = rasterize(p, faces, (24, 24))
    by_torch, by_steps = slopes(lambda a: (interpolate(a, rast, faces)*weight).sum(), attr, gen(2))
    assert torch.allclose(by_torch, by_steps, atol=1e-6) and by_torch.abs().max() > .1
    each = torch.randn(2, len(vertices), 3, generator=gen(3), dtype=torch.float64)
    by_torch, by_steps = slopes(lambda a: (interpolate(a, rast, faces)*weight).sum(), each, gen(2), 80)
    assert torch.allclose(by_torch, by_steps, atol=1e-6) and by_torch.abs().max() > .1
    by_torch, by_steps = slopes(lambda q: (interpolate(attr, rasterize(q, faces, (24, 24)), faces)*weight).sum(), p,
                                gen(4), 200, 1e-8)
    # a few steps change what is seen
    assert ((by_torch - by_steps).abs() < 1e-4*(1 + by_steps.abs())).float().mean() > .97
    assert by_torch.abs().max() > 1


@pytest.mark.parametrize('subdivisions', [1, 2, 4])
def test_gradients_of_outlines(subdivisions):
    vertices, faces = ball(subdivisions)
    p = clip(vertices, projection(orbit(2, radius=2.5, elevation=15, fovy=50.), 32, 32))
    weight = torch.randn(2, 32, 32, 2, generator=gen(1), dtype=torch.float64)
    paint = torch.randn(2, 32, 32, 2, generator=gen(2), dtype=torch.float64)
    def value(q, paint):
        rast = rasterize(q, faces, (32, 32))
        return (antialias(torch.where(rast[..., 3:] > 0, paint, .3), rast, q, faces)*weight).sum()
    rim = find_outlines(rasterize(p, faces, (32, 32)), p, Sides(faces, p.shape[1]))
    chosen = p.clone()
    mask = torch.zeros_like(p, dtype=torch.bool)
    mask[rim[:, 0], rim[:, 5]] = True      # vertices of the rim: the others have no gradient
    by_torch, by_steps = slopes(lambda part: value(chosen.masked_scatter(mask, part), paint), p[mask], gen(3),
                                150, 1e-7)
    assert ((by_torch - by_steps).abs() < 1e-4*(1 + by_steps.abs())).float().mean() > .97
    assert by_torch.abs().max() > .1
    by_torch, by_steps = slopes(lambda c: value(p, c), paint, gen(4), 100)
    assert torch.allclose(by_torch, by_steps, atol=1e-6)


@pytest.mark.parametrize('seed', range(5))
def test_antialiased_area_is_the_area(seed):
    "Of a convex polygon, and its gradient"
    g = gen(seed)
    angle = (2*math.pi*(torch.arange(7) + .6*torch.rand(7, generator=g, dtype=torch.float64))/7)
    corners = torch.stack([.8*angle.cos(), .7*angle.sin()], 1)
    faces = torch.tensor([[0, i, i + 1] for i in range(1, 6)])
    def covered(c):
        p = torch.cat([c, torch.zeros_like(c[:, :1]), torch.ones_like(c[:, :1])], 1)[None]
        rast = rasterize(p, faces, (128, 128))
        return antialias((rast[..., 3:] > 0).to(c), rast, p, faces).sum()/64**2
    def true(c): return (c*c.roll(-1, 0).flip(1)*torch.tensor([1., -1])).sum()/2
    c = corners.requires_grad_()
    assert abs(covered(c) - true(c)) < 2e-3
    ours, exact = (torch.autograd.grad(f(c), c)[0] for f in (covered, true))
    assert torch.allclose(ours, exact, atol=.03) and exact.abs().max() > .3


def test_antialiasing_touches_outlines_only():
    "A closed fine surface in front of another: pixels change along both rims, and nowhere inside"
    vertices, faces = ball(4)
    vertices, faces = torch.cat([vertices*.5 + torch.tensor([.2, .1, .8]), vertices]), torch.cat([faces,
        faces + len(vertices)])
    p = clip(vertices, projection(orbit(1, radius=4., fovy=40.), 80, 80))
    rast = rasterize(p, faces, (80, 80))
    part = torch.where(rast[..., 3] > 0, 1. + (rast[..., 3] > len(faces)//2), 0.)[..., None].double()
    changed = antialias(part, rast, p, faces) != part
    row = part[0, 1:-1, 1:-1, 0]
    column = torch.stack([part[0, 1 + i:79 + i, 1 + j:79 + j, 0] for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))])
    rim = (column != row).any(0)
    assert not (changed[0, 1:-1, 1:-1, 0] & ~rim).any() and (changed[0, 1:-1, 1:-1, 0] & rim).sum() > .4*rim.sum()


def test_neighbours():
    vertices, faces = ball(2)
    other = Sides(faces, len(vertices)).across
    assert (other >= 0).all()
    face, corner = other//3, other % 3
    for f in range(0, len(faces), 17):
        for i in range(3):
            shared = {int(faces[f, (i + 1) % 3]), int(faces[f, (i + 2) % 3])}
            n, k = int(face[f, i]), int(corner[f, i])
            assert n != f and shared == set(faces[n].tolist()) - {int(faces[n, k])}
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])    # three faces at one edge
    assert (Sides(fan, 5).across == -1).all()


def test_same_bits_on_any_number_of_threads():
    vertices, faces = ball(4)
    p = clip(vertices.float(), projection(orbit(3, radius=2.5, fovy=40.), 64, 64))
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            rast = rasterize(p, faces, (64, 64))
            found.append((rast, find_outlines(rast, p, Sides(faces, p.shape[1]))))
    finally: torch.set_num_threads(before)
    for rast, outlines in found[1:]: assert torch.equal(rast, found[0][0]) and torch.equal(outlines, found[0][1])


def test_gradients_of_textures():
    tex = torch.rand(1, 5, 7, 3, generator=gen(), dtype=torch.float64)
    uv = 3*torch.rand(2, 6, 6, 2, generator=gen(1), dtype=torch.float64) - 1
    for boundary in ('wrap', 'clamp', 'zero'):
        for f, x in ((lambda v: texture(v, uv, boundary_mode=boundary).square().sum(), tex),
                     (lambda v: texture(tex, v, boundary_mode=boundary).square().sum(), uv)):
            by_torch, by_steps = slopes(f, x, gen(2), 60, 1e-7)
            assert torch.allclose(by_torch, by_steps, atol=1e-5)


def test_texture_by_a_scalar_reading():
    tex = torch.rand(1, 5, 7, 2, generator=gen(), dtype=torch.float64)
    uv = 4*torch.rand(1, 1, 200, 2, generator=gen(1), dtype=torch.float64) - 2
    picture = tex[0].numpy()
    for boundary, index in (('wrap', lambda i, n: i % n), ('clamp', lambda i, n: min(max(i, 0), n - 1)),
                            ('zero', lambda i, n: i if 0 <= i < n else None)):
        found = []
        for u, v in uv[0, 0].tolist():
            x, y, value = u*7 - .5, v*5 - .5, np.zeros(2)
            for i in (0, 1):
                for j in (0, 1):
                    column, row = index(math.floor(x) + i, 7), index(math.floor(y) + j, 5)
                    share = (x % 1 if i else 1 - x % 1)*(y % 1 if j else 1 - y % 1)
                    if None not in (row, column): value += share*picture[row, column]
            found.append(value)
        assert np.allclose(texture(tex, uv, boundary_mode=boundary)[0, 0], found)


def test_nvdiffrast_agrees():
    if not torch.cuda.is_available() or not nvdiffrast(): pytest.skip('needs CUDA and nvdiffrast')
    vertices, faces = ball(3)
    p = clip(vertices.float(), projection(orbit(2, radius=2.5, fovy=40.), 64, 64)).cuda().requires_grad_()
    attr = torch.rand(len(vertices), 3, device='cuda', requires_grad=True)
    weight = torch.randn(2, 64, 64, 3, device='cuda')
    found = {}
    for backend in ('numba', 'nvdiffrast'):
        rast = rasterize(p, faces.cuda(), (64, 64), backend)
        out = antialias(interpolate(attr, rast, faces.cuda(), backend), rast, p, faces.cuda(), backend)
        found[backend] = (rast, out, *torch.autograd.grad((out*weight).sum(), (p, attr)))
    for i, (a, b) in enumerate(zip(*found.values())):
        # it rounds corners to 1/16 of a pixel, and looks for outlines at one triangle only
        assert torch.isclose(a, b, rtol=1e-2, atol=1e-2).float().mean() > .95, i
