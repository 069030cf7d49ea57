"The benchmark from outside: bad input in one line, and an interruption that costs nothing"
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dreamfusion_nb.metrics import main

COMMAND = [sys.executable, '-m', 'dreamfusion_nb.metrics']
TINY = ['iters=6', 'data.train.width=24', 'data.train.height=24', 'data.val.width=16', 'data.val.height=16',
        'data.test.width=16', 'data.test.height=16',
        'data.test.size=4', 'renderer.grid_resolution=16', 'renderer.max_steps=32', 'nerf.n_levels=3',
        'nerf.log2_hashmap_size=10', 'nerf.hidden_dims=8']


ONE = dict(os.environ, OMP_NUM_THREADS='1', NUMBA_NUM_THREADS='1')    # a worker of two has one thread


def run(*words, cwd):
    return subprocess.run([*COMMAND, *map(str, words)], cwd=cwd, env=ONE, capture_output=True, text=True, timeout=600)


def scores(folder):
    "What a benchmark says of its prompts, without the seconds that it took"
    return [{k: v for k, v in row.items() if k != 'seconds'}
            for row in json.loads((folder/'scores.json').read_text())['rows']]


@pytest.fixture(scope='module')
def two_at_a_time(tmp_path_factory):
    "The folder of a benchmark that nothing disturbed"
    folder = tmp_path_factory.mktemp('two')
    (folder/'set.txt').write_text('a duck\na red mug\n')
    done = run('--prompts', 'set.txt', '--out', 'bench', '--jobs', '2', *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder/'bench'


@pytest.mark.parametrize('words,complaint', [
    (['--prompts', 'nowhere.txt'], "no set or file 'nowhere.txt'"),
    (['--prompts', 'heldout23'], "did you mean 'heldout24'"),
    (['--prompts', 'empty.txt'], 'is empty'),
    (['--prompts', 'twice.txt'], "'A duck' occurs twice"),
    (['--prompts', 'single.txt'], 'needs two that differ, not 1'),
    (['--prompts', 'unknown.txt'], 'names no toy'),
    (['--prompts', 'bytes.txt'], 'cannot be read as text'),
    (['--prompts', 'one.txt', '--clip', 'nowhere'], "no CLIP folder 'nowhere'"),
    (['--prompts', 'one.txt', '--clip', 'noclip'], 'is no CLIP folder'),
    (['--prompts', 'one.txt', '--jobs', '0'], '--jobs: at least 1'),
    (['--prompts', 'one.txt', 'itres=3'], "did you mean iters"),
    (['--prompts', 'one.txt', '--out', 'full'], 'no benchmark of ours'),
])
def test_bad_input_is_one_line_and_leaves_nothing(words, complaint, tmp_path, monkeypatch, capsys):
    files = {'empty.txt': '# a comment\n\n', 'twice.txt': 'a duck\na mug\nA duck\n',
             'single.txt': 'a duck\n', 'unknown.txt': 'a duck\na pangolin\n', 'one.txt': 'a duck\na mug\n'}
    for name, text in files.items(): (tmp_path/name).write_text(text)
    (tmp_path/'bytes.txt').write_bytes(b'\xff\xfe\xfa')
    (tmp_path/'noclip').mkdir()
    (tmp_path/'noclip'/'config.json').write_text(json.dumps(dict(model_type='bert')))
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'holiday.jpg').write_text('mine')
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.strip().count('\n') == 0
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*')) == before


def test_a_mesh_without_faces_is_named():
    import trimesh

    from dreamfusion_nb.config import ConfigError
    from dreamfusion_nb.metrics import chamfer, f_score, volume_iou
    empty, ball = trimesh.Trimesh(), trimesh.creation.icosphere(1)
    for measure in (chamfer, f_score, volume_iou):
        for pair in ((empty, ball), (ball, empty)):
            with pytest.raises(ConfigError, match='no faces'): measure(*pair)
        with pytest.raises(ConfigError, match='not PointCloud'): measure(trimesh.PointCloud([[0, 0, 0]]), ball)


def test_an_interrupted_benchmark_keeps_what_is_finished(two_at_a_time, tmp_path, monkeypatch, capsys):
    "One prompt at a time, and with a break between them, it says what two at a time say"
    (tmp_path/'set.txt').write_text('a duck\na red mug\n')
    words = ['--prompts', 'set.txt', '--out', 'bench', *TINY]
    job = subprocess.Popen([*COMMAND, *words], cwd=tmp_path, env=ONE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    first = tmp_path/'bench'/'00-a-duck'/'score.json'
    end = time.time() + 300
    while not first.parent.exists() and job.poll() is None and time.time() < end: time.sleep(.02)
    # a second one in the same folder meanwhile
    job.send_signal(signal.SIGSTOP)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert 'a benchmark is at work in bench' in capsys.readouterr().err
    job.send_signal(signal.SIGCONT)
    while not first.exists() and job.poll() is None and time.time() < end: time.sleep(.02)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 130, said
    assert 'finished prompts are kept' in said and 'Traceback' not in said
    stamp = os.stat(first).st_mtime_ns
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.stat(first).st_mtime_ns == stamp
    out = tmp_path/'bench'
    said = json.loads((out/'scores.json').read_text())
    assert [r['prompt'] for r in said['rows']] == ['a duck', 'a red mug'] and said['summary']['prompts'] == 2
    assert scores(out) == scores(two_at_a_time)
    assert (out/'table.md').exists() and (out/'sheet.png').exists()
    assert not [p for p in out.rglob('*.tmp*')]
    assert main(['--prompts', 'set.txt', '--out', 'bench', *TINY, 'seed=7']) == 2
    assert 'other prompts or settings' in capsys.readouterr().err
