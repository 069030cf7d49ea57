"Tetrahedra and their surface: volumes, gradients, what is kept, and light by hand"
import math

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from dreamfusion_nb import ConfigError, toybox
from dreamfusion_nb.background import StaticBackground
from dreamfusion_nb.cameras import orbit, rays
from dreamfusion_nb.dmtet import (
    CASES,
    EDGES,
    EmptyMeshError,
    MeshRenderer,
    density_level,
    distance_to_mesh,
    inside_lattice,
    marching_tets,
    tet_grid,
    vertex_normals,
)
from dreamfusion_nb.export import by_quadrics, by_short_edges, decimate, drop_pieces
from dreamfusion_nb.losses import mesh_laplacian, mesh_laplacian_torch, mesh_normal, mesh_normal_torch
from dreamfusion_nb.rasterize import Sides


def gen(seed=0): return torch.Generator().manual_seed(seed)


class Paint(nn.Module):
    bound = 1.
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3)
    def albedo(self, x): return self.net(x).sigmoid()


def renderer(resolution=16, **options):
    torch.manual_seed(0)
    made = MeshRenderer(Paint(), StaticBackground((1., 1, 1)), resolution=resolution, **options)
    made.init_from_sphere(.5)
    return made


# The grid and its surface

@pytest.mark.parametrize('resolution, usual', [(32, 6_641), (64, 36_562), (128, 277_000)])
def test_as_many_vertices_as_the_usual_files(resolution, usual):
    vertices, tets = tet_grid(resolution)
    assert abs(len(vertices)/usual
               - 1) < .12 and tets.max() == len(vertices) - 1 and len(tets.unique()) == len(vertices)


def share_inside(sdf):
    "Part of a tetrahedron in which the linear function of its corner values is positive, by counting points"
    weight = torch.distributions.Dirichlet(torch.ones(4)).sample((200_000,))
    return (weight@sdf > 0).double().mean().item()


@pytest.mark.parametrize('case', range(1, 15))
def test_each_case_cuts_off_the_right_volume(case):
    "Cut part and rest against counting points; the surface of one case closes with the sides of the tetrahedron"
    torch.manual_seed(case)
    corners = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.]], dtype=torch.float64)
    sdf = torch.where(torch.tensor([case >> i & 1 for i in range(4)]).bool(), 1., -1.)*(.2 + torch.rand(4))
    vertices, faces = marching_tets(corners, sdf.double(), torch.arange(4)[None])
    inside = [i for i in range(4) if case >> i & 1]
    points = np.concatenate([corners[inside].numpy(), vertices.numpy()])
    assert trimesh.convex.convex_hull(points).volume*6 == pytest.approx(share_inside(sdf.float()), abs=.006)
    assert len(vertices) == sum((a in inside) != (b in inside) for a, b in EDGES) and len(faces) == len(CASES[case])
    # outside is where the normals point
    out = corners[[i for i in range(4) if i not in inside]].mean(0) - corners[inside].mean(0)
    a, b, c = vertices[faces].unbind(1)
    assert (torch.linalg.cross(b - a, c - a)@out > 0).all()


@pytest.mark.parametrize('seed', range(4))
def test_any_signs_make_a_closed_surface(seed):
    vertices, tets = tet_grid(12)
    sdf = torch.where(vertices.abs().amax(1) == 1, -1., torch.randn(len(vertices), generator=gen(seed)))
    v, f = marching_tets(vertices, sdf, tets)
    mesh = trimesh.Trimesh(v.numpy(), f.numpy(), process=False)
    assert mesh.is_winding_consistent and mesh.is_watertight and mesh.volume > 0 and len(f.unique()) == len(v)


def test_gradients_of_the_surface():
    vertices, tets = tet_grid(8)
    vertices = vertices.double()
    sdf = torch.randn(len(vertices), generator=gen(), dtype=torch.float64)
    pull = torch.randn(5000, 3, generator=gen(1), dtype=torch.float64)
    def value(v, s):
        found, faces = marching_tets(v, s, tets)
        return (found*pull[:len(found)]).sum() + found[faces].square().sum()
    v, s = vertices.clone().requires_grad_(), sdf.clone().requires_grad_()
    by_v, by_s = torch.autograd.grad(value(v, s), (v, s))
    for i in range(0, len(vertices), 7):
        step = torch.zeros_like(sdf)
        step[i] = 1e-6
        assert by_s[i].item() == pytest.approx((value(vertices, sdf + step) - value(vertices, sdf - step)).item()/2e-6,
                                               rel=1e-4, abs=1e-5)
        move = step[:, None]*torch.tensor([0., 1, 0])
        assert by_v[i, 1].item() == pytest.approx((value(vertices + move, sdf)
                                                   - value(vertices - move, sdf)).item()/2e-6, rel=1e-4, abs=1e-5)


def test_nothing_to_cut():
    vertices, tets = tet_grid(4)
    for sign in (-1., 1., 0.):
        v, f = marching_tets(vertices, torch.full((len(vertices),), sign), tets)
        assert v.shape == (0, 3) and f.shape == (0, 3)


# Beginnings

@pytest.mark.parametrize('mesh', [trimesh.creation.icosphere(3, .6), trimesh.creation.box((.8, .5, .9)),
                                  trimesh.creation.torus(.5, .2), trimesh.creation.capsule(.5, .3)],
    ids=['ball', 'box', 'torus', 'capsule'])
@pytest.mark.parametrize('turned', [False, True])
def test_begins_with_a_mesh(mesh, turned):
    "Symmetric meshes lie exactly on the lattice's lines, turned ones do not"
    if turned: mesh = mesh.copy().apply_transform(trimesh.transformations.rotation_matrix(.7, (1, 2, 3)))
    made = renderer(64)
    made.init_from_mesh(mesh)
    found = made.mesh()
    assert (found.is_watertight and found.euler_number == mesh.euler_number
            and found.volume == pytest.approx(mesh.volume, rel=.03))
    far = distance_to_mesh(np.asarray(found.vertices), mesh, .2)
    assert far.mean() < .03*made.spacing and far.max() < .5*made.spacing


def test_inside_of_a_lattice_by_trimesh_voxels():
    "Against a count of crossings along another axis"
    mesh = trimesh.creation.torus(.5, .2).apply_transform(trimesh.transformations.rotation_matrix(.9, (1, 1, 0)))
    ours = inside_lattice(mesh, -.8, .05, 33)
    other = mesh.copy()
    other.vertices = other.vertices[:, [1, 2, 0]]
    assert (ours == inside_lattice(other, -.8, .05, 33).transpose(2, 0, 1)).all() and 2000 < ours.sum() < 5000
    assert ours.sum()*.05**3 == pytest.approx(mesh.volume, rel=.02)


def test_density_level_always_crosses():
    for values in ([0., 0, 5], [0, 20, 3000.], [1, 1.1], [1e-9, 2e-3], [4., 4, 4, 4.001], [0, 1e9]):
        density = torch.tensor(values)
        assert density.min() < density_level(density) < density.max()
    with pytest.raises(EmptyMeshError, match='min 0, mean 0, max 0'): density_level(torch.zeros(5))
    with pytest.raises(EmptyMeshError, match='min 3, mean 3, max 3'): density_level(torch.full((5,), 3.))


def test_begins_with_a_cloud():
    made = renderer(32)
    made.init_from_density(lambda x: 40*torch.exp(-(x - torch.tensor([.1, 0, -.1])).square().sum(1)/.08), threshold=10)
    radius = math.sqrt(.08*math.log(4))
    found = made.mesh()
    assert np.linalg.norm(found.vertices - [.1, 0, -.1], axis=1) == pytest.approx(radius,
        abs=.01) and found.is_watertight
    # a cloud that reaches the border is cut off there
    made.init_from_density(lambda x: 5 + x[:, 0], threshold=4.5)
    assert made.mesh().is_watertight


def test_a_checkpoint_holds_the_shape():
    "NeMo's is made anew when it is loaded"
    a, b = renderer(), MeshRenderer(Paint(), StaticBackground((1., 1, 1)), resolution=16)
    a.sdf.data += .3*torch.randn(a.sdf.shape, generator=gen())
    a.deform.data += torch.randn(a.deform.shape, generator=gen(1))
    with pytest.raises(EmptyMeshError, match='no shape yet'): b.geometry()
    b.load_state_dict(a.state_dict())
    for x, y in zip(a.geometry(), b.geometry()): assert torch.equal(x, y)
    assert 'tets' not in a.state_dict() and b.initialised and b.scale == a.scale


# Pictures

def test_light_on_a_ball_by_hand():
    """Albedo times ambient + (1 - ambient) times the cosine, with the normal of a ball, in every pixel inside the
    outline"""
    made = renderer(64)
    camera = orbit(2, elevation=20, fovy=30., azimuth_start=10)
    light = torch.nn.functional.normalize(torch.tensor([[1., 2, 1], [-1, .5, .2]]), dim=1)
    out = made(camera, 48, 48, shading='lambertian', light=light, ambient=.25)
    origin, direction = (v.view(2, 48, 48, 3) for v in rays(camera, 48, 48))
    b = (origin*direction).sum(-1)
    inner = b*b - (origin.square().sum(-1) - .25)
    t = -b - inner.clamp(min=0).sqrt()
    point = origin + t[..., None]*direction
    normal = point/.5
    cosine = (normal*light[:, None, None]).sum(-1).clamp(min=0)
    wanted = made.field.albedo(point)*(.25 + .75*cosine)[..., None]
    well = inner > .04
    assert well.sum() > 400
    assert (out.image.permute(0, 2, 3, 1) - wanted)[well].abs().max() < .03
    assert (out.depth[:, 0] - t)[well].abs().max() < .01
    assert (out.normal.permute(0, 2, 3, 1) - normal)[well].abs().max() < .08
    empty = inner < -.04
    assert (out.image.permute(0, 2, 3, 1)[empty] == 1).all() and not out.opacity[:,
        0][empty].any() and (out.opacity[:, 0][well] == 1).all()


def test_shadings_and_backgrounds():
    made, cameras = renderer(), orbit(3)
    pictures = {s: made(cameras, 20, 24, shading=s, ambient=.3).image
                for s in ('albedo', 'textureless', 'lambertian', 'normal')}
    for a in pictures.values(): assert a.shape == (3, 3, 20, 24) and 0 <= a.min() and a.max() <= 1
    assert torch.allclose(pictures['textureless'][:, 0], pictures['textureless'][:, 2])
    colors = torch.tensor([[1., 0, 0], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(made(cameras, 20, 24, background=colors).image[:, :, 0, 0], colors)


def test_gradients_of_pictures():
    """Numbers of the grid by finite differences of a weighted sum of the picture, light and outlines; the texture gets
    its own and does not pull"""
    made, camera = renderer(8).double(), orbit(1, elevation=25, fovy=25.)
    for name in ('c2w', 'fovy', 'azimuth', 'polar', 'radius'): setattr(camera, name, getattr(camera, name).double())
    weight = torch.randn(3, 32, 32, generator=gen(), dtype=torch.float64)
    def value(shading='textureless'):
        return (made(camera, 32, 32, shading=shading, light=torch.tensor([0., .6, .8]),
                     ambient=.2).image[0]*weight).sum()
    value('lambertian').backward()
    assert made.field.net.weight.grad.abs().max() > .01
    made.zero_grad()
    value().backward()
    for parameter in (made.sdf, made.deform):
        grad, close = parameter.grad.flatten(), []
        assert (grad != 0).sum() > 20
        for i in grad.abs().topk(30).indices:
            flat, old = parameter.data.view(-1), parameter.data.view(-1)[i].item()
            ends = []
            for step in (1e-6, -1e-6):
                flat[i] = old + step
                with torch.no_grad(): ends.append(value().item())
            flat[i] = old
            close.append(abs((ends[0] - ends[1])/2e-6 - grad[i].item()) < 1e-3*max(1, abs(grad[i].item())))
        assert np.mean(close) > .85    # a step may change which triangle a pixel sees


def test_mesh_losses_reach_the_grid():
    made = renderer()
    made.sdf.data += .2*torch.randn(made.sdf.shape, generator=gen())
    out = made(orbit(1), 16, 16)
    for loss in (mesh_normal, mesh_laplacian):
        slope, = torch.autograd.grad(loss(out.vertices, out.faces), made.sdf, retain_graph=True)
        assert slope.abs().max() > 0 and slope.isfinite().all()


@pytest.mark.parametrize('kind', ['ball', 'soup', 'sheet', 'nothing'])
def test_mesh_losses_are_those_of_plain_torch(kind):
    "Closed, with borders, with edges of many faces, with faces that are none; each has its sides found once"
    ball = trimesh.creation.icosphere(1)
    v = torch.tensor(ball.vertices) + .1*torch.randn(ball.vertices.shape, generator=gen(), dtype=torch.float64)
    f = torch.tensor(ball.faces)
    if kind == 'soup': f = torch.randint(12, (60, 3), generator=gen(1))    # some have a vertex twice
    if kind == 'sheet': f = f[:30]
    if kind == 'nothing': f = f[:0]
    sides = Sides(f, len(v))
    for loss, plain in ((mesh_normal, mesh_normal_torch), (mesh_laplacian, mesh_laplacian_torch)):
        x, y = v.clone().requires_grad_(), v.clone().requires_grad_()
        got, true = loss(x, f, sides), plain(y, sides)
        assert torch.equal(got, loss(x, f)) and abs(got - true) < 1e-12
        if not got.requires_grad or not len(f): continue
        for a, b in zip(torch.autograd.grad(got, x), torch.autograd.grad(true, y)): assert (a - b).abs().max() < 1e-11
    if len(f): assert sides.in_order is sides.in_order and sides.tables is sides.tables


@pytest.mark.parametrize('weighting', ['angle', 'area'])
def test_vertex_normals(weighting):
    ball = trimesh.creation.icosphere(3)
    v, f = torch.tensor(ball.vertices), torch.tensor(ball.faces)
    assert (vertex_normals(v, f, weighting) - v).abs().max() < .015
    flat = torch.cat([v, v[:1], v[:1]]).requires_grad_()    # and a triangle without area
    normal = vertex_normals(flat, torch.cat([f, torch.tensor([[0, len(v), len(v) + 1]])]), weighting)
    slope, = torch.autograd.grad(normal[:len(v)].square().sum() + normal.sum(), flat)
    assert slope.isfinite().all() and not normal[len(v):].any()
    with pytest.raises(ValueError, match='angle'): vertex_normals(v, f, 'none')


@pytest.mark.parametrize('weighting', ['angle', 'area'])
def test_a_vertex_of_triangles_without_area_has_no_gradient(weighting):
    "Also where one is asked for, and in single precision"
    v = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], requires_grad=True)
    normal = vertex_normals(v, torch.tensor([[0, 1, 2], [0, 1, 3]]), weighting)
    slope, = torch.autograd.grad(normal.sum(), v)
    assert slope.isfinite().all() and slope.abs().max() < 10 and not normal[3].any()


def test_a_distance_of_one_sign():
    made = renderer()
    made.sdf.data.fill_(1.)
    for act in (made.geometry, made.mesh, lambda: made(orbit(1), 8, 8)):
        with pytest.raises(ConfigError, match='positive everywhere'): act()
    made.sdf.data.fill_(-1.)
    with pytest.raises(EmptyMeshError, match='the surface is gone'): made.geometry()
    for wrong in (None, 'ball.glb'):
        with pytest.raises(ValueError, match='trimesh.Trimesh'): made.init_from_mesh(wrong)


def test_one_lit_picture_is_the_same_twice():
    made = renderer(32)
    a, b = (made(orbit(2), 40, 40, shading='lambertian', ambient=.1) for _ in range(2))
    assert torch.equal(a.image, b.image)


def test_fewer_triangles_stay_closed():
    "A surface with many needles, of which plain decimation makes edges with four triangles"
    made = renderer(64)
    made.init_from_sphere(.8)
    made.sdf.data += .2*torch.sin(20*made.grid).sum(1)
    mesh = made.mesh()
    assert mesh.is_watertight and mesh.area_faces.min() < 1e-8
    for faces in (20_000, 10_000, 3000, 500):
        few = decimate(mesh, faces)
        assert (few.is_watertight and few.is_winding_consistent and .75*faces <= len(few.faces) <= faces
                and few.volume == pytest.approx(mesh.volume, rel=.05))
        assert few.visual.vertex_colors.shape == (len(few.vertices), 4)


@pytest.mark.parametrize('caption', ['a hamburger', 'a mug', 'a teapot', 'a lamp', 'a bench'])
def test_a_budget_of_triangles_is_kept(caption):
    "By shapes of several parts, with thin places, on which quadrics alone fail at some number"
    mesh = toybox.mesh(caption, resolution=64)
    for faces in (5000, 1500, 400, 100):
        few = decimate(mesh, faces)
        # as a file is read; a bench of a hundred triangles stands on the tips of its legs
        welded = trimesh.Trimesh(few.vertices, few.faces)
        assert .3*faces < len(few.faces) <= faces and few.is_watertight and few.volume > 0 and (welded.is_watertight
            or (caption, faces) == ('a bench', 100))
        assert distance_to_mesh(few.vertices, mesh, .2).max() < .1
    paint = {tuple(c) for c in mesh.visual.vertex_colors.tolist()}
    assert {tuple(c) for c in few.visual.vertex_colors.tolist()} <= paint


def test_quadrics_alone_would_not_do():
    found = [by_quadrics(toybox.mesh(caption, resolution=64), n)
             for caption, n in (('a mug', 400), ('a lamp', 40), ('a teapot', 100))]
    assert None in found


def test_too_few_triangles():
    "Said, with the number that can be had, and it can"
    sponge = trimesh.util.concatenate([trimesh.creation.icosphere(2, radius=.1).apply_translation(p)
                                       for p in np.random.default_rng(0).uniform(-1, 1, (40, 3))])
    with pytest.raises(ConfigError, match='are too few for this shape') as said: by_short_edges(sponge, 4)
    nearest = int(str(said.value).split()[-1])
    assert 4 < nearest < len(sponge.faces) and by_short_edges(sponge, nearest).is_watertight


@pytest.mark.parametrize('seed', range(4))
def test_overlapping_solids_are_one(seed):
    "Inside of boxes that overlap, by formula; their signed distances make one solid"
    g = np.random.default_rng(seed)
    boxes = [trimesh.creation.box(g.uniform(.3, .8, 3)).apply_translation(g.uniform(-.15, .15, 3)) for _ in range(4)]
    mesh = trimesh.util.concatenate(boxes)
    axis = -1 + np.arange(41)*.05
    points = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), -1)
    exact = np.any([((points > b.bounds[0]) & (points < b.bounds[1])).all(-1) for b in boxes], 0)
    assert (inside_lattice(mesh, -1, .05, 41) == exact).all()
    made = renderer(64)
    made.init_from_mesh(mesh)
    fine = (np.stack(np.meshgrid(*[np.linspace(-.6, .6, 121)]*3, indexing='ij'), -1))
    union = np.any([((fine > b.bounds[0]) & (fine < b.bounds[1])).all(-1) for b in boxes], 0).sum()*.01**3
    assert made.mesh().is_watertight and made.mesh().volume == pytest.approx(union, rel=.08)


def one_way_and_the_other(mesh):
    "Closed, but every second triangle is wound the wrong way"
    faces = mesh.faces.copy()
    faces[::2] = faces[::2, ::-1]
    return trimesh.Trimesh(mesh.vertices, faces, process=False)


def test_winding_that_is_no_winding():
    mixed = one_way_and_the_other(trimesh.creation.icosphere(3, radius=.5))
    assert mixed.is_watertight
    with pytest.raises(ValueError, match='wound in opposite ways'): renderer(16).init_from_mesh(mixed)
    with pytest.raises(ConfigError, match='all wound the same way'): by_short_edges(mixed, 100)


@pytest.mark.parametrize('make', [lambda: trimesh.creation.box((1, 1, 1)),
                                  lambda: trimesh.creation.icosphere(0, radius=.5)])
@pytest.mark.parametrize('resolution', [16, 56])
def test_a_mesh_on_the_vertices_of_the_grid(make, resolution):
    "Faces of the box lie on lattice points at 56; triangles without an area came of it"
    made, given = renderer(resolution), make()
    made.init_from_mesh(given)
    mesh = made.mesh()
    assert mesh.area_faces.min() > 0 and np.linalg.norm(mesh.vertex_normals, axis=1).min() > .9
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight
    assert mesh.volume == pytest.approx(given.volume, rel=.2 if resolution == 16 else .02)


def test_a_sheet_is_no_solid():
    "Two triangles back to back are closed, and enclose nothing"
    ring = trimesh.creation.torus(1, .3)
    assert not any(small and small.volume < 1e-6 for small in (by_quadrics(ring, n) for n in (4, 5, 8, 20)))
    three = trimesh.util.concatenate([trimesh.creation.icosphere(2).apply_translation([3*i, 0, 0]) for i in range(3)])
    for mesh in (ring, three):
        try: assert decimate(mesh, 4).volume > .01
        except ConfigError as error: assert 'are too few for this shape' in str(error)


def test_one_of_twins_stays():
    ball = trimesh.creation.icosphere(2).apply_translation([2, 0, 0])
    twins = trimesh.util.concatenate([ball, ball.copy().apply_transform(np.diag([-1., 1, 1, 1]))])
    assert drop_pieces(twins.copy(), 1.).body_count == 1 and drop_pieces(twins.copy(), .99).body_count == 2
    for share in (-.1, 1.1, math.nan, 'a', None, True):
        with pytest.raises(ConfigError, match='min_share is a number from 0'): drop_pieces(twins.copy(), share)
