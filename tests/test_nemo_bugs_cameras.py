"Mistakes of NeMo's cameras, each with a test that would have caught it"
import math

import pytest
import torch

from dreamfusion_nb.cameras import (
    VIEWS,
    jitter_cameras,
    orbit,
    progressive_ranges,
    projection,
    rays,
    sample_cameras,
    sphere_cameras,
    view_class,
    view_weights,
)

N = 4000
FULL = dict(radius_range=(3., 3.5), theta_range=(45., 105.), phi_range=(-180., 180.), fovy_range=(10., 30.))
SHAKEN = dict(jitter_center=.2, jitter_target=.2, jitter_up=.02)
WAYS = {'plain': {}, 'stratified': dict(stratified=True), 'sphere': dict(uniform_sphere_rate=1.),
        'half sphere': dict(uniform_sphere_rate=.5), 'jitter': SHAKEN,
        'all': dict(stratified=True, uniform_sphere_rate=.5, **SHAKEN)}


@pytest.fixture
def generator(): return torch.Generator().manual_seed(0)


@pytest.fixture(params=WAYS)
def cameras(request, generator): return sample_cameras(N, generator=generator, **WAYS[request.param])


def ks(values, low, high):
    """Kolmogorov's distance of a sample from the uniform distribution, times the square root of its size; above 1.95
    once in a thousand"""
    u = (values.sort().values.double() - low)/(high - low)
    i = torch.arange(len(u), dtype=torch.float64)/len(u)
    return (torch.maximum((u - i).abs(), (u - i - 1/len(u)).abs()).max()*len(u)**.5).item()


# B1: each "azimuth" of a training camera was its radius

def test_azimuth_is_the_azimuth(cameras):
    x, y, z = cameras.position.unbind(-1)
    turn = torch.rad2deg(torch.atan2(x, z)) - cameras.azimuth
    assert ((turn + 180) % 360 - 180).abs().max() < 1e-2
    assert (torch.rad2deg(torch.acos(y/cameras.radius)) - cameras.polar).abs().max() < 5e-2
    assert torch.allclose(cameras.position.norm(dim=-1), cameras.radius, atol=1e-5)
    assert cameras.azimuth.min() < -175 and cameras.azimuth.max() > 175


def test_every_prompt_has_its_turn(cameras):
    "A quarter front, half side, a quarter back where nothing is overhead; all front in NeMo"
    weights = view_weights(cameras.azimuth, cameras.polar.clamp(min=60)).mean(0)
    assert torch.allclose(weights, torch.tensor([.25, .5, .25, 0]), atol=.02)


# The mirrored world, and axes that were no longer at right angles after jitter

def test_poses_are_rotations(cameras):
    turn = cameras.c2w[:, :3, :3]
    assert torch.allclose(torch.linalg.det(turn), torch.ones(N), atol=1e-4)
    assert torch.allclose(turn.mT@turn, torch.eye(3).expand(N, 3, 3), atol=1e-5)


def test_front_is_not_mirrored():
    "A point to the right of the object's front (+x) is on the right of the picture"
    clip = projection(orbit(1, elevation=0.), 64, 64)[0]@torch.tensor([.2, 0, 0, 1])
    assert clip[0]/clip[3] > 0
    assert rays(orbit(1), 4, 4)[1][3][0] > 0


# One field of view, and one coin for the sphere, for a hundred poses

def test_drawn_for_every_pose(generator):
    cameras = sample_cameras(100, uniform_sphere_rate=.5, theta_range=(100, 105), generator=generator)
    assert cameras.fovy.unique().numel() > 95
    assert 30 < (cameras.polar < 90).sum() < 70


# Distributions

@pytest.mark.parametrize('stratified', [False, True])
def test_uniform_in_the_ranges(stratified, generator):
    cameras = sample_cameras(N, generator=generator, stratified=stratified, **FULL)
    for values, (low, high) in ((cameras.radius, (3, 3.5)), (cameras.polar, (45, 105)), (cameras.azimuth, (-180, 180)),
                                (cameras.fovy, (10, 30))):
        assert ks(values, low, high) < 1.95


def test_uniform_on_the_hemisphere(generator):
    "By area: the height is uniform, and so is the azimuth, whatever the ranges say; mean direction half way up"
    cameras = sample_cameras(N, uniform_sphere_rate=1., theta_range=(80, 81), phi_range=(0, 1), generator=generator)
    direction = cameras.position/cameras.radius[:, None]
    assert ks(direction[:, 1], 0, 1) < 1.95 and ks(cameras.azimuth, -180, 180) < 1.95 and ks(cameras.radius, 3,
        3.5) < 1.95
    assert torch.allclose(direction.mean(0), torch.tensor([0, .5, 0]), atol=.03)
    assert torch.allclose(direction.T@direction/N, torch.eye(3)/3, atol=.02)


def test_against_normal_directions(generator):
    "NeMo's formula, a normal vector with its height made positive, has the same distribution"
    drawn = torch.randn(N, 3, generator=generator)
    theirs = (drawn[:, 1].abs()/drawn.norm(dim=-1)).sort().values
    ours = (torch.cos(torch.deg2rad(sample_cameras(N, uniform_sphere_rate=1.,
                                                   generator=generator).polar))).sort().values
    assert (theirs - ours).abs().max() < .05


def test_one_camera_in_each_sector(generator):
    for n in (2, 4, 7):
        for _ in range(20):
            cameras = sample_cameras(n, stratified=True, uniform_sphere_rate=.5, generator=generator)
            assert ((cameras.azimuth + 180)*n/360).floor().clamp(max=n - 1).tolist() == list(range(n))


def test_nothing_is_drawn_for_what_is_off():
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    plain = sample_cameras(5, generator=a)
    off = sample_cameras(5, generator=b, uniform_sphere_rate=0., jitter_center=0., jitter_target=0., jitter_up=0.)
    assert plain.c2w.equal(off.c2w) and a.get_state().equal(b.get_state())


# Jitter

def test_jitter_moves_by_what_it_says(generator):
    still = sphere_cameras(torch.linspace(-180, 180, N), 75.)
    moved = (jitter_cameras(still, center=.2, generator=generator).position - still.position)
    for axis in moved.unbind(-1): assert axis.abs().max() <= .1 + 1e-6 and ks(axis, -.1, .1) < 1.95
    aimed = jitter_cameras(still, target=.2, generator=generator)
    # the point looked at is where the axis of view passes the plane through the origin that faces the camera; its
    # distance from there is nearly that of the noise in the plane
    forward = -aimed.c2w[:, :3, 2]
    passed = aimed.position + forward*(aimed.radius/(-(forward*aimed.position).sum(-1)/aimed.radius))[:, None]
    assert abs(passed.norm(dim=-1).square().mean().item()/(2*.2**2) - 1) < .1
    rolled = jitter_cameras(still, up=.02, generator=generator)
    roll = torch.asin((rolled.c2w[:, :3, 0]*still.c2w[:, :3, 1]).sum(-1))
    assert abs(roll.std().item() - .02) < 2e-3 and torch.allclose(rolled.c2w[:, :3, 2], still.c2w[:, :3, 2], atol=1e-6)


def test_jitter_keeps_the_object_in_view(generator):
    "A ball as large as our objects: always in part, its centre nearly always"
    cameras = sample_cameras(N, generator=generator, **FULL | SHAKEN)
    right, up, back = cameras.c2w[:, :3, :3].unbind(-1)
    away = (cameras.position*back).sum(-1)    # distance of the origin along the axis of view
    edge = torch.tan(torch.deg2rad(cameras.fovy)/2)*away
    off = torch.stack([(cameras.position*axis).sum(-1).abs() for axis in (right, up)])
    assert (away > 2).all()
    assert ((off - .45) < edge).all(0).float().mean() > .998
    wide = cameras.fovy > 19
    assert (off[:, wide] < edge[wide]).all(0).float().mean() > .97


# The one word of a view

def test_classes_follow_their_angles():
    azimuth = torch.arange(-180, 181, dtype=torch.float32)
    level = torch.full_like(azimuth, 90)
    for angle in (20., 60., 90., 180.):
        words = view_class(azimuth, level, angle_front=angle)
        assert azimuth[words == 0].abs().max() == angle/2
        assert azimuth[words == 2].abs().min() == (180 - angle/2 if angle < 180 else 91)
        assert (words != 3).all()
    for angle in (0., 30., 90.):
        assert torch.equal(view_class(azimuth*0, azimuth.abs(), angle_overhead=angle) == 3, azimuth.abs() <= angle)


def test_weights_are_the_class_where_blending_is_off(cameras):
    for front, above in ((60., 30.), (120., 50.)):
        weights = view_weights(cameras.azimuth, cameras.polar, angle_front=front, angle_overhead=above, nearest=True)
        assert torch.equal(weights.argmax(-1), view_class(cameras.azimuth, cameras.polar, angle_front=front,
                                                          angle_overhead=above))
        assert torch.equal(weights.sum(-1), torch.ones(N)) and set(weights.unique().tolist()) <= {0., 1.}
    assert VIEWS == ('front', 'side', 'back', 'overhead')


@pytest.mark.parametrize('angle', [-1, 181, math.nan])
def test_bad_angles(angle):
    for name in ('angle_front', 'angle_overhead'):
        with pytest.raises(ValueError, match=name): view_class(torch.zeros(1), torch.zeros(1), **{name: angle})


# Progressive view

def test_ranges_grow():
    begin, middle, end = (progressive_ranges(step, start_step=100, end_step=300, **FULL) for step in (100, 200, 300))
    assert begin == dict(radius_range=(3.2, 3.2), theta_range=(90., 90.), phi_range=(0., 0.), fovy_range=(20., 20.))
    assert end == FULL == progressive_ranges(10**6, start_step=100, end_step=300, **FULL)
    for name, pair in middle.items(): assert pair == pytest.approx([(a + b)/2 for a, b in zip(begin[name], end[name])])
    assert progressive_ranges(0, start_step=100, end_step=300, default_azimuth=90., default_polar=60.,
                              **FULL)['phi_range'] == (90., 90.)


def test_progressive_cameras(generator):
    spread = [sample_cameras(200, generator=generator, **progressive_ranges(step, **FULL)).azimuth.abs().max().item()
              for step in (0, 125, 250, 500)]
    assert spread[0] < 1e-4 and spread == sorted(spread) and spread[1] <= 45 and spread[3] > 170


@pytest.mark.parametrize('given, says', [(dict(uniform_sphere_rate=1.5), 'uniform_sphere_rate'),
                                         (dict(jitter_center=-1), 'center'), (dict(jitter_up=math.nan), 'up')])
def test_bad_values(given, says):
    with pytest.raises(ValueError, match=says): sample_cameras(2, **given)
