"""Many prompts at once: bad input in one line, a killed worker, Ctrl-C, and a Ray cluster that loses a machine.

Nothing is lost, and nothing is done twice: the folders say so."""
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest
from conftest import CHEAP

from dreamfusion_nb import batch, cli
from dreamfusion_nb.checkpoints import is_finished, list_checkpoints
from dreamfusion_nb.config import ConfigError, load_config

STEPS = 24    # enough to be met in the middle: a checkpoint every two steps takes longer than the steps
SMALL = CHEAP | {'iters': STEPS, 'checkpoint.every_n_train_steps': 2}
PROMPTS = 'a duck\n\na red mug    # the one with the handle\na pangolin\n'
LIMIT = 300    # seconds, for a state that comes in a few


def wait_for(holds, alive=lambda: True):
    end = time.monotonic() + LIMIT
    while not holds():
        assert alive() and time.monotonic() < end, 'it never came so far'
        time.sleep(.02)


def in_the_middle(folder): return bool(list_checkpoints(folder)) and not is_finished(folder)


def assert_whole(folder, stops):
    "All steps are there once, and the folder was begun once, stopped so many times, and written once"
    said = (folder/'log.txt').read_text()
    rows = [json.loads(line) for line in (folder/'history.jsonl').read_text().splitlines()]
    assert is_finished(folder) and [row['step'] for row in rows] == list(range(STEPS)), said
    assert said.count('started at step 0 ') == 1 and said.count('wrote ') == 1, said
    resumed = [int(step) for step in re.findall(r'resumed at step (\d+)', said)]
    assert len(resumed) == stops and all(step >= 2 for step in resumed), said


def command(*words): return [sys.executable, '-m', 'dreamfusion_nb.cli', 'batch', *map(str, words)]


def tiny(): return [f'{key}={value}' for key, value in SMALL.items()]


# Bad input

@pytest.mark.parametrize('words, complaint', [
    ('', 'arguments are required: FILE'),
    ('nowhere.txt', "there is no file 'nowhere.txt'"),
    ('empty.txt', 'empty.txt is empty'),
    ('folder', 'folder is a folder'),
    ('bytes.txt', 'cannot be read as text'),
    ('zeros.txt', 'cannot be read as text'),
    ('twice.txt', "'A duck' occurs twice in twice.txt, in lines 1 and 3"),
    ('alike.txt', 'lines 1 and 2 would both be made in the folder a-duck;'),
    ('meshes.txt --refine', 'lines 1 and 2 would both be made in the folder a-duck-refined;'),
    ('unknown.txt', "line 2: prompt 'a pangolin' names no toy"),
    ('one.txt --jobs 0', '(--jobs): a whole number, at least 1'), ('one.txt --jobs two', "at least 1, not 'two'"),
    ('one.txt --job 2', 'did you mean'), ('one.txt itres=3', 'did you mean iters'),
    ('one.txt mode=test', 'mode must be fit'), ('one.txt refine.iters=3', 'needs --refine'),
    ('one.txt --refine refine.itres=3', 'did you mean'), ('one.txt --preset toybx', 'did you mean'),
    ('one.txt --out folder', 'something that is no batch of ours'), ('one.txt --out one.txt', 'is a file'),
    ('one.txt --out other', 'other prompts or settings (seed is 7 there, 0 here)'),
    ('one.txt --out torn', 'batch.json is damaged'),
    ('one.txt --ray head', "'head' is no address"), ('one.txt --ray localhost:99999', 'no Ray answers at'),
    ('one.txt --ray auto', 'no Ray answers at 127.0.0.1:1'),
])
def test_bad_input_is_one_line_and_leaves_nothing(words, complaint, tmp_path, monkeypatch, capsys):
    files = {'empty.txt': '# a comment\n\n', 'twice.txt': 'a duck\na mug\nA duck\n', 'alike.txt': 'a duck\na duck!\n',
             'meshes.txt': 'a duck\na duck refined\n', 'unknown.txt': '\na pangolin\n', 'one.txt': 'a duck\n',
             'folder/holiday.jpg': 'mine', 'zeros.txt': 'a duck\0', 'torn/batch.json': '{"seed":',
             'other/batch.json': json.dumps({k: v for k, v in load_config('toybox', 'seed=7').flat().items()
                                             if k != 'prompt'}, default=str)}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    (tmp_path/'bytes.txt').write_bytes(b'\xff\xfe\xfa')
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')    # for auto; nobody is there
    assert cli.main(['batch', *words.split()]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count('\n') == 1, said
    assert sorted(tmp_path.rglob('*')) == before


def test_an_address_where_something_else_listens(monkeypatch):
    "Ray's own attempt to connect would take minutes"
    monkeypatch.setattr(batch, 'KNOCK', 2.)
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        for address in (f'127.0.0.1:{port}', f'ray://127.0.0.1:{port}'):
            with pytest.raises(ConfigError, match=f'no Ray answers at {address}'): batch.run_tasks({}, len, ray=address)


def test_without_ray(monkeypatch):
    monkeypatch.setattr(batch.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dreamfusion_nb\[ray\]'"):
        batch.run_tasks({}, len, ray='auto')


# On this machine

def test_what_becomes_of_tasks():
    "One that fails, one that cannot be sent back and one whose process dies stop no other"
    tasks = {'two': 4, 'none': -1, 'text': 'x', 'three': 9}
    found = {done.name: done for done in batch.run_tasks(tasks, math.sqrt, jobs=2)}
    assert {name: done.value for name, done in found.items()} == {'two': 2, 'none': None, 'text': None, 'three': 3}
    assert 'math domain error' in str(found['none'].error) and 'must be real' in str(found['text'].error)
    died, = batch.run_tasks({'dies': 9}, os._exit, jobs=2, tries=2)
    assert 'died 2 times (exit code 9)' in str(died.error)


def test_a_killed_worker_and_an_interrupt_cost_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path/'set.txt').write_text(PROMPTS)
    words = ['set.txt', '--out', 'all', *tiny()]
    job = subprocess.Popen([*command(*words), '--jobs', '2'], cwd=tmp_path, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    def alive(): return job.poll() is None
    folders = [tmp_path/'all'/name for name in ('a-duck', 'a-red-mug')]
    wait_for(lambda: all(map(in_the_middle, folders)), alive)
    worker, _ = (child for child in psutil.Process(job.pid).children() if 'spawn_main' in ' '.join(child.cmdline()))
    worker.kill()
    def resumed(folder): return 'resumed at step' in (folder/'log.txt').read_text()
    wait_for(lambda: any(map(resumed, folders)), alive)
    # a second command in the same folder meanwhile
    monkeypatch.chdir(tmp_path)
    assert cli.main(['batch', *words]) == 2
    assert 'a batch is at work in all' in capsys.readouterr().err
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=LIMIT)
    assert job.returncode == 130 and 'Traceback' not in said and 'line 4 is left out' in said, said
    assert 'dreamfusion batch set.txt --out all' in said
    # the same command goes on with what is left
    unfinished = [folder for folder in folders if not is_finished(folder)]
    killed, = (folder for folder in folders if resumed(folder))
    stamps = {folder: (folder/'model.glb').stat().st_mtime_ns for folder in folders if folder not in unfinished}
    assert cli.main(['batch', *words]) == 1    # a prompt was refused
    capsys.readouterr()
    for folder in folders: assert_whole(folder, (folder == killed) + (folder in unfinished))
    assert all((folder/'model.glb').stat().st_mtime_ns == stamp for folder, stamp in stamps.items())
    rows = json.loads((tmp_path/'all'/'rows.json').read_text())
    assert [row['state'] for row in rows.values()] == ['done', 'done', 'refused']
    assert [row['line'] for row in rows.values()] == [1, 3, 4] and rows['a-duck']['faces'] > 0
    table = (tmp_path/'all'/'table.md').read_text()
    assert '| 4 | a pangolin | refused |' in table and 'names no toy' in table and table.count('\n') == 5
    assert {path.name for path in (tmp_path/'all').iterdir()} == {'.lock', 'batch.json', 'rows.json', 'table.md',
                                                                'sheet.png', 'a-duck', 'a-red-mug'}


def test_a_prompt_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    "Its folder holds somebody's file; nothing of that is touched, and the next command makes it when that is gone"
    out = tmp_path/'all'
    quick = load_config('toybox', SMALL, {'iters': 2})
    assert [row['state'] for row in batch.run_batch(['a duck'], out, quick)] == ['done']
    (out/'a-mug').mkdir()
    (out/'a-mug'/'holiday.jpg').write_text('mine')
    said = []
    rows = batch.run_batch(['a duck', 'a mug', 'a red flurb car'], out, quick, say=said.append)
    assert [row['state'] for row in rows] == ['done', 'failed', 'done']
    assert len(said) == 1 and "line 2, 'a mug': " in said[0] and 'no result of ours' in said[0]
    assert (out/'a-mug'/'holiday.jpg').read_text() == 'mine' and 'flurb' in rows[2]['note']
    (out/'a-mug'/'holiday.jpg').unlink()
    assert [row['state'] for row in batch.run_batch(['a mug'], out, quick)] == ['done']


# On a cluster

@pytest.fixture(scope='module')
def cluster():
    "Ray on two machines that are one"
    os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
    pytest.importorskip('ray', reason='needs Ray: pip install -e .[ray]')
    from ray.cluster_utils import Cluster
    made, end = None, time.monotonic() + LIMIT
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        while made is None or len(made.list_all_nodes()) < 2:
            if made: made.shutdown()
            try:    # Ray gives its own processes half a minute, which a busy machine may need twice
                made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
                made.second = made.add_node(num_cpus=1)
            except Exception as error:
                if 'timed out during startup' not in str(error) or time.monotonic() > end: raise
    yield made
    made.shutdown()


def test_a_machine_that_is_lost_loses_nothing(cluster, tmp_path):
    out, killed = tmp_path/'all', []
    folders = [out/name for name in ('a-duck', 'a-red-mug')]

    def lose_a_machine():
        wait_for(lambda: all(map(in_the_middle, folders)))
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.append(True)
    thread = threading.Thread(target=lose_a_machine)
    thread.start()
    rows = batch.run_batch(['a duck', 'a red mug', 'a pangolin'], out, load_config('toybox', SMALL),
                           ray=cluster.address, say=[].append)
    thread.join()
    assert killed and [row['state'] for row in rows] == ['done', 'done', 'refused'], rows
    stops = [(folder/'log.txt').read_text().count('resumed') for folder in folders]
    assert sum(stops) == 1
    for folder, n in zip(folders, stops): assert_whole(folder, n)
    # what is finished is not even given to the cluster
    stamps = [(folder/'model.glb').stat().st_mtime_ns for folder in folders]
    again = batch.run_batch(['a duck', 'a red mug'], out, load_config('toybox', SMALL), ray=cluster.address)
    assert [row['state'] for row in again] == ['done']*2
    assert stamps == [(folder/'model.glb').stat().st_mtime_ns for folder in folders]


def test_tasks_on_a_cluster(cluster, tmp_path):
    with batch._connected(cluster.address):    # once for all, else each brings processes of its own
        found = {done.name: done for done in batch.run_tasks({'two': 4, 'none': -1}, math.sqrt, ray=cluster.address)}
        assert found['two'].value == 2 and 'math domain error' in str(found['none'].error)
        died, = batch.run_tasks({'dies': 9}, os._exit, ray=cluster.address, tries=2)
        assert 'died 2 times' in str(died.error)
        # a machine that does not see the folder writes nothing
        job = batch.Job(1, load_config('toybox', SMALL, {'prompt': 'a duck'}), tmp_path/'unseen'/'a-duck')
        lost, = batch.run_tasks({'lost': job}, batch.make_prompt, ray=cluster.address)
        assert isinstance(lost.error, ConfigError) and f'does not see {tmp_path}' in str(lost.error)
        assert not job.folder.parent.exists()
        with pytest.raises(ConfigError, match='no machine for a task that needs GPU 1'):
            next(batch.run_tasks({'two': 4}, math.sqrt, ray=cluster.address, gpus=1))
