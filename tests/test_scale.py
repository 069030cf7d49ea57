"Workers: the same bytes for any number of them, whoever starts them; and what happens when one dies"
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scale_parts
import torch
from conftest import CHEAP, snapshot

import dreamfusion_nb
from dreamfusion_nb import ConfigError, Trainer, cli, load_config, scale, train
from dreamfusion_nb.own_parts import OwnParts
from dreamfusion_nb.step import Stepper

ROOT = Path(dreamfusion_nb.__file__).parents[1]
FOUR = CHEAP | {'iters': 4, 'data.train.batch_size': 4, 'data.train.width': 16, 'data.train.height': 16,
                'checkpoint.every_n_train_steps': 2, 'update_extra_interval': 2}


def config(**more): return load_config('toybox', dict(prompt='a hamburger'), FOUR | more)


OWN = dict(guidance=scale_parts.teacher, background=scale_parts.sky)


def together(trainer):
    "Wait until the others are there: else so few steps would be over before"
    until = time.monotonic() + 300
    while not trainer.team.here(trainer):
        assert time.monotonic() < until
        time.sleep(.05)
    return trainer


def state(trainer):
    "All that a run has learnt, and what it drew"
    learnt = [t.clone() for t in trainer.renderer.state_dict().values()]
    moments = [held[name] for held in trainer.optimizer.state.values() for name in sorted(held)]
    return [*learnt, *moments, trainer.generator.get_state()]


def same(a, b): return len(a) == len(b) and all(map(torch.equal, a, b))


def files(folder): return {name: content for name, content in snapshot(folder).items() if name != 'log.txt'}


@pytest.fixture(scope='module')
def alone():
    "A run with one worker"
    trainer = Trainer(config(), **OWN, workers=1)
    trainer.fit()
    return trainer


# The same bytes

def test_any_number_of_workers_gives_the_same_bytes(alone, tmp_path):
    """Four, then two, of which one dies, then one: as if there had been one all the time.

    The dead one stops the run with a line and a checkpoint"""
    first = together(Trainer(config(), **OWN, folder=tmp_path, workers=4))
    first.fit(2)
    first.team.rest()
    second = together(Trainer.resume(tmp_path, **OWN, workers=2))
    def kill(trainer, record): os.kill(trainer.team.helpers[0].process.pid, signal.SIGKILL)
    with pytest.raises(scale.WorkerLost) as error: second.fit(callbacks=[kill])
    said = str(error.value)
    assert 'worker 2 of 2 has stopped: killed by signal 9' in said and 'step 3 is saved' in said and '\n' not in said
    assert second.checkpoint.exists() and second.step_count == 3
    last = Trainer.resume(tmp_path, **OWN, workers=1)
    last.fit()
    assert same(state(last), state(alone)) and last.history == alone.history


def test_splats_too():
    "Splats that `update` moves and adds, a steered prompt, a record of all views; and the others end with their run"
    ends = []
    for workers in (1, 2):
        settings = config(**{'renderer.name': 'splats', 'splats.count': 50, 'splats.max_count': 60})
        trainer = Trainer(settings, workers=workers, **OWN)
        with torch.no_grad(): trainer.field.raw_opacity[:9] = -9.    # dead
        trainer.fit(1)
        if workers > 1: together(trainer)
        trainer.steer(prompt='a duck', guidance_scale=3.)
        record = trainer.fit(2)
        assert record.image.shape == (4, 3, 16, 16) and len(record.t) == 4 and (trainer.field.opacity > .001).all()
        assert 50 < len(trainer.field) <= 60
        ends.append([*state(trainer), record.image, record.noise_pred])
        assert len(trainer.team.helpers) == workers - 1
        trainer.reset()
        assert same(state(trainer), state(Trainer(settings, **OWN))) and trainer.team.here(trainer) == (workers > 1)
    assert same(*ends)
    trainer.team.group = trainer.team.carrier = None    # as if this process were gone
    trainer.team.helpers[0].process.wait(300)


def test_the_sum_is_that_of_all_views():
    "What two workers add up is the gradient of all four views"
    stepper = Stepper(config(), OwnParts(**OWN))
    stepper.team = scale.Team(1)
    cameras = stepper.cameras()
    look, light = scale.ShadingChoice('albedo', 1., False), cameras.position
    job = cameras, look, light, [5, 6, 7, 8]
    rows = [scale.view_of(stepper, i, *job).added for i in range(4)]
    total = scale.add_up(rows)
    assert torch.allclose(total, sum(rows), atol=1e-4) and not torch.allclose(total, 4*rows[0], atol=1e-4)
    assert torch.equal(rows[2], scale.view_of(stepper, 2, *job).added)    # whatever came before


def test_command_and_launcher_write_the_same_files(pipeline, tmp_path):
    "One worker, and two that torchrun has started: rank 0 writes, and the other one has nothing to say"
    words = ['a hamburger', '--guidance', str(pipeline), *(f'{key}={value}' for key, value in FOUR.items())]
    assert cli.main([*words, '--out', str(tmp_path/'one'), '--workers', '1']) == 0
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m',
                          'dreamfusion_nb.cli', *words, '--out', str(tmp_path/'two')], text=True, timeout=600,
                         capture_output=True, env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('model.glb') == 1 and 'Traceback' not in run.stderr
    assert files(tmp_path/'one') == files(tmp_path/'two')


# Workers that die

def test_the_message_of_a_worker_arrives(monkeypatch):
    monkeypatch.setenv('HERE', '1')
    trainer = Trainer(config(), guidance=scale_parts.teacher, background=scale_parts.bad_sky, workers=2)
    monkeypatch.delenv('HERE')
    with pytest.raises(ConfigError, match='worker 2 of 2 has stopped.*bad_sky.*no sky in this process'):
        together(trainer)


# Bad input
@pytest.mark.parametrize('more, said', [
    (dict(workers=0), "workers must be a whole number from 1 to 64, or 'auto'"),
    (dict(workers='atuo'), "did you mean 'auto'?"),
    (dict(workers=2.), 'not 2.0'),
    (dict(workers=True), 'not True'),
    (dict(workers=5), 'workers: 5 are more than the views of a step: set data.train.batch_size to 5 or more'),
    (dict(workers=2, background=lambda config, generator: None), 'background: .*cannot be sent to a worker'),
    (dict(workers=2, losses=dict(mine=lambda out, field, generator: 0)), 'losses: .*cannot be sent to a worker')])
def test_bad_input(more, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        train('a hamburger', out=tmp_path/'out', progress=False, **FOUR, **more)
    assert '\n' not in str(error.value) and not (tmp_path/'out').exists()


def test_the_command_says_it_too(capsys, tmp_path):
    out = ['--out', str(tmp_path/'out')]
    assert cli.main(['a hamburger', '--workers', '3', *out]) == 2
    assert 'workers: 3 are more than the views of a step' in capsys.readouterr().err
    assert cli.main(['a hamburger', '--workers', 'two', *out]) == 2
    assert "not 'two'" in capsys.readouterr().err and not (tmp_path/'out').exists()


def test_where_no_process_can_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', str(tmp_path/'nothing'))
    scale.why_no_process.cache_clear()
    try:
        settings = config()
        with pytest.raises(ConfigError, match='no process can be started here .*leave out workers'):
            Trainer(settings, **OWN, workers=2)
        assert scale.workers_for('auto', settings) == 1
    finally: scale.why_no_process.cache_clear()


def test_a_port_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in dict(RANK=0, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ConfigError, match=f'workers: port {port} is in use; choose another'):
            train('a hamburger', progress=False, **FOUR)
        with pytest.raises(ConfigError, match='workers: 3, but the launcher has started 2 processes'):
            train('a hamburger', progress=False, workers=3, **FOUR)


def test_auto_takes_no_more_than_pay(monkeypatch):
    def auto(views, cores, room=99):
        monkeypatch.setattr(scale, 'physical_cores', lambda: cores)
        monkeypatch.setattr(scale, 'memory_for', lambda: room)
        return scale.workers_for('auto', load_config('toybox', dict(prompt='a duck'), {'data.train.batch_size': views}))
    assert [auto(4, 2), auto(4, 3), auto(4, 4), auto(4, 9), auto(1, 9), auto(6, 4), auto(4, 4, 0)] == \
        [2, 2, 4, 4, 1, 3, 1]
    assert [scale.Team(3, rank=r).views(4) for r in range(3)] == [range(0, 1), range(1, 2), range(2, 4)]
    assert scale.memory_for() >= 0


# How threads wait

def python(code, **env):
    given = {name: value for name, value in os.environ.items() if name not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    run = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, timeout=300,
                         env=given | dict(PYTHONPATH=str(ROOT)) | env)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def test_threads_sleep_while_they_wait():
    code = 'import dreamfusion_nb, os; print(os.environ.get("OMP_WAIT_POLICY"))'
    assert python(code) == 'PASSIVE\n'
    assert python(code, OMP_WAIT_POLICY='active') == 'active\n' and python(code, GOMP_SPINCOUNT='100') == 'None\n'


def test_a_late_import_says_so():
    code = '''if True:
        import torch
        from dreamfusion_nb import load_config, threads
        torch.set_num_threads(2)
        config = load_config('dreamfusion', dict(prompt='a duck'))
        for _ in range(2):
            with threads.limit_for(config, 'cpu', 512): print(torch.get_num_threads(), threads.spins())'''
    said = python(code, OMP_NUM_THREADS='2')
    assert said.count('2 True') == 2 and said.count('2 threads spin while they wait') == 1
    assert 'spin while' not in python(code.replace('import torch', 'import dreamfusion_nb, torch'))
