"The mesh stage through the public doors: refine, resume, locks, presets, the command"
import json
import os
import shutil

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import trimesh
from conftest import CHEAP, MESH, assert_same_with_a_break
from scipy.ndimage import map_coordinates

from dreamfusion_nb import ConfigError, Trainer, cli, load, load_config, run, toybox, train
from dreamfusion_nb import result as result_module
from dreamfusion_nb.config import preset
from dreamfusion_nb.dmtet import EmptyMeshError, MeshRenderer
from dreamfusion_nb.export import bake, decimate, unwrap, write_mesh, write_video


def mesh_config(cloud, **options):
    nerf = {k: v for k, v in cloud.config.flat().items() if k.startswith('nerf.')}
    return load_config('toybox-dmtet', nerf | dict(prompt='a hamburger', resume_from_checkpoint=str(cloud.folder))
                       | MESH | options)


def test_refine(cloud, refined):
    assert refined.folder == cloud.folder.with_name('burger-refined') and len(refined.history) == 10
    assert {'model.glb', 'preview.png', 'turntable.mp4', 'config.yaml'} <= set(os.listdir(refined.folder))
    assert (refined.config.preset == 'toybox-dmtet' and refined.config.prompt == cloud.config.prompt
            and refined.config.seed == cloud.config.seed)
    assert {k: v for k, v in refined.config.flat().items() if k.startswith('nerf.')} == {k: v
        for k, v in cloud.config.flat().items() if k.startswith('nerf.')}
    mesh = refined.mesh()
    assert mesh.is_watertight and mesh.body_count == 1 and mesh.volume > 0
    assert {'mesh_normal', 'mesh_laplacian'} <= set(refined.history[-1]) and refined.history[-1]['mesh_laplacian'] > 0
    said = (refined.folder/'log.txt').read_text()
    assert f'began with the surface of {cloud.folder}' in said and 'took field.encoding.params' in said


def test_it_begins_with_the_shape_and_colours_of_the_cloud(cloud, model):
    trainer = Trainer(mesh_config(cloud), model)
    before, after = cloud.mesh(), trainer.renderer.mesh()
    assert after.volume == pytest.approx(before.volume,
        rel=.1) and np.abs(after.bounds - before.bounds).max() < 2*trainer.renderer.spacing
    for name, value in cloud.renderer.field.state_dict().items():
        assert torch.equal(value, trainer.field.state_dict()[name])


def test_read_back(refined):
    again = load(refined.folder)
    assert isinstance(again.renderer, MeshRenderer) and again.render(30, size=48).tobytes() == refined.render(30,
        size=48).tobytes()
    assert (np.asarray(again.mesh().vertices) == np.asarray(refined.mesh().vertices)).all()


@pytest.mark.parametrize('options', [{}, {'optim.name': 'adan', 'optim.betas': None, 'optim.max_grad_norm': 5.,
                                          'background.type': 'torchngp', 'loss.lambda_2d_normal_smooth': 1.}])
def test_resumes(options, cloud, model, tmp_path):
    config = mesh_config(cloud, **options)
    straight, broken = Trainer(config, model), Trainer(config, model, folder=tmp_path)
    straight.fit(10)
    assert_same_with_a_break(straight, broken, model, 6)


def test_resumes_when_the_cloud_is_gone(cloud, model, tmp_path):
    shutil.copytree(cloud.folder, tmp_path/'cloud')
    trainer = Trainer(mesh_config(cloud, resume_from_checkpoint=str(tmp_path/'cloud')), model, folder=tmp_path/'mesh')
    trainer.fit(3)
    trainer.save()
    shutil.rmtree(tmp_path/'cloud')
    mended = Trainer.resume(tmp_path/'mesh', model)
    assert torch.equal(mended.renderer.sdf, trainer.renderer.sdf) and mended.renderer.scale == trainer.renderer.scale
    assert mended.step().step == 3


@pytest.mark.parametrize('lock, still', [('lock_geometry', ('sdf', 'deform')),
                                         ('lock_texture', ('field.albedo_net.0.weight', 'field.encoding.params'))])
def test_locks(lock, still, cloud, model):
    trainer = Trainer(mesh_config(cloud, **{f'renderer.{lock}': True}), model)
    before = {k: v.clone() for k, v in trainer.renderer.state_dict().items()}
    trainer.fit(5)
    after = trainer.renderer.state_dict()
    for name in ('sdf', 'deform', 'field.albedo_net.0.weight', 'field.encoding.params'):
        assert torch.equal(before[name], after[name]) == (name in still), name
    assert len({row['loss'] for row in trainer.history}) == 5


def test_from_mesh_to_mesh(refined, cloud, model):
    "The shape goes on; at another resolution it begins with the surface"
    same = Trainer(mesh_config(cloud, resume_from_checkpoint=str(refined.folder)), model)
    assert torch.equal(same.renderer.sdf, refined.renderer.sdf) and not any('surface of' in line
        for line in same.warm_start_report)
    finer = Trainer(mesh_config(cloud, **{'resume_from_checkpoint': str(refined.folder),
                                          'renderer.grid_resolution': 24}), model)
    assert finer.renderer.initialised and finer.renderer.mesh().volume == pytest.approx(refined.mesh().volume, rel=.1)
    assert any('goes with the rest of the shape' in line for line in finer.warm_start_report)


def test_without_a_cloud_it_begins_with_a_ball(model, tmp_path):
    result = train('a hamburger', preset='toybox-dmtet', guidance=model, out=tmp_path/'ball', progress=False,
                   **CHEAP | dict(iters=3))
    assert 'began with a ball' in (tmp_path/'ball'/'log.txt').read_text() and result.mesh().is_watertight


def test_nemos_second_page(cloud, model, tmp_path):
    "Its networks, optimiser, background, losses and schedule; smaller pictures"
    config = preset('dreamfusion-dmtet').replace(dict(prompt='a hamburger', iters=2,
        **{'data.train.width': 32, 'data.train.height': 32, 'renderer.grid_resolution': 32,
        'nerf.log2_hashmap_size': 12, 'guidance.name': 'toybox'}))
    assert (config.loss.lambda_mesh_normal, config.loss.lambda_mesh_laplacian, config.latent_iter_ratio,
            config.background.type) == (.5, .5, 0, 'torchngp')
    trainer = Trainer(config, model)
    seen = [trainer.step() for _ in range(2)]
    assert {'mesh_normal', 'mesh_laplacian', 'sds'} <= set(seen[0].losses) and seen[0].image.shape == (1, 3, 32, 32)
    assert not torch.equal(trainer.renderer.background.net[0].weight,
                           Trainer(config, model).renderer.background.net[0].weight)


def test_textures(cloud, refined, tmp_path, monkeypatch):
    "The mesh stage writes one; a cloud does if asked, here with few triangles"
    part, = trimesh.load_scene(refined.folder/'model.glb', process=False).geometry.values()
    assert part.visual.material.baseColorTexture.size == (1024, 1024) and len(part.faces) == len(refined.mesh().faces)
    cloud.export(tmp_path/'few.obj', faces=200, texture=64)
    few = trimesh.load(tmp_path/'few.obj', process=False)
    assert len(few.faces) <= 200 and few.visual.material.image.size == (64,
        64) and sorted(os.listdir(tmp_path)) == ['few-albedo.png', 'few.mtl', 'few.obj']
    # what the picture says on the surface is what the field says just beneath it
    points = torch.as_tensor(few.triangles_center - few.face_normals/64*cloud.config.nerf.bound).float()
    read = few.visual.material.to_color(few.visual.uv[few.faces].mean(1))[:, :3]/255
    assert np.abs(read - cloud.field.albedo(points).detach().numpy()).mean() < .02
    monkeypatch.setattr(result_module, 'unwrap', lambda mesh, seconds, size: None)
    with pytest.warns(UserWarning, match='colours stay at the vertices'):
        cloud.export(tmp_path/'plain.glb', faces=100, texture=64)


def test_the_material_of_an_obj_leaves_its_picture_alone(cloud, tmp_path):
    "A colour of the material would be multiplied with the picture, and a gloss added"
    cloud.export(tmp_path/'few.obj', faces=100, texture=64)
    lines = dict(line.split(' ', 1) for line in (tmp_path/'few.mtl').read_text().splitlines())
    assert lines['Kd'] == '1 1 1' and lines['Ks'] == '0 0 0' and lines['map_Kd'] == 'few-albedo.png'
    assert (f'usemtl {lines["newmtl"]}\n' in (tmp_path/'few.obj').read_text()
            and '\nvn ' in (tmp_path/'few.obj').read_text())


def test_formats_without_a_texture(cloud, tmp_path):
    for name in ('few.ply', 'few.stl'):
        with pytest.warns(UserWarning, match=f'a {name[-4:]} file holds no texture') as told:
            cloud.export(tmp_path/name, faces=200, texture=64)
        assert [w.filename for w in told] == ['dreamfusion_nb']    # no line of our source is quoted
        assert trimesh.load(tmp_path/name).is_watertight
    assert trimesh.load(tmp_path/'few.ply').visual.kind == 'vertex'


def test_loose_pieces(cloud, tmp_path):
    "One piece stays unless more are asked for; of a mesh stage too"
    one, all_of_them = cloud.mesh(32), cloud.mesh(32, min_share=0)
    assert one.body_count == 1 and all_of_them.volume >= one.volume
    cloud.export(tmp_path/'all.ply', 32, min_share=0)
    assert len(trimesh.load(tmp_path/'all.ply').faces) == len(all_of_them.faces)


def test_videos_of_depth_and_normals(refined, cloud, tmp_path):
    import imageio.v3 as iio
    for result in (cloud, refined):
        films = {kind: iio.imread(result.video(tmp_path/f'{kind}.mp4', n=3, height=32, kind=kind)).astype(int)
                 for kind in ('rgb', 'depth', 'normal')}
        assert {film.shape for film in films.values()} == {(3, 32, 32, 3)}
        depth, normal = films['depth'], films['normal']
        # grey, and colourful
        assert np.abs(depth - depth.mean(-1, keepdims=True)).max() < 12 and normal.std(-1).max() > 20
    with pytest.raises(ConfigError, match="did you mean 'depth'"): cloud.video(tmp_path/'x.mp4', kind='dpeth')


def test_files_that_belong_together_come_together(cloud, tmp_path, monkeypatch):
    "Where one can't be written, none is"
    from pathlib import Path
    def refuse(*args, **options): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'write_text', refuse)
    with pytest.raises(ConfigError, match='cannot write .*Permission denied'):
        cloud.export(tmp_path/'few.obj', faces=100, texture=64)
    monkeypatch.undo()
    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(ConfigError, match='cannot write .*Permission denied'):
        cloud.export(tmp_path/'few.glb', faces=100)
    assert not list(tmp_path.iterdir())


def test_resumes_after_steps_in_white_light_only(cloud, model, tmp_path):
    "Then the colours have had no gradient, and the optimiser knows nothing of them"
    trainer = Trainer(mesh_config(cloud, textureless_ratio=1.), model, folder=tmp_path)
    trainer.fit(2)
    trainer.save()
    mended = Trainer.resume(tmp_path, model)
    assert mended.step_count == 2 and mended.step().step == 2


def test_a_step_that_is_not_finite_is_not_taken(cloud, model, tmp_path):
    trainer = Trainer(mesh_config(cloud), model, folder=tmp_path)
    trainer.fit(1)
    before = {k: v.clone() for k, v in trainer.renderer.state_dict().items()}
    small_losses = trainer.regularise
    def broken(out): return small_losses(out) | dict(mesh_normal=float('nan')*out.vertices.sum())
    # 0, with an infinite slope
    def steep(out): return small_losses(out) | dict(mesh_normal=(out.vertices.sum()*0).sqrt())
    for losses, what in ((broken, 'the loss mesh_normal'), (steep, 'the gradient of')):
        trainer.regularise = losses
        with pytest.raises(ConfigError, match=f'step 1: {what}.* is not finite'): trainer.step()
    assert trainer.step_count == 1 and all(torch.equal(v, before[k]) for k, v in trainer.renderer.state_dict().items())
    trainer.regularise = small_losses
    assert trainer.step().step == 1


@pytest.mark.parametrize('name', ['sdf', 'deform', 'scale', 'field.albedo_net.0.weight'])
def test_parameters_that_are_not_finite(name, cloud, model, tmp_path):
    "Named, in one line, by everything that would use or write them"
    trainer = Trainer(mesh_config(cloud), model, folder=tmp_path)
    trainer.renderer.state_dict()[name].view(-1)[0] = float('nan')
    result = result_module.Result(trainer.config, trainer.renderer, tmp_path)
    for act in (trainer.save, result.mesh, lambda: result.export(tmp_path/'x.glb'), lambda: run.write_outputs(result)):
        with pytest.raises(ConfigError, match=f'{name} holds values that are not finite'): act()
    assert not list(tmp_path.iterdir())


def test_refine_after_a_guidance_of_ones_own(cloud):
    "A result that was just made has it still; one that was read back has not"
    with pytest.raises(ConfigError, match='made with a guidance object .LatentDiffusion.*pass it again'):
        load(cloud.folder).refine(**MESH)


def test_normal_textures(cloud, tmp_path):
    "Relief that decimation took away, beside the colours; asked for alone it brings them along"
    cloud.export(tmp_path/'few.glb', faces=100, normals=True)
    part, = trimesh.load_scene(tmp_path/'few.glb', process=False).geometry.values()
    assert part.visual.material.normalTexture.size == part.visual.material.baseColorTexture.size == (1024,
        1024) and len(part.faces) <= 100
    cloud.export(tmp_path/'few.obj', faces=100, texture=64, normals=True)
    assert 'norm few-normal.png' in (tmp_path/'few.mtl').read_text() and (tmp_path/'few-normal.png').exists()


def test_dashboards_of_a_mesh_stage(cloud, refined, model):
    "A step with all its pictures; the grid's bending as colours; no field to look into"
    from dreamfusion_nb.dashboard import FieldDashboard, MeshDashboard, StepDashboard
    from dreamfusion_nb.driver import STEP_PICTURES
    dashboard = StepDashboard(Trainer(mesh_config(cloud), model))
    dashboard.button['step'].click()
    assert not dashboard.driver.error and set(dashboard.driver.frames[0].pictures) == set(STEP_PICTURES)
    assert 'mesh normal' in [trace.name for trace in dashboard.plot.figure.data]
    surface = MeshDashboard(refined)
    plain = surface.viewer.mesh_data['colors']
    surface.bent.value = True
    assert surface.viewer.mesh_data['colors'] != plain and 'closed' in surface.statistics.value
    with pytest.raises(ConfigError, match='MeshDashboard shows it'): FieldDashboard(refined)


def test_surfaces_for_a_slider(cloud, refined):
    "The same surface as the mesh at the chosen threshold, smaller ones above it, nothing at the end of the range"
    surfaces = cloud.isosurfaces(40)
    low, high = surfaces.range
    assert low < surfaces.auto < high
    same, auto = surfaces.mesh(), cloud.mesh(40)
    assert np.array_equal(same.vertices, auto.vertices) and np.array_equal(same.visual.vertex_colors,
        auto.visual.vertex_colors)
    volumes = [surfaces.mesh(t).volume for t in np.geomspace(low, high, 6)[1:-1]]
    assert volumes == sorted(volumes, reverse=True) and volumes[0] > volumes[-1]
    with pytest.raises(EmptyMeshError, match='no density above'): surfaces.mesh(10*high)
    with pytest.raises(ConfigError, match='mesh stage has one surface'): refined.isosurfaces()


def test_run_modes(refined, tmp_path):
    folder = tmp_path/'mesh'
    shutil.copytree(refined.folder, folder)
    small = {'val.size': 2, 'val.width': 16, 'val.height': 16, 'test.size': 2, 'test.width': 16, 'test.height': 16}
    for mode, names in (('validate', ['validation.png']),
                        ('test', ['test-rgb.mp4', 'test-depth.mp4', 'test-normal.mp4'])):
        train('a hamburger', config=folder, out=folder, mode=mode, **small)
        for name in names: assert (folder/name).stat().st_size > 100
    train('a hamburger', config=folder, out=folder, mode='export-mesh', mesh_fname=str(tmp_path/'x.obj'))
    assert (tmp_path/'x.obj').read_text().count('\nf ') == len(refined.mesh().faces)


def test_what_goes_wrong(cloud, refined, model, tmp_path):
    with pytest.raises(ConfigError, match='already holds a finished result'):
        cloud.refine(guidance=model, progress=False, out=refined.folder, seed=9, **MESH)
    with pytest.raises(ConfigError, match='nothing of the field'):
        Trainer(mesh_config(cloud, **{'nerf.hidden_dims': 9, 'nerf.n_levels': 4}), model)
    nowhere = load(cloud.folder)
    nowhere.folder = None
    with pytest.raises(ConfigError, match='lies in no folder'): nowhere.refine()
    empty = tmp_path/'empty'
    shutil.copytree(cloud.folder, empty)
    from safetensors.torch import load_file, save_file
    part = empty/'checkpoints'/sorted(os.listdir(empty/'checkpoints'))[-1]/'model.safetensors'
    tensors = load_file(part)
    for name in tensors:
        if 'density_net' in name and name.endswith('bias'): tensors[name] -= 1e3
    save_file(tensors, part)
    with pytest.raises(ConfigError, match='no shape to begin with'):
        Trainer(mesh_config(cloud, resume_from_checkpoint=str(empty)), model)


def test_command(pipeline, tmp_path, capfd):
    words = ['a hamburger', '--out', str(tmp_path/'burger'), '--guidance', str(pipeline),
             *(f'{k}={v}' for k, v in CHEAP.items())]
    assert cli.main(words) == 0
    made = (tmp_path/'burger'/'model.glb').stat().st_mtime
    assert cli.main([*words, '--refine', 'refine.iters=12', 'refine.export_video=false']) == 0
    assert (tmp_path/'burger'/'model.glb').stat().st_mtime == made
    said = capfd.readouterr()
    assert 'burger-refined/model.glb' in said.out
    rows = [json.loads(line) for line in (tmp_path/'burger-refined'/'history.jsonl').read_text().splitlines()]
    assert len(rows) == 12 and 'mesh_normal' in rows[0] and not (tmp_path/'burger-refined'/'turntable.mp4').exists()
    assert cli.main([*words, '--refine', 'refine.iters=12', 'refine.export_video=false']) == 0
    assert 'loaded the finished result' in capfd.readouterr().err


def test_a_resumed_run_says_no_more_than_is_true(cloud, model, tmp_path):
    "It goes on with its own shape: nothing about a ball, or the cloud, a second time"
    options = dict(guidance=model, out=tmp_path/'mesh', progress=False, **MESH)
    def stop(trainer, record):
        if trainer.step_count == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        cloud.refine(callbacks=[lambda trainer, record: trainer.save(), stop], **options)
    cloud.refine(**options)
    before, after = (tmp_path/'mesh'/'log.txt').read_text().split('resumed at step 2')
    assert 'began with the surface of' in before and 'began with' not in after and 'ball' not in before


def test_refine_keeps_the_words(cloud):
    with pytest.raises(ConfigError, match='the prompt of its NeRF'): cloud.refine(prompt='a mug')
    with pytest.raises(ConfigError, match='name single keys'): cloud.refine(config='toybox-dmtet')


def test_textures_of_other_makes(refined, tmp_path):
    "An OBJ that was read back can be written again, and what xatlas cut open before it is painted"
    mesh = refined.mesh()
    write_mesh(refined.textured(mesh, 64), tmp_path/'one.obj')
    write_mesh(trimesh.load(tmp_path/'one.obj', process=False), tmp_path/'two.obj')
    pictures = [np.asarray(trimesh.load(tmp_path/name).visual.material.image.convert('RGB'))
                for name in ('one.obj', 'two.obj')]
    assert (pictures[0] == pictures[1]).all()
    for name in ('bare.obj', 'bare.ply'):
        assert trimesh.load(write_mesh(unwrap(mesh), tmp_path/name)).area == pytest.approx(mesh.area, rel=1e-4)


def test_a_vertex_without_a_triangle_is_not_written(tmp_path):
    ball = trimesh.creation.icosphere(1)
    loose = trimesh.Trimesh(np.concatenate([ball.vertices, [[5, 5, 5]]]), ball.faces, process=False)
    back = trimesh.load(write_mesh(loose, tmp_path/'loose.glb'), force='mesh', process=False)
    assert len(back.vertices) == len(ball.vertices) and len(loose.vertices) == len(ball.vertices) + 1


def test_a_disk_that_gets_full(tmp_path):
    "In a process of its own, which may write 20,000 bytes a file: the film that was there stays"
    script = '''
import resource, signal, sys, torch
from dreamfusion_nb import ConfigError
from dreamfusion_nb.export import write_video
path, frames = sys.argv[1], torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
write_video(frames[:2], path)
before = open(path, 'rb').read()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try: write_video(frames, path)
except ConfigError as error: print(error)
assert open(path, 'rb').read() == before
'''
    import subprocess
    import sys
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path/'film.mp4')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'cannot write' in done.stdout and os.listdir(tmp_path) == ['film.mp4']


def test_refine_makes_a_mesh(cloud, tmp_path):
    with pytest.raises(ConfigError, match='makes a NeRF; toybox-dmtet makes'):
        cloud.refine(preset='toybox', out=tmp_path/'x')
    assert not (tmp_path/'x').exists()


@pytest.mark.parametrize('size', [128, 256])
def test_colours_stay_on_their_side_of_a_seam(size):
    "Read between the texels, as programs do, a small texture says what was painted, also in the corners of triangles"
    few = decimate(toybox.mesh('a hamburger'), 3000)
    painted = bake(unwrap(few, size=size), lambda points, normals: points + .5, size)
    draw = np.random.default_rng(0)
    face, share = draw.integers(len(few.faces), size=20_000), draw.dirichlet([.3]*3, 20_000)[..., None]
    at, uv = ((share*np.asarray(v)[painted.faces[face]]).sum(1) for v in (painted.vertices, painted.visual.uv))
    picture = np.asarray(painted.visual.material.baseColorTexture)/255
    place = [(1 - uv[:, 1])*size - .5, uv[:, 0]*size - .5]
    read = np.stack([map_coordinates(picture[..., k], place, order=1, mode='nearest') for k in range(3)], 1)
    assert (np.abs(read - at - .5).max(1) > .1).mean() < .002


def test_frames_of_a_film(tmp_path):
    "Arrays of bytes as PIL has them are frames, too; what is none is said in a line"
    frames = [np.full((32, 48, 3), 90 + i, np.uint8) for i in range(3)]
    size = next(imageio_ffmpeg.read_frames(str(write_video(frames, tmp_path/'v.mp4'))))['size']
    assert size == (48, 32)
    for wrong in ([np.zeros((4, 4, 3))], [torch.zeros(3, 32, 32), 'no'], [None]):
        with pytest.raises(ConfigError, match='frame'): write_video(wrong, tmp_path/'w.mp4')
    assert sorted(os.listdir(tmp_path)) == ['v.mp4']
