"NeMo's nineteen bugs: where each would be caught, and the ones that have no better place"
import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHEAP

from dreamfusion_nb import Trainer, load, load_config, train
from dreamfusion_nb.config import OPTIONS
from dreamfusion_nb.export import extract_mesh
from dreamfusion_nb.parts import make_guidance
from dreamfusion_nb.pipelines import fastest_dtype
from dreamfusion_nb.show import to_pil

CAUGHT = {
    'B1': 'cameras:test_azimuth_is_the_azimuth', 'B2': ':test_b2_axes_and_scale_of_a_mesh',
    'B3': 'shading:test_b3_every_mode_works_on_the_last_axis',
    'B4': 'shading:test_b4_the_laplacian_is_there', 'B5': ':test_b5_every_backend_reads',
    'B6': ':test_b6_every_renderer_reads', 'B7': ':test_b7_precision',
    'B8': 'render:test_evaluation_shows_what_training_shows', 'B9': ':test_b9_loading_changes_nothing',
    'B10': 'shading:test_b10_smoothness_in_space_reaches_the_field',
    'B11': ':test_b11_predicts', 'B12': 'shading:test_b12_nothing_is_brighter_than_its_paint',
    'B13': 'shading:test_b13_batches',
    'B14': 'shading:test_b14_integer_colours_are_colours', 'B15': ':test_b15_bytes_do_not_wrap',
    'B16': 'modes:test_test',
    'B17': 'shading:test_b17_phong_uses_every_parameter_of_its_material',
    'B18': 'shading:test_b18_directions_are_normalised_and_mapped',
    'B19': 'render:test_gradients_of_compositing_are_those_of_autograd'}


@pytest.mark.parametrize('bug', [f'B{i}' for i in range(1, 20)])
def test_every_bug_has_a_test(bug):
    place, name = CAUGHT[bug].split(':')
    path = Path(__file__).with_name(f'test_nemo_bugs_{place}.py'
                                    if place in ('cameras', 'render', 'shading') else f'test_{place or "nemo_bugs"}.py')
    assert name in [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


class Brick:
    "Dense in a box that is different along each axis and not in the middle"
    bound, low, high = 1., torch.tensor([-.7, -.1, .2]), torch.tensor([-.3, .5, .9])
    def density(self, x): return 100*torch.sigmoid(40*torch.minimum(x - self.low, self.high - x).amin(1))
    def albedo(self, x): return (x + 1)/2
    def parameters(self): yield torch.zeros(1)


def test_b2_axes_and_scale_of_a_mesh():
    mesh = extract_mesh(Brick(), resolution=96, threshold=50.)
    np.testing.assert_allclose(mesh.bounds, torch.stack([Brick.low, Brick.high]).numpy(), atol=.01)


@pytest.mark.parametrize('backend', ['sd_huggingface', 'sd_nemo', 'sd_trt'])
def test_b5_every_backend_reads(backend):
    "Including the key that is misspelt in NeMo's own file: it is named, not called"
    assert load_config('dreamfusion',
                       {'guidance.' + k: v for k, v in OPTIONS['guidance'][backend].items()}).guidance.name
    with pytest.warns(UserWarning, match='no effect'):
        config = load_config('dreamfusion', {'model.guidance.sampler_type': 'DDIM', 'model.guidance.plan_dir': '/plan'})
    assert {key for key, _ in config.not_honoured} == {'model.guidance.sampler_type', 'model.guidance.plan_dir'}


@pytest.mark.parametrize('renderer', ['torchngp_raymarching', 'nerfacc'])
def test_b6_every_renderer_reads(renderer, model):
    config = load_config('toybox', CHEAP, {'renderer.' + k: v for k, v in OPTIONS['renderer'][renderer].items()},
                         {'renderer.max_steps': 32, 'renderer.grid_resolution': 16})
    assert Trainer(config, model).step().image.isfinite().all()


@pytest.mark.parametrize('written', [16, '16', '16-mixed', 32, 'bf16', 'bf16-mixed'])
def test_b7_precision(written, pipeline):
    """Numbers and Lightning's names mean what they say: the model is in that precision; half, on a CPU, is what it
    computes fastest"""
    config = load_config('toybox', {'trainer.precision': written}, {'guidance.name': str(pipeline)})
    name = str(written).split('-')[0]
    assert config.guidance.precision == name
    assert make_guidance(config, torch.device('cpu')).dtype == {'16': fastest_dtype(), '32': torch.float32,
                                                                'bf16': torch.bfloat16}[name]


def test_b9_loading_changes_nothing(model, tmp_path):
    result = train('a hamburger', guidance=model, out=tmp_path/'result', progress=False, **CHEAP)
    again = load(tmp_path/'result')
    before = {name: v.clone() for name, v in again.renderer.state_dict().items()}
    first = again.render(40, size=24)
    assert first.tobytes() == again.render(40, size=24).tobytes() == result.render(40, size=24).tobytes()
    for name, v in again.renderer.state_dict().items():
        assert torch.equal(v, before[name]) and torch.equal(v, result.renderer.state_dict()[name]), name


def test_b11_predicts(model):
    "A picture for a camera, from the same call that trains, in every shading"
    trainer = Trainer(load_config('toybox', CHEAP, {'material.phong_ratio': .5}), model)
    with torch.no_grad():
        for shading in ('albedo', 'textureless', 'lambertian', 'phong', 'normal'):
            assert trainer.renderer.eval()(trainer.cameras(), 8, 8, shading=shading).image.shape == (1, 3, 8, 8)


def test_b15_bytes_do_not_wrap():
    over = torch.tensor([-.2, 0., .5, 1., 1.004, 1.7]).expand(3, 2, 6)
    assert np.array(to_pil(over))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
