"""Dashboards without a page: what they must not disturb, lose or leave behind, and what they say when something goes
wrong"""
import asyncio
import base64
import gc
import json
import math
import os
import shutil
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
import traitlets
import trimesh
from conftest import CHEAP, MESH

from dreamfusion_nb import ConfigError, Trainer, driver, load_config, panels, plots, step_dashboard
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.checkpoints import list_checkpoints
from dreamfusion_nb.dashboard import CompareDashboard, FieldDashboard, MeshDashboard, StepDashboard
from dreamfusion_nb.driver import Frame, driver_of
from dreamfusion_nb.progress import Pace
from dreamfusion_nb.renderer import normal_map
from dreamfusion_nb.viewer import Viewer


def config(**options): return load_config('toybox', CHEAP | dict(prompt='a hamburger') | options)


@pytest.fixture
def trainer(model): return Trainer(config(), model)


def weights(trainer): return {k: v.clone() for k, v in trainer.renderer.state_dict().items()}


def same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_run_under_watch_is_the_run_it_was(model):
    "Three dashboards that follow every step, and a hand on their buttons: the same to the bit"
    alone, watched = (Trainer(config(), model) for _ in range(2))
    boards = [StepDashboard(watched), FieldDashboard(watched), MeshDashboard(watched, resolution=24)]
    for _ in range(6):
        boards[0].button['step'].click()
        boards[1].azimuth.value += 10
        boards[2].button['auto'].click()
        boards[2].threshold.value *= 1.1
        assert watched.renderer.training
    alone.fit(6)
    assert same(weights(alone), weights(watched)) and alone.history == watched.history
    assert all(board.error.value == '' for board in boards)


def test_a_reset_that_fails_loses_nothing(model, cloud, tmp_path):
    "A mesh stage whose cloud is gone; a folder that can't be written"
    shutil.copytree(cloud.folder, tmp_path/'cloud')
    nerf = {k: v for k, v in cloud.config.flat().items() if k.startswith('nerf.')}
    stage = load_config('toybox-dmtet', nerf | MESH | dict(prompt='a hamburger',
                                                           resume_from_checkpoint=str(tmp_path/'cloud')))
    board = StepDashboard(Trainer(stage, model))
    board.button['step'].click()
    shutil.rmtree(tmp_path/'cloud')
    before = weights(board.trainer)
    for _ in range(2): board.button['reset'].click()
    assert board.trainer.step_count == len(board.driver.frames) == 1 and same(before,
        weights(board.trainer)) and 'holds no result' in board.error.value


def test_a_reset_forgets_everything(trainer):
    board, again = StepDashboard(trainer), Trainer(trainer.config, trainer.guidance)
    for _ in range(3): board.button['step'].click()
    board.button['reset'].click()
    assert board.button['reset'].description == 'Really?' and trainer.step_count == 3
    board.button['back'].click()    # anything else takes it back
    assert board.button['reset'].description == 'Reset'
    for _ in range(2): board.button['reset'].click()
    assert trainer.step_count == 0 and not trainer.history and same(weights(again),
        weights(trainer)) and driver_of(trainer) is board.driver
    def drawn():
        return {trace.name: list(trace.x) for trace in board.plot.figure.data if trace.name in ('gradient', 'opacity')}
    assert drawn() == {}
    board.button['step'].click()
    again.step()
    assert again.history == trainer.history and drawn() == dict(gradient=[1], opacity=[1])


def test_a_surface_after_a_reset_is_the_new_one(trainer):
    "Not that of the weights that were thrown away"
    steps, surface = StepDashboard(trainer), MeshDashboard(trainer, resolution=24)
    first = surface.mesh.volume
    steps.driver.run()
    assert surface.mesh.volume != first
    for _ in range(2): steps.button['reset'].click()
    assert surface.mesh.volume == pytest.approx(first)


@pytest.mark.parametrize('name, what', [('thing.gbl', 'did you mean'), ('~nobody-here/x.glb', 'home directory'),
                                        ('/proc/x.glb', 'cannot write'), ('', 'without an ending')])
def test_a_file_that_cannot_be_is_said(name, what, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    surface = MeshDashboard(trainer, resolution=24)
    surface.path.value = name
    surface.button['export'].click()
    assert what in surface.error.value and not list(tmp_path.iterdir())


def test_what_is_written_is_what_is_seen(trainer, tmp_path):
    surface = MeshDashboard(trainer, resolution=24)
    surface.faces.value, surface.path.value = 300, str(tmp_path/'x.glb')
    surface.threshold.value *= 1.5
    surface.button['export'].click()
    found = trimesh.load(tmp_path/'x.glb', force='mesh', process=False)
    assert (found.faces == surface.mesh.faces).all() and len(found.faces) <= 300
    surface.texture.value, surface.path.value = 512, str(tmp_path/'y.obj')
    surface.button['export'].click()
    assert (tmp_path/'y-albedo.png').exists() and 'wrote' in surface.error.value
    surface.faces.value = 2
    assert surface.mesh is None and 'at least 4' in surface.error.value and surface.statistics.value == ''
    surface.path.value = str(tmp_path/'z.glb')
    surface.button['export'].click()
    assert 'no surface' in surface.error.value and not (tmp_path/'z.glb').exists()


def test_errors_of_other_buttons_are_said(trainer, tmp_path):
    trainer.folder = tmp_path/'run'
    board = StepDashboard(trainer)
    board.button['step'].click()
    shutil.rmtree(tmp_path/'run')
    (tmp_path/'run').write_text('a file in its place')
    board.driver.pause()
    assert 'cannot be written' in board.error.value
    board.driver.trainer.steer = lambda **changes: 1/0
    board.controls['guidance_scale'].value = 30
    assert 'ZeroDivisionError' in board.error.value


def test_a_step_that_fails_is_as_if_it_had_not_been(model):
    "The next one draws the camera and the noise that it would have drawn"
    straight, broken = (Trainer(config(), model) for _ in range(2))
    board, predict = StepDashboard(broken), model.predict_noise
    for at in range(6):
        if at in (0, 3, 4):    # at 0 and 4 the occupancy grid is brought up to date first
            model.predict_noise = lambda *args: 1/0
            try: board.button['step'].click()
            finally: model.predict_noise = predict
            assert 'ZeroDivisionError' in board.error.value and broken.step_count == at
        board.button['step'].click()
    straight.fit(6)
    assert same(weights(straight), weights(broken)) and straight.history == broken.history and board.error.value == ''


def test_a_guidance_that_cannot_decode(model):
    "The protocol does not ask for it"
    class Bare:
        encode_text, encode_image, predict_noise = model.encode_text, model.encode_image, model.predict_noise
        alphas_cumprod, image_size, latent_shape = model.alphas_cumprod, model.image_size, model.latent_shape
    board = StepDashboard(Trainer(config(), Bare()))
    board.button['step'].click()
    assert not board.error.value and len(board.driver.frames) == 1


def test_pictures_that_fail_stop_no_step(trainer, monkeypatch):
    board = StepDashboard(trainer)
    monkeypatch.setattr(driver, 'step_pictures', lambda *args: 1/0)
    board.button['step'].click()
    assert trainer.step_count == 1 and 'ZeroDivisionError' in board.error.value
    monkeypatch.undo()
    board.button['step'].click()
    assert trainer.step_count == 2 and not board.error.value and len(board.driver.frames) == 1


def test_who_looks_back_is_left_there(trainer, monkeypatch):
    "While the history grows, and when it is thinned"
    monkeypatch.setattr(driver, 'MAX_FRAMES', 6)
    board = StepDashboard(trainer)
    for _ in range(6): board.button['step'].click()
    board.scrub.value = 3
    shown = board.pictures[0].value
    assert 'looking back at step 4' in board.page.note
    board.driver.step()    # from another dashboard, say; every second one of the older half goes
    assert len(board.driver.frames) < 7 and board.pictures[0].value == shown and 'step 4' in board.scrub.description
    assert '<b class="dfnb-count">7</b>' in board.status.value
    board.button['step'].click()    # one's own step goes on from the newest
    assert ('looking back' not in board.page.note and board.scrub.value == board.scrub.max
            and 'step 8' in board.scrub.description)


def test_history_is_bounded(trainer):
    "Twelve hundred frames, and never more than a driver keeps"
    many, step = driver_of(trainer), trainer.step()
    for _ in range(600):
        many.frames.append(Frame(0, {}, {}, (0, 0, 0)))
        many.keep(step)
        assert len(many.frames) <= driver.MAX_FRAMES + 1


def test_light_acts_in_every_phase(model):
    "The first steps have none of their own"
    trainer = Trainer(config(iters=40), model)
    assert trainer.step().look.shading == 'albedo'
    board = StepDashboard(trainer)
    board.controls['lamp'].value = 90.
    lit = trainer.step()
    assert lit.look.shading == 'lambertian' and lit.look.ambient == step_dashboard.STEERED_AMBIENT and lit.light[0,
        0] > .8
    board.panel.release()
    board.controls['shading'].value = 'lambertian'
    assert trainer.step().look.ambient == step_dashboard.STEERED_AMBIENT
    board.panel.release()
    assert trainer.step().look.shading == 'albedo'


def test_runs_side_by_side_stay_in_step(model):
    "One breaks for a moment; the others wait for it"
    runs = [Trainer(config(seed=seed), model) for seed in range(3)]
    board = CompareDashboard(runs, every=2)
    board.button['step'].click()
    step = runs[1].step
    runs[1].step = lambda: 1/0
    board.button['step'].click()
    assert [t.step_count for t in runs] == [2, 1, 2] and 'seed 1: ZeroDivisionError' in board.error.value
    runs[1].step = step
    board.button['step'].click()
    assert [t.step_count for t in runs] == [2, 2, 2] and not board.error.value
    board.run()
    assert [t.step_count for t in runs] == [12]*3 and board.button['step'].disabled and board.button['run'].disabled
    with pytest.raises(ConfigError, match='has its configuration already; iters'): CompareDashboard(runs, iters=5)


def test_a_cell_that_is_run_again(model, monkeypatch):
    "What stood there stops; what stands in another cell, or was made by the same execution, goes on"
    async def main():
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 'first'))
        old = StepDashboard(Trainer(config(iters=500), model))
        beside = MeshDashboard(old.trainer, resolution=24)
        old.driver.run()
        await asyncio.sleep(.05)
        assert old.driver.running and set(old.driver.watchers) == {old, beside}
        monkeypatch.setattr(panels, 'current_cell', lambda: ('another', 'second'))
        StepDashboard(Trainer(config(), model))
        assert old.driver.running
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 'third'))
        StepDashboard(Trainer(config(), model))
        assert not old.driver.running and not old.driver.watchers
        await old.driver.task
    asyncio.run(main())


def test_the_kernels_interrupt_button(model):
    "Outside of cells a kernel ignores it; a run hears of it"
    async def main():
        board = StepDashboard(Trainer(config(iters=500), model))
        board.driver.run()
        while not board.trainer.step_count: await asyncio.sleep(.01)
        os.kill(os.getpid(), signal.SIGINT)
        await board.driver.task
        return board
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        loop = asyncio.new_event_loop()    # asyncio.run would take the signal for itself
        board = loop.run_until_complete(main())
        loop.close()
    finally: signal.signal(signal.SIGINT, before)
    assert not board.driver.running and 0 < board.trainer.step_count < 500


def test_a_page_that_opens_later_sees_what_is_drawn(trainer):
    "And a page that is open misses nothing: each message has the whole figure"
    board = StepDashboard(trainer)
    for _ in range(3): board.button['step'].click()
    drawn = {trace.get('name'): trace for trace in json.loads(board.plot.get_state()['drawn'])['data']}
    sent = drawn['opacity']['x']
    assert {'gradient', 'opacity', 'cameras'} <= set(drawn)
    assert list(np.frombuffer(base64.b64decode(sent['bdata']), sent['dtype'])) == [1, 2, 3]


def test_a_plot_is_told_to_pages_whole_and_once(monkeypatch):
    """anywidget drops what comes after its first message if the widget's script takes two seconds to read, so that
    script is short, and the first message has the figure"""
    first, told, opened = [], [], plots.Plot.open
    def opening(self):
        first.append(self.get_state())
        opened(self)
    monkeypatch.setattr(plots.Plot, 'open', opening)
    plot = plots.curves_plot({'loss': 'log'})
    assert 'loss' in first[0]['drawn'] and 'plotly' in first[0]['library'] and len(first[0]['_esm']) < 5_000
    monkeypatch.setattr(plots.Plot, 'send_state', lambda self, key=None: told.append(key))
    with plot.drawing():
        for name in 'ab': plots.draw_curve(plot, 1, name, np.arange(3), np.arange(3), plots.LINE_STYLES[0])
    assert told == ['drawn']
    with pytest.raises(RuntimeError, match='in the middle'), plot.drawing() as figure:
        figure.data[-1].name = 'c'
        raise RuntimeError('in the middle')
    assert told == ['drawn', 'drawn'] and '"c"' in plot.drawn


def test_one_page_of_plotly_for_each_dashboard(trainer, model):
    "Every figure brings its own, 5 MB"
    def figures(widget): return isinstance(widget, plots.Plot) + sum(map(figures, getattr(widget, 'children', ())))
    assert figures(StepDashboard(trainer)) == figures(FieldDashboard(trainer)) == 1
    assert figures(CompareDashboard([Trainer(config(seed=s), model) for s in range(6)])) == 1


def test_an_interrupt_ends_the_loop_around_it(trainer):
    "`while ...: board.driver.step()` in a cell or a script; and the run of a task only pauses"
    board, step = StepDashboard(trainer), trainer.step
    def interrupted(): raise KeyboardInterrupt
    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt): board.driver.step()
    compare = CompareDashboard([trainer])
    with pytest.raises(KeyboardInterrupt): compare.step()
    async def main():
        board.driver.run()
        await board.driver.task
    asyncio.run(main())
    assert not board.driver.running and not board.error.value and board.button['run'].description == 'Run'
    trainer.step = step
    board.driver.step()
    assert trainer.step_count == 1


def test_a_run_that_breaks_is_said_and_ends(model, monkeypatch):
    "Whatever breaks outside of a step, or cancels its task, leaves no run behind that goes on for ever"
    async def main(board, loop):
        loop.run()
        await asyncio.sleep(0)
        if not board: loop.task.cancel()
        await asyncio.gather(loop.task, return_exceptions=True)
        assert not loop.running and loop not in driver.RUNNING_LOOPS
        if board: assert 'ZeroDivisionError' in board.error.value and board.button['run'].description == 'Run'
    compare = CompareDashboard([Trainer(config(seed=seed), model) for seed in range(2)])
    viewer, show = compare.viewers[0], compare.viewers[0].show
    viewer.show = lambda mesh: 1/0 if compare.trainers[0].step_count == 12 else show(mesh)    # the last look
    asyncio.run(main(compare, compare))
    board = StepDashboard(Trainer(config(), model))
    monkeypatch.setattr(board.driver, 'advance', lambda: 1/0)
    asyncio.run(main(board, board.driver))
    asyncio.run(main(None, driver_of(Trainer(config(), model))))


def test_an_object_that_cannot_be_shown_is_said(model):
    runs = [Trainer(config(seed=seed), model) for seed in range(2)]
    board = CompareDashboard(runs)
    board.button['step'].click()
    def mesh(resolution): raise ConfigError('not finite')
    runs[1].mesh = mesh
    board.button['step'].click()
    assert 'seed 1: not finite' in board.error.value and not board.running


def test_an_old_error_of_a_run_that_is_done_stops_no_other(model):
    runs = [Trainer(config(iters=n), model) for n in (1, 3)]
    board = CompareDashboard(runs)
    board.button['step'].click()
    board.drivers[0].error = 'its result could not be written'
    board.run()
    assert [t.step_count for t in runs] == [1, 3] and not board.error.value


def test_a_result_that_could_not_be_written_is_tried_again(model, tmp_path, monkeypatch):
    "By the same dashboard, and by a later one on the same folder"
    folder, finish = tmp_path/'run', driver.write_outputs
    board = StepDashboard(Trainer(config(iters=2), model, folder=folder))
    assert board.button['run'].disabled is False
    monkeypatch.setattr(driver, 'write_outputs', lambda result: 1/0)
    for _ in range(2): board.button['step'].click()
    assert ('ZeroDivisionError' in board.error.value and board.button['step'].disabled
            and not board.button['run'].disabled)
    assert 'not written' in board.page.note
    board.button['run'].click()
    assert 'ZeroDivisionError' in board.error.value and not board.button['run'].disabled
    monkeypatch.setattr(driver, 'write_outputs', finish)
    shutil.rmtree(folder/'checkpoints')    # as if the last save had not come through, either
    board.button['run'].click()
    assert (not board.error.value and driver.is_finished(folder) and board.button['run'].disabled
            and 'not written' not in board.page.note)
    (folder/'model.glb').unlink()
    later = StepDashboard(Trainer.resume(folder, model))
    assert not later.button['run'].disabled
    later.button['run'].click()
    assert (folder/'model.glb').exists() and later.button['run'].disabled
    whole = StepDashboard(Trainer(config(iters=1), model, folder=tmp_path/'whole'))
    whole.button['step'].click()
    assert whole.button['run'].disabled and 'not written' not in whole.page.note


def test_a_comparison_tries_again_to_write_results(model, tmp_path, monkeypatch):
    trainers = {name: Trainer(config(iters=2, seed=i), model, folder=tmp_path/name)
                for i, name in enumerate(('one', 'two'))}
    board, finish = CompareDashboard(trainers), driver.write_outputs
    def full(result):
        if result.folder.name == 'two': raise OSError('no space left')
        finish(result)
    monkeypatch.setattr(driver, 'write_outputs', full)
    for _ in range(2): board.button['step'].click()
    assert 'two: OSError' in board.error.value and not board.button['run'].disabled
    assert ['not written' in label.value for label in board.labels] == [False, True]
    written = (tmp_path/'one/model.glb').stat().st_mtime_ns
    board.button['run'].click()
    assert 'two: OSError' in board.error.value and not board.running
    monkeypatch.setattr(driver, 'write_outputs', finish)
    board.button['run'].click()
    assert not board.error.value and board.button['run'].disabled and not any('not written' in label.value
        for label in board.labels)
    assert driver.is_finished(tmp_path/'two') and (tmp_path/'one/model.glb').stat().st_mtime_ns == written


def test_pictures_of_pressed_steps_take_none_from_a_run(trainer):
    board = StepDashboard(trainer)
    for _ in range(3): board.button['step'].click()
    board.driver.spent['shown'] += 1000.
    board.driver.run()
    assert [frame.step for frame in board.driver.frames][:4] == [0, 1, 2, 3]


@pytest.mark.parametrize('stage', ['cloud', 'mesh'])
def test_a_surface_that_follows_no_run_stays_what_it_was(stage, cloud, model, tmp_path):
    "Shape, colours and texture; cut anew, and painted after the run has gone on"
    nerf = {k: v for k, v in cloud.config.flat().items() if k.startswith('nerf.')}
    made = load_config('toybox-dmtet', nerf | MESH | dict(prompt='a hamburger',
                                                          resume_from_checkpoint=str(cloud.folder)))
    trainer = Trainer(config(**{'optim.lr': .05}) if stage == 'cloud' else made, model)
    trainer.fit(2)
    surface = MeshDashboard(trainer, resolution=24)
    surface.following.value, surface.texture.value = False, 512
    def look(name):
        surface.path.value = str(tmp_path/f'{name}.obj')
        surface.button['export'].click()
        assert 'wrote' in surface.error.value
        texture = (tmp_path/f'{name}-albedo.png').read_bytes()
        return surface.mesh.vertices.copy(), surface.mesh.visual.vertex_colors.copy(), texture
    first = look('first')
    trainer.fit(6)
    surface.cut()
    again = look('again')
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all() and first[2] == again[2]
    surface.button['refresh'].click()
    later = look('later')
    assert later[2] != first[2] and trainer.renderer.training


def test_zeros_are_drawn_where_they_can_be():
    history = [dict(step=0, opacity=.5, grad_norm=2., entropy=0.), dict(step=1, opacity=0., grad_norm=0.)]
    def shown(names, **options):
        return [(name, x.tolist(), y.tolist()) for name, x, y in plots.history_columns(history, names, **options)]
    assert shown(['opacity', 'orientation']) == [('opacity', [1, 2], [.5, 0.])]
    assert shown(['grad_norm', 'entropy'], log=True) == [('grad_norm', [1], [2.])]


def test_few_normals_are_those_of_the_whole_picture(trainer):
    """From the samples of the first of several pictures, in each n-th row and column, also where n does not divide the
    size"""
    step = trainer.step()
    assert step.normal is None and driver.step_pictures(trainer, step)['normal'].shape == (3, 24, 24)
    trainer.renderer.field.density_bias = 3.
    trainer.renderer.update(0, trainer.generator)
    out = trainer.renderer(orbit(2), 21, 34, return_normal=True)
    assert out.opacity.max() > .9 > .1 > out.opacity.min()
    for side, n in ((7, 3), (10, 2), (32, 1)):
        few = driver.sampled_normals(trainer.renderer.field, out, side)
        assert torch.allclose(few, normal_map(out)[0, :, ::n, ::n], atol=1e-5)


def test_a_cell_that_shows_the_same_trainer_again(model, monkeypatch):
    "Its run goes on"
    async def main():
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 'first'))
        old = StepDashboard(Trainer(config(iters=500), model))
        old.driver.run()
        await asyncio.sleep(.05)
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 'second'))
        new = StepDashboard(old.trainer)
        assert new.driver.running and set(new.driver.watchers) == {new} and new.button['run'].description == 'Pause'
        new.driver.pause()
        await new.driver.task
    asyncio.run(main())


def test_a_strong_guidance_is_shown_as_it_is(model):
    board = StepDashboard(Trainer(config(guidance_scale=300.), model))
    assert board.controls['guidance_scale'].value == 300 and not board.trainer.steering.active()
    board.trainer.steer(guidance_scale=700.)
    board.refresh()
    assert board.controls['guidance_scale'].value == 700


def test_overwrite_is_not_dropped(trainer):
    with pytest.raises(ConfigError, match='overwrite can be given with a prompt'):
        StepDashboard(trainer, overwrite=True)
    with pytest.raises(ConfigError, match='only with out='): StepDashboard('a hamburger', overwrite=True)


@pytest.mark.parametrize('make', [StepDashboard, FieldDashboard,
                                  lambda t: MeshDashboard(t, resolution=24), lambda t: CompareDashboard([t])])
def test_a_dashboard_that_was_left_holds_no_trainer(make, model):
    trainer = Trainer(config(), model)
    board, gone = make(trainer), weakref.ref(trainer)
    board.close()
    driver_of(trainer).step()
    board.refresh()    # a run that ends just then may still ask for it
    board.follow()
    del trainer, board
    gc.collect()
    assert gone() is None


def test_a_comparison_hears_of_other_dashboards(model):
    "And makes none of the pictures that it does not show"
    runs = [Trainer(config(seed=seed), model) for seed in range(2)]
    board = CompareDashboard(runs)
    board.button['step'].click()
    assert not board.drivers[0].frames and list(board.plot.trace('1: seed 0', 1).x) == [1]
    other = StepDashboard(runs[0])
    other.button['step'].click()
    assert '2 of 12' in board.labels[0].value and '1 of 12' in board.labels[1].value
    for _ in range(2): other.button['reset'].click()
    assert '0 of 12' in board.labels[0].value and not board.plot.trace('1: seed 0', 1).x
    board.run()
    assert [t.step_count for t in runs] == [12, 12]


def test_pressed_steps_are_saved_and_leave_one_checkpoint(model, tmp_path):
    trainer = Trainer(config(iters=50, **{'checkpoint.save_top_k': -1, 'checkpoint.every_n_train_steps': 4}), model,
                      folder=tmp_path/'run')
    board = StepDashboard(trainer)
    for n in range(1, 7):
        board.button['step'].click()
        board.driver.autosave.saved_at = -math.inf    # as if a while had passed
    assert [p.name for p in list_checkpoints(tmp_path/'run')] == ['step-000004', 'step-000006']
    assert Trainer.resume(tmp_path/'run', model).history == trainer.history
    board.driver.autosave.saved_at, board.driver.autosave.seconds = 0., math.inf    # one that takes long waits its turn
    board.button['step'].click()
    assert list_checkpoints(tmp_path/'run')[-1].name == 'step-000006'
    board.close()
    assert list_checkpoints(tmp_path/'run')[-1].name == 'step-000007'
    assert Trainer.resume(tmp_path/'run', model).history == trainer.history
    again = StepDashboard(trainer)
    for _ in range(2):
        again.driver.autosave.seconds = math.inf
        again.button['step'].click()
    assert again.driver.autosave.needed
    shutil.rmtree(tmp_path/'run')
    again.close()
    assert not (tmp_path/'run').exists()    # who has taken it away does not want it back


def test_the_last_press_is_saved_a_moment_later(model, tmp_path):
    "Where it came too early for a checkpoint of its own"
    trainer = Trainer(config(iters=9), model, folder=tmp_path/'run')
    async def story():
        board = StepDashboard(trainer)
        for _ in range(3):
            board.button['step'].click()
            # 1.5 s at a fifth of the time
            board.driver.autosave.saved_at, board.driver.autosave.seconds = time.perf_counter(), .3
        assert board.driver.autosave.needed and [p.name for p in list_checkpoints(tmp_path/'run')] == ['step-000001']
        while board.driver.autosave.needed: await asyncio.sleep(.01)
        assert [p.name for p in list_checkpoints(tmp_path/'run')] == ['step-000003']
    asyncio.run(story())
    assert Trainer.resume(tmp_path/'run', model).history == trainer.history


def test_one_folder_has_one_trainer(tmp_path):
    "Dashboards of the same run share it; one that would replace it is refused while another is open"
    small = {'data.train.width': 16, 'data.train.height': 16, 'iters': 9}
    first = StepDashboard('a mug', out=tmp_path/'run', **small)
    for _ in range(2): first.button['step'].click()
    second = StepDashboard('a mug', out=tmp_path/'run', **small)
    assert second.trainer is first.trainer
    with pytest.raises(ConfigError, match='open dashboard works in'):
        StepDashboard('a mug', out=tmp_path/'run', overwrite=True, **small)
    with pytest.raises(ConfigError, match='open dashboard works in'):
        StepDashboard('a mug', out=tmp_path/'run', seed=5, **small)
    first.close()
    second.button['step'].click()
    second.close()
    third = StepDashboard('a mug', out=tmp_path/'run', **small)
    assert third.trainer is not first.trainer and third.trainer.step_count == 3
    third.close()
    assert StepDashboard('a mug', out=tmp_path/'run', overwrite=True, **small).trainer.step_count == 0


def test_a_cell_that_is_run_again_goes_on(tmp_path, monkeypatch):
    "Also in mid-run, with the frames; one that begins anew reads its folder after the old one has saved"
    small = {'data.train.width': 16, 'data.train.height': 16, 'iters': 400}
    async def story():
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 1))
        first = StepDashboard('a mug', out=tmp_path/'run', **small)
        first.button['run'].click()
        while first.trainer.step_count < 5: await asyncio.sleep(.01)
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 2))
        second = StepDashboard('a mug', out=tmp_path/'run', **small)
        assert second.trainer is first.trainer and second.driver.running and second.driver.frames and first.comm is None
        monkeypatch.setattr(panels, 'current_cell', lambda: ('cell', 3))
        anew = StepDashboard('a mug', out=tmp_path/'run', overwrite=True, **small)
        assert not second.driver.running and anew.trainer.step_count == 0 and not list_checkpoints(tmp_path/'run')
        await asyncio.sleep(.1)
        anew.close()
    asyncio.run(story())


def test_who_pauses_sees_the_step_at_which_it_stands(model):
    "A run leaves pictures out where they would slow it"
    async def story():
        board = StepDashboard(Trainer(config(iters=400), model))
        board.button['run'].click()
        board.driver.spent['shown'] = math.inf
        while board.trainer.step_count < 3: await asyncio.sleep(.01)
        assert not board.driver.frames
        board.button['run'].click()
        await board.driver.task
        assert [frame.step + 1
                for frame in board.driver.frames] == [board.trainer.step_count] and board.driver.unseen is None
    asyncio.run(story())


def test_close_stops_a_run(model):
    async def story(make):
        runs = [Trainer(config(iters=400, seed=i), model) for i in range(2)]
        board = make(runs)
        board.button['run'].click()
        while runs[0].step_count < 2: await asyncio.sleep(.01)
        board.close()
        await asyncio.sleep(.05)
        counts = [t.step_count for t in runs]
        await asyncio.sleep(.3)
        assert [t.step_count for t in runs] == counts and board.comm is None
        board.close()    # once more does nothing
    for make in (lambda runs: StepDashboard(runs[0]), CompareDashboard): asyncio.run(story(make))


def test_what_was_refused_is_said_until_it_is_mended():
    trainer = Trainer(config())    # with the toybox prior, which knows its words
    board = StepDashboard(trainer)
    board.controls['prompt'].value = 'zorgle'
    assert ('names no toy' in board.error.value and board.controls['prompt'].value == 'zorgle'
            and trainer.steering.prompt is None)
    for _ in range(2): board.button['step'].click()
    assert 'names no toy' in board.error.value
    board.controls['prompt'].value = 'a duck'
    assert not board.error.value and trainer.steering.prompt == 'a duck'
    before = board.controls['t_range'].value
    board.controls['t_range'].value = (.9, .2)
    assert 'smaller end' in board.error.value and board.controls['t_range'].value == before
    board.controls['t_range'].value = (.2, .9)
    assert not board.error.value and trainer.steering.t_range == (.2, .9)


def test_done_leads_on(model, tmp_path, monkeypatch):
    "Without a folder: show, write, plan more steps, and the result in Python"
    monkeypatch.chdir(tmp_path)
    board = StepDashboard(Trainer(config(iters=3), model))
    assert board.button['show'].disabled and board.button['export'].disabled and board.button['more'].disabled
    for _ in range(3): board.button['step'].click()
    assert 'Export' in board.page.note and not any(board.button[name].disabled for name in ('show', 'export', 'more'))
    board.button['show'].click()
    assert len(board.outcome.children) == 1 and not board.error.value
    for name in ('a-hamburger.glb', 'a-hamburger-2.glb'):
        board.button['export'].click()
        assert name in board.page.note and (tmp_path/name).stat().st_size > 1000
    assert board.result.history == board.trainer.history and board.result.mesh(24).is_watertight
    board.button['more'].click()
    assert board.trainer.config.iters == 4 and not board.button['run'].disabled and 'done' not in board.status.value
    board.driver.run()
    assert board.trainer.step_count == 4 and 'done' in board.status.value


def test_more_steps_of_a_folder_are_those_of_a_longer_run(model, tmp_path):
    "The folder says so too, so that the run goes on after a restart"
    board = StepDashboard(Trainer(config(iters=4), model, folder=tmp_path/'run'))
    board.driver.run()
    board.button['more'].click()
    assert load_config(tmp_path/'run/config.yaml').iters == 6 and not board.driver.unwritten
    board.driver.step()
    board.driver.pause()
    later = Trainer.resume(tmp_path/'run', model)
    assert later.step_count == 5 and later.config == board.trainer.config
    board.driver.run()
    assert board.trainer.step_count == 6 and driver.is_finished(tmp_path/'run')


def test_the_newest_step_is_one_press_away(trainer):
    board = StepDashboard(trainer)
    for _ in range(4): board.button['step'].click()
    assert board.button['newest'].disabled
    for _ in range(2): board.button['back'].click()
    assert 'looking back at step 2' in board.page.note and 'step 2' in board.page.about
    board.button['newest'].click()
    assert board.page.note == '' and board.scrub.description == 'step 4' and board.button['newest'].disabled


def test_time_left_is_said_while_a_run_goes_on(trainer):
    board, now = StepDashboard(trainer), [0.]
    board.driver.pace = Pace(lambda: now[0])
    for step in range(3):    # a minute each
        board.driver.pace.count(step)
        now[0] += 60
    board.refresh()
    assert 'left' not in board.status.value
    board.driver.running = True
    board.refresh()
    assert '10 min left' in board.status.value


def test_a_press_is_heard_where_the_dashboard_lives(trainer):
    "On a thread of its own the page gets no answer while a cell runs, so it knows that its press waits"
    async def story():
        board, heard = StepDashboard(trainer), []
        board.page.send = heard.append
        page = threading.Thread(target=board.page._msg_callbacks, args=(board.page, dict(press='1'), []))
        page.start()
        page.join()
        assert not heard
        await asyncio.sleep(.01)
        assert heard == [dict(heard='1')]
    asyncio.run(story())


@pytest.mark.parametrize('make, what', [
    (lambda t: StepDashboard(t, size=0), 'size'), (lambda t: StepDashboard(t, size='x'), 'size'),
    (lambda t: FieldDashboard(t, size=2.5), 'size'),
    (lambda t: CompareDashboard([t], every=0), 'every'), (lambda t: CompareDashboard([t], size=3), 'from 16'),
    (lambda t: MeshDashboard(t, resolution=0), 'resolution')])
def test_numbers_of_dashboards(make, what, trainer):
    with pytest.raises(ConfigError, match=what): make(trainer)


def test_a_viewer_shows_what_trimesh_loads(trainer, tmp_path):
    mesh = trimesh.creation.box()
    mesh.export(tmp_path/'box.glb')
    assert Viewer(trimesh.load(tmp_path/'box.glb')).mesh_data['faces']
    assert Viewer(tmp_path/'box.glb').mesh_data == Viewer(trimesh.load(tmp_path/'box.glb')).mesh_data
    with pytest.raises(ConfigError, match='Trimesh'): Viewer(3)
    with pytest.raises(ConfigError, match="did you mean 'box.glb'"): Viewer(tmp_path/'bxo.glb')
    (tmp_path/'broken.glb').write_text('not a mesh')
    with pytest.raises(ConfigError, match='cannot be read'): Viewer(tmp_path/'broken.glb')
    with pytest.raises(traitlets.TraitError, match='did you mean'): Viewer(mesh, azimut=3)
