"""Where the time of a training step goes, part by part, with the toybox preset at 64x64, or with splats (`--preset
splats`); and the Numba hash grid against plain torch.

    python benchmarks/step.py [--steps 100] [--rounds 64] [--threads 2] [--guidance toybox] [--start FOLDER] [--trim]
        [--device cuda] [--out table.json] [key=value ...]
    python benchmarks/step.py --architecture sd15 --preset dreamfusion [--device cuda] [--from-disk]
        [--count | --pretend] ...

A real trainer does `--steps` steps first, so that the field and its occupancy are those of a run, then twice `--rounds`
more: in turns of 16, from one refresh of the occupancy grid to the next, without and with a clock in every part. The
clock is exclusive: a part's time leaves out the parts inside it, so that the column adds up to the step; only
`visible`, the first pass that finds the samples worth asking (on a CPU it marches, too), and `grid update` hold all
that they call. `wall` is time that passed, `cpu` the processor time of all threads together. Times beside other jobs
mean little, the walls least of all. On a GPU `wall` is taken by CUDA's events.

`--architecture` takes a published diffusion model at random weights (`benchmarks/architectures.py`); a line divides the
step by what its model takes alone. `--from-disk` writes the model into a folder first, where room for its weights in
half precision must be, and reads it from there as a user's would be; the folder goes afterwards. `--count` also counts,
part by part and on any device, what PyTorch is asked to launch, where Python waits for it, and the bytes that are read
and written. `--pretend` counts a step on a GPU that is pretended (`tests/pretend.py`) and measures no time.

Preset dreamfusion takes hours to form an object on a CPU. Its networks form one in minutes under the settings of preset
toybox; then its own steps are measured:

    dreamfusion "a hamburger" --out formed --seed 2023 iters=500 update_extra_interval=4 data.train.width=32 \\
        data.train.height=32 renderer.max_steps=128 nerf.bound=1 nerf.n_levels=16 nerf.log2_hashmap_size=19 \\
        nerf.base_resolution=16 nerf.desired_resolution=2048 nerf.hidden_dims=64 nerf.n_hidden_layers=2 \\
        nerf.blob_density=5 nerf.density_bias=0
    python benchmarks/step.py --preset dreamfusion --steps 16 --rounds 32 resume_from_checkpoint=formed

A model of random numbers would tear the object apart again: with `--architecture` add `optim.lr=1e-9`, and it stays.
"""
import argparse
import ctypes
import json
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

WAITS = {k: os.environ[k] for k in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT',
                                    'NUMBA_THREADING_LAYER') if k in os.environ}

import architectures
import numba
import torch
from hashgrid import SETTINGS
from hashgrid import step as hashgrid_step

from dreamfusion_nb import Trainer, field, hashgrid, load_config, raymarch, splat_renderer, splats
from dreamfusion_nb.pipelines import fastest_dtype

sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
import pretend  # the books of a GPU

PARTS = ('march', 'visible', 'encode', 'nets', 'project', 'order', 'carried', 'composite', 'VAE encode', 'UNet',
         'VAE backward', 'composite backward', 'nets backward', 'encode backward', 'optimiser', 'grid update', 'rest')
MODEL = ('VAE encode', 'UNet', 'VAE backward')


class Clock:
    "Exclusive wall and processor time of named parts"
    def __init__(self, device='cpu'):
        self.stack, self.on, self.steps = ['rest'], False, []
        self.gpu = torch.device(device).type == 'cuda'

    def now(self):
        if not self.gpu: return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event, time.process_time()

    def switch(self):
        "Books the time since the last switch on the part on top of the stack"
        now = self.now()
        if self.on: self.spans.append((self.stack[-1], self.last, now))
        self.last = now

    def book(self):
        "Adds up the parts of a step; a GPU is waited for"
        if self.gpu: torch.cuda.synchronize()
        for part, (began, cpu), (ended, cpu_then) in self.spans:
            booked = self.steps[-1][part]
            booked[0] += began.elapsed_time(ended)/1e3 if self.gpu else ended - began
            booked[1] += cpu_then - cpu

    @contextmanager
    def part(self, name):
        self.switch()
        self.stack.append(name)
        try: yield
        finally:
            self.switch()
            self.stack.pop()

    @contextmanager
    def step(self):
        self.steps.append(defaultdict(lambda: [0., 0.]))
        self.spans = []
        self.switch()
        self.on = True
        try: yield
        finally:
            self.switch()
            self.on = False
            self.stack = ['rest']
        self.book()

    def timed(self, name, function):
        def run(*args, **options):
            # what happens inside these two is theirs
            if not self.on or {'grid update', 'visible'} & set(self.stack): return function(*args, **options)
            with self.part(name): return function(*args, **options)
        return run

    def wrap(self, owner, attribute, name): setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))

    def wrap_functions(self, module, name):
        "Both directions of every autograd function of a module"
        for function in vars(module).values():
            if not (isinstance(function, type) and issubclass(function, torch.autograd.Function)): continue
            function.forward = staticmethod(self.timed(name, function.forward))
            function.backward = staticmethod(self.timed(f'{name} backward', function.backward))


class Books(torch.utils._python_dispatch.TorchDispatchMode):
    "What PyTorch is asked to launch, waits and bytes of the parts of a clock"
    def __init__(self, clock):
        super().__init__()
        self.clock, self.launches, self.waits, self.moved = clock, Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, part = func._schema.name.rpartition('::')[2], self.clock.stack[-1]
        given, made = pretend.tensors_of((args, kwargs)), pretend.tensors_of(out)
        arrives = name in ('copy_', '_to_copy') and made and any(t.is_cuda and not made[0].is_cuda for t in given)
        if name in pretend.WAITS or arrives: self.waits[part] += 1
        if name not in pretend.FREE:
            self.launches[part] += 1
            self.moved[part] += pretend.size_of(given + made)
        return out


def counted(trainer, clock, books, steps=2):
    "Books of a step, part by part, as lines; the mean of some"
    for _ in range(steps):
        with clock.step(): trainer.step()
    lines = [f'{"part":22}{"launches":>10}{"waits":>8}{"MB":>10}   a step']
    def line(name, counts): return f'{name:22}' + '{:10.0f}{:8.1f}{:10.1f}'.format(*(n/steps for n in counts))
    columns = books.launches, books.waits, {part: n/1e6 for part, n in books.moved.items()}
    for part in PARTS:
        counts = [column.get(part, 0) for column in columns]
        if any(counts): lines.append(line(part, counts))
    model = [sum(column.get(part, 0) for part in MODEL) for column in columns]
    total = [sum(column.values()) for column in columns]
    return [*lines, line('whole step', total), line('without its model', [a - b for a, b in zip(total, model)])]


def pretended(make):
    "The same of a trainer on a GPU that is pretended, and the most memory that it held"
    with pretend.Gpu() as gpu:
        trainer, clock = make('cuda'), Clock()
        trainer.fit(2)
        put_clocks(clock, trainer)
        gpu.place = lambda: clock.stack[-1]
        gpu.reset()
        return [*counted(trainer, clock, gpu), f'held at most: {gpu.peak/2**20:,.0f} MiB']


def put_clocks(clock, trainer):
    "A clock in every part of the step"
    clock.wrap(raymarch, 'march', 'march')
    for name in ('visible', 'visible_in_room', 'see_rays_numba'): clock.wrap(raymarch, name, 'visible')
    for name, part in (('project', 'project'), ('front_to_back', 'order'), ('carried_by', 'carried')):
        clock.wrap(splat_renderer, name, part)
    for module, name in ((hashgrid, 'encode'), (field, 'nets'), (raymarch, 'composite'), (splats, 'composite')):
        clock.wrap_functions(module, name)
    clock.wrap(trainer.guidance, 'predict_noise', 'UNet')
    clock.wrap(trainer.optimizer, 'step', 'optimiser')
    clock.wrap(trainer.renderer, 'update', 'grid update')
    if not hasattr(trainer.guidance, 'vae'): return    # a model of pixels
    encode = clock.timed('VAE encode', trainer.guidance.encode_image)

    def encode_image(image, generator=None):
        "The gradient reaches the latents first and the picture last: between them lies the VAE"
        if clock.on and image.requires_grad: image = image.view_as(image)
        latents = encode(image, generator)
        if clock.on and image.requires_grad:
            def enter(grad): clock.switch(); clock.stack.append('VAE backward')
            def leave(grad): clock.switch(); clock.stack.remove('VAE backward')
            latents.register_hook(enter)
            image.register_hook(leave)
        return latents
    trainer.guidance.encode_image = encode_image


def update_interval(trainer):
    "Steps between two updates of what no gradient reaches: the occupancy grid, or where splats are"
    config = trainer.config
    return config.update_extra_interval if config.renderer.name == 'splats' else config.renderer.update_interval


def drawn(record):
    "How many samples of rays, or splats, a step had"
    weights = record.render.weights
    return 0 if weights is None else len(weights)


def state(trainer):
    "In a word, what the object is made of by now"
    renderer = trainer.renderer
    if isinstance(renderer, splat_renderer.SplatRenderer): return f'{len(renderer.field)} splats'
    return f'occupied cells {renderer.grid.occupancy:.1%}'


def measure(trainer, rounds, clock):
    "Parts of the steps with the clock, and a dict for each step without"
    plain = []
    every = update_interval(trainer)
    for i in range(2*every*math.ceil(rounds/every)):    # in turns of one refresh of the grid
        if i//every % 2:
            with clock.step(): trainer.step()
        else:
            before, began, cpu = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), time.process_time()
            record = trainer.step()
            if clock.gpu: torch.cuda.synchronize()
            after = resource.getrusage(resource.RUSAGE_SELF)
            plain.append(dict(wall=time.perf_counter() - began, cpu=time.process_time() - cpu,
                              faults=after.ru_minflt - before.ru_minflt,
                system=after.ru_stime - before.ru_stime, shading=record.look.shading,
                samples=drawn(record)))
    return clock.steps, plain


def milliseconds(values): return f'{statistics.median(values)*1e3:9.1f}{min(values)*1e3:9.1f}'


def table(steps, plain, interval):
    "The parts, one a line"
    lines = [f'{"part":22}{"wall: median":>14}{"min":>9}{"cpu: median":>14}{"min":>9}   ms; share of the step in cpu '
             f'time']
    total = sum(cpu for step in steps for _, cpu in step.values())
    for part in PARTS:
        found = [step[part] for step in steps if part in step
                 and step[part][0] > 1e-5] if part == 'grid update' else [step[part] for step in steps if part in step]
        if not found: continue
        wall, cpu = zip(*found)
        note = f'   once in {interval} steps' if part == 'grid update' else ''
        lines.append(f'{part:22}     {milliseconds(wall)}     {milliseconds(cpu)}   {sum(cpu)/total:6.1%}{note}')
    rows = {'whole step, clocked': [[sum(p[i] for p in step.values()) for i in (0, 1)] for step in steps],
            'whole step': [(p['wall'], p['cpu']) for p in plain]}
    for shading in sorted({p['shading'] for p in plain}):
        rows[f'  {shading}'] = [(p['wall'], p['cpu']) for p in plain if p['shading'] == shading]
    for name, found in rows.items():
        wall, cpu = zip(*found)
        lines.append(f'{name:22}     {milliseconds(wall)}     {milliseconds(cpu)}   mean '
                     f'{statistics.mean(wall)*1e3:.1f} and {statistics.mean(cpu)*1e3:.1f}, {len(found)} steps')
    model = [sum(step[part][i] for step in steps for part in MODEL if part in step) for i in (0, 1)]
    networks = 'UNet and VAE' if any('VAE encode' in step for step in steps) else 'UNet'
    if all(model):
        wall, cpu = (sum(times[i] for step in steps for times in step.values())/model[i] for i in (0, 1))
        lines.append(f'a step takes {wall:.2f} times its model alone ({networks}), by processor time {cpu:.2f}')
    lines.append(f'page faults a step: {statistics.median(p["faults"] for p in plain):.0f}; system time: '
                 f'{statistics.mean(p["system"] for p in plain)*1e3:.1f} ms; '
                 f'samples: {statistics.median(p["samples"] for p in plain):.0f}')
    return lines


def hashgrid_ratio(points=131072, rounds=5):
    "Numba and plain torch in turns, the setting of the issue"
    name, options = next(iter(SETTINGS.items()))
    g = torch.Generator().manual_seed(0)
    grid = hashgrid.HashGrid(**options, generator=g)
    x, weight = torch.rand(points, 3, generator=g), torch.randn(points, grid.n_output_dims, generator=g)
    for backend in ('numba', 'torch'): hashgrid_step(grid, backend, x, weight)
    times = [[hashgrid_step(grid, backend, x, weight) for backend in ('numba', 'torch')] for _ in range(rounds)]
    median = {b: [statistics.median(t[i][k] for t in times) for k in (0, 1)] for i, b in enumerate(('numba', 'torch'))}
    ratios = [statistics.median(t[1][k]/t[0][k] for t in times) for k in (0, 1)]
    return [f'hash grid, {points:,} points, forward + backward, {name}:',
            *(f'  {b}: {wall:.3f} s (cpu {cpu:.3f} s)' for b, (wall, cpu) in median.items()),
            f'  torch/numba: {ratios[0]:.1f} (cpu {ratios[1]:.1f})']


def validation(trainer, step):
    "What pictures during a run cost, as a part of the steps between two of them"
    every = trainer.config.data.val.val_check_interval
    with tempfile.TemporaryDirectory() as folder:
        trainer.folder, began = Path(folder), time.perf_counter()
        trainer.validate()
        seconds = time.perf_counter() - began
    trainer.folder = None
    return f'a validation: {seconds:.2f} s' + (f'; every {every} steps that is {seconds/(every*step):.1%} of the run'
                                               if every else '')


def memory():
    "Most memory of the process, and of a GPU, in words"
    on_gpu = f', on the GPU {torch.cuda.max_memory_reserved()/1e9:.2f} GB' if torch.cuda.is_initialized() else ''
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9:.2f} GB{on_gpu}'


def first_steps(trainer):
    "What the fog at the start costs: the first step loads or compiles the kernels, so the next ones count"
    times = []
    for _ in range(4):
        began = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - began)
    return f'first steps: {", ".join(f"{t:.2f}" for t in times)} s; memory so far {memory()}'


def machine():
    "What ran it"
    try: model = next(line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): model = platform.processor()
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
    gpu = torch.cuda.get_device_name() + ', ' if torch.cuda.is_available() else ''
    return (f'{gpu}{model}, {os.cpu_count()} cores, load {load:.1f}; torch {torch.__version__} with '
            f'{torch.get_num_threads()} threads, '
            f'numba {numba.__version__} with {numba.get_num_threads()} threads; {WAITS or ""}').rstrip('; ')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=100, help='steps before the first measured one')
    p.add_argument('--rounds', type=int, default=64, help='measured steps with the clock, and as many without')
    p.add_argument('--threads', type=int, help='of torch and Numba (default: as many as there are cores)')
    p.add_argument('--guidance', default='toybox', help='toybox, or a Stable Diffusion folder')
    p.add_argument('--architecture', choices=architectures.NAMES, help='a published model at random weights')
    p.add_argument('--from-disk', action='store_true', help='write that model into a folder, and read it from there')
    p.add_argument('--device', default='cpu')
    p.add_argument('--count', action='store_true', help='count launches, waits and bytes too')
    p.add_argument('--pretend', action='store_true', help='count them on a pretended GPU, and measure nothing')
    p.add_argument('--start', metavar='FOLDER',
                   help='measure on from the newest checkpoint of a run instead, with the settings of that run')
    p.add_argument('--prompt', default='a hamburger')
    p.add_argument('--preset', default='toybox')
    p.add_argument('--trim', action='store_true', help="tell glibc to keep freed memory, for comparison")
    p.add_argument('--out', help='also write the table as JSON')
    p.add_argument('overrides', nargs='*', metavar='key=value')
    a = p.parse_args()
    if a.from_disk and not a.architecture: p.error('--from-disk is for an --architecture')
    if a.threads: torch.set_num_threads(a.threads); numba.set_num_threads(a.threads)
    if a.trim:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-1, 1 << 30), libc.mallopt(-3, 1 << 30)    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    lines = [machine()]
    print(lines[0], flush=True)
    def make(device):
        named = dict(prompt=a.prompt)
        if a.architecture and not a.from_disk:
            teacher = architectures.make(a.architecture, device, fastest_dtype(device))
            return Trainer(load_config(a.preset, named, *a.overrides), teacher, device)
        with tempfile.TemporaryDirectory() as folder:
            if a.from_disk: architectures.write(a.architecture, folder)
            named['guidance.name'] = folder if a.from_disk else a.guidance
            return Trainer(load_config(a.preset, named, *a.overrides), device=device)
    if a.pretend:
        print(*pretended(make), sep='\n')
        return
    if a.start:
        trainer = Trainer.resume(a.start)
        trainer.folder, a.steps = None, trainer.step_count
    else:
        trainer = make(a.device)
        lines.append(first_steps(trainer))
        print(lines[-1], flush=True)
        trainer.fit(max(a.steps - trainer.step_count, 0))
    # the measured steps lie in the lit part of the run, which costs most
    trainer.config = trainer.config.replace(dict(latent_iter_ratio=0, albedo_iter_ratio=0))
    clock = Clock(trainer.device)
    put_clocks(clock, trainer)
    steps, plain = measure(trainer, a.rounds, clock)
    if a.count:
        with Books(clock) as books: more = counted(trainer, clock, books)
        print(*more, sep='\n')
        lines += more
    size = trainer.config.data.train
    parts = [f'preset {a.preset}, {size.width}x{size.height}, after {a.steps} steps; {state(trainer)}',
             *table(steps, plain, update_interval(trainer)), f'memory so far: {memory()}']
    print(*parts, sep='\n', flush=True)    # what follows takes its time
    more = [validation(trainer, statistics.median(p['wall'] for p in plain)), f'memory: {memory()} at most',
            *hashgrid_ratio()]
    print(*more, sep='\n')
    lines += parts
    if a.out:
        with open(a.out, 'w') as f:
            json.dump(dict(lines=lines + more, parts=[dict(step) for step in steps], steps=plain), f, indent=1)


if __name__ == '__main__': main()
