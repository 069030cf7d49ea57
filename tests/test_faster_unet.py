"The UNet of the shipped prior by OpenVINO: the same predictions, kept in a file, and what happens without it"
import copy
import importlib.util

import pytest
import torch

from dreamfusion_nb import ConfigError, faster_unet
from dreamfusion_nb.faster_unet import FasterUNet, cache_folder
from dreamfusion_nb.prior import toybox_prior

needs_openvino = pytest.mark.skipif(not importlib.util.find_spec('openvino'), reason='needs openvino')


@pytest.fixture(scope='module')
def plain(): return toybox_prior(backend='torch')


@pytest.fixture(scope='module')
def question(plain):
    "Two noisy pictures, each with three texts, as `sds` asks"
    g = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 16, 16, generator=g), plain.encode_text(['', 'a red duck', 'a blue mug'])
    return noisy.repeat(3, 1, 1, 1), torch.tensor([500, 60]*3), text.repeat_interleave(2, 0)


@needs_openvino
def test_same_predictions_each_view_by_itself(plain, question):
    fast = toybox_prior(backend='openvino')
    found = fast.predict_noise(*question)
    assert (found - plain.predict_noise(*question)).abs().max() < 1e-4
    assert torch.equal(found, fast.predict_noise(*question))
    one = fast.predict_noise(*(x[::2] for x in question))
    assert torch.equal(found[::2], one)    # whatever its company
    again = copy.deepcopy(fast.unet)
    with torch.inference_mode(): assert torch.equal(again(*question)[0], found)


@needs_openvino
def test_the_next_run_reads_what_this_one_has_kept(question, tmp_path, monkeypatch):
    monkeypatch.setenv('NUMBA_CACHE_DIR', str(tmp_path))
    first = toybox_prior(backend='openvino').predict_noise(*question)
    kept = [p.name for p in (tmp_path/'openvino').iterdir()]
    monkeypatch.setattr(faster_unet, 'convert', lambda unet: pytest.fail('converted again'))
    assert torch.equal(toybox_prior(backend='openvino').predict_noise(*question), first)
    assert len(kept) == 1 and [p.name for p in (tmp_path/'openvino').iterdir()] == kept


def test_one_line_and_torch_where_openvino_fails(plain, question, monkeypatch):
    def fail(unet): raise RuntimeError('no such\ninstruction')
    monkeypatch.setattr(faster_unet, 'compile_unet', fail)
    broken = toybox_prior(backend='torch')
    broken.unet = FasterUNet(broken.unet).eval().requires_grad_(False)
    with pytest.warns(UserWarning, match='OpenVINO does not work here.*no such instruction') as said:
        found = [broken.predict_noise(*question) for _ in range(2)]
    assert len(said) == 1 and all(torch.equal(f, plain.predict_noise(*question)) for f in found)


def test_switched_off(monkeypatch):
    monkeypatch.setenv('DREAMFUSION_OPENVINO', '0')
    assert not isinstance(toybox_prior().unet, FasterUNet)
    with pytest.raises(ConfigError, match="did you mean 'openvino'"): toybox_prior(backend='openvin')


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('NUMBA_CACHE_DIR', str(tmp_path/'file'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path/'dreamfusion_nb'/'openvino'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'file'))
    assert cache_folder() is None
