"""What the mesh stage costs: the grid of tetrahedra, a rendered step without guidance, unwrapping and baking.

    python benchmarks/mesh.py [--size 512] [--resolution 64] [--faces 20000] [--rounds 10] [--threads 2]
    python benchmarks/mesh.py --device cuda --resolution 128    # a step with every rasteriser that works there

The surface is that of a bumpy ball, `--resolution` is that of its tetrahedra, and the field has the networks of preset
toybox. A step is forward and backward of one lit picture, with both losses of meshes. Times beside other jobs mean
little."""
import argparse
import statistics
import time

import numba
import torch
from step import machine, memory

from dreamfusion_nb import preset
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.dmtet import tet_grid
from dreamfusion_nb.export import bake, decimate, unwrap
from dreamfusion_nb.kernels import kernels_trouble
from dreamfusion_nb.losses import mesh_laplacian, mesh_normal
from dreamfusion_nb.parts import make_renderer
from dreamfusion_nb.raster_kernels import triangles_come_out_right
from dreamfusion_nb.rasterize import nvdiffrast_trouble


def seconds(job, rounds=1):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = job()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


def bumpy_ball(resolution):
    "A renderer with a surface"
    config = preset('toybox-dmtet').replace({'renderer.grid_resolution': resolution, 'nerf.bound': 1})
    renderer = make_renderer(config, torch.Generator().manual_seed(0))
    renderer.init_from_sphere(.8)
    with torch.no_grad(): renderer.sdf += .2*torch.sin(20*renderer.grid).sum(1)
    return renderer


def backends(device):
    "The rasterisers that work on a device, the definition left out"
    if device.type == 'cpu': return ['numba']
    missing = dict(warp=kernels_trouble(triangles_come_out_right, device), nvdiffrast=nvdiffrast_trouble(device))
    for name, why in missing.items():
        if why: print(f'{name}: {why}')
    return [name for name, why in missing.items() if not why]


def measured(renderer, size, rounds):
    "How long steps take, and of what, in words"
    device = renderer.tets.device
    camera = orbit(1, elevation=20, radius=3.2, fovy=32.).send(device)

    def step():
        out = renderer(camera, size, size, shading='lambertian', ambient=.3)
        loss = out.image.square().mean() + sum(f(out.vertices, out.faces, out.sides)
                                               for f in (mesh_normal, mesh_laplacian))
        loss.backward()
        if device.type == 'cuda': torch.cuda.synchronize()
        return out
    step()
    took, out = seconds(step, rounds)
    return (f'{took*1e3:.1f} ms in the median of {rounds}, {len(out.faces):,} faces, '
            f'{out.opacity.mean():.0%} of the picture covered')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--size', type=int, default=512)
    p.add_argument('--resolution', type=int, default=64)
    p.add_argument('--faces', type=int, default=20_000)
    p.add_argument('--rounds', type=int, default=10)
    p.add_argument('--threads', type=int, help='of torch and Numba (default: as many as there are cores)')
    p.add_argument('--device', default='cpu')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads); numba.set_num_threads(a.threads)
    print(machine())
    for resolution in (32, 64, 128):
        took, (vertices, tets) = seconds(lambda: tet_grid(resolution))
        print(f'grid at {resolution}: {took:.2f} s, {len(vertices):,} vertices, {len(tets):,} tetrahedra')
    renderer = bumpy_ball(a.resolution).to(a.device)
    for backend in backends(renderer.tets.device):
        renderer.backend = backend
        print(f'step at {a.size}x{a.size} without guidance, {backend}: {measured(renderer, a.size, a.rounds)}')
    print(f'memory {memory()} at most')
    if a.device != 'cpu': return    # what follows is done on the CPU
    mesh = renderer.mesh()
    took, few = seconds(lambda: decimate(mesh, a.faces))
    print(f'decimated from {len(mesh.faces):,} to {len(few.faces):,} faces: {took:.2f} s, '
          f'{"closed" if few.is_watertight else "open"}')
    took, flat = seconds(lambda: unwrap(few, 600))
    print(f'unwrapped: {took:.1f} s')
    took, _ = seconds(lambda: bake(flat, lambda x, n: renderer.field.albedo(x), 1024))
    print(f'baked at 1024x1024: {took:.1f} s')


if __name__ == '__main__': main()
