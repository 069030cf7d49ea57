"After training, and beyond it: run modes, validation while it runs, longer runs, warm starts, what is kept"
import json
import os
import warnings

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import CHEAP
from PIL import Image

from dreamfusion_nb import ConfigError, Trainer, cli, load, load_config, train
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.checkpoints import list_checkpoints
from dreamfusion_nb.run import extend_run
from dreamfusion_nb.schedules import progress_at

VIEWS = {'data.val.size': 3, 'data.val.width': 24, 'data.val.height': 16}


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
    return train('a hamburger', guidance=model, out=tmp_path_factory.mktemp('modes')/'result', progress=False, **CHEAP)


def held(folder): return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


# Modes

def test_validate(finished, tmp_path):
    before = held(finished.folder)
    out = train('a hamburger', out=tmp_path/'seen', mode='validate', resume_from_checkpoint=str(finished.folder),
                **VIEWS)
    assert out.folder == tmp_path/'seen' and os.listdir(tmp_path/'seen') == ['validation.png']
    picture = np.array(Image.open(tmp_path/'seen'/'validation.png'))
    assert picture.shape == (3*16, 3*24, 3)
    assert held(finished.folder) == before, 'the result was touched'
    with pytest.raises(ConfigError, match='exists; choose another folder'):
        train('a hamburger', out=tmp_path/'seen', mode='validate', resume_from_checkpoint=str(finished.folder), **VIEWS)
    train('a hamburger', out=tmp_path/'seen', mode='validate', resume_from_checkpoint=str(finished.folder),
          overwrite=True, **VIEWS)


def test_test(finished, tmp_path):
    "Colour, depth and normals, a frame for each view and no more (B16)"
    options = {'data.test.size': 7, 'data.test.width': 32, 'data.test.height': 32}
    train('a hamburger', out=tmp_path/'seen', mode='test', resume_from_checkpoint=str(finished.folder), **options)
    assert sorted(os.listdir(tmp_path/'seen')) == ['test-depth.mp4', 'test-normal.mp4', 'test-rgb.mp4']
    for name in os.listdir(tmp_path/'seen'):
        assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path/'seen'/name))[0] == 7
        assert next(imageio_ffmpeg.read_frames(str(tmp_path/'seen'/name)))['size'] == (32, 32)


def test_export_mesh_by_command(finished, tmp_path, capfd):
    "B2: the mode that NeMo documents and that has never run"
    words = ['a hamburger', '--out', str(finished.folder), 'mode=export-mesh', f'mesh_fname={tmp_path}/body.ply',
             'mesh_resolution=48']
    assert cli.main(words) == 0
    body = (tmp_path/'body.ply').read_bytes()
    finished.export(tmp_path/'other.ply', 48)
    assert body == (tmp_path/'other.ply').read_bytes()
    assert cli.main(words) == 2 and 'exists' in capfd.readouterr().err


def test_modes_need_a_result(tmp_path):
    with pytest.raises(ConfigError, match='holds no result'): train('a hamburger', out=tmp_path/'none', mode='validate')
    assert not os.listdir(tmp_path)


def test_modes_do_not_make_another_run(finished, model):
    "What looks at a result is no part of its configuration"
    assert load_config(finished.folder) == load_config(finished.folder, 'mode=test', 'mesh_resolution=64')


def test_depth_does_not_depend_on_the_view(finished):
    "A ball in the middle is equally grey from everywhere, and nothing is black"
    seen = [depth for _, depth, _ in finished.passes(orbit(4), 24)]
    assert all(0 <= d.min() and d.max() <= 1 for d in seen)
    assert all(d[:, 0, 0].max() == 0 for d in seen)


# While it runs

def test_validation_pictures(model, tmp_path):
    plain = train('a hamburger', guidance=model, out=tmp_path/'plain', progress=False, **CHEAP)
    seen = train('a hamburger', guidance=model, out=tmp_path/'seen', progress=False,
                 **CHEAP | VIEWS | {'data.val.val_check_interval': 5})
    assert sorted(os.listdir(tmp_path/'seen'/'validation')) == ['step-000005.png', 'step-000010.png']
    assert np.array(Image.open(tmp_path/'seen'/'validation'/'step-000010.png')).shape == (48, 72, 3)
    # looking changes nothing
    for name, v in plain.renderer.state_dict().items(): assert torch.equal(v, seen.renderer.state_dict()[name]), name


@pytest.mark.parametrize('every,top,kept', [(4, -1, [4, 8, 12]), (4, 1, [12]), (5, 2, [10, 12]), (None, 2, [12]),
                                            (4, 0, [12])])
def test_checkpoints_kept(every, top, kept, model, tmp_path):
    train('a hamburger', guidance=model, out=tmp_path/'result', progress=False,
          **CHEAP | {'checkpoint.every_n_train_steps': every, 'checkpoint.save_top_k': top})
    assert [int(p.name[5:]) for p in list_checkpoints(tmp_path/'result')] == kept


def test_no_video(model, tmp_path):
    result = train('a hamburger', guidance=model, out=tmp_path/'result', progress=False, export_video=False, **CHEAP)
    assert 'turntable.mp4' not in os.listdir(result.folder)
    with pytest.warns(UserWarning, match='loaded the finished result'):
        train('a hamburger', guidance=model, out=tmp_path/'result', progress=False, export_video=False, **CHEAP)


# Longer

def test_longer(model, tmp_path):
    "Kept schedules: the first steps are those of the shorter run, and the last part goes on where they ended"
    options = dict(guidance=model, out=tmp_path/'result', progress=False)
    short = train('a hamburger', **options, **CHEAP)
    with pytest.raises(ConfigError, match="schedules='keep'"):
        train('a hamburger', resume=True, **options, **CHEAP | dict(iters=20))
    with pytest.raises(ConfigError, match='already holds a finished result'):
        train('a hamburger', **options, **CHEAP | dict(iters=20))
    steps = []
    more = train('a hamburger', resume=True, schedules='keep', callbacks=[lambda t, r: steps.append(r.step)], **options,
                 **CHEAP | dict(iters=20))
    assert steps == list(range(12, 20)) and more.history[:12] == short.history
    assert load_config(tmp_path/'result').phase_iters == 12
    straight = Trainer(load_config('toybox', CHEAP, dict(iters=20, phase_iters=12, prompt='a hamburger')), model)
    straight.fit()
    for name, v in more.renderer.state_dict().items(): assert torch.equal(v, straight.renderer.state_dict()[name]), name
    # the same call again, in either form
    for given in (dict(iters=20, phase_iters=12), dict(iters=20)):
        schedules = None if 'phase_iters' in given else 'keep'
        with pytest.warns(UserWarning, match='loaded the finished result'):
            assert train('a hamburger', resume=True, schedules=schedules, **options,
                         **CHEAP | given).history == more.history


def test_longer_rescales(model, tmp_path):
    train('a hamburger', guidance=model, out=tmp_path/'result', progress=False, **CHEAP)
    config = extend_run(load_config(tmp_path/'result', dict(iters=24)), tmp_path/'result', 'rescale')
    assert config.phase_iters is None and progress_at(12, config) == .5


@pytest.mark.parametrize('given,says', [(dict(schedules='kept', resume=True), "did you mean 'keep'"),
                                        (dict(schedules='keep'), 'needs resume=True')])
def test_schedules_that_cannot_be_meant(given, says, tmp_path):
    with pytest.raises(ConfigError, match=says): train('a hamburger', out=tmp_path/'result', **given)


# Warm starts

def test_warm_start(finished, model, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        warm = Trainer(load_config('toybox', CHEAP, {'background.type': 'torchngp', 'renderer.grid_resolution': 24,
                                                     'resume_from_checkpoint': str(finished.folder)}), model)
    assert 'background.net.0.weight (not there)' in str(said[-1].message) and 'grid.density' in str(said[-1].message)
    own = warm.renderer.state_dict()
    for name, v in finished.field.state_dict().items(): assert torch.equal(v, own[f'field.{name}']), name
    assert warm.step_count == 0 and warm.renderer.grid.occupied.all(), 'a grid that does not fit starts full'
    assert any('took field.encoding.params' in line for line in warm.warm_start_report)


def test_warm_start_is_logged_and_needed_once(finished, model, tmp_path):
    options = dict(guidance=model, out=tmp_path/'result', progress=False,
                   resume_from_checkpoint=str(finished.folder/'checkpoints'/'step-000008'))
    def stop(trainer, record):
        if record.step == 9: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train('a hamburger', callbacks=[stop], **options, **CHEAP)
    assert 'began with' in (tmp_path/'result'/'log.txt').read_text()
    (finished.folder/'checkpoints'/'step-000008').rename(tmp_path/'gone')
    try: train('a hamburger', **options, **CHEAP)
    finally: (tmp_path/'gone').rename(finished.folder/'checkpoints'/'step-000008')


def test_warm_start_from_nothing(finished, model, tmp_path):
    for path, says in ((tmp_path, 'holds no result'), (finished.folder/'checkpoints'/'step-000009', 'holds no result')):
        with pytest.raises(ConfigError, match=says):
            Trainer(load_config('toybox', CHEAP, dict(resume_from_checkpoint=str(path))), model)
    with pytest.raises(ConfigError, match='nothing of the field'):
        Trainer(load_config('toybox', CHEAP, dict(resume_from_checkpoint=str(finished.folder), hidden_dims=16,
                                                  n_levels=4)), model)


def test_newer_checkpoint(finished, tmp_path):
    import shutil
    shutil.copytree(finished.folder, tmp_path/'result')
    state = tmp_path/'result'/'checkpoints'/'step-000012'/'state.json'
    state.write_text(json.dumps(json.loads(state.read_text()) | dict(format=2)))
    with pytest.raises(ConfigError, match='newer version'): load(tmp_path/'result')
