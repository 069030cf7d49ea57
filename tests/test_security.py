"""What a hostile file, prompt or network could do: nothing but be refused, in a line"""
import ast
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHEAP

from dreamfusion_nb import load, load_config, train
from dreamfusion_nb.errors import ConfigError
from dreamfusion_nb.run import slug
from dreamfusion_nb.splat_files import read_splats
from dreamfusion_nb.weights import header

PACKAGE = Path(__file__).parents[1]/'dreamfusion_nb'


# No code that runs what a file says

FORBIDDEN = {'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen', 'torch.load', 'marshal.loads',
             'yaml.load_all', 'yaml.unsafe_load', 'yaml.full_load', 'pickle.load', 'pickle.loads'}
# processes of one run on one machine speak through pipes that they open themselves
ALLOWED = {('scale', 'pickle.load'), ('scale', 'pickle.loads')}


def calls(path):
    "(name as it is written, keywords) of each call in a file"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call): yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


def test_nothing_runs_what_a_file_says():
    for path in PACKAGE.glob('*.py'):
        for name, words in calls(path):
            assert name not in FORBIDDEN or (path.stem, name) in ALLOWED, f'{path.name}: {name}'
            assert 'shell' not in words and 'allow_pickle' not in words, f'{path.name}: {name}'
            if name == 'yaml.load': assert ast.unparse(words['Loader']) == '_Reader', path.name


def test_yaml_can_name_no_python(tmp_path):
    trap = tmp_path/'trap'
    for tag in ('!!python/object/apply:os.mkdir', '!!python/object/new:os.mkdir', '!!python/name:os.mkdir'):
        (tmp_path/'run.yaml').write_text(f'prompt: {tag} ["{trap}"]\n')
        with pytest.raises(ConfigError, match='constructor'): load_config(tmp_path/'run.yaml')
    assert not trap.exists()


# No network unless it is asked for

OFFLINE = '''
import socket, sys
tries = []
def refuse(*args, **words):
    tries.append(args)
    raise OSError('there is no network here')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from dreamfusion_nb import load, train
few = %r | dict(iters=2, progress=False)
result = train('a hamburger', out='made', **few)
result.export('a.glb', resolution=16)
load('made').render(size=16)
assert not tries, tries
print('connections:', len(tries))
'''


def test_a_run_connects_to_nothing(tmp_path):
    "In a process of its own, whose environment allows the network"
    free = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'TRANSFORMERS_'))}
    paths = os.pathsep.join([str(PACKAGE.parent), free.get('PYTHONPATH', '')])
    done = subprocess.run([sys.executable, '-c', OFFLINE % CHEAP], cwd=tmp_path, env=free | dict(PYTHONPATH=paths),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'connections: 0' in done.stdout and (tmp_path/'a.glb').exists()


# No path out of the folder of results

@pytest.mark.parametrize('prompt', ['../../a hamburger', '/etc/passwd a hamburger', '..\\..\\a hamburger', '~/a duck',
                                    'a\x00duck', 'con', '.', '..', '…/…', '-rf a duck', 'a duck\n../x', 'é'*500,
                                    '$(touch x) a duck', 'a duck; rm -rf .', '%2e%2e%2fduck'])
def test_a_prompt_names_a_folder_in_the_folder_of_results(prompt, tmp_path):
    name = slug(prompt)
    assert name and not name.startswith(('-', '.')) and len(name.encode()) < 200
    assert not set(name) & set('/\\\0\n:*?"<>|$;~%')
    assert (tmp_path/name).resolve().parent == tmp_path.resolve()


# No file that takes all memory, or ends in a traceback

DEEP = b'['*100_000
BOMB = '\n'.join(['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] +
                 [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"]*10)}]' for i in range(1, 10)] + ['prompt: *a9'])


def glb(tree):
    body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    body += b' '*(-len(body) % 4)
    head = b'glTF' + struct.pack('<III', 2, 28 + len(body), len(body)) + b'JSON'
    return head + body + struct.pack('<I', 0) + b'BIN\0'


def listed(**changes):
    "A GLB of splats whose lists are not what they say"
    accessor = dict(bufferView=0, componentType=5126, count=1, type='VEC3') | changes
    kind = 'KHR_gaussian_splatting'
    names = ['POSITION', *(f'{kind}:{name}' for name in ('ROTATION', 'SCALE', 'OPACITY', 'SH_DEGREE_0_COEF_0'))]
    said = dict(kernel='ellipse', colorSpace='srgb_rec709_display')
    part = dict(attributes=dict.fromkeys(names, 0), mode=0, extensions={kind: said})
    return glb(dict(asset=dict(version='2.0'), meshes=[dict(primitives=[part])], accessors=[accessor],
                    bufferViews=[dict(buffer=0, byteLength=0)], buffers=[dict(byteLength=0)]))


PLY = b'ply\nformat binary_little_endian 1.0\nelement vertex %d\n%send_header\n'
NAMES = ['x', 'y', 'z', 'opacity', *(f'{name}_{i}' for name, n in (('f_dc', 3), ('scale', 3), ('rot', 4))
                                     for i in range(n))]
COLUMNS = ''.join(f'property float {name}\n' for name in NAMES).encode()
HOSTILE = {
    'bomb.yaml': BOMB.encode(), 'deep.yaml': b'prompt: ' + DEEP[:5000], 'number.yaml': b'iters: 1' + b'0'*100_000,
    'cycle.yaml': b'prompt: a duck\nnerf: &n {bound: *n}\n', 'nul.yaml': b'prompt: a\0duck\n',
    'far.ply': PLY % (10**15, COLUMNS), 'less.ply': PLY % (-1, COLUMNS), 'long.ply': b'ply\n' + b'comment x\n'*10_000,
    'deep.glb': glb(DEEP), 'list.glb': glb([]), 'far.glb': listed(count=2**40), 'less.glb': listed(count=-1),
    'before.glb': listed(byteOffset=-8), 'kind.glb': listed(componentType=1), 'none.glb': listed(bufferView=7),
    'huge.safetensors': struct.pack('<Q', 2**63) + b'{}', 'deep.safetensors': struct.pack('<Q', len(DEEP)) + DEEP,
    'list.safetensors': struct.pack('<Q', 2) + b'[]', 'odd.safetensors': struct.pack('<Q', 7) + b'{"a":1}'}
READERS = {'.yaml': load_config, '.ply': read_splats, '.glb': read_splats, '.safetensors': header}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_file_is_refused_in_a_line(name, tmp_path):
    path = tmp_path/name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ConfigError) as refused: READERS[path.suffix](path)
    said = str(refused.value)
    assert '\n' not in said and len(said) < 1000 + len(str(path)), said
    if name in ('far.glb', 'less.glb', 'before.glb'): assert 'does not lie in it' in said


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')/'made'
    train('a hamburger', out=folder, **CHEAP | dict(iters=1, progress=False))
    return folder


@pytest.mark.parametrize('name', ['state.json', 'model.safetensors', 'optimizer.safetensors', 'history.jsonl'])
@pytest.mark.parametrize('body', [DEEP, struct.pack('<Q', 2**62) + b'{}', b'[]\n', b'\xff\xfe', b''],
                         ids=['deep', 'huge', 'list', 'bytes', 'empty'])
def test_a_hostile_checkpoint_is_refused_in_a_line(name, body, made):
    step = next((made/'checkpoints').iterdir())
    path = made/name if name == 'history.jsonl' else step/name
    right = path.read_bytes()
    path.write_bytes(body)
    try:
        with pytest.raises(ConfigError) as refused: load(made)
        assert '\n' not in str(refused.value) and str(made) in str(refused.value)
    finally: path.write_bytes(right)
    assert load(made).history
