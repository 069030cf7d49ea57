"Programs of benchmarks/ that need a GPU to say much, as far as they can be tried without one"
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import architectures
import gpu
import step
from conftest import CHEAP

from dreamfusion_nb import Trainer, load_config

PLAIN = [dict(wall=1., cpu=1., faults=0, system=0., shading='albedo', samples=1)]    # a step without a clock


def test_architectures_are_those_of_the_estimate():
    "Which a test of the estimate compares with the published sizes; pixels have no autoencoder"
    for name in architectures.NAMED:
        assert all(network is None or network.device.type == 'meta' for network in architectures.networks(name))
    unet, vae = architectures.networks('if')
    assert vae is None and unet.config.in_channels == 3 and unet.config.out_channels == 6


def test_a_written_architecture_is_a_folder_of_a_users(tmp_path, monkeypatch):
    "Read by its name in a configuration; and a step of it, part by part, as the benchmark prints it"
    architectures.write('tiny', tmp_path/'tiny')
    config = load_config('toybox', CHEAP, {'prompt': 'a hamburger', 'guidance.name': str(tmp_path/'tiny')})
    trainer = Trainer(config, device='cpu')
    assert trainer.guidance.max_tokens == 77 and trainer.step().sds.noise_pred.isfinite().all()
    clock = step.Clock('cpu')
    step.put_clocks(clock, trainer)
    with clock.step(): trainer.step()
    assert all(part in clock.steps[0] for part in step.MODEL)
    assert 'times its model alone (UNet and VAE)' in '\n'.join(step.table(clock.steps, PLAIN, 1))
    with pytest.raises(SystemExit, match='9 GB'): architectures.write('if', tmp_path/'if')


def test_a_model_of_pixels_has_no_autoencoder_in_the_table(pixels):
    trainer = Trainer(load_config('toybox', CHEAP, {'prompt': 'a hamburger', 'guidance.name': str(pixels)}))
    clock = step.Clock('cpu')
    step.put_clocks(clock, trainer)
    with clock.step(): trainer.step()
    lines = '\n'.join(step.table(clock.steps, PLAIN, 1))
    assert '\nUNet  ' in lines and 'VAE' not in lines and 'times its model alone (UNet)' in lines


def tiny(device):
    return Trainer(load_config('toybox', CHEAP, dict(prompt='a hamburger')), architectures.make('tiny', device), device)


def test_random_weights_keep_numbers_in_bounds():
    record = tiny('cpu').step()
    assert record.sds.noise_pred.isfinite().all() and .01 < record.sds.noise_pred.std() < 100
    assert torch.equal(*(architectures.make('tiny').encode_text('a duck') for _ in range(2)))


def test_counts_add_up():
    "On a pretended GPU: parts, and their sum with and without the model"
    lines = step.pretended(tiny)
    counts = {line[:22].strip(): [float(n) for n in line[22:].split()[:3]] for line in lines[1:-1]}
    total, ours = counts.pop('whole step'), counts.pop('without its model')
    for i in range(2): assert abs(sum(n[i] for n in counts.values()) - total[i]) <= len(counts)
    assert all(0 < counts[part][0] for part in step.MODEL) and 0 < ours[0] < total[0]


def test_a_job_that_fails_or_takes_too_long_is_told():
    "And what it has said is kept"
    said = "print('before', flush=True); "
    state, _, lines = gpu.run(gpu.Job('', ['-c', said], 0), 300)
    assert (state, lines) == ('exit code 0', ['before'])
    state, _, lines = gpu.run(gpu.Job('', ['-c', said + 'raise SystemExit(3)'], 0), 300)
    assert (state, lines) == ('exit code 3', ['before'])
    state, _, _ = gpu.run(gpu.Job('', ['-c', 'import time; time.sleep(600)'], 0), 1)
    assert state == 'stopped after 1 s'


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available(): pytest.skip('there is one')
    words = [sys.executable, str(BENCHMARKS/'gpu.py'), '--out', str(tmp_path/'results')]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 1 and 'no CUDA device' in found.stderr and not (tmp_path/'results').exists()


def test_every_job_is_there(tmp_path):
    for rehearse in (False, True):
        for job in gpu.jobs('cpu', rehearse, tmp_path):
            if job.command[0] != '-m': assert Path(job.command[0]).exists()
