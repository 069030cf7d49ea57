"""What a newcomer meets in the first hour: cells that are run twice, other programs beside a run, pictures that fit,
errors in one line"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHEAP

import dreamfusion_nb
from dreamfusion_nb import ConfigError, train
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
    ('', {}, '', 1), ('torch.set_num_threads(13)', {}, '', 13), ('', dict(OMP_NUM_THREADS='7'), '', 7),
    ('', dict(OMP_NUM_THREADS='7', MKL_NUM_THREADS='7'), '', 7),
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
