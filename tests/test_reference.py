"A picture as the beginning: what is read, what is refused, what a run makes of it (nbs/12a_reference.ipynb)"
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import CHEAP, assert_same_with_a_break
from PIL import Image

from dreamfusion_nb import ConfigError, Trainer, load, load_config, reference, toybox, train
from dreamfusion_nb.cameras import orbit, rays
from dreamfusion_nb.cli import main
from dreamfusion_nb.dashboard import StepDashboard
from dreamfusion_nb.judge import shipped_judge
from dreamfusion_nb.reference import framed, read_picture, reference_losses, sized


def picture_of(prompt, azimuth=0., size=96):
    return toybox.cut_out(prompt, orbit(1, elevation=15., azimuth_start=azimuth), size)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for azimuth in (0, 90): picture_of('a purple mug', azimuth).save(folder/f'mug-{azimuth}.png')
    return folder


def asked(folder, *azimuths, **more):
    "Keys of a short run that knows these sides of a mug"
    files = [str(folder/f'mug-{azimuth}.png') for azimuth in azimuths]
    return CHEAP | dict(prompt='a purple mug') | {'reference.images': files, 'reference.azimuth': list(azimuths)} | more


# What is read

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'RGB', 'CMYK', 'L', 'I;16', 'I'])
def test_all_kinds_of_files_are_read_alike(tmp_path, mode, monkeypatch):
    "A background is removed from those that cannot be transparent; sixteen bits are not white"
    clear = picture_of('a mushroom')
    alpha = np.asarray(clear)[..., 3]
    def remove(picture):    # the shape is rembg's business; what it gets and gives is ours
        assert picture.mode == 'RGB'
        return Image.merge('RGBA', (*picture.split(), Image.fromarray(alpha)))
    monkeypatch.setattr(reference, 'without_background', lambda picture, path: remove(picture.convert('RGB')))
    if mode == 'P': picture, path = clear.quantize(), tmp_path/'thing.png'
    elif mode.startswith('I'):
        grey = np.asarray(clear.convert('L')).astype(np.uint16 if mode == 'I;16' else np.int32)*257
        picture, path = Image.fromarray(grey), tmp_path/('thing.tiff' if mode == 'I' else 'thing.png')
    else: picture, path = clear.convert(mode), tmp_path/('thing.tiff' if mode == 'CMYK' else 'thing.png')
    picture.save(path)
    read = np.asarray(read_picture(path)).astype(float)
    wanted = np.asarray(clear if mode in ('RGBA', 'P', 'RGB', 'CMYK') else clear.convert('LA').convert('RGBA'))
    inside = alpha > 250
    assert np.abs(read[inside][:, :3] - wanted[inside][:, :3]).mean() < (12 if mode == 'P' else 3)
    assert np.abs(read[..., 3] - alpha).mean() < 3


def test_a_picture_on_its_side_is_put_upright(tmp_path):
    clear = picture_of('a mushroom')
    exif = Image.Exif()
    exif[0x0112] = 6    # the camera was turned: what is seen is to be turned clockwise
    clear.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'turned.png', exif=exif)
    clear.save(tmp_path/'upright.png')
    assert np.array_equal(*(np.asarray(read_picture(tmp_path/f'{name}.png')) for name in ('turned', 'upright')))


def refused(path, says):
    with pytest.raises(ConfigError, match=says) as error: read_picture(path)
    assert '\n' not in str(error.value)


def test_what_is_refused(tmp_path):
    def saved(name, picture, **options):
        picture.save(tmp_path/name, **options)
        return tmp_path/name
    clear, path = picture_of('a mushroom'), tmp_path/'thing.png'
    refused('https://example.com/cup.png', 'https://example.com/cup.png is an address')
    refused(tmp_path/'none.png', 'none.png is no file')
    refused(tmp_path, 'is no file')
    refused(saved('dot.png', Image.new('RGBA', (1, 1))), r'is 1 × 1 pixels, and at least 16 × 16')
    refused(saved('large.png', Image.new('L', (10_000, 10_000))), '100,000,000 pixels, at most 50,000,000')
    refused(saved('huge.png', Image.new('1', (20_000, 10_000))), 'too many pixels')
    refused(saved('moving.gif', clear, save_all=True, append_images=[Image.new('RGBA', clear.size, 'red')]),
            r'is animated \(2 pictures\)')
    refused(saved('empty.png', Image.new('RGBA', (64, 64))), 'shows nothing')
    two = Image.new('RGBA', (192, 96))
    for x in (0, 96): two.paste(clear, (x, 0))
    refused(saved('two.png', two), 'shows 2 things')
    saved('thing.png', clear)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole)//2])
    refused(path, 'is broken')
    # Pillow would start Ghostscript for this one
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n')
    refused(path, 'is no picture that can be read')
    path.write_bytes(b'a red cup')
    refused(path, 'is no picture that can be read')


def test_a_background_stays_where_nothing_removes_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rembg', None)    # as if it were not installed
    picture_of('a mushroom').convert('RGB').save(tmp_path/'thing.jpg')
    refused(tmp_path/'thing.jpg', r'has no transparent background.*dreamfusion_nb\[picture\]')


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (80, 48)])
def test_a_framed_picture_is_what_the_camera_sees(size):
    "Against the toy itself, rendered at that size"
    picture = framed(picture_of('a mushroom', size=256), None)
    height, width = size
    seen = sized(picture, height, width)
    square = toybox.render('a mushroom', orbit(1, elevation=15.), height, background=(0., 0., 0.), supersample=4)[0]
    left = (width - height)//2
    wanted = torch.nn.functional.pad(square, (left, width - height - left, 0, 0))
    assert seen.shape == (4, height, width) and (seen[:3] - wanted).square().mean().sqrt() < .03


def test_losses_against_float64():
    generator = torch.Generator().manual_seed(0)
    def draw(*shape): return torch.rand(*shape, generator=generator)
    image, opacity, picture, behind = draw(3, 5, 7), draw(1, 5, 7), draw(4, 5, 7), draw(3)
    picture[:3] *= picture[3:]
    a, b, p, c = (x.double().numpy() for x in (image, opacity, picture, behind))
    color = np.mean([(a[k, i, j] - p[k, i, j] - c[k]*(1 - p[3, i, j]))**2
                     for k in range(3) for i in range(5) for j in range(7)])
    found = reference_losses(image, opacity, picture, behind)
    assert np.allclose([float(x) for x in found], [color, ((b[0] - p[3])**2).mean()], rtol=1e-6)


# What a run makes of it

def test_pictures_take_turns_and_pull(folder, model):
    trainer = Trainer(load_config('toybox', asked(folder, 0, 90, **{'reference.interval': 2})), model)
    rows = [trainer.step().losses for _ in range(8)]
    assert ['reference' in row for row in rows] == [True, False]*4
    assert 'reference' in trainer.history[0] and trainer.history[0]['reference_mask'] > 0
    # nothing but the pictures: what they show is approached from both sides
    trainer = Trainer(load_config('toybox', asked(folder, 0, 90, iters=60, **{'loss.lambda_sds': 0,
        'loss.lambda_entropy': 0, 'loss.lambda_orientation': 0, 'reference.interval': 1})), model)
    rows = [trainer.step().losses for _ in range(60)]
    first, last = (sum(row['reference_mask'] for row in part) for part in (rows[:4], rows[-4:]))
    assert last < .3*first


@pytest.mark.parametrize('options', [{}, {'renderer.name': 'splats', 'splats.count': 300}])
def test_resumes_with_pictures(folder, model, tmp_path, options):
    config = load_config('toybox', asked(folder, 0, 90, iters=6, **options))
    straight, broken = (Trainer(config, model, folder=tmp_path/name) for name in ('straight', 'broken'))
    straight.fit()
    assert_same_with_a_break(straight, broken, model, 3)


def test_another_picture_is_another_run(folder, model, tmp_path):
    path = tmp_path/'mug.png'
    path.write_bytes((folder/'mug-0.png').read_bytes())
    keys = CHEAP | dict(iters=2, export_video=False)
    first = train('a purple mug', image=path, guidance=model, out=tmp_path/'out', progress=False, **keys)
    assert first.config.reference.images == (str(path),) and first.config.reference.mark
    with pytest.warns(UserWarning, match='loaded the finished result'):
        again = train('a purple mug', image=str(path), guidance=model, out=tmp_path/'out', progress=False, **keys)
    assert again.history == first.history
    path.write_bytes((folder/'mug-90.png').read_bytes())
    with pytest.raises(ConfigError, match='already holds a finished result.*reference.mark'):
        train('a purple mug', image=path, guidance=model, out=tmp_path/'out', progress=False, **keys)
    with pytest.raises(ConfigError, match='held something else when this run began'):
        Trainer.resume(tmp_path/'out', model)
    path.unlink()
    # a finished result needs no picture
    assert load(tmp_path/'out').render(size=16).size == (16, 16)
    train('a purple mug', config=tmp_path/'out', mode='export-mesh', mesh_fname=str(tmp_path/'mug.obj'),
          mesh_resolution=16, out=tmp_path/'out')
    assert (tmp_path/'mug.obj').exists()


def test_a_run_goes_on_from_another_folder(folder, model, tmp_path, monkeypatch):
    "The picture was named as seen from where it began"
    monkeypatch.chdir(folder)
    keys = CHEAP | dict(iters=4, export_video=False)
    def stop(trainer, record): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train('a purple mug', image='mug-0.png', guidance=model, out=tmp_path/'out', progress=False, callbacks=stop,
              **keys)
    monkeypatch.chdir(tmp_path)
    assert Trainer.resume(tmp_path/'out', model).sides is not None


def test_a_mesh_stage_keeps_the_picture(folder, model, tmp_path):
    nerf = train(image=folder/'mug-0.png', prompt='a purple mug', guidance=model, out=tmp_path/'mug', progress=False,
                 **CHEAP | dict(iters=40, export_video=False))
    fine = nerf.refine(progress=False, iters=2, export_video=False, **{'data.train.width': 32, 'data.train.height': 32,
        'renderer.grid_resolution': 16})
    assert fine.config.reference == nerf.config.reference and fine.history[0]['reference'] > 0


def test_the_judge_names_what_a_picture_shows(folder, tmp_path, capsys):
    options = ['--out', str(tmp_path/'mug'), 'iters=2', 'export_video=false', 'renderer.max_steps=32',
               'data.val.width=32', 'data.val.height=32']
    assert main(['--image', str(folder/'mug-0.png'), *options]) == 0
    assert 'shows a purple mug, says the judge' in capsys.readouterr().err
    assert load_config(tmp_path/'mug').prompt == 'a purple mug'
    caption, sure = shipped_judge().name(torch.full((3, 64, 64), .5))
    assert 0 <= sure <= 1 and caption.view is None


BAD = {    # words of the command: what is said
    '--image {0} --image {1}': 'reference.azimuth must be 2 numbers for 2 pictures',
    '--image {0} --image {1} reference.azimuth=[0,0]': 'reference.azimuth must differ from picture to picture',
    '--image {0} --image {1} reference.azimuth=[0,90] reference.elevation=[1,2,3]':
        'reference.elevation must be 2 numbers for 2 pictures',
    '--image {0} --guidance some/model': 'prompt: say what the picture shows',
    '--image {0} --workers 2 data.train.batch_size=2': 'workers .--workers. must be left out with reference.images',
    '--image https://a.b/c.png': 'https://a.b/c.png is an address',
    '--image {0}x': 'is no file',
    'iters=3': 'the prompt is missing|names no toy',
    '--image {0} reference.fit=2': 'reference.fit must be a number from 0.1 to 1, or null, not 2; nearest right',
}


@pytest.mark.parametrize('words', BAD)
def test_a_wrong_command_leaves_nothing(folder, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    files = [str(folder/f'mug-{azimuth}.png') for azimuth in (0, 90)]
    assert main([*words.format(*files).split(), '--out', 'made']) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(BAD[words], said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('image', [3, [], [3], None])
def test_what_train_takes_for_a_picture(image):
    with pytest.raises(ConfigError, match='image must be the path of a picture' if image is not None else 'prompt'):
        train(image=image)


def test_a_dashboard_shows_the_picture_beside_the_step(folder, model):
    board = StepDashboard('a purple mug', image=folder/'mug-0.png', guidance=model, **CHEAP)
    board.driver.step()
    tiles = board.view.children[0].children
    assert len(tiles) == len(board.pictures) + 2    # and the facts
    shown = np.asarray(Image.open(io.BytesIO(tiles[-2].children[0].value))).astype(float)
    known = board.trainer.sides.pictures[0]
    wanted = (known[:3] + 1 - known[3:]).permute(1, 2, 0).numpy()*255
    assert shown.shape == wanted.shape and np.abs(shown - wanted).mean() < 4
    drawn = {trace.get('name') for trace in json.loads(board.plot.drawn)['data']}
    assert 'picture' in drawn


# Depth and normals

def test_depth_and_normals_against_float64():
    generator = torch.Generator().manual_seed(1)
    def draw(*shape): return torch.rand(*shape, generator=generator)
    depth, opacity, known, mask, normal, colors = (draw(1, 6, 7), draw(1, 6, 7), draw(1, 6, 7), draw(1, 6, 7),
                                                   draw(3, 6, 7) - .5, draw(3, 6, 7))
    mask = (mask > .3).float()
    known, colors = known*mask, colors*mask
    both = (mask.numpy() > .9) & (opacity.numpy() > .5)
    far, near = (depth/opacity).double().numpy()[both], known.double().numpy()[both]
    assert float(reference.depth_loss(depth, opacity, known, mask)) == pytest.approx(
        1 - np.corrcoef(-far, near)[0, 1], abs=1e-4)
    pose = orbit(1, elevation=40., azimuth_start=70.).c2w[0]
    seen = np.einsum('ji,jk->ik', pose.double().numpy()[:3, :3], normal.double().numpy()[:, both[0]])
    wanted = 2*colors.double().numpy()[:, both[0]] - 1
    cosine = (seen*wanted).sum(0)/np.linalg.norm(seen, axis=0)/np.linalg.norm(wanted, axis=0)
    assert float(reference.normal_loss(normal, pose, opacity, colors, mask)) == pytest.approx((1 - cosine).mean(),
                                                                                              abs=1e-4)
    nothing = torch.zeros(1, 6, 7)    # where both show nothing, nothing pulls, and nothing is no number
    assert reference.depth_loss(depth, nothing, known, mask) == 1
    assert reference.normal_loss(normal, pose, nothing, colors, mask) == 0


@pytest.fixture(scope='module')
def maps(folder):
    "Depth and normals of the mug's front, from its true surface"
    camera, size = orbit(1, elevation=15.), 96
    normals = toybox.render('a purple mug', camera, size, shading='normal', background=(.5, .5, .5))[0]*2 - 1
    seen = torch.einsum('ji,jhw->ihw', camera.c2w[0, :3, :3], normals)
    Image.fromarray(((seen + 1)/2*255).round().byte().permute(1, 2, 0).numpy()).save(folder/'normals.png')
    # the distance is walked: no step leads through the surface, which is as far as `sdf` says
    origins, directions = rays(camera, size, size)
    distance, sdf = torch.full((size*size, 1), 2.), toybox.sdf('a purple mug')
    for _ in range(60): distance += sdf(origins + distance*directions)[:, None].clamp(max=.1)
    near = ((4 - distance)/1.5).view(size, size).numpy()
    Image.fromarray((near.clip(0, 1)*255).round().astype(np.uint8)).save(folder/'depth.png')
    return {'reference.depths': str(folder/'depth.png'), 'reference.normals': str(folder/'normals.png')}


def test_depth_and_normals_pull(folder, maps, model):
    "Nothing but them and the mask: the surface turns as they say"
    alone = {'loss.lambda_sds': 0, 'loss.lambda_entropy': 0, 'loss.lambda_orientation': 0, 'loss.lambda_reference': 0,
             'reference.interval': 1, 'reference.fit': None, 'iters': 80}
    trainer = Trainer(load_config('toybox', asked(folder, 0, **maps) | alone), model)
    rows = [trainer.step().losses for _ in range(80)]
    for name in ('reference_depth', 'reference_normal'):
        first, last = (sum(row[name] for row in part) for part in (rows[8:16], rows[-8:]))
        assert last < .8*first, name


def test_depths_and_normals_belong_to_pictures(folder, maps, tmp_path):
    with pytest.raises(ConfigError, match='reference.depths must be null or as many files as .*images, 0, not 1'):
        load_config('toybox', {'reference.depths': 'a.png'})
    with pytest.raises(ConfigError, match='reference.normals must be null or as many files as .*images, 1, not 2'):
        load_config('toybox', {'reference.images': 'a.png', 'reference.normals': ['b.png', 'c.png']})
    Image.new('L', (50, 40)).save(tmp_path/'small.png')
    config = load_config('toybox', asked(folder, 0, **{'reference.depths': str(tmp_path/'small.png')}))
    with pytest.raises(ConfigError, match='small.png is 50 × 40 pixels, .* other proportions .*, 96 × 96'):
        reference.read_sides(config, 'cpu')
    with Image.open(maps['reference.depths']) as depth: depth.resize((48, 48)).save(tmp_path/'small.png')
    whole = load_config('toybox', asked(folder, 0, **{'reference.depths': maps['reference.depths']}))
    small, large = (reference.read_sides(c, 'cpu').pictures for c in (config, whole))
    assert (small - large).abs().mean() < .01    # a depth may be smaller than its picture


def test_large_pictures_are_kept_small(tmp_path):
    picture_of('a mushroom').resize((6000, 6000)).save(tmp_path/'large.png')
    assert read_picture(tmp_path/'large.png').size == (2048, 2048)
