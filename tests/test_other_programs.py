"What other programs make of our files: the Khronos glTF validator, trimesh, three.js in a browser (tools/glb.py)"
import os

import glb
import pytest
import torch
import trimesh
from conftest import snapshot

from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.export import mesh_views

pytestmark = pytest.mark.skipif(bool(glb.missing()), reason=f'needs {", ".join(glb.missing())}')


@pytest.fixture(scope='module')
def files(cloud, refined, tmp_path_factory):
    "Every kind of GLB that we write"
    folder = tmp_path_factory.mktemp('glb')
    cloud.export(folder/'colours.glb', 48)
    cloud.export(folder/'texture.glb', 48, faces=400, texture=128)
    cloud.export(folder/'normals.glb', 48, faces=100, texture=128, normals=True)
    refined.export(folder/'mesh.glb')
    return sorted(folder.iterdir())


@pytest.fixture(scope='module')
def opened():
    with glb.browser() as opened: yield opened


def test_the_validator_finds_nothing(files, cloud, refined):
    for path, report in zip(files, glb.validate(*files)):
        assert not any(report['issues'][f'num{kind}'] for kind in ('Errors', 'Warnings', 'Infos', 'Hints')), (path.name,
            report['issues'])
    for result in (cloud, refined):
        issues = glb.validate(result.folder/'model.glb')[0]['issues']
        assert (issues['numErrors'], issues['numWarnings']) == (0, 0)


def test_the_validator_would_find_something(files, tmp_path):
    damaged = tmp_path/'damaged.glb'
    damaged.write_bytes(files[0].read_bytes().replace(b'POSITION', b'POSITIOM'))
    assert glb.validate(damaged)[0]['issues']['numErrors'] > 0


def test_three_draws_what_we_draw(opened, files, cloud, refined):
    """Four sides without light: as our own picture of the mesh before it was written, or of the baked one that is in
    the file"""
    cameras = orbit(4)
    for path, mesh in zip(files, (cloud.mesh(48), refined.mesh(), None, None)):
        assert path.stem in ('colours', 'mesh') if mesh else path.stem in ('normals', 'texture')
        baked, = trimesh.load_scene(path, process=False).geometry.values()
        theirs, triangles = glb.photograph(opened, path, cameras, 128)
        ours = mesh_views(mesh or baked, cameras, 128, background=glb.RESULT_BACKGROUND)
        for a, b in zip(ours, theirs): assert -10*torch.log10((a - b).square().mean()) > 30, path.name
        assert triangles == len((mesh or baked).faces)
        if mesh: continue
        # the cloud itself is soft where its mesh is sharp: the texture is in its place, and no side is mirrored
        for a, b in zip(cloud.views(cameras, 128), theirs):
            assert -10*torch.log10((a - b).square().mean()) > 18, path.name


def test_a_result_folder(opened, refined, tmp_path):
    "What the command prints: closed, in one piece, facing outward, as we draw it"
    import shutil
    folder = shutil.copytree(refined.folder, tmp_path/'mesh')
    before = set(snapshot(folder))
    found = glb.check(opened, folder, 128)
    assert (found['closed'] and found['manifold'] and found['outward'] and found['pieces'] == 1
            and found['faces'] == found['drawn'] <= 50_000)
    assert (found['errors'], found['warnings']) == (0, 0) and min(found['psnr']) > 25
    assert set(snapshot(
        folder)) - before == {'model-compared.png'} and os.path.getsize(folder/'model-compared.png') > 1000
