"""A soak: what a year may do to a run, in an hour. Not in CI.

    python tests/soak.py --folder FOLDER [--kills 100] [--steps 20000] [--seed 0] [--only NAME]

Every part drives the real command on a small run of two stages (or the real `Trainer`) and prints a line `name:
figure`; what is wrong is an AssertionError. FOLDER keeps what was reached: a part that is done is not done again, and a
part that was stopped goes on. Disks of their own (full, read-only) need root on Linux."""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]

import imageio_ffmpeg
import yaml
from conftest import CHEAP, MESH, snapshot
from PIL import Image
from safetensors.torch import load_file

from dreamfusion_nb.checkpoints import is_finished, list_checkpoints, read_checkpoint

STAGES = 'result', 'result-refined'
CLOUD = CHEAP | {'iters': 40, 'data.val.val_check_interval': 6}
WORDS = ['a hamburger', '--out', STAGES[0], '--refine', '--resume', *(f'{key}={value}' for key, value in CLOUD.items()),
         *(f'refine.{key}={value}' for key, value in MESH.items())]
ENV = os.environ | dict(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', NUMBA_NUM_THREADS='1')
# the time of day stands in each line of it, and each start adds one
WITH_TIMES = 'log.txt'
MAIN = 'import sys; from dreamfusion_nb.cli import main; sys.exit(main(sys.argv[1:]))'


# The command

def start(place, words=WORDS, before='', **how):
    "The command as a process with `place` as its folder; `before` is Python that runs first in it"
    return subprocess.Popen([sys.executable, '-c', before + '\n' + MAIN, *words], cwd=place, env=ENV, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def finish(process):
    "(exit code, the last line that was said) of a process; a traceback is never said"
    said = process.communicate()[1]
    assert 'Traceback' not in said, said
    lines = [line for line in said.replace('\r', '\n').splitlines() if line.startswith('dreamfusion: ')]
    return process.returncode, lines[-1] if lines else ''


def run(place, words=WORDS, before=''): return finish(start(place, words, before))


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
    return len(whole), len(files) - len(whole)


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
    return 'the first stage is being written out' if saved[-1].name == 'step-000040' else 'in the first stage'


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
            done(self.place('unbroken'))    # compiles what is not yet compiled
            self.place('unbroken')
            began = time.monotonic()
            done(place)
            self.keep('unbroken', seconds=time.monotonic() - began)
            read_all(place)
        return place

    def same(self, place):
        "Raise AssertionError unless the results in a folder have the bytes of the unbroken run"
        here, there = result_of(place), result_of(self.unbroken)
        assert sorted(here) == sorted(there), sorted(set(here) ^ set(there))
        assert here == there, [name for name in here if here[name] != there[name]]


# Kills

def kill_once(place, moment, seconds):
    """Start the command, and send SIGKILL at a share `moment` of its life: every second time counted from its first
    change of the folder. Returns whether it was still alive"""
    share, from_first_change = moment
    process, before, began = start(place), changes(place), time.monotonic()
    while from_first_change and process.poll() is None and changes(place) == before: time.sleep(.002)
    try: process.communicate(timeout=share*seconds/(1 + from_first_change))
    except subprocess.TimeoutExpired: process.send_signal(signal.SIGKILL)
    code, said = finish(process)
    assert code in (0, -signal.SIGKILL), (code, said, time.monotonic() - began)
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
        if not killed or at['kills'] == wanted:
            done(place)
            soak.same(place)
            shutil.rmtree(place)
            at['lives'] += 1
        at = soak.keep('kills', **at)
    places = ', '.join(f'{count} {name}' for name, count in sorted(at['where'].items(), key=lambda item: -item[1]))
    return (f'{at["kills"]} SIGKILLs ({places}); {at["half"]} left something half-written, under a name that says so; '
            f'{at["files"]:,} files read whole after them; {at["lives"]} runs of two stages brought to their end, all '
            f'with the bytes of the unbroken run')


PARTS = {'kills': kills}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', required=True, help='where to work, and where what was reached is kept')
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--steps', type=int, default=20_000, help='of the memory part')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--only', choices=PARTS, metavar='NAME', help=f'one of {", ".join(PARTS)}')
    soak = Soak(parser.parse_args())
    for name in [soak.options.only] if soak.options.only else PARTS:
        said = soak.state.get(name, {}).get('said') or soak.keep(name, said=PARTS[name](soak))['said']
        print(f'{name}: {said}', flush=True)


if __name__ == '__main__': main()
