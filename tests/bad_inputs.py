"""What can be put in wrongly, in one table: python tests/bad_inputs.py prints it, with the line that each input gets.
docs/trust.md shows it with what the lines must have.

A row is `input | piece; piece`: the line must have each piece, and is at most 700 characters long. An input is
`key=value` (a setting, also in `mesh:` the second stage), a `dreamfusion` command, or Python.
tests/test_bad_inputs.py runs all rows; tests/test_bad_input.py looks at the disk afterwards, and at damaged results."""
import io
import os
import re
import shlex
import sys
import tempfile
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]

SETTINGS = '''
prompt="" | text that is not empty
prompt="  " | text that is not empty
view_prompts=neares | blend, nearest; nearest right value: nearest
guidance_scale=-5 | from 0 to 1000; nearest right value: 0.0
guidance_scale=.nan | from 0 to 1000; not nan
guidance_scale=.inf | from 0 to 1000; not inf
guidance_scale=high | a number; 'high'
guidance_scale=[0, 10, 20] | [start_step, start, end, end_step]; not [0, 10, 20]
guidance_scale=[9, 10, 20, 5] | start_step; [9, 10, 20, 5]
iters=0 | from 1 to; nearest right value: 1
iters=1.5 | whole number; 1.5
iters=many | whole number; 'many'
iters=true | whole number; True
iters=[1, 2] | whole number; [1, 2]
iters=99999999 | from 1 to; nearest right value: 1000000
seed=-1 | nearest right value: 0
seed=4294967296 | nearest right value: 4294967295
latent_iter_ratio=2 | from 0 to 1; nearest right value: 1.0
albedo_iter_ratio=-1 | nearest right value: 0.0
min_ambient_ratio=7 | nearest right value: 1.0
textureless_ratio=half | a number; 'half'
phase_iters=0 | or null; nearest right value: 1
update_extra_interval=0 | nearest right value: 1
export_video=maybe | true or false; 'maybe'
export_video=2 | true or false; not 2
mode=validat | fit, validate, test, export-mesh; nearest right value: validate
mode=7 | fit, validate; not 7
mesh_fname="" | not empty, or null
mesh_resolution=3 | from 8 to 1024; nearest right value: 8
resume_from_checkpoint="" | not empty, or null
preset=quality | comes first
preset=qualit | nearest right value: quality
nerf=1 | is a group of keys; nerf.bound
nerf.bond=1 | unknown key; did you mean nerf.bound
nerf.bound=99 | from 0.1 to 16; nearest right value: 16
nerf.lr=.1 | did you mean optim.lr
nerf.encoder_type=hashgird | hashgrid, frequency; nearest right value: hashgrid
nerf.encoder_max_level=[0, 2, 1, 9] | from 0 to 1; nearest right value: [0, 1.0, 1.0, 9]
nerf.degree=9 | from 1 to 8; nearest right value: 8
nerf.n_levels=0 | from 1 to 32; nearest right value: 1
nerf.n_features_per_level=0 | from 1 to 8; nearest right value: 1
nerf.log2_hashmap_size=40 | from 4 to 24; nearest right value: 24
nerf.base_resolution=1 | nearest right value: 2
nerf.base_resolution=64 nerf.desired_resolution=32 | nerf.desired_resolution; nerf.base_resolution
nerf.interpolation=linea | smoothstep, linear; nearest right value: linear
nerf.hidden_dims=wide | whole number; 'wide'
nerf.n_hidden_layers=0 | nearest right value: 1
nerf.sigma_net_cfg.num_layers=12 | from 1 to 9, or null; nearest right value: 9
nerf.sigma_net_cfg.bias=perhaps | true or false; 'perhaps'
nerf.features_net_cfg.num_hidden_dims=0 | nearest right value: 1
nerf.density_activation=relu | exp, softplus; 'relu'
nerf.blob_density=-1 | nearest right value: 0.0
nerf.blob_radius=0 | nearest right value: 0.01
nerf.density_bias=50 | from -20 to 20; nearest right value: 20
nerf.normal_type=autgrad | nearest right value: autograd
nerf.normal_eps=0 | nearest right value: 1e-05
background.type=sky | static, random, torchngp; 'sky'
background.type=rando | nearest right value: random
background.color=[.5] | 3 numbers; [0.5]
background.color=[0, 0, 2] | 3 numbers from 0 to 1; nearest right value: [0.0, 0.0, 1.0]
background.color=red | 3 numbers; 'red'
background.random_ratio=3 | nearest right value: 1.0
background.encoder_multi_res=0 | nearest right value: 1
background.encoder_cfg.n_levels=64 | nearest right value: 32
background.net_cfg.num_layers=0 | nearest right value: 1
material.phong_ratio=-.1 | nearest right value: 0.0
renderer.name=nerfac | torchngp_raymarching, nvdiffrast, splats; 'nerfac'
renderer.max_steps=1 | nearest right value: 8
renderer.dt_gamma=-1 | nearest right value: 0.0
renderer.grid_resolution=4 | nearest right value: 8
renderer.grid_decay=2 | nearest right value: 1.0
renderer.lock_texture=true | must be false; torchngp_raymarching
splats.count=0 | nearest right value: 1
splats.start_opacity=1 | nearest right value: 0.99
splats.sh_degree=4 | from 0 to 3; nearest right value: 3
splats.when_dead=delete | move, remove; 'delete'
splats.normals_from=dept | axis, density, depth; nearest right value: depth
splats.backend=gsplatt | nearest right value: gsplat
guidance.name="" | not empty
guidance.kind=nfds | one of sds, csd, nfsd; nearest right value: nfsd
guidance.timesteps=aneal | random, annealed; nearest right value: annealed
guidance.noise=fix | drawn, fixed, map; nearest right value: fixed
guidance.t_range=[.9, .1] | pair [low, high]; [0.1, 0.9]
guidance.t_range=.5 | pair [low, high]; not 0.5
guidance.t_range=[0, 2] | from 0 to 1; nearest right value
guidance.t_range_end=[a, b] | pair [low, high]; ['a', 'b']
guidance.perp_neg=-2 | nearest right value: 0.0
guidance.perp_neg_curve=opposit | nearest right value: opposite
guidance.rescale=2 | nearest right value: 1.0
guidance.lora_rank=0 | nearest right value: 1
guidance.clamp_x0=0 | from 0.1 to 100, or null; nearest right value: 0.1
guidance.clampx0=2 | did you mean guidance.clamp_x0
guidance.weighting=unifrm | nearest right value: uniform
guidance.precision=8 | auto, 32, 16, bf16; not 8
guidance.compile=yess | true or false; 'yess'
optim.name=sgd | adam, adan; 'sgd'
optim.lr=fast | a number; 'fast'
optim.lr=null | a number; None
optim.lr=[0, 99, .1, 5] | nearest right value: [0, 10.0, 0.1, 5]
optim.eps=[0, .1, .2, 5] | a number from 0 to 1,
optim.betas=[.9] | 2 or more numbers; [0.9]
optim.betas=[.9, 1] | from 0 to 0.999999; nearest right value
optim.lr_decay=2 | nearest right value: 1.0
loss.lambda_sds=-1 | nearest right value: 0.0
loss.lambda_opacity=.inf | not inf
loss.lambda_mesh_laplacian=.5 | must be 0; dreamfusion-dmtet
loss.lambda_colour=1 | unknown key
data.train.batch_size=0 | from 1; nearest right value: 1
data.train.width=7 | nearest right value: 8
data.train.start_size=4 | from 8; nearest right value: 8
data.train.start_size=16.5 | whole number; 16.5
data.train.start_size=2000 | at most the shorter side
data.train.radius_range=[0, 1] | from 0.1 to 100; nearest right value
data.train.theta_range=[0, 200] | from 0 to 180; nearest right value
data.train.phi_range=all | pair [low, high]; 'all'
data.train.fovy_range=[20, 10] | [low, high]; nearest right value: [10.0, 20.0]
data.train.angle_front=181 | nearest right value: 180
data.train.jitter=1 | true or false; not 1
data.val.size=0 | nearest right value: 1
data.val.val_check_interval=0 | or null; nearest right value: 1
data.test.height=5000 | nearest right value: 4096
data.test.default_fovy=0 | nearest right value: 1.0
checkpoint.every_n_train_steps=0 | or null; nearest right value: 1
checkpoint.save_top_k=-2 | nearest right value: -1
width=64 | is ambiguous; data.train.width
qqqq=1 | unknown key 'qqqq'
guidence_scale=20 | did you mean guidance_scale
model.nerf.bund=1 | did you mean nerf.bound
model/nerf=tccn | did you mean 'tcnn'
trainer.max_steps=0 | (here iters); nearest right value: 1
reference.images="" | not empty; list of them, or null
reference.images=[a.png,b.png] | reference.azimuth; 2 numbers for 2 pictures
reference.depths=a.png | reference.depths; as many files as reference.images, 0, not 1
reference.azimuth=720 | from -360 to 360; nearest right value: [360.0]
reference.fit=2 | from 0.1 to 1, or null; nearest right value: 1.0
reference.interval=0 | nearest right value: 1
mesh: renderer.grid_resolution=512 | at most 256
mesh: renderer.lock_geometry=true renderer.lock_texture=true | renderer.lock_geometry; renderer.lock_texture
'''
COMMANDS = '''
dreamfusion | the prompt is missing
dreamfusion "" | prompt; not empty
dreamfusion "a duck" --itres 5 | unknown option --itres; did you mean '--iters'
dreamfusion "a duck" --steps 5 | unknown option --steps; did you mean --iters
dreamfusion "a duck" --seed | expected one argument
dreamfusion "a duck" --seed x | seed; 'x'
dreamfusion "a duck" --iters 0 | iters; nearest right value: 1
dreamfusion "a duck" lambertian | 'lambertian' is no override; key=value
dreamfusion "a duck" --preset toybx | did you mean 'toybox'; quality
dreamfusion "a duck" --preset quality --config x.yaml | --config; --preset
dreamfusion "a duck" --config nowhere.yaml | 'nowhere.yaml'; there is no
dreamfusion "a duck" --config noise.bin | noise.bin; no UTF-8 text
dreamfusion "a duck" --resume --overwrite | contradict each other; choose one
dreamfusion "a duck" refine.iters=5 | refine.iters=5; needs --refine
dreamfusion "a duck" --refine refine.iters=0 | iters; nearest right value: 1
dreamfusion "a duck" --out file | out; file is a file
dreamfusion "a duck" --out /proc/nowhere | out; /proc/nowhere; cannot be written
dreamfusion "a duck" --out ~nobody-here/x | cannot; ~nobody-here
dreamfusion "a duck" --workers 0 | workers; from 1 to 64
dreamfusion "a duck" --device gpu | 'gpu'; cpu
dreamfusion "a duck" --device cuda:99 | 'cuda:99'; cpu
dreamfusion "a duck" --schedules kep | schedules; did you mean 'keep'
dreamfusion "a duck" --estimate A1000 | A1000; A100
dreamfusion --image | expected one argument
dreamfusion --image nowhere.png | nowhere.png is no file
dreamfusion --image https://example.com/cup.png | is an address; download it first
dreamfusion --image thesis | thesis is no file
dreamfusion --image file | file is no picture
dreamfusion --image dot.png | dot.png is 1 × 1 pixels; at least 16 × 16
dreamfusion --image moving.gif | is animated; 2 pictures
dreamfusion --image clear.png | shows nothing
dreamfusion --image clear.png --guidance corgi-model | prompt; say what the picture shows
dreamfusion toys red | toys takes no more words; 'red'
dreamfusion view nowhere | nowhere
dreamfusion view thesis | thesis; config.yaml
dreamfusion export | FOLDER; --help
dreamfusion export nowhere | nowhere
dreamfusion export result a.glb b.glb | writes one file, not 2
dreamfusion export result x.gbl | .gbl; did you mean '.glb'
dreamfusion export result file | file exists; --overwrite
dreamfusion export result facs=5 | no option 'facs'; did you mean 'faces'
dreamfusion batch | FILE; --help
dreamfusion batch nowhere.txt | there is no file 'nowhere.txt'
dreamfusion batch thesis | thesis is a folder
dreamfusion batch empty.txt | empty.txt is empty
dreamfusion batch twice.txt | 'A duck' occurs twice; lines 1 and 2
dreamfusion batch noise.bin | noise.bin cannot be read as text
dreamfusion batch prompts.txt --jobs 0 | jobs; 0
dreamfusion batch prompts.txt --jobs many | jobs; 'many'
dreamfusion batch prompts.txt nerf.bond=1 | did you mean nerf.bound
dreamfusion batch prompts.txt --out thesis | thesis; no batch of ours
'''
PYTHON = '''
train(7) | prompt must be a text; 7
train() | prompt must be a text; None
train(image=7) | image must be the path of a picture; 7
train("a duck", image=[]) | or a list of them; []
train("a duck", image="dot.png", out="new") | dot.png is 1 × 1 pixels
train("a duck", iters=-1) | iters; nearest right value: 1
train("a duck", resume="perhaps") | resume must be 'auto', True or False; 'perhaps'
train("a duck", resume=True, overwrite=True) | resume and overwrite; choose one
train("a duck", callbacks=[3]) | callbacks must be functions; [3]
train("a duck", threads=0) | threads; from 1 to 1024
train("a duck", workers="all") | workers; 'auto'; 'all'
train("a duck", preset=3) | preset name; not 3
train("a duck", preset="quality", config="x.yaml") | choose one
train("a duck", schedules="keep") | schedules 'keep'; resume=True
train("a duck", losses=[1]) | losses is a mapping; {"tv": tv}
train("a duck", losses={"sds": len}) | losses; 'sds'
train("a duck", losses={"": len}) | losses; a name is a text that is not empty
train("a duck", optimizer=3) | optimizer is a function; 3
train("a duck", field=3) | field: 3 is no part
train("a duck", renderer=3) | renderer: 3 is no part
train("zxqv blorp", out="new") | names no toy; 'zxqv blorp'
train("a red hamburgre", out="new") | did you mean 'hamburger'
train("a duck", out="thesis") | out; holds something that is no result; notes.txt
train("a duck", out="file") | out; file is a file
train("a duck", out="a\\0b") | out
train("a duck", guidance="somewhere/model.safetensors", out="new") | 'somewhere/model.safetensors'; toybox
train("a duck", guidance="someone/something", out="new") | 'someone/something'; guidance="toybox"
train("a duck", guidance="thesis", out="new") | 'thesis'
train("a duck", guidance="model.ckpt", out="new") | model.ckpt; never loaded
train("a duck", guidance="cut.safetensors", out="new") | cut.safetensors; only the beginning of one
toybox.parse("a hamburgre") | did you mean 'hamburger'; knows
toybox.parse("") | names no toy; knows
toybox.parse("red and blue") | names no toy
load("nowhere") | nowhere holds no result
load("thesis") | thesis holds no result
load("file") | file holds no result
load_config("toybx") | 'toybx'; did you mean 'toybox'
load_config(3) | preset name, file, folder; 3
load_config("iters: 5\\nnerf: {bound: [1\\n") | line; cannot be read as YAML
load_config("iters: 5\\niters: 6\\n") | iters; twice
load_config("- iters\\n") | must hold keys and values; ['iters']
load_config({"nerf": {"bound": {"x": 1}}}) | nerf.bound
load_config("toybox", 5) | must be a mapping; 5
load_config("thesis") | thesis; config.yaml
load_config("model: {iters: '${model.iter}'}\\ntrainer: {}\\n") | ${model.iter}; did you mean
result.export("x.gbl") | .gbl; did you mean '.glb'
result.export("x") | without an ending; .glb
result.export(None) | needs a path; None
result.export("folder.glb") | it is a folder
result.export("file/x.glb") | file is a file
result.export("/proc/x.glb") | cannot write; /proc/x.glb
result.export("x.glb", resolution=3) | resolution; from 4 to 1024; 3
result.export("x.glb", resolution="fine") | resolution; whole number; 'fine'
result.export("x.glb", threshold=-1) | threshold; -1
result.export("x.glb", threshold="high") | threshold; 'high'
result.export("x.glb", faces=3) | faces; at least 4
result.export("x.glb", faces="many") | faces; whole number; 'many'
result.export("x.glb", texture=0) | texture; 8 to 16384
result.export("x.glb", texture="fine") | texture; 'fine'
result.export("x.glb", min_share=2) | min_share; 2
result.export("x.glb", seconds=-1) | seconds; -1
result.export("x.ply", splats=True) | splats=True; preset="splats"; a NeRF
result.video("x.gif") | .gif; .mp4
result.video("x.mp4", n=0) | n must be a whole number; 0
result.video("x.mp4", kind="dept") | rgb, depth, normal; did you mean 'depth'
result.render(size=0) | size; from 1 to 16384
result.render(elevation=100) | elevation; from -90 to 90; 100
result.render(azimuth="left") | azimuth; degrees; 'left'
result.render(radius=0) | radius; a distance; 0
result.render(fovy=200) | fovy; from 1 to 170
result.render(shading="lambert") | did you mean 'lambertian'
result.turntable(n=1.5) | n; whole number; 1.5
result.refine(prompt="a duck") | refine; prompt
result.refine(preset="quality") | refine; makes a NeRF; toybox-dmtet
result.refine() | lies in no folder
write_mesh(nothing, "x.glb") | no faces
write_mesh(odd, "x.glb") | not finite
write_video([], "x.mp4") | at least one frame
write_video([picture], "x.mp4", fps=0) | fps; from .01 to 1000
write_video([picture, wide], "x.mp4") | frame 1; the first was
read_splats("nowhere.ply") | cannot read 'nowhere.ply'
read_splats("mesh.ply") | mesh.ply; no splat file; triangles
read_splats("cut.ply") | cut.ply; is cut off
read_splats("text.ply") | text.ply; does not begin as a PLY file
read_splats("noise.bin") | noise.bin; does not begin as a PLY file
read_splats("mesh.glb") | mesh.glb; KHR_gaussian_splatting
Viewer("nowhere.glb") | there is no file 'nowhere.glb'
Viewer("text.ply") | text.ply; cannot be read as a mesh
Viewer("prompts.txt") | can show .glb; 'prompts.txt'
Viewer(3) | can be shown; 3
run_batch([], "new") | is empty
run_batch(["a duck", "A Duck"], "new") | occurs twice
run_batch([3], "new") | 3; which is no text
run_batch(["a duck"], "new", jobs=1.5) | jobs; 1.5
benchmark(["a duck", "a mug"], "thesis") | thesis; no benchmark of ours
benchmark(["a duck"], "new") | two that differ, not 1
f_score(3, nothing) | trimesh.Trimesh; int
f_score(nothing, nothing) | no faces
HashGrid(interpolation="cubic") | smoothstep or linear; 'cubic'
'''


def make_files(folder):
    "What the rows name"
    import trimesh
    from conftest import toy_splats
    from PIL import Image

    from dreamfusion_nb import load_config
    from dreamfusion_nb.export import write_mesh
    from dreamfusion_nb.splat_files import write_splats
    for name, data in {'file': b'x', 'noise.bin': bytes(range(256)), 'empty.txt': b'# nothing\n', 'model.ckpt': b'x',
                       'twice.txt': b'a duck\nA duck\n', 'prompts.txt': b'a duck\n', 'text.ply': b'five years of work',
                       'cut.safetensors': (90).to_bytes(8, 'little') + b'{"a": '}.items():
        (folder/name).write_bytes(data)
    for name in ('thesis', 'result', 'folder.glb'): (folder/name).mkdir()
    (folder/'thesis/notes.txt').write_text('five years of work')
    (folder/'result/config.yaml').write_text(load_config('toybox', 'prompt=a duck').to_yaml())
    for name, side in (('dot.png', 1), ('clear.png', 64)): Image.new('RGBA', (side, side)).save(folder/name)
    frames = [Image.new('RGB', (32, 32), color) for color in ('red', 'blue')]
    frames[0].save(folder/'moving.gif', save_all=True, append_images=frames[1:])
    box = trimesh.creation.box()
    for name in ('mesh.ply', 'mesh.glb'): write_mesh(box, folder/name)
    write_splats(toy_splats(3), folder/'whole.ply')
    (folder/'cut.ply').write_bytes((folder/'whole.ply').read_bytes()[:-5])


def names():
    "What the Python rows use"
    import numpy as np
    import torch
    import trimesh
    from conftest import CHEAP
    from PIL import Image

    from dreamfusion_nb import load, load_config, toybox, train
    from dreamfusion_nb.batch import run_batch
    from dreamfusion_nb.benchmark import benchmark
    from dreamfusion_nb.export import write_mesh, write_video
    from dreamfusion_nb.hashgrid import HashGrid
    from dreamfusion_nb.metrics import f_score
    from dreamfusion_nb.parts import make_renderer
    from dreamfusion_nb.result import Result
    from dreamfusion_nb.splat_files import read_splats
    from dreamfusion_nb.viewer import Viewer
    config = load_config('toybox', CHEAP | {'prompt': 'a duck'})
    odd = trimesh.creation.box()
    odd.vertices = np.full_like(odd.vertices, np.nan)
    functions = (train, load, load_config, write_mesh, write_video, read_splats, Viewer, run_batch, benchmark, f_score,
                 HashGrid)
    return {function.__name__: function for function in functions} | dict(
        toybox=toybox, result=Result(config, make_renderer(config, torch.Generator().manual_seed(0))), odd=odd,
        nothing=trimesh.Trimesh(), picture=Image.new('RGB', (4, 4)), wide=Image.new('RGB', (8, 4)))


def rows():
    "(door, input, pieces of the line) of each row"
    for door, text in (('setting', SETTINGS), ('command', COMMANDS), ('Python', PYTHON)):
        for line in text.strip().splitlines():
            code, pieces = line.rsplit(' | ', 1)
            yield door, code, tuple(piece.strip() for piece in pieces.split(';'))


def try_setting(code, known):
    plain = code.removeprefix('mesh: ')
    known['load_config']('toybox' if plain == code else 'toybox-dmtet', *re.split(r' (?=\w+\.)', plain))


def try_command(code, known):
    from dreamfusion_nb import ConfigError, cli
    said, out = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(out): code = cli.main(shlex.split(code)[1:])
    if code == 2: raise ConfigError(said.getvalue().rstrip('\n').split('\n')[-1].removeprefix('dreamfusion: '))


def try_python(code, known): eval(code, dict(known))


def line_of(door, code, known):
    "The line that an input gets, in a folder where `make_files` has been. Raises AssertionError if it gets none"
    from dreamfusion_nb import ConfigError
    try: dict(setting=try_setting, command=try_command, Python=try_python)[door](code, known)
    except ConfigError as error: return str(error)
    raise AssertionError(f'nothing was said to {code}')


def check(line, code, pieces):
    "Raise AssertionError unless a line is one, and has all pieces; that of a setting names its key"
    assert 10 < len(line) < 700 and len(line.splitlines()) == 1, (code, line)
    key = re.match(r'[\w./]+(?==)', code)
    for piece in (*pieces, *([key[0]] if key else [])): assert piece in line, (code, piece, line)


def table(lines=None):
    "The rows as Markdown: what the line of each must have, or the line itself"
    def cell(text): return text.replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*')
    second = lines or [' … '.join(pieces) for *_, pieces in rows()]
    body = [f'| `{code}` | {cell(said)} |' for (_, code, _), said in zip(rows(), second)]
    return '\n'.join(['| what is put in | what the line says |', '|---|---|', *body])


def all_lines():
    "The line of each row, in a folder of its own"
    with tempfile.TemporaryDirectory() as place, chdir(place), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        make_files(Path(place))
        known = names()
        return [line_of(door, code, known) for door, code, _ in rows()]


if __name__ == '__main__':
    os.environ |= dict(HF_HUB_OFFLINE='1')
    print(table(all_lines()))
