"What the tests share: a Stable Diffusion too small to know anything, cheap settings, pictures of folders"
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('NUMBA_NUM_THREADS', '1')
os.environ.setdefault('DREAMFUSION_OPENVINO', '0')    # only tests that ask for it use that backend

import tempfile
from pathlib import Path

os.environ.setdefault('DREAMFUSION_CACHE', str(Path(tempfile.gettempdir())/'dreamfusion_nb-tests'))

import glb
import pages
import pytest

needs_browser = pytest.mark.skipif(bool(glb.missing_browser()), reason=f'needs {", ".join(glb.missing_browser())}')

# The files that take longest, which .ci/run begins with, so that none of them is left over at the end
LONG_FILES = ('test_train', 'test_browser', 'test_browser_viewer', 'test_mesh_stage', 'test_first_hour', 'test_batch',
              'test_metrics', 'test_splats', 'test_browser_run', 'test_scale', 'test_docs', 'test_parts', 'test_cli')


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    "A failed test with a browser tells what its pages showed"
    report = yield
    opened = getattr(item, 'funcargs', {}).get('opened')
    if report.when == 'call' and report.failed and opened: report.sections.append(('open pages', pages.seen(opened)))
    return report


# A run of seconds, with every part of the real one
CHEAP = {'iters': 12, 'checkpoint.every_n_train_steps': 4, 'data.train.width': 24, 'data.train.height': 24,
         'data.val.width': 16, 'data.val.height': 16, 'data.test.width': 16,
         'data.test.height': 16, 'data.test.size': 4, 'renderer.grid_resolution': 16, 'renderer.max_steps': 32,
         'renderer.update_interval': 4,
         'nerf.n_levels': 3, 'nerf.log2_hashmap_size': 10, 'nerf.desired_resolution': 24, 'nerf.hidden_dims': 8}
# and of the mesh stage after it, which takes its networks from there
MESH = {k: v for k, v in CHEAP.items() if not k.startswith('nerf.')} | {'iters': 10}


def write_pipeline(folder, seed=0):
    "A Stable Diffusion folder with random weights for 8x8 latents of 32x32 pictures"
    import torch
    from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel

    from dreamfusion_nb.prior import make_tokenizer, new_scheduler, new_text_encoder
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    vae = AutoencoderTiny(encoder_block_out_channels=(8,)*3, decoder_block_out_channels=(8,)*3,
                          num_encoder_blocks=(0, 1, 1), num_decoder_blocks=(1, 1, 1),
        latent_channels=4, upsampling_scaling_factor=2)
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
                                layers_per_block=1, cross_attention_dim=16,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        attention_head_dim=4, norm_num_groups=4)
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=new_text_encoder(tokenizer, 16), tokenizer=tokenizer,
                                   unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope='session')
def pipeline(tmp_path_factory):
    "The folder of that Stable Diffusion"
    return write_pipeline(tmp_path_factory.mktemp('guidance')/'tiny')


@pytest.fixture(scope='session')
def pixels(tmp_path_factory):
    "The folder of a DeepFloyd IF with random weights, for pictures of 16x16"
    import torch
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
    torch.manual_seed(0)
    pieces = ['<pad>', '</s>', '<unk>', '▁', *map(chr, range(33, 127))]
    rules = Tokenizer(models.Unigram([(piece, -float(i > 2)) for i, piece in enumerate(pieces)], unk_id=2))
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, pad_token='<pad>', eos_token='</s>', unk_token='<unk>',
        model_max_length=77)
    unet = UNet2DConditionModel(sample_size=16, layers_per_block=1, block_out_channels=(8, 16), in_channels=3,
        out_channels=6, down_block_types=('ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'), norm_num_groups=4,
        mid_block_type='UNetMidBlock2DSimpleCrossAttn', cross_attention_dim=32, encoder_hid_dim=16,
        up_block_types=('SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'), attention_head_dim=4,
        addition_embed_type='text', addition_embed_type_num_heads=2, cross_attention_norm='group_norm',
        resnet_time_scale_shift='scale_shift', act_fn='gelu')
    text = T5EncoderModel(T5Config(vocab_size=98, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))
    folder = tmp_path_factory.mktemp('pixels')/'if'
    IFPipeline(tokenizer=tokenizer, text_encoder=text, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDPMScheduler(beta_schedule='squaredcos_cap_v2', thresholding=True, variance_type='learned_range'),
        watermarker=None, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope='session')
def model(pipeline):
    "The same, loaded as a run that is given the folder would load it"
    from dreamfusion_nb.guidance import LatentDiffusion, fastest_dtype
    return LatentDiffusion.from_pretrained(pipeline, dtype=fastest_dtype())


@pytest.fixture(scope='session')
def cloud(model, tmp_path_factory):
    "A cheap cloud's result. Not to be changed"
    from dreamfusion_nb import train
    return train('a hamburger', guidance=model, out=tmp_path_factory.mktemp('cloud')/'burger', progress=False, **CHEAP)


@pytest.fixture(scope='session')
def refined(cloud, model):
    "The same as a mesh. Not to be changed"
    return cloud.refine(guidance=model, progress=False, **MESH)


def toy_splats(count=1500, sh_degree=0):
    "A list of splats on the surface of a toy, each with a size and a turn of its own; the same in every call"
    import torch
    import trimesh

    from dreamfusion_nb import toybox
    from dreamfusion_nb.splat_renderer import Splats
    mesh = toybox.mesh('a red car', resolution=32)
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    generator = torch.Generator().manual_seed(0)
    splats = Splats(count, opacity=.8, sh_degree=sh_degree, generator=generator)
    with torch.no_grad():
        splats.mean.copy_(torch.tensor(points))
        paint = torch.tensor(mesh.visual.face_colors[face, :3]/255).clamp(.02, .98)
        splats.raw_color.copy_(paint.logit())
        splats.log_scale.copy_(torch.randn(count, 3, generator=generator).mul(.5).sub(4.))
        splats.quaternion.copy_(torch.randn(count, 4, generator=generator))
        if sh_degree: splats.harmonics.copy_(.15*torch.randn(splats.harmonics.shape, generator=generator))
    return splats


def snapshot(folder):
    "Every path below a folder, with the bytes of the files"
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(Path(folder).rglob('*'))}


def assert_same_with_a_break(straight, broken, model, at):
    "A trainer that has done its steps, and one that is stopped, saved and taken up again: the same to the bit"
    import torch

    from dreamfusion_nb import Trainer
    broken.fit(at)
    broken.save()
    mended = Trainer.resume(broken.folder, model)
    assert mended.step_count == at and mended.config == broken.config
    mended.fit()
    assert mended.step_count == straight.step_count and mended.history == straight.history
    for name, value in straight.renderer.state_dict().items():
        assert torch.equal(value, mended.renderer.state_dict()[name]), name
    assert torch.equal(straight.generator.get_state(), mended.generator.get_state())


@pytest.fixture(scope='module')
def opened():
    "A headless Chromium"
    with glb.browser() as opened: yield opened


@pytest.fixture(scope='module')
def lab(books):
    "The address of a JupyterLab over the module's folder of notebooks"
    with pages.served('lab', books) as address: yield address


def wait_until(page, holds, seconds=pages.PATIENCE//1000):
    "Machines differ: wait for a state, not for a time"
    for _ in range(10*seconds):
        if holds(): return
        page.wait_for_timeout(100)
    raise AssertionError(f'not within {seconds} s')
