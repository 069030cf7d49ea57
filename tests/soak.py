"""A soak: what a year may do to a run, in an hour. Not in CI.

    python tests/soak.py --folder FOLDER [--kills 100] [--steps 20000] [--seed 0] [--only NAME]

Every part drives the real command on a small run of two stages (or the real `Trainer`) and prints a line `name:
figure`; what is wrong is an AssertionError. FOLDER keeps what was reached: a part that is done is not done again, and a
part that was stopped goes on. Disks of their own (full, read-only) need root on Linux."""
import argparse
import gc
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]

os.environ |= dict(OMP_NUM_THREADS='1', NUMBA_NUM_THREADS='1', HF_HUB_OFFLINE='1')

import crash
import imageio_ffmpeg
import psutil
import yaml
from conftest import CHEAP, MESH, snapshot, write_pipeline
from PIL import Image
from safetensors.torch import load_file

from dreamfusion_nb import Trainer, cli, load_config
from dreamfusion_nb.checkpoints import HOLDER, is_finished, list_checkpoints, read_checkpoint

STAGES = 'result', 'result-refined'
CLOUD = CHEAP | {'iters': 24, 'data.val.val_check_interval': 6}
WORDS = ['a hamburger', '--out', STAGES[0], '--refine', '--resume', *(f'{key}={value}' for key, value in CLOUD.items()),
         *(f'refine.{key}={value}' for key, value in MESH.items())]
# the time of day stands in each line of it, and each start adds one
WITH_TIMES = 'log.txt'


# The command

class Child:
    """`dreamfusion` in a process of its own, with `place` as its folder; `before` is Python that runs first in it.

    It is a fork of this process, which has imported everything: no kill is spent on imports"""
    def __init__(self, place, words=WORDS, before=''):
        self.said, self.code, self.spent = tempfile.TemporaryFile('w+'), None, 0.
        self.pid = os.fork()
        if self.pid: return
        try:
            os.chdir(place)
            os.dup2(self.said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            exec(before, {})
            code = cli.main(list(words))
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)

    def alive(self):
        "Whether it is at work; `spent` is the time that it has computed, in seconds"
        if self.code is None:
            with suppress(psutil.Error): self.spent = sum(psutil.Process(self.pid).cpu_times()[:2])
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self, spent=math.inf):
        "Whether it has ended before it has computed for some seconds"
        while self.alive() and self.spent < spent: time.sleep(.005)
        return not self.alive()

    def kill(self): os.kill(self.pid, signal.SIGKILL)

    def answer(self):
        "(exit code, the last line that was said), at its end; a traceback is never said"
        self.wait()
        self.said.seek(0)
        said = self.said.read()
        assert 'Traceback' not in said, said
        lines = [line for line in said.replace('\r', '\n').splitlines() if line.startswith('dreamfusion: ')]
        return self.code, lines[-1] if lines else ''


def run(place, words=WORDS, before=''): return Child(place, words, before).answer()


def done(place, words=WORDS):
    "Run the command to its end"
    code, said = run(place, words)
    assert code == 0, (code, said)


def refused(answer, *pieces):
    "Raise AssertionError unless a command ended with one line that has these pieces"
    code, said = answer
    assert code == 2 and all(piece in said for piece in pieces) and len(said) < 700, answer


# What it leaves

def chunks(path):
    "Read a GLB file whole: its lengths are right, and every list lies in it"
    data = path.read_bytes()
    def number(at): return int.from_bytes(data[at:at + 4], 'little')
    text = number(12)
    assert data[:4] == b'glTF' and number(8) == len(data) and 28 + text + number(20 + text) == len(data), path
    tree = json.loads(data[20:20 + text])
    for view in tree['bufferViews']: assert view.get('byteOffset', 0) + view['byteLength'] <= number(20 + text), path
    assert tree['meshes'] and all(accessor['count'] > 0 for accessor in tree['accessors']), path


def film(path):
    "Read every frame of a video"
    frames = imageio_ffmpeg.read_frames(str(path))
    next(frames)
    assert sum(1 for _ in frames) == CHEAP['data.test.size'], path


def picture(path):
    with Image.open(path) as image: image.load()


READERS = {'.glb': chunks, '.mp4': film, '.png': picture, '.safetensors': load_file,
           '.json': lambda path: json.loads(path.read_text()), '.yaml': lambda path: yaml.safe_load(path.read_text()),
           '.jsonl': lambda path: [json.loads(line) for line in path.read_text().splitlines()],
           '.txt': lambda path: path.read_text().endswith('\n') or path.stat().st_size == 0 or 1/0}


def is_partial(path):
    "Whether a name says that it is half-written: a hidden file, or what lies in a folder that ends in .tmp"
    return path.name.startswith('.') or any(part.endswith('.tmp') for part in path.parts)


def read_all(place):
    "Read every file that lies below a folder under its final name; (how many, how many are half-written and say so)"
    files = [path for path in Path(place).rglob('*') if path.is_file()]
    whole = [path for path in files if not is_partial(path.relative_to(place))]
    for path in whole: READERS[path.suffix](path)
    for stage in STAGES:
        for checkpoint in list_checkpoints(place/stage): read_checkpoint(checkpoint)
    return len(whole), sum(path.name != HOLDER for path in files) - len(whole)


def result_of(place):
    "The bytes of all files of both stages"
    return {name: data for name, data in snapshot(place).items() if not name.endswith(WITH_TIMES)}


def where(place):
    "How far a run has come"
    cloud, mesh = (place/stage for stage in STAGES)
    if is_finished(mesh): return 'all is written'
    if list_checkpoints(mesh) or mesh.exists(): return 'in the mesh stage'
    if is_finished(cloud): return 'between the stages'
    saved = list_checkpoints(cloud)
    if not saved: return 'nothing is saved'
    return 'the first stage is being written out' if saved[-1].name == 'step-000024' else 'in the first stage'


def changes(place): return [(path, path.stat().st_mtime_ns) for path in sorted(place.glob('result*/*'))]


# State of the soak

class Soak:
    "What was reached, and the unbroken run that all others are compared with"
    def __init__(self, options):
        self.options, self.folder = options, Path(options.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder/'state.json'
        self.state = json.loads(self.file.read_text()) if self.file.exists() else {}

    def keep(self, part, **reached):
        self.state[part] = self.state.get(part, {}) | reached
        self.file.with_suffix('.tmp').write_text(json.dumps(self.state, indent=1))
        os.replace(self.file.with_suffix('.tmp'), self.file)
        return self.state[part]

    def place(self, *parts):
        "An empty folder"
        path = self.folder.joinpath(*parts)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    @property
    def unbroken(self):
        "The folder of the run that nothing disturbs; it is made once"
        place = self.folder/'unbroken'
        if 'unbroken' not in self.state:
            subprocess.run([Path(sys.executable).with_name('dreamfusion'), *WORDS], cwd=self.place('unbroken'),
                           env=os.environ | dict(PYTHONPATH=str(ROOT)), check=True, capture_output=True)
            read_all(place)
            child = Child(self.place('fork'))
            child.answer()
            assert result_of(self.folder/'fork') == result_of(place)
            self.keep('unbroken', seconds=child.spent)    # of its own computing: a busy machine does not change it
        return place

    def same(self, place):
        "Raise AssertionError unless the results in a folder have the bytes of the unbroken run"
        here, there = result_of(place), result_of(self.unbroken)
        assert sorted(here) == sorted(there), sorted(set(here) ^ set(there))
        assert here == there, [name for name in here if here[name] != there[name]]


# Kills

def kill_once(place, moment, seconds):
    """Start the command, and send SIGKILL when it has computed for a share `moment` of `seconds`: every second time
    counted from its first change of the folder, and of half of them. Returns whether it was still alive"""
    share, from_first_change = moment
    before, child = changes(place), Child(place)
    while from_first_change and child.alive() and changes(place) == before: time.sleep(.002)
    if not child.wait(child.spent*from_first_change + share*seconds/(1 + from_first_change)): child.kill()
    code, said = child.answer()
    assert code in (0, -signal.SIGKILL), (code, said)
    return code != 0


def kills(soak):
    "SIGKILL at random moments of the whole life of the command, then the same command again, until it is done"
    soak.unbroken
    seconds, wanted = soak.state['unbroken']['seconds'], soak.options.kills
    at = soak.state.get('kills', dict(kills=0, lives=0, files=0, half=0, tries=0, where={}))
    place = soak.folder/'kills'
    while at['kills'] < wanted:
        place.mkdir(exist_ok=True)
        draw = random.Random(f'{soak.options.seed}/{at["tries"]}')
        killed = kill_once(place, (draw.random(), at['tries'] % 2), seconds)
        whole, half = read_all(place)
        at |= dict(tries=at['tries'] + 1, files=at['files'] + whole)
        if killed:
            place_of = dict(Counter(at['where']) + Counter([where(place)]))
            at |= dict(kills=at['kills'] + 1, half=at['half'] + bool(half), where=place_of)
        # a run that is killed for ever sees its end only: one in four is let go
        if not killed or draw.random() < .25 or at['kills'] == wanted:
            done(place)
            soak.same(place)
            shutil.rmtree(place)
            at['lives'] += 1
        at = soak.keep('kills', **at)
    places = ', '.join(f'{count} {name}' for name, count in sorted(at['where'].items(), key=lambda item: -item[1]))
    return (f'{at["kills"]} SIGKILLs ({places}); {at["half"]} left something half-written, under a name that says so; '
            f'{at["files"]:,} files read whole after them; {at["lives"]} runs of two stages brought to their end, all '
            f'with the bytes of the unbroken run')


# Disks

@contextmanager
def disk(place, size='64m'):
    "A small disk of its own at an empty folder"
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True)
    try: yield place
    finally: subprocess.run(['umount', '-l', place], check=True)


def fill(place):
    "Fill a disk to the last byte; returns the file that does it"
    path = place/'filler'
    with open(path, 'wb', buffering=0) as f:
        for size in (2**20, 4096, 1):
            try:
                while f.write(bytes(size)) == size: pass
            except OSError: pass
    return path


# fills the disk when the first file of a kind is about to be written
FULL = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from soak import fill
def watch(event, args, full=[]):
    if full: return
    words = []
    if event == 'os.mkdir' or event == 'open' and set(str(args[1])) & set('wax'): words = args[:1]
    if event == 'subprocess.Popen': words = args[1]
    if any({kind!r} in str(word) and {stage!r} in os.path.abspath(str(word)) for word in words):
        full.append(1)
        fill(Path({place!r}))
sys.addaudithook(watch)
"""
# what a run writes, by a piece of its name. safetensors and state.json lie in a folder that is made for them
KINDS = {'config.yaml': '.config.tmp.yaml', 'log.txt': 'log.txt', 'history.jsonl': '.history.tmp.jsonl',
         'a checkpoint': 'step-000004.tmp', 'a validation picture': '.step-', 'preview.png': '.preview.tmp.png',
         'turntable.mp4': '.turntable.tmp.mp4', 'model.glb': '.model.tmp.glb'}


def full_disk(soak):
    "A disk that fills up when a file of each kind is about to be written, in each stage; then there is room again"
    said = []
    for stage in STAGES:
        for what, piece in KINDS.items():
            if what == 'a validation picture' and stage != STAGES[0]: continue
            place = soak.place('full')
            with disk(place):
                answer = run(place, before=FULL.format(tests=str(ROOT/'tests'), kind=piece, stage=f'/{stage}/',
                                                       place=str(place)))
                assert (place/'filler').exists(), (stage, what)
                refused(answer, 'cannot', stage)
                (place/'filler').unlink()
                read_all(place)
                done(place)
                soak.same(place)
            said.append(what)
    return (f'{len(said)} times full, at {", ".join(KINDS)}: exit code 2 and one line each time, every file whole, and '
            'the same command made the same bytes when there was room again')


def read_only(soak):
    "A disk that turns read-only: before a run, while it waits for --resume, in its middle, and below a finished result"
    place = soak.place('read-only')
    def mount(how): return subprocess.run(['mount', '-o', f'remount,{how}', place], capture_output=True).returncode
    with disk(place):
        child = Child(place)
        while child.alive() and not list_checkpoints(place/STAGES[0]): time.sleep(.005)
        while child.alive() and mount('ro'): pass    # not while a file is open
        refused(child.answer(), 'cannot', STAGES[0])
        read_all(place)
        before = snapshot(place)
        for words in (WORDS, ['a duck', '--out', 'new', *WORDS[3:]]): refused(run(place, words), 'cannot be written')
        assert snapshot(place) == before
        mount('rw')
        done(place)
        soak.same(place)
        mount('ro')
        before = snapshot(place)
        refused(run(place, ['export', STAGES[0], 'new.glb']), 'cannot write')
        done(place, ['export', STAGES[0], str(soak.folder/'read-only.glb'), 'resolution=32', '--overwrite'])
        assert snapshot(place) == before
    chunks(soak.folder/'read-only.glb')
    return ('turned read-only in mid-run: exit code 2 and one line; --resume and a new run: the same, no byte changed; '
            'when it could be written again, the same bytes; a finished result on it can be exported elsewhere')


# A clock that jumps

JUMP = """
import time
real, begun = time.time, time.monotonic()
def jumped(): return real() + ({jump} if time.monotonic() - begun > {after} else 0)
time.time = jumped
strftime = time.strftime
time.strftime = lambda form, *moment: strftime(form, *(moment or [time.localtime(jumped())]))
"""


def clock(soak):
    """A clock that jumps by a year in mid-run, forward or back, with a kill before the end; and files of the first
    stage that are a year newer or older than those of the second, as a clock that was set leaves them"""
    year = 365*24*3600
    for jump in (year, -year):
        place = soak.place('clock')
        child = Child(place, before=JUMP.format(jump=jump, after=.5))
        while child.alive() and len(list_checkpoints(place/STAGES[0])) < 2: time.sleep(.005)
        child.kill()
        child.answer()
        code, said = run(place, before=JUMP.format(jump=-jump, after=.5))
        assert code == 0, said
        soak.same(place)
        for path in (place/STAGES[0]).rglob('*'): os.utime(path, (time.time() + jump,)*2)
        before = snapshot(place)
        done(place)
        assert snapshot(place) == before, 'the mesh was made again'
    return ('a year forward and a year back in mid-run, with a kill in between: the same bytes; a first stage that '
            'seems a year newer or older than its mesh: nothing is made again')


# A folder that is renamed

def renamed(soak):
    "A folder that is renamed while a run works in it, and another run that takes its old name at once"
    place, other = soak.place('renamed'), ['a duck', *WORDS[1:]]
    child = Child(place)
    while child.alive() and not list_checkpoints(place/STAGES[0]): time.sleep(.005)
    (place/STAGES[0]).rename(place/'moved')
    second = Child(place, [word for word in other if word != '--refine' and not word.startswith('refine.')])
    refused(child.answer(), 'no longer the folder')
    code, said = second.answer()
    assert code == 0, said
    assert 'a duck' in (place/STAGES[0]/'config.yaml').read_text()
    shutil.rmtree(place/STAGES[0])
    done(place, [word.replace(STAGES[0], 'moved') for word in WORDS])
    for stage, name in zip(STAGES, ('moved', 'moved-refined')):
        here, there = ({n: data for n, data in snapshot(folder).items() if n not in (WITH_TIMES, 'config.yaml')}
                       for folder in (place/name, soak.unbroken/stage))
        assert here == there, name
    return ('the run says that its folder has gone, with exit code 2, and writes nothing under the old name, where '
            'another run comes to its end; --out with the new name goes on to the same bytes')


# Two processes, one folder

WEAK = 'import fcntl\nfcntl.flock = fcntl.lockf = lambda *args: None\n'
ELSEWHERE = 'import socket\nsocket.gethostname = lambda: "elsewhere"\n'


def two(soak):
    "A second process in the folder of the first: with the system's lock, without, and as if from another machine"
    said = []
    for name, before in {'flock': '', 'no lock': WEAK, 'no lock, from another machine': WEAK + ELSEWHERE}.items():
        place = soak.place('two')
        child = Child(place, [*WORDS, 'iters=100000'])    # does not end before the second one asks
        while not list_checkpoints(place/STAGES[0]): time.sleep(.005)
        refused(run(place, [*WORDS, 'iters=100000'], before), 'another run is at work')
        child.kill()
        child.answer()
        # a dead one keeps nobody out: here at once, elsewhere after some seconds without a sign of life
        second = Child(place, [*WORDS, 'iters=100000'], before)
        reached = list_checkpoints(place/STAGES[0])[-1]
        while second.alive() and list_checkpoints(place/STAGES[0])[-1] <= reached: time.sleep(.005)
        assert second.alive(), second.answer()
        second.kill()
        second.answer()
        said.append(name)
    return (f'the second one is refused in one line ({", ".join(said)}); when the first is killed, the second goes on '
            'where it stopped')


# Memory

WEIGHED = 10    # times


def memory(soak):
    """The resident memory of a process in which the real `Trainer` does many steps, with the tests' small Stable
    Diffusion. The history is meant to grow, and is taken off"""
    steps, place = soak.options.steps, soak.folder/'memory'
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try: train_and_weigh(place, steps, write)
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.close(write)
    held = []
    with os.fdopen(read) as lines:
        for line in lines:
            held.append(json.loads(line))
            print(f'memory: {len(held)*steps//WEIGHED:,} steps, {held[-1][0]:.1f} MB, history {held[-1][1]:.1f} MB',
                  flush=True)
    os.waitpid(pid, 0)
    assert len(held) == WEIGHED, 'it ended early'
    rest = [whole - history for whole, history in held]
    grown, half = rest[-1] - rest[WEIGHED//2 - 1], held[-1][1] - held[WEIGHED//2 - 1][1]
    assert grown < 4, held
    each = ', '.join(f'{whole:.1f}' for whole, _ in held)
    return (f'{steps:,} steps; {each} MB after each {steps//WEIGHED:,}; in the '
            f'last half the history grew by {half:.1f} MB and the rest by {grown:.1f} MB')


def train_and_weigh(place, steps, out):
    "Lines of JSON, megabytes of the process and of the history. Saves and validates as every run does"
    shutil.rmtree(place, ignore_errors=True)
    often = steps//(2*WEIGHED)
    changes = CHEAP | {'prompt': 'a hamburger', 'iters': steps, 'checkpoint.every_n_train_steps': often,
                       'data.val.val_check_interval': often, 'guidance.name': str(write_pipeline(place/'pipeline'))}
    trainer = Trainer(load_config('toybox', changes), folder=place/'result')
    for _ in range(WEIGHED):
        trainer.fit(steps//WEIGHED)
        gc.collect()
        history = sum(sys.getsizeof(row) + sum(map(sys.getsizeof, row.values())) for row in trainer.history)
        os.write(out, f'{json.dumps([psutil.Process().memory_info().rss/1e6, history/1e6])}\n'.encode())


PARTS = {'kills': kills, 'full_disk': full_disk, 'read_only': read_only, 'clock': clock, 'renamed': renamed, 'two': two,
         'memory': memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', required=True, help='where to work, and where what was reached is kept')
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--steps', type=int, default=20_000, help='of the memory part')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--only', choices=PARTS, metavar='NAME', help=f'one of {", ".join(PARTS)}')
    soak = Soak(parser.parse_args())
    crash.warm()
    for name in [soak.options.only] if soak.options.only else PARTS:
        said = soak.state.get(name, {}).get('said') or soak.keep(name, said=PARTS[name](soak))['said']
        print(f'{name}: {said}', flush=True)


if __name__ == '__main__': main()
