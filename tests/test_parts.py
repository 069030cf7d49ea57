"Parts of one's own: each in the place of ours, each way in which it can lack something, and what becomes of the folder"
import functools
import inspect
import typing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import trimesh
from conftest import CHEAP, MESH
from torch import nn

from dreamfusion_nb import ConfigError, Trainer, load, load_config, own_parts, parts, train
from dreamfusion_nb.own_parts import NEEDS, RESERVED, OwnParts, assemble, own_losses, rehearse, split_parts
from dreamfusion_nb.raymarch import Renderer, RenderOutput
from dreamfusion_nb.run import start_run

CPU = torch.device('cpu')


class Waves(nn.Module):
    "A field of 25 parameters: no encoding, no normal, no bound"
    def __init__(self, config=None, generator=None):
        super().__init__()
        self.net = nn.Linear(3, 4)
        with torch.no_grad():
            for p in self.parameters(): p.copy_(torch.rand(p.shape, generator=generator) - .5)

    def density(self, x): return self(x)[0]

    def forward(self, x):
        y = self.net(x.sin())
        return (y[:, 0] + 6 - 25*x.norm(dim=-1)).exp(), y[:, 1:].sigmoid()


class Stripes(nn.Module):
    "A background that learns one colour"
    def __init__(self, config=None, generator=None):
        super().__init__()
        self.color = nn.Parameter(torch.full((3,), .5))

    def forward(self, directions, n_images=1, generator=None): return self.color.sigmoid().expand_as(directions)


class Board(Renderer):
    "A picture that always faces the camera: no field, no grid, no mesh"
    def __init__(self, config=None, generator=None):
        super().__init__()
        self.texture = nn.Parameter(torch.rand(1, 4, 8, 8, generator=generator))

    def forward(self, cameras, height, width, *, background=None, **options):
        seen = F.interpolate(self.texture, (height, width)).expand(len(cameras), -1, -1, -1).sigmoid()
        return RenderOutput(seen[:, :3], seen[:, 3:], 3*seen[:, 3:])


class Target:
    "A guidance that knows one picture: red"
    image_size, latent_shape = 16, (3, 16, 16)
    alphas_cumprod = torch.linspace(.99, .01, 100)
    def __init__(self, config=None, generator=None): self.asked = []

    def encode_text(self, texts):
        self.asked += texts
        return torch.zeros(len(texts), 1, 1)

    def encode_image(self, image, generator=None): return F.interpolate(image, (16, 16), mode='bilinear')*2 - 1

    def predict_noise(self, noisy, t, embeddings):
        a, red = self.alphas_cumprod[t].view(-1, 1, 1, 1), torch.tensor([1., -1, -1]).view(3, 1, 1)
        return (noisy - a.sqrt()*red)/(1 - a).sqrt()


def smooth(out, field, generator): return out.image.diff(dim=-1).abs().mean() + out.opacity.mean()
def sgd(parameters): return torch.optim.SGD(parameters, 1e-3, momentum=.9)


GIVEN = dict(progress=False, **CHEAP)


def config(**more): return load_config('toybox', CHEAP, dict(prompt='a hamburger'), more)


def says(**own):
    "What is wrong with parts, in the line that the user reads; the same for a trainer of them"
    with pytest.raises(ConfigError) as caught: Trainer(config(), own.pop('guidance', Target), **own)
    line = str(caught.value)
    assert '\n' not in line and line.split()[0].strip(':=') in NEEDS | dict(losses=0, optimizer=0), line
    return line


# In the place of ours

def test_a_field_needs_only_two_methods(tmp_path):
    result = train('a hamburger', guidance=Target, field=Waves, out=tmp_path/'run', **GIVEN)
    assert isinstance(result.field, Waves) and len(result.history) == CHEAP['iters']
    assert result.mesh(24).is_watertight
    assert {p.name for p in result.folder.iterdir()} >= {'model.glb', 'preview.png', 'turntable.mp4'}
    assert load_config(tmp_path/'run'/'config.yaml').parts.field == f'{__name__}.Waves'


def test_an_object_is_trained_in_place():
    field = Waves(generator=torch.Generator().manual_seed(0))
    before = field.net.weight.clone()
    trainer = Trainer(config(), Target(), field=field)
    trainer.fit(2)
    assert trainer.field is field and not torch.equal(field.net.weight, before)


@pytest.mark.parametrize('make', [Waves, lambda config, generator: Waves(config, generator), functools.partial(Waves)])
def test_a_callable_gets_configuration_and_generator(make):
    a, b = (Trainer(config(seed=seed), Target, field=make) for seed in (3, 3))
    assert torch.equal(a.field.net.weight, b.field.net.weight)
    assert not torch.equal(a.field.net.weight, Trainer(config(seed=4), Target, field=make).field.net.weight)


def test_a_background_learns():
    trainer = Trainer(config(), Target, background=Stripes)
    before = trainer.renderer.background.color.clone()
    trainer.fit(3)
    assert not torch.equal(trainer.renderer.background.color, before)


def test_a_renderer_without_mesh_trains_and_renders(tmp_path):
    result = train('a hamburger', guidance=Target, renderer=Board, out=tmp_path/'run', **GIVEN)
    assert {p.name for p in result.folder.iterdir()} >= {'preview.png', 'turntable.mp4'}
    assert not (tmp_path/'run'/'model.glb').exists() and 'no model.glb' in (tmp_path/'run'/'log.txt').read_text()
    assert result.render(size=16).size == (16, 16) and result.field is None
    result.video(tmp_path/'depth.mp4', n=2, height=16, kind='depth')
    for act in (lambda: result.mesh(), lambda: result.export(tmp_path/'x.glb'), lambda: result.isosurfaces()):
        with pytest.raises(ConfigError, match=r'Board has no mesh\(resolution, threshold\)'): act()
    with pytest.raises(ConfigError, match='has no mesh stage'): result.refine()
    assert not (tmp_path/'x.glb').exists()
    again = load(tmp_path/'run', renderer=Board)
    assert again.render(size=16).tobytes() == result.render(size=16).tobytes()


def test_a_renderer_with_a_mesh_exports_it(tmp_path):
    class Solid(Board):
        def mesh(self, resolution, threshold): return trimesh.creation.icosphere(1, .3)
    trainer = Trainer(config(), Target, renderer=Solid)
    assert trainer.mesh().is_watertight
    Solid.mesh = lambda self, resolution, threshold: 'a ball'
    with pytest.raises(ConfigError, match='Solid.mesh must be a trimesh.Trimesh, not str'): trainer.mesh()


def test_a_field_goes_into_a_renderer_that_has_a_place_for_it():
    class Frame(Board):
        def __init__(self, config, generator):
            super().__init__(config, generator)
            self.field = None
    renderer = assemble(config(), OwnParts(renderer=Frame, field=Waves), torch.Generator())
    assert isinstance(renderer.field, Waves)
    assert 'Board has no `field` to put Waves into' in says(renderer=Board, field=Waves)


def test_a_guidance_may_read_the_prompt(recwarn, tmp_path):
    class Reader(Target):
        def parse_prompt(self, text): return text.upper(), f'read {text!r} as {text.upper()!r}'
    result = train('a wish', guidance=Reader, out=tmp_path/'run', **GIVEN | dict(iters=1))
    assert any("read 'a wish' as 'A WISH'" in str(w.message) for w in recwarn.list)
    trainer = Trainer(result.config, Reader())
    assert any(text.startswith('A WISH') for text in trainer.guidance.asked)


def test_losses_are_weighted_and_in_the_history():
    def field_and_generator(out, field, generator):
        assert isinstance(field, Waves) and isinstance(generator, torch.Generator) and out.normal is not None
        return out.image.mean()
    losses = dict(half=(.5, smooth), late=([2, 0., 1., 3], smooth), plain=field_and_generator)
    trainer = Trainer(config(), Target, field=Waves, losses=losses)
    rows = [trainer.step().row() for _ in range(4)]
    assert all({'half', 'plain'} <= set(row) for row in rows)
    assert ['late' in row for row in rows] == [False, False, False, True]
    assert rows[3]['late'] == pytest.approx(2*rows[3]['half'])
    weighted = (*losses, *RESERVED[:8])
    assert rows[3]['loss'] == pytest.approx(sum(v for k, v in rows[3].items() if k in weighted))


def test_a_loss_pulls():
    def brightness(loss):
        field = Waves(generator=torch.Generator().manual_seed(0))
        trainer = Trainer(config(**{'loss.lambda_sds': 0., 'optim.lr': .1}), Target, field=field, losses=loss)
        trainer.fit(8)
        return field(torch.zeros(1, 3))[1].mean().item()
    assert brightness({'dark': (100., lambda out, field, generator: out.image.mean())}) < brightness(None)


def test_an_optimiser_keeps_its_own_learning_rate():
    trainer = Trainer(config(), Target, field=Waves, optimizer=sgd)
    record = trainer.step()
    assert isinstance(trainer.optimizer, torch.optim.SGD) and record.lr == 1e-3


# What is not there, or wrong

class NoDensity(nn.Module):
    def forward(self, x): return x[:, 0], x


class Bare(nn.Module):
    def density(self, x): return x[:, 0]


class NotAModule:
    def density(self, x): return x[:, 0]
    def forward(self, x): return x[:, 0], x


class Column(Waves):
    def density(self, x): return super().density(x)[:, None]


class Single(Waves):
    def forward(self, x): return super().forward(x)[0]
    def density(self, x): return Waves.forward(self, x)[0]


class Whole(Waves):
    def density(self, x): return super().density(x).long()


class Elsewhere(Waves):
    def density(self, x): return torch.empty(len(x), device='meta')


class Gray(Waves):
    def forward(self, x): return super().forward(x)[0], torch.zeros(len(x), 1)


class Infinite(Waves):
    def density(self, x): return super().density(x)/0


class Deaf(Waves):
    def forward(self, x): return tuple(v.detach() for v in super().forward(x))


class Raises(Waves):
    def density(self, x): raise IndexError('out of\nrange')


FIELDS = [(NoDensity(), 'NoDensity lacks density(x [N,3]) -> [N]'), (Bare(), 'Bare lacks forward(x [N,3])'),
    (NotAModule(), 'lacks parameters()'), (Column, 'Column.density(x) must be a tensor [8], not [8, 1]'),
    (Single, 'forward(x) must be a pair'), (Whole, 'of floating-point numbers, not int64'),
    (Elsewhere, 'on cpu, not meta'), (Gray, 'forward(x)[1] must be a tensor [8, 3], not [8, 1]'),
    (Infinite, 'of finite numbers'), (Deaf, 'Deaf the image carries no gradient'),
    (Raises, 'Raises failed when it was asked about 8 points: IndexError: out of range'),
    (lambda config: Waves(), 'failed when it was called with (config, generator): TypeError'),
    (lambda config, generator: 3, 'int lacks density'), ('waves', 'nerf.bound'), (3, 'nerf.bound')]


@pytest.mark.parametrize('field, line', FIELDS, ids=[line[:24] for _, line in FIELDS])
def test_wrong_fields(field, line):
    said = says(field=field)
    assert line in said and said.startswith('field') and '15_parts.ipynb' in said


@pytest.mark.parametrize('background, line', [
    (torch.ones(3), 'Tensor lacks __call__'), ((1, 1, 1), 'background.type'), ('white', 'background.type'),
    (lambda c, g: lambda directions: directions, "failed when it was asked about 8 directions: TypeError"),
    (lambda c, g: lambda directions, n_images, generator: directions[:, :1], 'must be a tensor [8, 3], not [8, 1]')])
def test_wrong_backgrounds(background, line): assert line in says(background=background)


class Pair(Board):
    def forward(self, *args, **options): return super().forward(*args, **options).image, None


class Half(Board):
    def forward(self, cameras, height, width, **options): return super().forward(cameras, height//2, width, **options)


class Still(Board):
    def forward(self, *args, **options):
        with torch.no_grad(): return super().forward(*args, **options)


class Old(nn.Module):
    def __init__(self, config, generator):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(1))
    def forward(self, cameras, height, width): return None


class Frozen(Board):
    def __init__(self, *given):
        super().__init__(*given)
        self.texture.requires_grad_(False)


@pytest.mark.parametrize('renderer, line', [
    (nn.Module(), 'Module lacks forward(cameras, height, width, ...)'), (Pair, 'must be a RenderOutput'),
    ('mesh', 'renderer.max_steps'), (Half, 'forward(...).image must be a tensor [1, 3, 8, 8], not [1, 3, 4, 8]'),
    (Still, 'Still the image carries no gradient'), (Old, 'failed when 8 by 8 pixels were drawn: TypeError'),
    (Frozen, 'it gets no parameters')])
def test_wrong_renderers(renderer, line): assert line in says(renderer=renderer)


def without(name):
    return type('Less', (), {k: v for k, v in vars(Target).items() if k not in (name, '__dict__', '__weakref__')})


@pytest.mark.parametrize('name', list(NEEDS['guidance']))
def test_a_guidance_lacks_something(name):
    assert f'guidance: Less lacks {NEEDS["guidance"][name]}' in says(guidance=without(name))


class Flat(Target):
    def encode_text(self, texts): return torch.zeros(len(texts), 4)


class Cut(Target):
    def encode_image(self, image, generator=None): return super().encode_image(image.detach(), generator)


class Small(Target):
    def predict_noise(self, noisy, t, embeddings): return noisy[:, :1]


class Sour(Target):
    def predict_noise(self, noisy, t, embeddings): raise RuntimeError('no memory')


@pytest.mark.parametrize('guidance, line', [
    (Flat, 'encode_text(texts) must be a tensor [2, tokens, width]'), (Cut, 'lost the gradient'),
    (Small, 'predict_noise(noisy, t, embeddings) must be a tensor [2, 3, 16, 16], not [2, 1, 16, 16]'),
    (Sour, 'RuntimeError: no memory')])
def test_wrong_guidances(guidance, line): assert line in says(guidance=guidance)


@pytest.mark.parametrize('losses, line', [
    ({'mine': lambda out, field, generator: out.image}, "'mine' must be a scalar tensor, not a tensor [1, 3, 8, 8]"),
    ({'mine': lambda out, field, generator: 3.}, "'mine' must be a scalar tensor, not float"),
    ({'mine': lambda out, field, generator: out.image.detach().mean()}, "'mine' carries no gradient"),
    ({'mine': lambda out, field, generator: out.image.mean()/0}, "'mine' is not finite"),
    ({'mine': lambda out: out.image.mean()}, "failed (of the name 'mine'): TypeError"),
    ({'mine': 3}, 'is a function (out, field, generator)'), ({'mine': ('a', smooth)}, 'or (weight, function)'),
    ({'': smooth}, 'a name is a text'), ({'sds': smooth}, "two of the name 'sds'"),
    ({'lr': smooth}, "two of the name 'lr'"),
    ([('tv', smooth), ('tv', smooth)], "two of the name 'tv'"), (smooth, 'mapping from names to functions')])
def test_wrong_losses(losses, line): assert line in says(losses=losses)


def test_a_loss_that_fails_later_does_no_harm():
    def late(out, field, generator): return out.image.mean()/(trainer.step_count < 2 if ready else 1)
    ready = False
    trainer = Trainer(config(), Target, losses=dict(late=late))
    ready = True
    trainer.fit(2)
    before = [p.clone() for p in trainer.renderer.parameters()]
    with pytest.raises(ConfigError, match='the loss late is not finite'): trainer.step()
    assert trainer.step_count == 2 and all(torch.equal(a, b) for a, b in zip(before, trainer.renderer.parameters()))


@pytest.mark.parametrize('optimizer, line', [
    (lambda p: 3, 'must be a torch.optim.Optimizer, not int'), ('adam', 'is a function'),
    (lambda: 3, 'failed when it was called with (parameters)'), (sgd([nn.Parameter(torch.zeros(1))]), 'is a function'),
    (lambda p: sgd([nn.Parameter(torch.zeros(1))]), 'optimises none of them'),
    (lambda p: torch.optim.LBFGS(p), 'in its first step')])
def test_wrong_optimisers(optimizer, line): assert line in says(optimizer=optimizer)


def test_nothing_is_written_before_parts_are_right(tmp_path):
    wrong = dict(field=Column, losses={'sds': smooth}, renderer=Pair, optimizer=lambda p: 3, guidance=Small)
    for kind, part in wrong.items():
        with pytest.raises(ConfigError):
            train('a hamburger', out=tmp_path/'run', **GIVEN | dict(guidance=Target) | {kind: part})
    assert not (tmp_path/'run').exists()


# The names of groups

def test_a_mapping_is_meant_for_the_group():
    own, keys = split_parts(dict(renderer={'max_steps': 40}, background={'type': 'static'}, guidance=Path('a/folder'),
        field=Waves))
    assert own.given() == dict(field=Waves) and keys == {
        'renderer': {'max_steps': 40}, 'background': {'type': 'static'}, 'guidance.name': 'a/folder'}
    with pytest.raises(ConfigError, match='renderer.max_stepz'):
        train('a hamburger', renderer={'max_stepz': 40}, **GIVEN)


def test_protocols_and_checks_agree():
    "What is checked is what the protocols write down, with the same parameters"
    protocols = dict(guidance=parts.GuidanceProtocol, field=parts.FieldProtocol, renderer=parts.RendererProtocol)
    for kind, protocol in protocols.items():
        members = {name for name, v in vars(protocol).items() if inspect.isfunction(v) and not name.startswith('_')}
        members |= set(typing.get_type_hints(protocol))
        assert members == set(NEEDS[kind]) - {'parameters'}, kind


# The folder

def run(folder, n, own, iters=8):
    trainer = Trainer(config(iters=iters, **{'checkpoint.every_n_train_steps': None}), folder=folder, **own)
    trainer.fit(n)
    trainer.save()
    return trainer


@pytest.mark.parametrize('own', [
    dict(field=Waves, losses={'smooth': smooth}), dict(background=Stripes), dict(renderer=Board),
    dict(field=Waves, optimizer=sgd),
    dict(field=Waves, optimizer=functools.partial(torch.optim.Adam, lr=1e-3, amsgrad=True)),
    dict(optimizer=functools.partial(torch.optim.SGD, lr=1e-3))],
    ids=lambda own: '-'.join(own))
def test_resume_is_exact(own, tmp_path):
    own = dict(guidance=Target, **own)
    straight = run(tmp_path/'a', 8, own)
    run(tmp_path/'b', 4, own)
    mended = Trainer.resume(tmp_path/'b', **own)
    mended.fit(4)
    assert mended.history == straight.history
    for name, v in straight.renderer.state_dict().items():
        assert torch.equal(v, mended.renderer.state_dict()[name]), name


def test_the_folder_names_its_parts(tmp_path):
    own = dict(guidance=Target, field=Waves, losses={'smooth': smooth}, optimizer=sgd)
    run(tmp_path, 2, own)
    held = load_config(tmp_path).parts.to_dict()
    assert {k: v for k, v in held.items() if v} == {'guidance': f'{__name__}.Target', 'field': f'{__name__}.Waves',
        'losses': f'smooth={__name__}.smooth', 'optimizer': f'{__name__}.sgd'}
    for kind in own:
        with pytest.raises(ConfigError, match=f'{kind}: .*made with a part of its own, .*: give it again with {kind}='):
            Trainer.resume(tmp_path, **{k: v for k, v in own.items() if k != kind})
    with pytest.raises(ConfigError, match='made with .*Waves, not with .*Column'):
        Trainer.resume(tmp_path, **own | dict(field=Column))
    with pytest.raises(ConfigError, match='made without a part of its own, so leave out background='):
        Trainer.resume(tmp_path, **own, background=Stripes)
    with pytest.raises(ConfigError, match='give it again with field='): load(tmp_path)
    with pytest.raises(ConfigError, match='leave out renderer='): load(tmp_path, field=Waves, renderer=Board)
    assert isinstance(load(tmp_path, field=Waves).field, Waves)
    with pytest.raises(ConfigError, match='was made with a part of its own.*give it with'):
        Trainer(load_config(tmp_path), Target)
    with pytest.raises(ConfigError, match='give it again with'):
        start_run(load_config('toybox', CHEAP, dict(prompt='a hamburger', iters=8)), tmp_path)


def test_train_goes_on_with_the_same_parts(tmp_path):
    stop = [0]
    def interrupt(trainer, record):
        stop[0] += 1
        if stop[0] == 5: raise KeyboardInterrupt
    own = dict(guidance=Target, field=Waves, out=tmp_path/'run', **GIVEN)
    with pytest.raises(KeyboardInterrupt): train('a hamburger', callbacks=[interrupt], **own)
    with pytest.raises(ConfigError, match='give it again with field='):
        train('a hamburger', **{k: v for k, v in own.items() if k != 'field'})
    assert len(train('a hamburger', **own).history) == CHEAP['iters']


def test_an_object_takes_the_weights_of_a_result(tmp_path):
    own = dict(guidance=Target, field=Waves)
    trainer, field = run(tmp_path, 3, own), Waves()
    result = load(tmp_path, field=field)
    assert result.field is field and torch.equal(field.net.weight, trainer.field.net.weight)


@pytest.mark.parametrize('given', [Waves, Waves(generator=torch.Generator().manual_seed(1))],
    ids=['callable', 'object'])
def test_reset_begins_anew(given):
    trainer = Trainer(config(), Target, field=given)
    start = trainer.field.net.weight.clone()
    first = trainer.step().row()
    trainer.fit(2)
    trainer.reset()
    assert trainer.step_count == 0 and torch.equal(trainer.field.net.weight, start)
    assert trainer.step().row() == first


def test_refine_takes_parts_along(tmp_path):
    result = train('a hamburger', guidance=Target, field=Waves, out=tmp_path/'nerf', **GIVEN)
    before = result.field.net.weight.clone()
    fine = result.refine(progress=False, **MESH)
    assert fine.is_mesh and isinstance(fine.field, Waves) and fine.field is not result.field
    assert torch.equal(result.field.net.weight, before) and fine.mesh().is_watertight
    assert fine.config.parts.guidance == f'{__name__}.Target'
    read = load(tmp_path/'nerf', field=Waves)
    with pytest.raises(ConfigError, match='pass it again with guidance='):
        read.refine(out=tmp_path/'again', progress=False, **MESH)


def test_a_dashboard_takes_parts_too():
    from dreamfusion_nb.dashboard import StepDashboard
    board = StepDashboard('a hamburger', guidance=Target, field=Waves, losses={'smooth': smooth}, **CHEAP)
    board.driver.step()
    assert board.trainer.step_count == 1 and 'smooth' in board.trainer.history[0] and not board.driver.error
    board.close()


# Nothing changes for who brings nothing

def test_a_run_of_our_parts_is_not_rehearsed(monkeypatch):
    def refuse(*args): raise AssertionError('tried')
    for name in ('try_field', 'try_background', 'try_renderer', 'try_guidance'):
        monkeypatch.setattr(own_parts, name, refuse)
    rehearse(OwnParts(), None, None, CPU)
    assert own_losses(None) == {} and 'parts' not in config().to_dict()
