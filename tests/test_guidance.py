"Diffusion models from folders, files and a Hub; what stays on the device; runs that overflow"
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import CHEAP, assert_same_with_a_break, write_pipeline

from dreamfusion_nb import ConfigError, Trainer, load, load_config, train
from dreamfusion_nb.guidance import LatentDiffusion
from dreamfusion_nb.parts import make_guidance, pick_device
from dreamfusion_nb.pipelines import weight_files
from dreamfusion_nb.pixel import PixelDiffusion


def cheap(**options): return load_config('toybox', CHEAP, dict(prompt='a duck'), options)


# Pixels

def test_a_run_with_a_model_of_pixels(pixels, tmp_path):
    "By its folder, and by its key in a configuration: the same; and read back"
    options = CHEAP | dict(iters=2, export_video=False, progress=False)
    one = train('a duck', guidance=pixels, out=tmp_path/'one', **options)
    two = train('a duck', out=tmp_path/'two', **options, **{'guidance.name': str(pixels), 'guidance.perp_neg': 1})
    assert one.history == two.history and one.config.guidance.name == str(pixels)
    assert load(tmp_path/'one').history == one.history
    with pytest.raises(ConfigError, match='works on pixels and has no latents'):
        train('a duck', guidance=pixels, out=tmp_path/'three', latent_iter_ratio=.5, **options)
    with pytest.raises(ConfigError, match='guidance.kind must not be ism for a diffusion model that works on pixels'):
        train('a duck', guidance=pixels, out=tmp_path/'four', **options, **{'guidance.kind': 'ism'})
    assert not (tmp_path/'four').exists()
    train('a duck', guidance=pixels, out=tmp_path/'five', **options, **{'guidance.kind': 'asd'})


def test_stop_and_resume_with_pixels(pixels, tmp_path):
    model = PixelDiffusion.from_pretrained(pixels)
    straight = Trainer(cheap(iters=4), model)
    straight.fit()
    assert_same_with_a_break(straight, Trainer(cheap(iters=4), model, folder=tmp_path), model, 2)
    drawn = straight.imagine(straight.step(), steps=2)
    assert drawn.shape == (1, 3, 16, 16) and 0 <= drawn.min() and drawn.max() <= 1


def test_half_precision_of_older_folders():
    "The number of a file stands behind the precision there"
    names = {f'text_encoder/model{name}.safetensors' for name in ('', '.fp16-00001-of-00002', '-00001-of-00002.fp16')}
    assert weight_files(names, 'text_encoder', '.fp16') == sorted(names - {'text_encoder/model.safetensors'})


# What lies where

def test_what_is_asked_seldom_stays_on_the_processor(pipeline):
    "Device 'meta' stands for a GPU"
    guidance = LatentDiffusion.from_pretrained(pipeline, device='meta')
    guidance.identity = None    # there are no numbers to keep
    def kinds(part): return {p.device.type for p in part.parameters()}
    home = [kinds(p) for p in (guidance.unet, guidance.vae.encoder, guidance.vae.decoder, guidance.text_encoder)]
    assert home == [{'meta'}, {'meta'}, {'cpu'}, {'cpu'}] and guidance.device.type == 'meta'
    e = guidance.encode_text(['a duck', ''])
    z = guidance.encode_image(torch.ones(2, 3, 32, 32, device='meta'))
    assert {t.device.type for t in (e, z, guidance.decode_latents(z))} == {'meta'}
    assert kinds(guidance.vae.decoder) == kinds(guidance.text_encoder) == {'cpu'}
    sparing = LatentDiffusion.from_pretrained(pipeline, device='meta', low_memory=True)
    assert kinds(sparing.unet) == {'cpu'} and sparing.device.type == 'meta'
    t = torch.ones(2, dtype=torch.int64, device='meta')
    assert sparing.predict_noise(z.detach(), t, e).device.type == 'meta' and kinds(sparing.unet) == {'cpu'}


@pytest.mark.parametrize('key', ['low_memory', 'compile'])
def test_a_run_is_the_same_with_less_memory_or_compiled(key, pipeline, monkeypatch):
    "Up to rounding, for any guidance; traced, but not handed to a compiler, which takes a minute"
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda call, mode: real(call, backend='eager'))
    for name in [str(pipeline)] if key == 'compile' else ['toybox', str(pipeline)]:
        first = []
        for value in (False, True):
            config = cheap(**{'guidance.name': name, 'guidance.precision': '32', f'guidance.{key}': value,
                'guidance.perp_neg': 0})
            guidance = make_guidance(config, torch.device('cpu'))
            first.append(Trainer(config, guidance).step().noise_pred)
        assert (first[0] - first[1]).norm() < 1e-3*first[0].norm(), name


def test_texts_are_asked_once(pipeline, tmp_path, monkeypatch):
    "By content: another folder with the same numbers finds them, other numbers, precisions and texts do not"
    monkeypatch.setenv('DREAMFUSION_CACHE', str(tmp_path))
    def kept(): return len(list(tmp_path.glob('texts/*.safetensors')))
    first = LatentDiffusion.from_pretrained(pipeline).encode_text(['a duck'])
    copy = write_pipeline(tmp_path/'copy')
    assert torch.equal(LatentDiffusion.from_pretrained(copy).encode_text(['a duck']), first) and kept() == 1
    LatentDiffusion.from_pretrained(copy).encode_text(['a mug'])
    LatentDiffusion.from_pretrained(copy, dtype=torch.bfloat16).encode_text(['a duck'])
    LatentDiffusion.from_pretrained(write_pipeline(tmp_path/'other', seed=1)).encode_text(['a duck'])
    assert kept() == 4


# The gradient

def test_curves_and_bounds_of_a_run(model, monkeypatch):
    asked, predict = [], model.predict_noise
    monkeypatch.setattr(model, 'predict_noise', lambda noisy, *rest: asked.append(len(noisy)) or predict(noisy, *rest))
    most = {'guidance.clip_norm': [0, 1., .5, 2], 'guidance.clip_value': .01}
    rows = dict.fromkeys(('opposite', 'threestudio', 'stable-dreamfusion'))
    for curve in rows:
        options = {'guidance.perp_neg_curve': curve, 'optim.max_grad_norm': [0, 1., .1, 9]} | most
        trainer = Trainer(cheap(**options), model)
        asked.clear()
        records = [trainer.step() for _ in range(3)]
        rows[curve] = max(asked)
        assert all(r.grad.abs().max() <= .01 for r in records)
        assert all(r.grad.norm() <= bound + 1e-6 for r, bound in zip(records, (1., .75, .5)))
    assert rows == {'opposite': 3, 'threestudio': 4, 'stable-dreamfusion': 4}


# Half precision that overflows

def overflowing(model, monkeypatch, when):
    "The model, whose n-th answers are infinite"
    asked, predict = [], model.predict_noise

    def answer(*args):
        asked.append(1)
        return predict(*args)*(math.inf if when(len(asked)) else 1.)
    monkeypatch.setattr(model, 'predict_noise', answer)
    return asked


def test_an_overflow_goes_back(model, monkeypatch, tmp_path):
    "To the checkpoint of step 4, at half the rate; a run that is stopped afterwards goes on at it"
    overflowing(model, monkeypatch, lambda n: n == 7)
    trainer = Trainer(cheap(iters=10), model, folder=tmp_path)
    with pytest.warns(UserWarning, match='step 6: what the diffusion model predicts is not finite; going on from '
                                         r'step 4 at 0.5 times the learning rate \(1 of 3 times\)'):
        trainer.fit(8)
    assert trainer.step_count == 8
    rates = [row['lr'] for row in trainer.history]
    assert rates[4] == rates[3]/2 and [row.get('slowed', 0) for row in trainer.history] == [0]*4 + [1]*4
    assert 'going on from step 4' in (tmp_path/'log.txt').read_text()
    again = Trainer.resume(tmp_path, model)
    assert again.slowed == 1 and again.step().lr == rates[-1]


def test_an_overflow_that_stays_ends_the_run(model, monkeypatch, tmp_path):
    asked = overflowing(model, monkeypatch, lambda n: n > 2)
    trainer = Trainer(cheap(iters=10), model, folder=tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        with pytest.raises(ConfigError, match='step 2: what the diffusion model predicts is not finite'): trainer.fit()
    assert len(told) == 3 and len(asked) == 6 and trainer.step_count == 2


def test_a_missing_driver_is_told():
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(ConfigError, match='built for processors only' if torch.version.cuda is None else 'nvidia-smi'):
        pick_device('cuda')


# The Hub

def etag(content): return hashlib.sha1(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    "A Hub with five models; it notes what it is asked for"
    asked, folder = [], Path()
    status = {'closed/model': (401, 'RepoNotFound'), 'gated/model': (403, 'GatedRepo'),
              'gone/model': (404, 'RepoNotFound')}

    def log_message(self, *_): pass

    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.split('?')[0].strip('/').split('/')
        name = '/'.join(parts[2:4] if parts[0] == 'api' else parts[:2])
        file = '/'.join(parts[parts.index('resolve') + 2:]) if 'resolve' in parts else ''
        listing = [p.relative_to(self.folder).as_posix() for p in sorted(self.folder.rglob('*')) if p.is_file()]
        if name in self.status: return self.answer(b'{}', *self.status[name])
        if parts[0] == 'api':
            # the client asks for the list of files in one of two ways, by its version
            tree = [dict(type='file', path=n, oid='0'*40, size=(self.folder/n).stat().st_size) for n in listing]
            about = dict(id=name, sha='0'*40, siblings=[dict(rfilename=n) for n in listing])
            return self.answer(json.dumps(tree if 'tree' in parts else about).encode())
        content = (self.folder/file).read_bytes()
        if name == 'large/model' and file == 'model_index.json':
            content = json.dumps(dict(_class_name='StableDiffusionXLPipeline')).encode()
        self.answer(content)

    def answer(self, content, status=200, code=''):
        self.send_response(status)
        headers = {'Content-Length': len(content), 'ETag': f'"{etag(content)}"', 'X-Repo-Commit': '0'*40}
        if code: headers['X-Error-Code'] = code
        for key, value in headers.items(): self.send_header(key, str(value))
        self.end_headers()
        if self.command == 'GET': self.wfile.write(content)


PROGRAM = '''
import os, sys, uuid
from pathlib import Path
from dreamfusion_nb.errors import ConfigError
from dreamfusion_nb.pipelines import find_pipeline, LatentDiffusion
for name in sys.argv[1:]:
    if name == 'full/model':    # its files are written to a device that is always full
        uuid.uuid4 = lambda: type('Id', (), dict(hex='0'*32))
        blobs = Path(os.environ['HF_HOME'])/'hub'/'models--full--model'/'blobs'
        blobs.mkdir(parents=True)
        for tag in os.environ['ETAGS'].split(): (blobs/f'{tag}.00000000.incomplete').symlink_to('/dev/full')
    try: print(find_pipeline(name))
    except ConfigError as error: print(error)
'''


def test_what_a_hub_says(pipeline, tmp_path, monkeypatch):
    Hub.folder = pipeline
    Hub.asked.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_OFFLINE='0',
        HF_HOME=str(tmp_path), HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_XET='1',
        ETAGS=' '.join(etag(p.read_bytes()) for p in pipeline.rglob('*') if p.is_file()))
    names = ('large/model', 'closed/model', 'gated/model', 'gone/model', 'right/model', 'full/model')
    try:
        done = subprocess.run([sys.executable, '-c', PROGRAM, *names], env=env, capture_output=True, text=True,
            timeout=300)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    said = dict(zip(names, done.stdout.splitlines(), strict=True))
    assert "'large/model' is Stable Diffusion XL" in said['large/model']
    assert 'not found, or private: then log in with `hf auth login`' in said['closed/model']
    assert 'accept its licence on https://huggingface.co/gated/model and log in' in said['gated/model']
    assert 'gone/model: not found' in said['gone/model'] and 'toybox' in said['gone/model']
    assert 'the disk is full' in said['full/model'] and 'HF_HOME' in said['full/model']
    assert not [path for path in Hub.asked if path.startswith('/large') and 'model_index' not in path]
    assert LatentDiffusion.from_pretrained(said['right/model']).image_size == 32
