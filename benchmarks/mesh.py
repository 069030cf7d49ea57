"""What the mesh stage costs: the grid of tetrahedra, a rendered step without guidance, unwrapping and baking.

    python benchmarks/mesh.py [--size 512] [--resolution 64] [--faces 20000] [--rounds 10] [--threads 2]

The surface is that of a bumpy ball, `--resolution` is that of its tetrahedra, and the field has the networks of preset
toybox. A step is forward and backward of one lit picture. Times beside other jobs mean little."""
import argparse
import resource
import statistics
import time

import numba
import torch
from step import machine

from dreamfusion_nb import preset
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.dmtet import tet_grid
from dreamfusion_nb.export import bake, decimate, unwrap
from dreamfusion_nb.parts import make_renderer


def seconds(job, rounds=1):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = job()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--size', type=int, default=512)
    p.add_argument('--resolution', type=int, default=64)
    p.add_argument('--faces', type=int, default=20_000)
    p.add_argument('--rounds', type=int, default=10)
    p.add_argument('--threads', type=int, help='of torch and Numba (default: as many as there are cores)')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads); numba.set_num_threads(a.threads)
    print(machine())
    for resolution in (32, 64, 128):
        took, (vertices, tets) = seconds(lambda: tet_grid(resolution))
        print(f'grid at {resolution}: {took:.2f} s, {len(vertices):,} vertices, {len(tets):,} tetrahedra')
    renderer = make_renderer(preset('toybox-dmtet').replace({'renderer.grid_resolution': a.resolution,
                                                             'nerf.bound': 1}), torch.Generator().manual_seed(0))
    renderer.init_from_sphere(.8)
    with torch.no_grad(): renderer.sdf += .2*torch.sin(20*renderer.grid).sum(1)
    camera = orbit(1, elevation=20, radius=3.2, fovy=32.)

    def step():
        out = renderer(camera, a.size, a.size, shading='lambertian', ambient=.3)
        out.image.square().mean().backward()
        return out
    step()
    took, out = seconds(step, a.rounds)
    print(f'step at {a.size}x{a.size} without guidance, forward and backward: {took:.2f} s in the median of '
          f'{a.rounds}, {len(out.faces):,} faces, {out.opacity.mean():.0%} of the picture covered; '
          f'memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9:.2f} GB at most')
    mesh = renderer.mesh()
    took, few = seconds(lambda: decimate(mesh, a.faces))
    print(f'decimated from {len(mesh.faces):,} to {len(few.faces):,} faces: {took:.2f} s, '
          f'{"closed" if few.is_watertight else "open"}')
    took, flat = seconds(lambda: unwrap(few, 600))
    print(f'unwrapped: {took:.1f} s')
    took, _ = seconds(lambda: bake(flat, lambda x, n: renderer.field.albedo(x), 1024))
    print(f'baked at 1024x1024: {took:.1f} s')


if __name__ == '__main__': main()
