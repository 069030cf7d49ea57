"""What a newcomer meets in the first hour: cells that are run twice, other programs beside a run, pictures that fit,
errors in one line"""
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHEAP, MESH, snapshot
from jupyter_client import KernelManager
from PIL import Image

import dreamfusion_nb
from dreamfusion_nb import ConfigError, Trainer, checkpoints, cli, estimate, load, load_config, progress, run, train
from dreamfusion_nb.errors import Interrupted
from dreamfusion_nb.raymarch import VolumeRenderer
from dreamfusion_nb.result import RESULT_BACKGROUND, Result
from dreamfusion_nb.threads import limit_threads

ROOT = Path(dreamfusion_nb.__file__).parents[1]


# Threads

COUNT = '''
import json, sys
import torch
from dreamfusion_nb import train
from dreamfusion_nb.guidance import LatentDiffusion
given = json.loads(sys.argv[1])
seen, before = set(), torch.get_num_threads()
def look(trainer, record):
    seen.add(torch.get_num_threads())
    if given.get('iters') == 1: 1/0
try:
    result = train('a mug', guidance=LatentDiffusion.from_pretrained(sys.argv[2]),
                   out=sys.argv[3], progress=False, callbacks=[look], **given)
    render = result.renderer.forward
    result.renderer.forward = lambda *args, **options: seen.add(torch.get_num_threads()) or render(*args, **options)
    result.render(size=16)
    result.export(sys.argv[3] + '/x.glb', resolution=16)
except ZeroDivisionError: pass
import numba
assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
print('counts', *seen, before, torch.get_num_threads())
'''
ASK = '''
import torch
{before}
from dreamfusion_nb.threads import limit_for
from dreamfusion_nb import load_config
number = torch.get_num_threads()
with limit_for(load_config('toybox', dict({given})), 'cpu', 64): print('counts', torch.get_num_threads(), number)
'''


def counts(program, *words, **env):
    "The numbers that a program of its own prints, in an environment that says nothing about threads but `env`"
    clean = {k: v for k, v in os.environ.items() if not k.endswith('_NUM_THREADS')} | dict(PYTHONPATH=str(ROOT),
        HF_HUB_OFFLINE='1') | env
    done = subprocess.run([sys.executable, '-c', program, *map(str, words)], env=clean, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith('counts')), None)
    assert line, done.stderr
    return [int(word) for word in line.split()[1:]]


@pytest.mark.parametrize('iters', [3, 1])
def test_small_work_runs_on_one_thread(iters, pipeline, tmp_path):
    """And the caller's number comes back, also after an error (here in the callback of a run of one step); so does
    Numba's"""
    *seen, before, after = counts(COUNT, json.dumps(CHEAP | dict(iters=iters)), pipeline, tmp_path)
    assert seen == [1] and before == after


@pytest.mark.parametrize('before, env, given, wanted', [
    ('', {}, '', 1), ('torch.set_num_threads(13)', {}, '', 13), ('', dict(OMP_NUM_THREADS='7'), '', None),
    ('', dict(OMP_NUM_THREADS='7', MKL_NUM_THREADS='7'), '', None),
    ('', dict(NUMBA_NUM_THREADS='1'), '', None), ('', {}, '{"data.train.width": 136}', None)])
def test_a_number_of_threads_that_the_user_chose_stays(before, env, given, wanted):
    "So does the number for large work; None: whatever it was"
    inside, outside = counts(ASK.format(before=before, given=given), **env)
    assert inside == (wanted or outside)


def test_threads_of_a_run(model, tmp_path):
    seen, before = [], torch.get_num_threads()
    look = lambda trainer, record: seen.append(torch.get_num_threads())    # noqa: E731
    train('a mug', guidance=model, out=tmp_path/'x', threads=2, progress=False, callbacks=[look],
          **CHEAP | dict(iters=1))
    assert seen == [2] and torch.get_num_threads() == before


@pytest.mark.parametrize('threads', [0, 1.5, 'many', True])
def test_numbers_of_threads_that_cannot_be(threads, model, tmp_path):
    with pytest.raises(ConfigError, match='threads must be a whole number'):
        train('a mug', guidance=model, out=tmp_path/'x', threads=threads, progress=False, **CHEAP)
    assert not list(tmp_path.iterdir())


def test_blocks_of_threads_nest():
    before = torch.get_num_threads()
    with limit_threads(3):
        with limit_threads(None): assert torch.get_num_threads() == 3
        with limit_threads(1): assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


# A cell that is run again

FEW = CHEAP | dict(iters=2)


def folders(): return sorted(str(p) for p in Path('outputs').iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(**given): return train('a hamburger', progress=False, **FEW | given)


def no_step(trainer, record): pytest.fail('a step was made')
def stop(trainer, record): raise KeyboardInterrupt


@pytest.mark.parametrize('given', [{}, dict(out='mine')])
def test_the_same_cell_twice(given, model, here):
    "The finished result is read back, in a moment, and nothing on the disk changes"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        first = again(guidance=model, **given)
    before = snapshot(here)
    with pytest.warns(UserWarning) as said: second = again(guidance=model, callbacks=no_step, **given)
    assert (second.folder, second.config, second.history) == (first.folder, first.config, first.history)
    assert snapshot(here) == before
    line, = (str(each.message) for each in said)
    assert '\n' not in line and f'loaded the finished result in {first.folder}' in line


def test_a_changed_cell_takes_a_numbered_folder(model, here):
    again(guidance=model)
    before = snapshot(here/'outputs/a-hamburger')
    changed = again(guidance=model, guidance_scale=30.)
    assert changed.folder == Path('outputs/a-hamburger-2')
    assert folders() == ['outputs/a-hamburger', 'outputs/a-hamburger-2']
    assert snapshot(here/'outputs/a-hamburger') == before
    # each finds its own again, and a third one the next number
    assert again(guidance=model, guidance_scale=30.).folder == changed.folder
    assert again(guidance=model).folder == Path('outputs/a-hamburger')
    assert again(guidance=model, guidance_scale=40.).folder == Path('outputs/a-hamburger-3')
    # a folder of somebody else is no place for a run
    Path('outputs/a-hamburger-4').mkdir()
    Path('outputs/a-hamburger-4/thesis.tex').write_text('five years of work')
    assert again(guidance=model, guidance_scale=50.).folder == Path('outputs/a-hamburger-5')
    assert again(guidance=model, guidance_scale=50., overwrite=True).folder == Path('outputs/a-hamburger')
    assert again(guidance=model).folder == Path('outputs/a-hamburger-6')    # what was overwritten is made again


def test_a_changed_cell_with_a_folder_is_refused(model, here):
    again(guidance=model, out='mine')
    before = snapshot(here)
    says = r'mine already holds a finished result \(guidance_scale is [\d.]+ there, 30.0 here\).*out=.*overwrite=True'
    with pytest.raises(ConfigError, match=says): again(guidance=model, out='mine', guidance_scale=30.)
    assert snapshot(here) == before


@pytest.mark.parametrize('blocked', [False, True])
def test_an_interrupted_cell_goes_on(blocked, model, here):
    "Also in a numbered folder"
    if blocked: again(guidance=model, guidance_scale=30.)
    says = r'^after step 1 of 2, which is saved in outputs/a-hamburger(-2)?; run the same call again to go on$'
    with pytest.raises(KeyboardInterrupt, match=says): again(guidance=model, callbacks=[stop])
    steps = []
    result = again(guidance=model, callbacks=[lambda trainer, record: steps.append(record.step)])
    assert steps == [1] and len(folders()) == 1 + blocked
    assert result.folder == Path('outputs/a-hamburger' + '-2'*blocked)


def test_an_interrupt_while_files_are_written(model, here, monkeypatch):
    says = 'after step 2 of 2, .* to write the preview, the video and the mesh'
    with monkeypatch.context() as patch:
        patch.setattr(run, 'write_mesh', stop)
        with pytest.raises(KeyboardInterrupt, match=says): again(guidance=model)
    assert again(guidance=model, callbacks=no_step).folder == Path('outputs/a-hamburger')


def test_another_guidance_object_is_another_run(model, pipeline, here):
    "The configuration knows only the class"
    again(guidance=model)
    other = type(model).from_pretrained(pipeline)
    assert again(guidance=other).folder == Path('outputs/a-hamburger-2')
    assert again(guidance=model).folder == Path('outputs/a-hamburger')
    assert again(guidance=other).folder == Path('outputs/a-hamburger-2')


def test_refine_twice(model, here):
    "The finished mesh is read back; one of a NeRF that was made anew is another one"
    nerf, few = again(guidance=model), MESH | dict(iters=1, guidance=model, progress=False)
    refined = nerf.refine(**few)
    assert refined.folder == Path('outputs/a-hamburger-refined')
    for path in nerf.folder.rglob('*'): os.utime(path, (2**32, 2**32))    # as a clock that is set back leaves it
    assert nerf.refine(callbacks=no_step, **few).folder == refined.folder
    assert nerf.refine(seed=8, **few).folder == Path('outputs/a-hamburger-refined-2')
    newer = again(guidance=model, overwrite=True, seed=5)
    assert newer.refine(seed=0, **few).folder == Path('outputs/a-hamburger-refined-3')


def test_two_programs_in_one_folder(model, here):
    "The second one is told so. When the first has ended, however it ended, nothing is left of its lock"
    seen = []
    def meet(trainer, record):
        with pytest.raises(ConfigError, match='another run is at work in outputs/a-hamburger:'): again(guidance=model)
        seen.append(again(guidance=model, guidance_scale=30.).folder)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): again(guidance=model, callbacks=[meet])
    assert seen == [Path('outputs/a-hamburger-2')]
    assert again(guidance=model).folder == Path('outputs/a-hamburger')
    assert not [name for name in os.listdir('outputs/a-hamburger') if 'lock' in name]


@pytest.mark.parametrize('machine', ['this', 'another'])
def test_weak_locks(machine, model, here, monkeypatch):
    """A network file system that grants the lock twice: a second process is refused while the first one lives, on its
    machine by its number, on another one by its signs of life. A copy of the folder is nobody's"""
    folder = Path('outputs/a-hamburger')
    def stop_in(name):
        def at_once(trainer, record): raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError): again(guidance=model, out=folder, callbacks=[at_once])
        (folder/checkpoints.HOLDER).write_text(name + f' {folder.stat().st_ino}')
    other = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    if machine == 'another':
        # each look of ours is a second in which the other one may touch its file
        def second(_):
            if other.poll() is None: os.utime(folder/checkpoints.HOLDER, (0, looks.append(0) or len(looks)))
        looks = []
        monkeypatch.setattr(checkpoints.time, 'sleep', second)
    host = socket.gethostname() if machine == 'this' else 'elsewhere'
    stop_in(f'{host} {other.pid} {checkpoints.process_start(other.pid)}')
    with pytest.raises(ConfigError, match=f'outputs/a-hamburger: wait for it .process {other.pid} on {host}'):
        again(guidance=model, out=folder)
    shutil.copytree(folder, 'copy')
    assert not checkpoints.is_held(Path('copy'))
    other.communicate(b'')
    assert again(guidance=model, out=folder).folder == folder
    assert not (folder/checkpoints.HOLDER).exists()


def test_a_folder_that_is_renamed(model, here):
    "The run says so and writes nothing under the old name; under the new one it goes on"
    folder, moved = Path('outputs/a-hamburger'), Path('outputs/moved')
    def rename(trainer, record):
        if trainer.step_count == 1: folder.rename(moved)
    with pytest.raises(ConfigError, match='is no longer the folder in which this run began'):
        again(guidance=model, callbacks=[rename])
    assert not folder.exists()
    assert again(guidance=model, out=moved).folder == moved


def test_a_result_that_waits_is_not_taken_for_another(model, here):
    "A finished result that an interrupted run replaces stays beside it"
    again(guidance=model)
    with pytest.raises(KeyboardInterrupt):
        again(guidance=model, guidance_scale=30., overwrite=True, callbacks=[stop])
    assert folders() == ['outputs/a-hamburger', 'outputs/a-hamburger.replaced']
    assert again(guidance=model).folder == Path('outputs/a-hamburger-2')
    assert again(guidance=model, guidance_scale=30.).folder == Path('outputs/a-hamburger')
    assert folders() == ['outputs/a-hamburger', 'outputs/a-hamburger-2']


def test_the_command_twice(pipeline, here, capfd):
    "A finished job is reported with exit code 0, and is not made again"
    words = ['a hamburger', '--guidance', str(pipeline), *(f'{k}={v}' for k, v in FEW.items())]
    assert cli.main(words) == 0
    before = snapshot(here)
    capfd.readouterr()
    assert cli.main(words) == 0
    said = capfd.readouterr()
    assert snapshot(here) == before and 'outputs/a-hamburger/model.glb' in said.out and 'Traceback' not in said.err
    assert cli.main([*words, 'guidance_scale=30']) == 0
    assert folders() == ['outputs/a-hamburger', 'outputs/a-hamburger-2']


# One line

@pytest.mark.parametrize('callbacks', [print, [print], (print,)])
def test_callbacks(callbacks, model, here, capsys):
    again(guidance=model, callbacks=callbacks)
    assert capsys.readouterr().out.count('StepRecord(') == 2


@pytest.mark.parametrize('callbacks', [7, [7], 'print', None])
def test_callbacks_that_cannot_be(callbacks, model, here):
    with pytest.raises(ConfigError, match='callbacks must be'): again(guidance=model, callbacks=callbacks)
    assert not list(here.iterdir())


@pytest.mark.parametrize('error', [ConfigError('iters must be 1 or more, not 0'), Interrupted('after step 3 of 9')])
def test_a_notebook_shows_one_line(error):
    "What IPython shows of them, in a shell of its own"
    def shown(first):
        code = f'from dreamfusion_nb.errors import *; raise {type(error).__name__}({str(error)!r})'
        program = ('from IPython.core.interactiveshell import InteractiveShell; '
                   f'shell = InteractiveShell.instance(colors="nocolor"); {first}; shell.run_cell({code!r})')
        env = os.environ | dict(PYTHONPATH=str(ROOT))
        return subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True)
    done = shown('pass')
    assert done.stdout.strip() == f'{type(error).__name__}: {error}' and 'Traceback' not in done.stderr
    assert 'raise ' in shown('shell.run_line_magic("xmode", "Verbose")').stdout


# Time

@pytest.mark.parametrize('seconds, lines', [(6., 2), (.001, 1)])
def test_a_long_run_says_so_once(seconds, lines, monkeypatch):
    "In the live cell, where it stays: before the first step that the preset is large, after a few how long it takes"
    now, shown = [0.], []
    monkeypatch.setattr(estimate, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress, 'open_output', lambda text: lambda body, last: shown.append(body))
    cell = progress.LiveCell(every=0.)
    cell.pace.clock = lambda: now[0]
    config = load_config('dreamfusion', dict(prompt='a mug'))
    stub = types.SimpleNamespace(config=config, device='cpu', history=[], step_count=0)
    stub.glance = lambda: Image.new('RGB', (8, 8))
    for step in range(1, 20):
        now[0] += seconds if step > 1 else 60.    # the first step compiles
        stub.step_count = step
        cell(stub, None)
    assert len(cell.advice) == lines and 'preset toybox takes minutes' in shown[0]
    assert ('about 16 h' in shown[8]) == (lines == 2) and shown[8].count('to go:') == lines - 1
    assert 'first step is done' in shown[0] and 'left' in shown[1]


def test_what_is_written_is_said(model, here):
    said = []
    result = again(guidance=model)
    run.write_outputs(result, said.append)
    wanted = ['cutting out the surface', 'writing preview.png', 'writing turntable.mp4', 'writing model.glb']
    assert list(dict.fromkeys(line.split(',')[0] for line in said)) == wanted


# The camera fits the object

class Tower(torch.nn.Module):
    "A field of somebody's own: taller than the usual picture"
    def __init__(self, size):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(size))

    def density(self, x): return 60.*(x.abs() < self.size).all(-1).float()
    def forward(self, x): return self.density(x), torch.full_like(x, .2)


@pytest.fixture(scope='module')
def tower():
    renderer = VolumeRenderer(Tower([.2, .93, .2]), (1., 1., 1.), grid_resolution=48, max_steps=160)
    for step in range(0, 64, 16): renderer.update(step, torch.Generator().manual_seed(0))
    return Result(load_config('toybox', {'prompt': 'a purple owl', 'nerf.bound': 1.}), renderer)


def object_of(picture):
    "Where a picture is not background: (left, top, right, bottom) as shares of its sides"
    pixels = torch.tensor(np.array(picture.convert('RGB'))).float()/255
    shown = (pixels - torch.tensor(RESULT_BACKGROUND)).abs().amax(-1) > .03
    rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
    height, width = shown.shape
    return columns[0].item()/width, rows[0].item()/height, (columns[-1].item() + 1)/width, (rows[-1].item() + 1)/height


def test_nothing_is_cut_off(tower):
    "A border of two hundredths stays empty in every view, and an object fills a good part of the picture"
    views = [*tower.turntable(5, size=64), *(tower.render(40., elevation, size=64) for elevation in (-50., 0., 50.))]
    views += [tower.render(20., fovy=fovy, size=64) for fovy in (10., 45.)]
    sheet, gap = tower.preview(64), 64
    views += [sheet.crop((x, y, x + gap, y + gap)) for x in range(0, sheet.width - 63, (sheet.width - 64)//2)
              for y in (0, sheet.height - 64)]
    for view in views:
        left, top, right, bottom = object_of(view)
        assert min(left, top) >= .02 and max(right, bottom) <= .98
    assert object_of(views[0])[3] - object_of(views[0])[1] > .7
    # a turntable does not pump: one distance for all
    heights = [object_of(view)[3] - object_of(view)[1] for view in tower.turntable(6, size=64)]
    assert max(heights) - min(heights) < .07


def test_a_radius_of_ones_own_stays(tower):
    top = object_of(tower.render(radius=3.2, size=64))[1]
    assert top == 0 and object_of(tower.render(size=64))[1] > 0
    wide = object_of(tower.preview(64, 32).crop((0, 0, 32, 64)))
    assert wide[0] >= .02 and wide[2] <= .98


def test_the_films_of_a_run_fit(tower):
    cameras = run.film_cameras(tower)
    assert cameras.radius.unique().tolist() == pytest.approx([tower.framing()]) and tower.framing() > 3.2
    near = Result(tower.config.replace({'data.test.default_radius': 2.5}), tower.renderer)
    assert run.film_cameras(near).radius.unique().tolist() == [2.5]


@pytest.mark.parametrize('use, says', [
    (dict(size='big'), "size must be a whole number of pixels from 1 to 16384, not 'big'"),
    (dict(size=0), 'not 0'), (dict(shading='blue'), "shading must be one of albedo, .*, not 'blue'"),
    (dict(shading='lambertain'), "did you mean 'lambertian'"), (dict(shading=['albedo']), 'shading must be'),
    (dict(shading='phong'), 'needs a material'), (dict(azimuth='left'), "azimuth must be degrees, not 'left'"),
    (dict(elevation=91), 'elevation must be degrees from -90 to 90'), (dict(radius=-1.), 'radius must be a distance'),
    (dict(fovy=0), 'fovy must be degrees'), (dict(azimuth=float('nan')), 'azimuth must be degrees')])
def test_pictures_that_cannot_be(use, says, tower):
    with pytest.raises(ConfigError, match=says) as error: tower.render(**use)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('n', [-1, 0, 2.5, 'all'])
def test_turntables_that_cannot_be(n, tower, tmp_path):
    with pytest.raises(ConfigError, match='n must be a whole number of views'): tower.turntable(n)
    with pytest.raises(ConfigError, match='n must be a whole number of views'): tower.video(tmp_path/'x.mp4', n)
    with pytest.raises(ConfigError, match='size must be a whole number'): tower.preview('big')
    with pytest.raises(ConfigError, match='size must be a whole number'): tower.video(tmp_path/'x.mp4', height='big')
    assert not list(tmp_path.iterdir())


def test_a_trainer_needs_a_configuration():
    with pytest.raises(ConfigError, match=r"config must be a Config, .* not 'a duck'; train\(.*\) takes a prompt"):
        Trainer('a duck')


# Help

@pytest.mark.parametrize('function', [train, load, Trainer])
def test_help_describes_every_parameter(function):
    "`train?` shows the docstring: each parameter has a line in it"
    text = inspect.getdoc(function)
    for name, parameter in inspect.signature(function).parameters.items():
        assert re.search(rf'^ *(\*\*)?{name}\b.*: \S', text, re.M), name


# A page that is reloaded while a cell runs

BUSY = '''
import os, time
from dreamfusion_nb.progress import answer_pages
print('begun')
while not os.path.exists({flag!r}):
    answer_pages()
    time.sleep(.01)
print('ended')
'''


def test_a_busy_kernel_answers_a_new_page_and_keeps_the_order_of_its_cells(tmp_path):
    "What a reloaded page asks first is answered between two steps; cells that wait are run afterwards, in their order"
    manager = KernelManager()
    manager.start_kernel(env=os.environ | dict(PYTHONPATH=str(ROOT)))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=300)
        cells = [client.execute(BUSY.format(flag=str(tmp_path/'go'))), client.execute('2'), client.execute('3')]
        while client.get_iopub_msg(timeout=300)['content'].get('text') != 'begun\n': pass
        asked, answered = [client.kernel_info(), client.comm_info()], []
        while len(answered) < 2:    # the replies to what `wait_for_ready` asked may still be there
            reply = client.get_shell_msg(timeout=300)
            if reply['parent_header']['msg_id'] in asked: answered.append(reply['msg_type'])
            assert reply['parent_header']['msg_id'] not in cells
        (tmp_path/'go').touch()
        replies = [client.get_shell_msg(timeout=300) for _ in cells]
        assert [reply['parent_header']['msg_id'] for reply in replies] == cells
        assert [reply['content']['execution_count'] for reply in replies] == [1, 2, 3]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
