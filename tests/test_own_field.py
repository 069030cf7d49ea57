"""Parts of one's own: a field with only `density` and `forward`, a renderer, a background that is a plain function."""

import pytest
import torch
from torch import nn

from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.dmtet import MeshRenderer
from dreamfusion_nb.field import albedo_at, density_albedo_normal_at, normal_at
from dreamfusion_nb.losses import LOSSES
from dreamfusion_nb.raymarch import Renderer, RenderOutput, VolumeRenderer
from dreamfusion_nb.surfaces import extract_mesh


class Ball(nn.Module):
    "A soft ball whose radius and colour can be learned. It offers no normals, no albedo and no encoding"
    def __init__(self, radius=.4):
        super().__init__()
        self.radius, self.color = nn.Parameter(torch.tensor(radius)), nn.Parameter(torch.zeros(3))

    def density(self, x): return 40*torch.sigmoid(30*(self.radius - x.norm(dim=1)))

    def forward(self, x): return self.density(x), self.color.sigmoid().expand(len(x), 3)


def sky(directions): return (directions + 1)/2    # a background: nothing but a function of directions


def gen(): return torch.Generator().manual_seed(0)


def volume(field):
    renderer = VolumeRenderer(field, sky, grid_resolution=32, max_steps=128, density_thresh=.1)
    renderer.update(0, gen())
    return renderer


def surface(field):
    renderer = MeshRenderer(field, sky, resolution=32)
    renderer.init_from_density(field.density)
    return renderer


@pytest.mark.parametrize('make', [volume, surface])
def test_a_field_with_two_methods_learns_from_pictures(make):
    with torch.no_grad(): goal = make(Ball(.5))(orbit(3), 16, 16, shading='lambertian', ambient=.5)
    field = Ball(.4)
    with torch.no_grad(): field.color.copy_(torch.tensor([2., 0, -2]))
    renderer = make(field)
    assert isinstance(renderer, Renderer)
    optimizer = torch.optim.Adam(renderer.parameters(), lr=.03)
    errors = []
    for step in range(15):
        renderer.update(step, gen())
        out = renderer(orbit(3), 16, 16, shading='lambertian', ambient=.5, perturb=True, generator=gen())
        loss = (out.image - goal.image).square().mean() + (out.opacity - goal.opacity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < .8*errors[0]
    assert field.color.detach().abs().max() < 2    # the colour moved towards grey


def test_its_normals_are_differences_and_its_surface_a_ball():
    field = Ball(.5)
    x = nn.functional.normalize(torch.randn(200, 3, generator=gen()))*.5
    density, albedo, normal = density_albedo_normal_at(field, x)
    assert (normal*x).sum(1).min() > .499 and normal_at(field, x).equal(normal)
    assert albedo.equal(albedo_at(field, x)) and density.shape == (200,)
    density_albedo_normal_at(field, x[:0])[2].sum().backward()    # an empty batch is a batch
    mesh = extract_mesh(field, resolution=48, threshold=20.)
    assert mesh.is_watertight and abs(mesh.volume/(4/3*torch.pi*.5**3) - 1) < .05
    made = surface(field).mesh(resolution=64, threshold='auto')
    assert made.is_watertight and made.volume > 0


@pytest.mark.parametrize('make', [volume, surface])
def test_the_losses_that_fit_are_scalars_with_a_gradient(make):
    field = Ball()
    renderer = make(field)
    out = renderer(orbit(2), 16, 16, shading='lambertian', ambient=.5, return_normal=True)
    values = {name: loss(out, field, gen()) for name, loss in LOSSES.items()}
    missing = {name for name, value in values.items() if value is None}
    assert missing == ({'mesh_normal', 'mesh_laplacian'} if make is volume else {'orientation', '3d_normal_smooth'})
    for name, value in values.items():
        if value is not None: assert value.shape == () and value.isfinite() and value.requires_grad, name


def test_a_renderer_needs_no_more_than_forward():
    class Grey(Renderer):
        def __init__(self):
            super().__init__()
            self.grey = nn.Parameter(torch.tensor(.5))

        def forward(self, cameras, height, width, **_):
            image = self.grey.expand(len(cameras), 3, height, width)
            return RenderOutput(image, torch.ones_like(image[:, :1]), torch.ones_like(image[:, :1]))

    renderer = Grey()
    renderer.update(0)
    renderer(orbit(2), 4, 4).image.sum().backward()
    assert renderer.grey.grad == 2*3*16 and not hasattr(renderer, 'mesh')
    with pytest.raises(NotImplementedError, match='Renderer must define forward'): Renderer()(orbit(1), 4, 4)
    with pytest.raises(ValueError, match='shading mode'): volume(Ball())(orbit(1), 4, 4, shading='lambert')
