"""Everything that only a GPU can settle, in at most nine minutes, written into one file that is named after the device.

    python benchmarks/gpu.py [--minutes 9] [--out benchmarks/results]
    python benchmarks/gpu.py --device cpu --rehearse --out FOLDER    # the same jobs at sizes of seconds, on any machine

The jobs come in the order of their worth, and each is a command that can be run alone. One that fails, or for which no
time is left, is written down as that, and the next one begins: the file says what is known and what is not."""
import argparse
import contextlib
import datetime
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
PROMPTS = 'a hamburger', 'a red car', 'a duck', 'a snowman'
SMALL = ('iters=6', 'data.train.width=16', 'data.train.height=16', 'nerf.n_levels=4', 'nerf.log2_hashmap_size=10',
         'renderer.grid_resolution=16', 'renderer.max_steps=64')


@dataclass
class Job:
    name: str
    command: list    # words after `python`
    seconds: int     # at most, on a GPU


def jobs(device, rehearse, folder):
    "The jobs, most worth first; in a rehearsal the smallest of each kind"
    step = [f'{HERE}/step.py', '--preset', 'dreamfusion', '--device', device, '--count']
    if rehearse:
        step += ['--architecture', 'tiny', '--steps', '1', '--rounds', '1', *SMALL, 'renderer.update_interval=1']
        cheap = [*SMALL, 'data.test.size=2', 'data.test.width=32', 'data.test.height=32']
    else:
        step += ['--architecture', 'sd21', '--steps', '200', '--rounds', '32']
        cheap = []
    prompts = Path(folder)/'prompts.txt'
    prompts.write_text('\n'.join(PROMPTS[:2 if rehearse else None]) + '\n')
    whole = ['-m', 'dreamfusion_nb.cli', 'a hamburger', '--device', device, '--out', f'{folder}/hamburger', '--refine']
    small = ['--rehearse'] if rehearse else []
    points = ['--points', '1024', '--rounds', '1'] if rehearse else ['--points', '262144']
    mesh = ['--size', '32', '--resolution', '16', '--rounds', '1', '--faces', '100'] if rehearse else [
        '--resolution', '128', '--rounds', '30']
    return [
        Job('Kernels against their definitions',
            ['-m', 'pytest', '-q', '-rs', f'{HERE.parent}/tests/test_warp.py', '-k', 'card'], 90),
        Job('Hash grid: every backend in turns', [f'{HERE}/hashgrid.py', '--device', device, *points], 60),
        Job('A step with the architecture of Stable Diffusion 2.1, part by part', step, 150),
        Job('A step of a mesh at 512x512: every rasteriser', [f'{HERE}/mesh.py', '--device', device, *mesh], 45),
        Job('Memory: the estimate and the peak', [__file__, '--memory', '--device', device, *small], 60),
        Job('A hamburger as NeRF and as mesh', [*whole, *cheap], 120),
        Job('Scores', ['-m', 'dreamfusion_nb.metrics', '--prompts', str(prompts), '--out', f'{folder}/scores', *cheap],
            180)]


def memory(device, rehearse):
    "One line: what the estimate says of some steps, and what they held"
    from architectures import make

    from dreamfusion_nb import Trainer, load_config
    from dreamfusion_nb.forecast import forecast
    from dreamfusion_nb.meter import describe
    from dreamfusion_nb.pipelines import fastest_dtype
    named = {'guidance.name': 'stable-diffusion-v1-5/stable-diffusion-v1-5'}
    config = load_config('dreamfusion', dict(prompt='a hamburger'), named, *(SMALL if rehearse else ()))
    found = forecast(config, describe(torch.device(device)))
    estimate = found.total - found.itself    # without what CUDA holds by itself, which PyTorch does not count
    print(f'estimated at most: {estimate/1e9:.2f} GB')
    trainer = Trainer(config, make('tiny' if rehearse else 'sd15', device, fastest_dtype(device)), device)
    trainer.fit(2 if rehearse else 40)
    if torch.device(device).type == 'cuda':
        held = torch.cuda.max_memory_allocated(device)
        print(f'held at most: {held/1e9:.2f} GB; estimate / held: {estimate/held:.2f}')
    else: print('held at most: known on a GPU only')


def device_name(device):
    if torch.device(device).type == 'cuda': return torch.cuda.get_device_name(device)
    return f'rehearsal on a CPU, {platform.machine()}'


def run(job, seconds):
    "(what became of it, seconds it took, its last lines)"
    began = time.monotonic()
    # a group of its own, so that what it has started ends with it
    process = subprocess.Popen([sys.executable, *job.command], cwd=HERE.parent, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    try: said, state = process.communicate(timeout=seconds)[0], f'exit code {process.returncode}'
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        said, state = process.communicate()[0], f'stopped after {seconds:.0f} s'
    lines = [line.rsplit('\r', 1)[-1].rstrip() for line in said.splitlines()]
    return state, time.monotonic() - began, [line for line in lines if line][-40:]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda')
    p.add_argument('--minutes', type=float, default=9)
    p.add_argument('--out', default=str(HERE/'results'))
    p.add_argument('--rehearse', action='store_true', help='the smallest sizes')
    p.add_argument('--memory', action='store_true', help='only the job that compares the estimate with the peak')
    a = p.parse_args()
    if torch.device(a.device).type == 'cuda' and not torch.cuda.is_available():
        sys.exit('no CUDA device is available here; --device cpu --rehearse tries the jobs without one')
    if a.memory: return memory(a.device, a.rehearse)
    end, failed = time.monotonic() + 60*a.minutes, 0
    name = device_name(a.device)
    path = Path(a.out)/f'{re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")}-{datetime.date.today()}-gpu.md'
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=HERE, capture_output=True, text=True).stdout
    report = [f'# {name}', '', f'`python benchmarks/gpu.py {" ".join(sys.argv[1:])}`, commit {commit.strip() or "?"}, '
              f'torch {torch.__version__}, CUDA {torch.version.cuda or "none"}, Python {platform.python_version()}, '
              f'{datetime.date.today()}']
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(a.device, a.rehearse, folder):
            left = end - time.monotonic()
            none_left = 'not begun, no time was left', 0, []
            state, took, lines = none_left if left < 10 else run(job, min(left, job.seconds))
            failed += state != 'exit code 0'
            words = shlex.join(word.replace(f'{HERE.parent}/', '') for word in job.command)
            report += ['', f'## {job.name}: {state}, {took:.0f} s', '', f'`python {words}`', '', '```', *lines, '```']
            path.write_text('\n'.join(report) + '\n')    # after each, so that nothing is lost
            print(f'{job.name}: {state}, {took:.0f} s', flush=True)
    print(path)
    return min(failed, 1)


if __name__ == '__main__': sys.exit(main())
