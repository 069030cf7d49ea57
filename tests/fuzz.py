"""Input that nobody thinks of, through every door that reads some: a result, or one line. Nothing else.

    python tests/fuzz.py --minutes 60 [--only NAME] [--seed 0]

`doors` maps a name to (strategy of Hypothesis, function of what it draws). For the minutes given, the doors take turns,
each with fresh random examples. Where Atheris is installed, its bytes, led by which lines they reach, go through the
same doors: python tests/fuzz.py --atheris NAME. `test_fuzz.py` runs a fixed share of it."""
import argparse
import json
import math
import os
import string
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]
os.environ |= dict(HF_HUB_OFFLINE='1')

import numpy as np
import torch
import trimesh
from conftest import CHEAP, toy_splats
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image

from dreamfusion_nb import ConfigError, Trainer, cli, load, load_config, toybox
from dreamfusion_nb.batch import batch_sheet, check_claim, read_prompts
from dreamfusion_nb.checkpoints import list_checkpoints, read_checkpoint, read_history, write_text
from dreamfusion_nb.config import KEYS
from dreamfusion_nb.export import EmptyMeshError, write_mesh
from dreamfusion_nb.presets import PRESETS
from dreamfusion_nb.reference import framed, read_picture
from dreamfusion_nb.run import slug
from dreamfusion_nb.splat_files import read_splats, write_splats
from dreamfusion_nb.splat_renderer import Splats
from dreamfusion_nb.viewer import mesh_data, one_mesh
from dreamfusion_nb.weights import header

PLACE = Path(tempfile.mkdtemp(prefix='fuzz-'))


def tried(function, *args):
    "What a door returns, or None where it refuses in one line. Any other end is a bug"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return function(*args)
    except (ConfigError, EmptyMeshError) as error: assert len(str(error).splitlines()) == 1, str(error)
    return None


# Bytes that were right once

ODD = [b'-1', b'0', b'1e999', b'NaN', b'null', b'[]', b'{}', b'""', b'true', b'99999999999999999999', b'\xff', b'\0',
       b'\n', b'*a', b'&a ', b'!!python/name:os', b'": ', b'- ', b'\x85', '\u2028'.encode(), b'\r']


@st.composite
def damaged(draw, whole):
    "Bytes of a file with a few places flipped, cut, grown or replaced; more often near its beginning"
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, min(len(data), 600)), st.integers(0, len(data))))
        match draw(st.sampled_from(('flip', 'cut', 'grow', 'drop', 'odd'))):
            case 'flip': data[at:at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 'cut': del data[at:]
            case 'grow': data[at:at] = draw(st.binary(max_size=16))
            case 'drop': del data[at:at + draw(st.integers(1, 40))]
            case 'odd': data[at:at + draw(st.integers(0, 8))] = draw(st.sampled_from(ODD))
    return bytes(data)


def written(name, data):
    path = PLACE/name
    path.write_bytes(data)
    return path


# Configurations

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
                    st.sampled_from(['toybox', 'sds', 'nvdiffrast', 'splats', '${model.seed}', '1e400', '[1, 2',
                                     'dmtet']))
VALUES = st.recursive(SCALARS, lambda some: st.lists(some, max_size=5) | st.dictionaries(st.text(max_size=8), some,
                                                                                        max_size=3), max_leaves=8)
NAMES = st.one_of(st.sampled_from(sorted(KEYS)), st.sampled_from(['model.nerf.bound', 'model/nerf', 'trainer.max_steps',
    'defaults', 'nerf', 'data.train', '_target_', 'model', 'preset', 'refine.iters']), st.text(max_size=12))
OVERRIDES = st.lists(st.builds('{}={}'.format, NAMES, st.one_of(st.text(max_size=12), VALUES)), max_size=3)
YAMLS = [load_config('quality', dict(prompt='a duck')).to_yaml(), PRESETS['dreamfusion'],
         'model: {nerf: {bound: 2}, prompt: a duck}\ntrainer: {max_steps: 5}\ndefaults:\n- nerf: torchngp\n']


def same_again(config):
    "What a configuration writes is read back as it was"
    if config is not None: assert load_config(config.to_yaml()) == config


def mapping(drawn):
    source, overrides = drawn
    same_again(tried(load_config, source, *overrides))


def yaml_file(data): same_again(tried(load_config, written('run.yaml', data)))


def yaml_text(text): same_again(tried(load_config, text))


def command(words):
    with suppress(SystemExit), open(os.devnull, 'w') as nothing, redirect_stdout(nothing):    # --help
        tried(cli._read_arguments, words)


# Prompts

def prompt(text):
    name = slug(text)
    assert name and set(name) <= set(string.ascii_lowercase + string.digits + '-') and len(name) <= 60
    tried(toybox.parse, text)
    config = tried(load_config, 'toybox', dict(prompt=text))
    same_again(config)
    if config is not None: assert config.prompt == text


def prompt_file(data): tried(read_prompts, written('prompts.txt', data))


# Checkpoints, histories, notes, previews

class Made:
    "A run of two steps; its files, to be damaged and to be put right again"
    def __init__(self, guidance=None):
        self.folder = PLACE/'made'
        config = load_config('toybox', CHEAP | {'prompt': 'a duck', 'iters': 2})
        trainer = Trainer(config, guidance, folder=self.folder)
        trainer.fit()
        write_text(self.folder/'config.yaml', config.to_yaml())
        self.step = list_checkpoints(self.folder)[-1]
        self.files = {path.name: path for path in (*self.step.iterdir(), self.folder/'history.jsonl')}
        self.right = {name: path.read_bytes() for name, path in self.files.items()}

    def damage(self, drawn):
        name, data = drawn
        self.files[name].write_bytes(data)
        try:
            tried(read_checkpoint, self.step)
            tried(read_history, self.folder, 2)
            tried(load, self.folder)
            if name.endswith('.safetensors'): tried(header, self.files[name])
        finally: self.files[name].write_bytes(self.right[name])

    @property
    def strategy(self):
        return st.sampled_from(sorted(self.right)).flatmap(lambda name: st.tuples(st.just(name),
                                                                                  damaged(self.right[name])))


def note(data):
    folder = PLACE/'batch'
    folder.mkdir(exist_ok=True)
    (folder/'batch.json').write_bytes(data)
    tried(check_claim, folder, dict(prompts=['a duck'], keys={}), 'batch')


def preview(data): tried(batch_sheet, [('a duck', written('preview.png', data))])


# Meshes and splats

def parameters(values): return {name: value.detach() for name, value in values.named_parameters()}


NUMBERS = st.floats(-8, 8, width=32)


@st.composite
def splats(draw):
    "A few splats of any degree; now and then a number that no file may hold"
    count, degree = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    made = Splats(count, sh_degree=degree, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))
    with torch.no_grad():
        for value in parameters(made).values(): value.copy_(4*torch.randn(value.shape, generator=torch.Generator()
            .manual_seed(draw(st.integers(0, 99)))))
        name = draw(st.sampled_from(sorted(parameters(made))))
        made.get_parameter(name).view(-1)[0] = draw(st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf,
                                                                                         1e30, -200.])))
    return made, draw(st.sampled_from(['.ply', '.glb']))


def there_and_back(write, read, made, name):
    "What is read of what was written, or None where it may not be written"
    path = tried(write, made, PLACE/name)
    if path is None: return None
    back = tried(read, path)
    assert back is not None, 'what was written cannot be read'
    return back


def splats_there_and_back(drawn):
    made, ending = drawn
    back = there_and_back(write_splats, read_splats, made, f'splats{ending}')
    if back is None: return
    for name, value in parameters(made).items():
        there = back.get_parameter(name).detach()
        if name == 'quaternion': value = torch.nn.functional.normalize(value, dim=-1)
        if name == 'quaternion': there = torch.nn.functional.normalize(there, dim=-1)
        if name in ('raw_color', 'raw_opacity'): value, there = value.sigmoid(), there.sigmoid()
        if name == 'log_scale' and ending == '.glb': value, there = value.exp(), there.exp()
        torch.testing.assert_close(there, value, rtol=1e-4, atol=1e-5, msg=name)


def splat_file(drawn):
    ending, data = drawn
    tried(read_splats, written(f'splats{ending}', data))


def cut_out(path):
    "A picture of a disc, on nothing where a file of that kind can say so"
    rows, columns = np.mgrid[:24, :24] - 11.5
    disc = Image.fromarray(np.where(rows**2 + columns**2 < 80, 255, 0).astype(np.uint8))
    picture = Image.merge('RGBA', (disc, disc, disc, disc))
    picture.convert('RGB' if path.suffix == '.jpg' else 'RGBA').save(path)
    return path


def picture_file(drawn):
    ending, data = drawn
    picture = tried(read_picture, written(f'picture{ending}', data))
    if picture is not None: assert framed(picture, .75).isfinite().all()


@st.composite
def meshes(draw):
    "A few triangles, as they come: of no size, without neighbours, with vertices that nobody uses"
    number = st.one_of(NUMBERS, st.sampled_from([0., 1., 1e-30, 1e30, math.nan, math.inf]))
    vertices = draw(st.lists(st.tuples(NUMBERS, NUMBERS, number), min_size=3, max_size=6))
    corner = st.integers(0, len(vertices) - 1)
    faces = draw(st.lists(st.tuples(corner, corner, corner), max_size=6))
    colors = draw(st.lists(st.integers(0, 255), min_size=4, max_size=4))
    return (trimesh.Trimesh(vertices, np.array(faces, int).reshape(-1, 3), vertex_colors=[colors]*len(vertices),
                            process=False), draw(st.sampled_from(['.glb', '.ply', '.obj', '.stl'])))


def mesh_there_and_back(drawn):
    made, ending = drawn
    back = there_and_back(write_mesh, one_mesh, made, f'mesh{ending}')
    if back is None: return
    assert len(back.faces) == len(made.faces)
    np.testing.assert_allclose(back.triangles, made.triangles, rtol=1e-5, atol=1e-6)
    tried(mesh_data, back)


def mesh_file(drawn):
    ending, data = drawn
    mesh = tried(one_mesh, written(f'mesh{ending}', data))
    if mesh is not None: tried(mesh_data, mesh)


def files(write, endings):
    "(ending, damaged bytes of a file of that kind)"
    whole = {ending: write(PLACE/f'whole{ending}').read_bytes() for ending in endings}
    return st.sampled_from(endings).flatmap(lambda ending: st.tuples(st.just(ending), damaged(whole[ending])))


DOORS = ('mappings', 'YAML files', 'YAML texts', 'commands', 'prompts', 'files of prompts', 'checkpoints', 'notes',
         'previews', 'pictures', 'splats written', 'splats read', 'meshes written', 'meshes read')


def doors(guidance=None):
    "Name -> (strategy, function of what it draws)"
    made, box = Made(guidance), trimesh.creation.box()
    box.visual.vertex_colors = [200, 100, 50, 255]
    picture = PLACE/'whole.png'
    Image.effect_noise((8, 8), 50).save(picture)
    words = st.lists(st.one_of(st.sampled_from(['a duck', '--refine', '--resume', '--preset', '--config', '--seed',
        'out', '--out', '--iters', '3', '--estimate', 'A100', '--workers', 'auto']), st.text(max_size=10)), max_size=6)
    return {
        'mappings': (st.tuples(st.dictionaries(NAMES, VALUES, max_size=4), OVERRIDES), mapping),
        'YAML files': (st.sampled_from(YAMLS).flatmap(lambda text: damaged(text.encode())), yaml_file),
        'YAML texts': (st.text(), yaml_text),
        'commands': (st.tuples(words, OVERRIDES).map(lambda pair: pair[0] + pair[1]), command),
        'prompts': (st.one_of(st.text(), st.lists(st.sampled_from(['a', 'red', 'duck', 'with', 'stripes', 'ducks', '..',
            '\0', '\ud800', '/', 'é']), max_size=6).map(' '.join)), prompt),
        'files of prompts': (damaged('a duck\n# no\na red mug\n'.encode('utf-8-sig')), prompt_file),
        'checkpoints': (made.strategy, made.damage),
        'notes': (damaged(json.dumps(dict(prompts=['a duck'], keys={})).encode()), note),
        'previews': (damaged(picture.read_bytes()), preview),
        'pictures': (files(cut_out, ['.png', '.gif', '.jpg', '.tiff', '.webp', '.bmp']), picture_file),
        'splats written': (splats(), splats_there_and_back),
        'splats read': (files(lambda path: write_splats(toy_splats(3, 1), path), ['.ply', '.glb']), splat_file),
        'meshes written': (meshes(), mesh_there_and_back),
        'meshes read': (files(lambda path: write_mesh(box, path), ['.glb', '.ply', '.obj', '.stl']), mesh_file)}


QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def examples(door, count, seed=None):
    "Put `count` examples through a door: always the same ones without a seed"
    strategy, check = door
    how = settings(max_examples=count, derandomize=seed is None, phases=[Phase.generate, Phase.shrink], **QUIET)
    run = how(given(strategy)(check))
    (run if seed is None else seeded(seed)(run))()


def with_atheris(door, minutes):
    "The same door with bytes that coverage leads"
    import atheris
    strategy, check = door
    run = settings(**QUIET)(given(strategy)(check))
    atheris.Setup([sys.argv[0], f'-max_total_time={int(60*minutes)}'], run.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--only', metavar='NAME', choices=DOORS, help='one door')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--atheris', metavar='NAME', choices=DOORS, help='one door, with bytes that coverage leads')
    options = parser.parse_args()
    os.chdir(PLACE)
    found = doors()
    if options.atheris: return with_atheris(found[options.atheris], options.minutes)
    names = [options.only] if options.only else DOORS
    end, done, turn, count, bad = time.monotonic() + 60*options.minutes, Counter(), 0, 100, {}
    while time.monotonic() < end:
        name = names[turn % len(names)]
        if name not in bad:
            try: examples(found[name], count, seed=options.seed + turn)
            except Exception as error:    # the others go on
                bad[name] = error
                traceback.print_exception(error)
            done[name] += count
        turn += 1
        if turn % (4*len(names)) == 0: print(f'{sum(done.values()):,} examples, {len(bad)} doors failed', flush=True)
    print(f'fuzz: {options.minutes:g} minutes, {sum(done.values()):,} examples through {len(done)} doors '
          f'({", ".join(f"{name} {count:,}" for name, count in done.items())}); {len(bad)} doors failed')
    return len(bad)


if __name__ == '__main__': sys.exit(main())
