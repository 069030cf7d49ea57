"""Do other programs read our GLB files? The Khronos validator and trimesh, and three.js in a headless Chromium, whose
pictures are compared with ours. For lists of splats, three.js and Spark.

    npm install --prefix tools/web          # once: gltf-validator, three and Spark
    pip install playwright                  # part of '.[dev]'; Chromium itself comes from the system
    python tools/glb.py outputs/a-hamburger outputs/a-hamburger-refined

prints a line for each result folder, and leaves both programs' pictures beside the GLB (model-compared.png, ours
above; for a run with preset `splats` also splats-compared.png)."""
import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from dreamfusion_nb import load
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.dmtet import MeshRenderer
from dreamfusion_nb.export import mesh_views
from dreamfusion_nb.result import RESULT_BACKGROUND
from dreamfusion_nb.show import image_grid
from dreamfusion_nb.splat_files import write_splats
from dreamfusion_nb.splat_renderer import SplatRenderer, Splats

WEB = Path(__file__).parent/'web'
READERS = ('spark', 'ply'), ('three', 'ply'), ('three', 'glb')    # of lists of splats
# a browser without a window, a graphics card or a network
FLAGS = ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
         '--ignore-gpu-blocklist', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--no-first-run']


def chromium():
    "The system's Chromium, or None"
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def missing_browser():
    "What has to be installed before `browser` works; empty if nothing"
    return ['chromium']*(not chromium()) + ['pip install playwright']*(not find_spec('playwright'))


def missing():
    "What has to be installed before everything below works; empty if nothing"
    packages = [WEB/'node_modules'/name for name in json.loads((WEB/'package.json').read_text())['dependencies']]
    return (['node']*(not shutil.which('node')) + missing_browser()
            + ['npm install --prefix tools/web']*(not all(package.is_dir() for package in packages)))


def validate(*paths):
    "The Khronos validator's report on each GLB file, a dict"
    found = subprocess.run(['node', WEB/'validate.js', *map(str, paths)], cwd=WEB, capture_output=True, text=True,
                           check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


@contextmanager
def browser():
    "A headless Chromium, playwright's `Browser`"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try: yield opened
        finally: opened.close()


def ask(opened, html, path, cameras, size, background, **more):
    """What `photograph` in a page of tools/web answers about a file: a dict. Cameras look at the origin and share an
    angle"""
    name = f'model{Path(path).suffix}'
    def serve(route):
        asked = route.request.url.removeprefix('http://here/')
        route.fulfill(path=path if asked == name else WEB/asked)
    page = opened.new_page()
    errors = []
    page.on('pageerror', lambda error: errors.append(error))
    page.route('http://here/**', serve)
    page.goto(f'http://here/{html}')
    page.wait_for_function('window.ready')
    asked = dict(url=name, positions=cameras.position.tolist(), fovy=cameras.fovy[0].item(), size=size,
                 background=list(background)) | more
    answer = page.evaluate('asked => window.photograph(asked)', asked)
    page.close()
    if errors: raise RuntimeError(f'{html}: {errors}')
    return answer


def picture(url):
    "A picture [3, H, W] of the address that holds all of it"
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(',')[1]))).convert('RGB'))
    return torch.from_numpy(drawn.copy()).permute(2, 0, 1).div(255)


def photograph(opened, path, cameras, size=256, background=RESULT_BACKGROUND):
    "(pictures [3, size, size], one a camera, that three.js draws of a GLB without light; its triangles there)"
    answer = ask(opened, 'photograph.html', path, cameras, size, background)
    return picture(answer['picture']).split(size, 2), answer['triangles']


def photograph_splats(opened, path, cameras, program, size=256, background=RESULT_BACKGROUND):
    "(pictures [3, size, size], one a camera, that 'three' (.ply, .glb) or 'spark' (.ply) draws; its splats there)"
    answer = ask(opened, 'splats.html', path, cameras, size, background, program=program)
    return [picture(url) for url in answer['pictures']], answer['splats']


def shape(drawn, background=RESULT_BACKGROUND):
    "Where something is drawn [H, W]"
    return (drawn - torch.tensor(background)[:, None, None]).abs().amax(0) > .15


def psnr(a, b): return round(-10*(a - b).square().mean().log10().item(), 1)


def check_splats(opened, splats, folder, cameras, size=256):
    """What other programs make of a list of splats: how many there are, and compared with our pictures the PSNR of each
    and the least share of the two silhouettes that is common; writes splats-compared.png into the folder"""
    seen = SplatRenderer(splats, None)(cameras, size, size, background=RESULT_BACKGROUND)
    ours = list(seen.image.detach().clamp(0, 1))
    found, rows = {}, [*ours]
    with tempfile.TemporaryDirectory() as scratch:
        for program, ending in READERS:
            path = write_splats(splats, Path(scratch)/f'splats.{ending}')
            theirs, count = photograph_splats(opened, path, cameras, program, size)
            common = min(((shape(a) & shape(b)).sum()/(shape(a) | shape(b)).sum()).item() for a, b in zip(ours, theirs))
            found[f'{program}.{ending}'] = dict(splats=count, psnr=[psnr(a, b) for a, b in zip(ours, theirs)],
                                                common=round(common, 3))
            rows += theirs
    image_grid(rows, len(ours), pad=0).save(Path(folder)/'splats-compared.png')
    return found


def check(opened, folder, size=256):
    "What other programs make of a result folder's GLB, a dict of figures; writes model-compared.png into the folder"
    folder = Path(folder)
    path, cameras = folder/'model.glb', orbit(4)
    issues = validate(path)[0]['issues']
    mesh = trimesh.load(path, process=False, force='mesh')
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    welded.merge_vertices(merge_tex=True, merge_norm=True)    # seams of a texture double vertices
    theirs, triangles = photograph(opened, path, cameras, size)
    result = load(folder)
    begun = time.process_time()
    cut = result.mesh()
    seconds = time.process_time() - begun
    ours = result.views(cameras, size) if isinstance(result.renderer, MeshRenderer) else mesh_views(cut, cameras, size,
        background=RESULT_BACKGROUND)
    image_grid([*ours, *theirs], 4, pad=0).save(folder/'model-compared.png')
    edges = np.unique(welded.edges_sorted, axis=0, return_counts=True)[1]
    found = dict(folder=folder.name, errors=issues['numErrors'], warnings=issues['numWarnings'], faces=len(mesh.faces),
                drawn=triangles, closed=bool(welded.is_watertight),
        manifold=bool((edges == 2).all()), pieces=int(welded.body_count),
        outward=bool(welded.is_winding_consistent and welded.volume > 0),
        psnr=[psnr(a, b) for a, b in zip(ours, theirs)], mesh_seconds=round(seconds, 2))    # of the processor
    if not isinstance(result.field, Splats): return found
    return found | check_splats(opened, result.field, folder, cameras, size)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='result folders')
    folders = parser.parse_args().folders
    if missing(): sys.exit(f'tools/glb.py: missing here: {", ".join(missing())}')
    with browser() as opened:
        for folder in folders: print(json.dumps(check(opened, folder)), flush=True)


if __name__ == '__main__': main()
