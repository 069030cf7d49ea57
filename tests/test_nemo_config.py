"""NeMo's configuration: its two pages as presets, its trees of files, its command line; schedules; and all that can be
wrong with them.

The trees are small and our own, with the keys and defaults that NeMo documents."""
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from dreamfusion_nb.config import (
    KEYS,
    OPTIONS,
    PRESETS,
    SCHEDULED,
    ConfigError,
    check_latents,
    load_config,
    preset,
    resolve,
    value_at,
)
from dreamfusion_nb.nemo import CLASSES

MODULES = 'nemo.collections.multimodal.modules.nerf.'
DATASETS = 'nemo.collections.multimodal.data.nerf.'
GRID = dict(otype='HashGrid', n_levels=16, n_features_per_level=2, log2_hashmap_size=19, base_resolution=16,
            interpolation='Smoothstep', per_level_scale=None)


def fused(width, depth):
    return dict(otype='FullyFusedMLP', activation='ReLU', output_activation='None', n_neurons=width,
                n_hidden_layers=depth)


def plain(width, layers): return dict(num_hidden_dims=width, num_layers=layers, bias=True)


def weights(**others):
    return dict(dict.fromkeys(['lambda_' + n for n in ('opacity', 'entropy', 'orientation', '2d_normal_smooth',
                                                       '3d_normal_smooth', 'mesh_normal', 'mesh_laplacian')], 0.),
                                   lambda_sds=1., **others)


def page(background, renderer, loss, latent, size):
    return dict(_target_='nemo.collections.multimodal.models.nerf.dreamfusion.DreamFusion',
        defaults=[dict(nerf='torchngp'), dict(background=background), dict(material='basic_shading'),
                  dict(renderer=renderer), dict(guidance='sd_huggingface'),
                  dict(optim='adan'), dict(loss=loss), dict(data='data'), '_self_'],
        resume_from_checkpoint=None, prompt='a hamburger', negative_prompt='', front_prompt=', front view',
        side_prompt=', side view', back_prompt=', back view',
        update_extra_interval=16, guidance_scale=100, export_video=False, iters='${trainer.max_steps}',
        latent_iter_ratio=latent, albedo_iter_ratio=0, min_ambient_ratio=.1, textureless_ratio=.2,
        data=dict(train_dataset=dict(width=size, height=size), val_dataset=dict(width=800, height=800),
                  test_dataset=dict(width=800, height=800)))


def circle(size):
    return dict(_target_=DATASETS + 'circle_poses.CirclePosesDataset', size=size, width=800, height=800,
                angle_overhead=30, angle_front=60)


def files():
    "Path -> settings of a whole tree"
    nerf, renderers, guidance = MODULES + 'geometry.', MODULES + 'renderers.', MODULES + 'guidance.'
    fallback = dict(checkpoint='/sd_checkpoints/nemo-1.5/sd-1.5.nemo', t_range=[.02, .98])
    return {
        'config': dict(defaults=[dict(model='dreamfusion'), '_self_'], name='DreamFusion', seed=2023, mode='fit',
                       mesh_fname='/results/mesh.obj', mesh_resolution=128,
            enable_benchmark=False, benchmark_callback=dict(_target_='benchmark_callback.BenchmarkCallback',
                                                            log_every_n_steps=1),
            trainer=dict(devices=1, num_nodes=1, precision=16, max_steps=10000, accelerator='gpu',
                         enable_checkpointing=False, logger=False, log_every_n_steps=1,
                val_check_interval=100, accumulate_grad_batches=1, benchmark=False, enable_model_summary=True),
            exp_manager=dict(name='${name}', exp_dir='/results', create_tensorboard_logger=False,
                             create_wandb_logger=False,
                wandb_logger_kwargs=dict(project='dreamfusion', group='nemo-df', name='${name}', resume=True),
                create_checkpoint_callback=True,
                checkpoint_callback_params=dict(every_n_epochs=0, every_n_train_steps=1000, monitor='loss',
                                                filename='${name}-{step}', save_top_k=-1, always_save_nemo=False),
                resume_if_exists=True, resume_ignore_no_checkpoint=True)),
        'model/dreamfusion': page('static', 'torchngp_raymarching', 'dreamfusion', .2, 64),
        'model/dreamfusion-dmtet': page('torchngp', 'nvdiffrast', 'dmtet', 0., 512),
        'model/nerf/torchngp': dict(_target_=nerf + 'torchngp_nerf.TorchNGPNerf', num_input_dims=3, bound=1,
                                    density_activation='exp', blob_radius=.2, blob_density=5,
            normal_type='central_finite_difference', sigma_net_num_output_dims=1, sigma_net_cfg=plain(64, 3),
            features_net_num_output_dims=3, features_net_cfg=plain(64, 3),
            encoder_cfg=dict(encoder_type='hashgrid', encoder_max_level=None, log2_hashmap_size=19,
                             desired_resolution=2048, interpolation='smoothstep')),
        'model/nerf/tcnn': dict(_target_=nerf + 'tcnn_nerf.TCNNNerf', num_input_dims=3, bound=1,
                                density_activation='softplus', blob_radius=.5, blob_density=10,
            normal_type='central_finite_difference', encoder_cfg=GRID, sigma_net_num_output_dims=1,
            sigma_net_cfg=fused(64, 3), features_net_num_output_dims=3, features_net_cfg=fused(64, 3)),
        'model/background/static': dict(_target_=MODULES + 'background.static_background.StaticBackground',
                                        background=[0, 0, 1]),
        'model/background/random': dict(_target_=MODULES + 'background.random_background.RandomBackground',
                                        base_background=[1, 1, 1], random_ratio=.5),
        'model/background/torchngp': dict(_target_=MODULES + 'background.torchngp_background.TorchNGPBackground',
                                          encoder_type='frequency', encoder_input_dims=3,
            encoder_multi_res=6, num_output_dims=3, net_cfg=plain(32, 2)),
        'model/background/tcnn': dict(_target_=MODULES + 'background.tcnn_background.TCNNBackground', bound=1,
                                      encoder_num_input_dims=3, encoder_cfg=GRID,
            background_net_num_output_dims=3, background_net_cfg=fused(32, 2)),
        'model/material/basic_shading': dict(_target_=MODULES + 'materials.basic_shading.BasicShading'),
        'model/renderer/torchngp_raymarching': dict(_target_=renderers
            + 'torchngp_volume_renderer.TorchNGPVolumeRenderer', bound='${model.nerf.bound}',
            update_interval=16, grid_resolution=128, density_thresh=10, max_steps=1024, dt_gamma=0),
        'model/renderer/nvdiffrast': dict(_target_=renderers + 'nvdiffrast_renderer.NVDiffRastRenderer',
                                          bound='${model.nerf.bound}', grid_resolution=128, density_thresh=10.,
            update_interval=16, quartet_file='/results/tets/128_tets.npz'),
        'model/renderer/nerfacc': dict(_target_=renderers + 'nerfacc_volume_renderer.NerfaccVolumeBaseRenderer',
                                       grid_resolution=128, grid_levels=3,
            bound='${model.nerf.bound}', render_step_size=1e-3, near_plane=.2, cone_angle=.004, alpha_thre=1e-2),
        'model/guidance/sd_huggingface': dict(_target_=guidance
            + 'stablediffusion_huggingface_pipeline.StableDiffusion', precision='${trainer.precision}',
            model_key='stabilityai/stable-diffusion-2-1-base', t_range=[.02, .98]),
        'model/guidance/sd_nemo': dict(_target_=guidance + 'stablediffusion_nemo_pipeline.StableDiffusion',
                                       sampler_type='DDIM', **fallback),
        'model/guidance/sd_trt': {'_target_': guidance + 'stablediffusion_trt_pipeline.StableDiffusion',
                                  'plan_dir': '/sd_checkpoints/nemo-1.5/plan', 'sampler_type=': 'DDIM"', **fallback},
        'model/optim/adan': dict(name='adan', lr=5e-3, eps=1e-8, weight_decay=2e-5, max_grad_norm=5., foreach=False),
        'model/loss/dreamfusion': weights() | dict(lambda_entropy=1e-3, lambda_orientation=1e-2),
        'model/loss/dmtet': weights() | dict(lambda_mesh_normal=.5, lambda_mesh_laplacian=.5),
        'model/data/data': dict(_target_='data.AggregatorDataModule', train_batch_size=1, train_shuffle=False,
                                val_batch_size=1, val_shuffle=False, test_batch_size=1, test_shuffle=False,
            train_dataset=dict(_target_=DATASETS + 'random_poses.RandomPosesDataset', internal_batch_size=100, width=64,
                               height=64, radius_range=[3., 3.5], theta_range=[45, 105],
                phi_range=[-180, 180], fovx_range=[10, 30], fovy_range=[10, 30], jitter=False, jitter_center=.2,
                jitter_target=.2, jitter_up=.02, uniform_sphere_rate=0, angle_overhead=30, angle_front=60),
            val_dataset=circle(5), test_dataset=circle(100))}


@pytest.fixture
def tree(tmp_path):
    "A function that writes a whole tree, with changes {path: settings}; its folder"
    def write(**changes):
        for name, settings in (files() | {name.replace('__', '/'): change for name, change in changes.items()}).items():
            path = tmp_path/'conf'/f'{name}.yaml'
            path.parent.mkdir(parents=True, exist_ok=True)
            if settings is not None:
                path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings, sort_keys=False))
        return tmp_path/'conf'
    return write


def load(*args):
    "The configuration, and what was told"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        return load_config(*args), [str(w.message) for w in told]


def differences(a, b): return {k: (v, b.flat()[k]) for k, v in a.flat().items() if v != b.flat()[k]}


def same_networks(config):
    "The sizes that `sigma_net_cfg` and `features_net_cfg` leave to the keys of both"
    nerf = config.nerf
    return [(n.num_hidden_dims or nerf.hidden_dims, n.num_layers or nerf.n_hidden_layers + 1, n.bias)
            for n in (nerf.sigma_net_cfg, nerf.features_net_cfg)]


NETS = {f'nerf.{net}_net_cfg.{key}' for net in ('sigma', 'features') for key in ('num_hidden_dims', 'num_layers')}


# The two pages

def test_page_is_preset_dreamfusion(tree):
    config, _ = load(tree())
    assert set(differences(config, preset('dreamfusion'))) == NETS | {'mesh_fname'}
    assert same_networks(config) == same_networks(preset('dreamfusion')) == [(64, 3, True)]*2
    assert config.mesh_fname == '/results/mesh.obj'


def test_page_is_preset_dmtet(tree):
    config, _ = load(tree(), 'model=dreamfusion-dmtet')
    # NeMo's file leaves the steps at 10000; its comment, and the preset, say 5000
    assert set(differences(config, preset('dreamfusion-dmtet'))) == NETS | {'mesh_fname', 'iters'}
    assert (config.preset, config.background.type, config.loss.lambda_mesh_laplacian) == ('dreamfusion-dmtet',
        'torchngp', .5)


@pytest.mark.parametrize('name', ['dreamfusion', 'dreamfusion-dmtet'])
def test_every_key_of_a_page(name, tree):
    """Each key that stands in NeMo's files is a key here with that default, or is named with a reason, or could not be
    otherwise"""
    config, told = load(tree(), f'model={name}')
    ignored = {key for key, _ in config.not_honoured}
    assert {key for key in ignored if key.startswith('model.')} == {'model.data.train_dataset.internal_batch_size'} | ({
        'model.renderer.quartet_file'} if 'dmtet' in name else set())
    assert {key.split('.')[0] for key in ignored} == {'model', 'trainer', 'exp_manager', 'benchmark_callback'}
    assert len(told) == 1 and all(key in told[0] for key in ignored)
    assert all(reason for _, reason in config.not_honoured)


@pytest.mark.parametrize('group, option',
    [(group, option) for group in OPTIONS for option in OPTIONS[group] if (group, option) != ('optim', 'adam')])
def test_options(group, option, tree):
    "A file of NeMo's and the option of that name are the same, from a tree and for a preset"
    base = preset('dreamfusion-dmtet' if option in ('nvdiffrast', 'dmtet') else 'dreamfusion')
    more = [f'model={base.preset}'] if option in ('nvdiffrast', 'dmtet') else []
    config, _ = load(tree(), *more, f'model/{group}={option}')
    ours = base.replace(f'model/{group}={option}')
    assert {k for k in differences(config, ours) if k.startswith(group)} <= NETS
    assert same_networks(config) == same_networks(ours)


def test_tcnn_page(tree):
    config, _ = load(tree(), 'model/nerf=tcnn', 'model/background=tcnn', 'model.nerf.bound=2')
    assert (config.nerf.density_activation, config.nerf.blob_density, config.nerf.blob_radius) == ('softplus', 10, .5)
    assert config.nerf.desired_resolution == 4096    # 2048 to a unit
    assert same_networks(config) == [(64, 4, False)]*2
    assert (config.background.type, config.background.net_cfg.num_hidden_dims,
            config.background.net_cfg.num_layers) == ('tcnn', 32, 3)


def test_learned_background_page(tree):
    config, _ = load(tree(), 'model/background=torchngp')
    assert (config.background.type, config.background.encoder_multi_res,
            config.background.net_cfg.num_layers) == ('torchngp', 6, 2)


def test_nerfacc_page(tree):
    config, _ = load(tree(), 'model/renderer=nerfacc')
    assert (config.renderer.name, config.renderer.dt_gamma, config.renderer.near_plane) == ('torchngp_raymarching',
        .004, .2)
    assert abs(2*3**.5*config.nerf.bound/config.renderer.max_steps - 1e-3) < 1e-6
    assert {'model.renderer.grid_levels', 'model.renderer.alpha_thre'} <= dict(config.not_honoured).keys()


@pytest.mark.parametrize('option', ['sd_nemo', 'sd_trt'])
def test_models_that_nemo_cannot_start(option, tree):
    config, told = load(tree(), f'model/guidance={option}')
    assert config.guidance.name == 'stable-diffusion-v1-5/stable-diffusion-v1-5'
    assert ('model.guidance.checkpoint' in told[0] and '/sd_checkpoints/nemo-1.5/sd-1.5.nemo' in told[0]
            and 'diffusers' in told[0])
    assert ('plan_dir' in told[0]) == (option == 'sd_trt')


def test_every_class_has_a_home():
    assert len(CLASSES) == 17
    for group, option in CLASSES.values(): assert not option or option in OPTIONS[group]


@pytest.mark.parametrize('given, precision', [(16, '16'), ('16-mixed', '16'), ('bf16', 'bf16'), ('bf16-mixed', 'bf16'),
                                              (32, '32'), ('32-true', '32')])
def test_precision_is_understood(given, precision, tree):
    "NeMo compares the number 16 with the text '16', and loads everything in single precision (B7)"
    assert load(tree(), f'trainer.precision={given}')[0].guidance.precision == precision


# Ways in and out

def test_single_composed_file(tree, tmp_path):
    composed = {k: v for k, v in files()['config'].items() if k != 'defaults'}
    model = {k: v for k, v in files()['model/dreamfusion'].items() if k != 'defaults'}
    for group, option in (('nerf', 'torchngp'), ('background', 'static'), ('renderer', 'torchngp_raymarching'),
                          ('guidance', 'sd_huggingface'), ('optim', 'adan'), ('loss', 'dreamfusion')):
        model[group] = files()[f'model/{group}/{option}']
    model['data'] = files()['model/data/data']
    (tmp_path/'all.yaml').write_text(yaml.safe_dump(composed | dict(model=model), sort_keys=False))
    whole, _ = load(tree())
    for source in (tmp_path/'all.yaml', str(tmp_path/'all.yaml'), (tmp_path/'all.yaml').read_text(),
                   composed | dict(model=model), tmp_path/'conf/config.yaml'):
        config, told = load(source)
        assert not differences(config, whole) and len(told) == 1
    # nothing to choose in: our option, after all that the file says
    assert load(tmp_path/'all.yaml', 'model/nerf=tcnn')[0].nerf.density_activation == 'softplus'


def test_options_without_files():
    "A page whose options are ours"
    config, told = load('defaults: [model: dreamfusion, _self_]\nmodel: {prompt: a corgi}\ntrainer: {max_steps: 70}')
    assert (config.preset, config.prompt, config.iters, told) == ('dreamfusion', 'a corgi', 70, [])
    config, _ = load('defaults:\n- nerf: tcnn\n- background: random\n- _self_\nprompt: a corgi')
    assert (config.preset, config.nerf.blob_density, config.background.type, config.prompt) == ('dreamfusion', 10,
        'random', 'a corgi')


def test_writes_what_it_read(tree):
    config, _ = load(tree(), 'model.optim.lr=[0, 0.001, 0.01, 500]', 'model.prompt=a corgi: no. 1')
    written = config.to_yaml()
    again, told = load(written)
    assert not differences(again, config) and told == []
    for key, reason in config.not_honoured: assert f'# {key}: {reason}\n' in written


def test_told_once(tree):
    config, told = load(tree())
    assert len(told) == 1 and load(config, 'seed=1')[1] == []
    assert load(config,
                'trainer.devices=8')[1] == ["1 key has no effect here:\n  trainer.devices: 8, but one device is used"]


def test_overrides(tree):
    config, told = load(tree(), 'model.guidance_scale=50', '+trainer.max_steps=100',
                        'model.data.train_dataset.width=96', '++model.nerf.encoder_cfg.log2_hashmap_size=14',
        'model.prompt=a corgi, sitting', 'exp_manager.create_wandb_logger=True', 'guidance.weighting=uniform',
        'trainer.max_steps=200')
    assert (config.guidance_scale, config.iters, config.data.train.width, config.nerf.log2_hashmap_size) == (50,
        200, 96, 14)
    assert (config.prompt, config.guidance.weighting) == ('a corgi, sitting', 'uniform')
    assert 'exp_manager.create_wandb_logger: True, but' in told[0]


def test_overrides_of_a_preset():
    config, _ = load('dreamfusion', 'model.guidance_scale=50', 'trainer.max_steps=100', 'model/nerf=tcnn',
                     'model.nerf.bound=2', 'model.guidance.model_key=someone/something',
        'exp_manager.checkpoint_callback_params.every_n_train_steps=50', 'trainer.val_check_interval=7',
        r'model.resume_from_checkpoint=/results/step\=10000-last.ckpt')
    assert (config.guidance_scale, config.iters, config.nerf.density_activation, config.nerf.bound,
            config.guidance.name) == (50, 100, 'softplus', 2, 'someone/something')
    assert (config.checkpoint.every_n_train_steps, config.data.val.val_check_interval,
            config.resume_from_checkpoint) == (50, 7, '/results/step=10000-last.ckpt')


def test_order_of_defaults(tree):
    "`_self_` first: the options win over the file's own keys; a line with `override` chooses further in"
    settings = files()
    model = settings['model/dreamfusion'] | dict(defaults=['_self_'] + settings['model/dreamfusion']['defaults'][:-1])
    assert load(tree(model__dreamfusion=model
                     | dict(data=dict(train_dataset=dict(width=32)))))[0].data.train.width == 64
    config = settings['config'] | dict(defaults=[dict(model='dreamfusion'), {'override /model/nerf': 'tcnn'}, '_self_'])
    assert load(tree(config=config))[0].nerf.density_activation == 'softplus'


def test_our_own_files_are_read_as_before():
    assert load_config('prompt: a ${corgi}').prompt == 'a ${corgi}'    # no references outside of NeMo's files
    assert load_config('prompt: a corgi').preset == 'toybox'


def test_no_torch():
    program = ('import sys; from dreamfusion_nb.config import load_config; load_config("dreamfusion"); '
               'print([m for m in ("torch", "numpy", "hydra", "omegaconf") if m in sys.modules])')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300, env=os.environ,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == '[]', done.stderr


# Schedules

def test_which_keys_are_scheduled():
    assert {'guidance_scale', 'optim.lr', 'guidance.t_range', 'data.train.width', 'data.train.height',
            'nerf.encoder_max_level'} <= set(SCHEDULED)
    assert {key for key in KEYS if key.startswith('loss.')} <= set(SCHEDULED)


# what schedules of an older kind must be
FREE = ('guidance.scale_decay=1', 'guidance.t_range_end=null', 'guidance.t_range_first=null', 'optim.lr_decay=1')


@pytest.mark.parametrize('key', SCHEDULED)
def test_scheduled_there_and_back(key):
    base = preset('dreamfusion-dmtet' if 'mesh' in key else 'dreamfusion'
                  if key.startswith('loss') else 'toybox').replace(*FREE)
    if key == 'guidance.ism_interval': base = base.replace('guidance.kind=ism')    # which alone reads it
    if key == 'guidance.t_range': value = [.02, [100, .98, .5, 300]]
    elif key.startswith('data'): value = [100, 32, 64, 300]
    else: value = [100, 0., .5, 300]
    config = base.replace({key: value})
    again = load_config(config.to_yaml())
    assert again == config and yaml.safe_load(config.to_yaml()) == config.to_dict()
    held = config.flat()[key]
    if key == 'guidance.t_range': assert [value_at(v, 200) for v in held] == [.02, .74]
    elif key.startswith('data'): assert [value_at(held, s) for s in (0, 100, 200, 300, 9999)] == [32, 32, 48, 64, 64]
    else: assert [value_at(held, s) for s in (0, 100, 200, 300, 9999)] == [0, 0, .25, .5, .5]
    assert load_config(base, f'{key}={value}') == config    # the same from a command line


def test_value_at():
    assert [value_at(v, 5) for v in (3, None, (0, 0., 1., 10), (5, 0., 1., 5), (7, 2., 1., 9))] == [3, None, .5, 1., 2.]
    assert all(isinstance(value_at((0, 32, 64, 7), s), int) for s in range(9))
    falling = [value_at((2, 1., .2, 8), s) for s in range(10)]
    assert falling == sorted(falling, reverse=True) and (falling[0], falling[-1]) == (1., .2)


def test_a_latent_phase_needs_four_channels():
    check_latents(preset('dreamfusion'), 4)
    check_latents(preset('toybox'), 3)
    with pytest.raises(ConfigError, match='latent_iter_ratio must be 0.*works on pixels'):
        check_latents(preset('dreamfusion'), 3)
    with pytest.raises(ConfigError, match='latent_iter_ratio must be 0.*16 channels'):
        check_latents(preset('dreamfusion'), 16)


# What can be wrong

def one_line(error, *says):
    line = str(error.value)
    assert '\n' not in line and 10 < len(line) < 500, line
    for piece in says: assert piece in line, f'{piece!r} is missing: {line}'


VALUES = [    # overrides of preset dreamfusion, and what the line says
    (['trainer.max_steps=many'], 'trainer.max_steps (here iters)', "'many'"),
    (['trainer.max_steps=0'], 'iters', 'nearest right value: 1'),
    (['model.nerf.bund=1'], "'model.nerf.bund'", 'did you mean nerf.bound'),
    (['model.optim.bound=1'], "'model.optim.bound'", 'did you mean nerf.bound'),
    (['model.nerf=1'], 'model.nerf is a group of keys'),
    (['model.background.background=[0, 0]'], 'background.color', '3 numbers'),
    (['model.background.background=[0, 0, 2]'], 'nearest right value: [0.0, 0.0, 1.0]'),
    (['model.nerf.normal_type=autogrd'], 'nerf.normal_type', 'nearest right value: autograd'),
    (['model.renderer.density_thresh=-1'], 'renderer.density_thresh', 'nearest right value: 0'),
    (['model.loss.lambda_2d_normal_smoth=1'], "'model.loss.lambda_2d_normal_smoth'",
     'did you mean loss.lambda_2d_normal_smooth'),
    (['model.data.train_dataset.jitter=maybe'], 'data.train.jitter', 'true or false'),
    (['model.data.train_dataset.fovy_range=[30, 10]'], 'data.train.fovy_range', 'nearest right value: [10.0, 30.0]'),
    (['model.guidance.t_range=[0.98, 0.02]'], 'guidance.t_range', '[0.02, 0.98]'),
    (['trainer.precision=8'], 'trainer.precision (here guidance.precision)', 'one of auto, 32, 16, bf16'),
    (['model/nerf=tccn'], 'model/nerf', 'torchngp, tcnn', "did you mean 'tcnn'"),
    (['model/nurf=tcnn'], "'nurf'", "did you mean 'nerf'"),
    (['view_prompts=nearst'], 'view_prompts', 'nearest right value: nearest'),
    (['mode=fot'], 'mode', 'fit, validate, test, export-mesh', 'nearest right value: fit'),
    (['loss.lambda_opacity=[0, 1]'], 'loss.lambda_opacity', '[start_step, start, end, end_step]', 'not [0, 1]'),
    (['loss.lambda_opacity=[0, 1, -2, 500]'], 'loss.lambda_opacity', 'nearest right value: [0, 1.0, 0.0, 500]'),
    (['optim.lr=[500, 0.1, 0.01, 0]'], 'optim.lr', 'nearest right value: [0, 0.1, 0.01, 500]'),
    (['optim.lr=[0.5, 0.1, 0.01, 90]'], 'optim.lr', 'nearest right value: [0, 0.1, 0.01, 90]'),
    (['optim.lr=[0, a, 0.01, 90]'], 'optim.lr', "not [0, 'a', 0.01, 90]"),
    (['optim.eps=[0, 1e-8, 1e-6, 90]'], 'optim.eps', 'a number from 0 to 1,'),
    (['data.train.width=[0, 32.5, 64, 90]'], 'data.train.width', 'nearest right value: [0, 32, 64, 90]'),
    (['guidance.t_range=[[0, 0.02, 0.9, 10], 0.5]'], 'guidance.t_range', 'a pair [low, high]'),
    (['guidance_scale=[0, 100, 50, 500]', 'guidance.scale_decay=.1'], 'guidance_scale is a schedule',
     'guidance.scale_decay must be 1'),
    (['guidance.t_range=[0.02, [0, 0.98, 0.5, 90]]', 'guidance.t_range_end=[0.02, 0.5]'],
     'guidance.t_range_end must be null'),
    (['guidance.t_range=[0.02, [0, 0.98, 0.5, 90]]', 'guidance.timesteps=annealed'],
     'guidance.timesteps must be random'),
    (['optim.lr=[0, 0.1, 0.01, 90]', 'optim.lr_decay=0.3'], 'optim.lr_decay must be 1'),
    (['data.train.width=[0, 32, 64, 90]', 'data.train.start_size=16'], 'data.train.start_size must be null'),
    (['loss.lambda_mesh_normal=0.5'], 'loss.lambda_mesh_normal must be 0', 'torchngp_raymarching', 'dreamfusion-dmtet'),
    (['loss.lambda_mesh_laplacian=[0, 0, 0.5, 100]'], 'loss.lambda_mesh_laplacian must be 0'),
    (['model/loss=dmtet'], 'loss.lambda_mesh_normal must be 0'),
    (['renderer.name=nvdiffrast'], 'loss.lambda_entropy must be 0', 'nvdiffrast'),
    (['guidance.name=DeepFloyd/IF-I-XL-v1.0'], 'latent_iter_ratio must be 0', 'pixels'),
    (['background.mix_ratio=0.5'], 'background.mix_ratio must be 0', 'static'),
    (['nerf.encoder_type=frequency', 'nerf.encoder_max_level=0.5'], 'nerf.encoder_max_level must be null', 'frequency'),
    (['optim.name=adam'], 'optim.betas must be 2 numbers for adam'),
    (['optim.name=adam', 'optim.betas=null', 'optim.no_prox=true'], 'optim.no_prox must be false for adam'),
    (['material.phong_ratio=0.9'], 'textureless_ratio and material.phong_ratio must be at most 1 together'),
    (['data.train.progressive_view_start_step=900'], 'progressive_view_end_step must be at least'),
    (['background.encoder_cfg.desired_resolution=8'], 'background.encoder_cfg.desired_resolution must be at least'),
    (['checkpoint.save_top_k=-2'], 'checkpoint.save_top_k', 'nearest right value: -1'),
]


@pytest.mark.parametrize('overrides, says', [(case[0], case[1:]) for case in VALUES],
                         ids=lambda case: ' '.join(case) if isinstance(case, list) else '')
def test_bad_value(overrides, says):
    with pytest.raises(ConfigError) as error: load_config('dreamfusion', *overrides)
    one_line(error, *says)


def changed(path, /, **changes): return {path.replace('/', '__'): files()[path] | changes}


TREES = {    # name: (changes to the tree, overrides, what the line says)
    'unresolvable reference': (changed('model/dreamfusion', iters='${trainer.max_step}'), [],
                               ['model.iters', '${trainer.max_step}', "did you mean 'trainer.max_steps'"]),
    'reference into a value': (changed('model/dreamfusion', iters='${trainer.max_steps.x}'), [],
                               ['model.iters', '${trainer.max_steps.x}']),
    'resolver': (changed('model/dreamfusion', prompt='${oc.env:PROMPT}'), [], ['model.prompt', '${oc.env:PROMPT}']),
    'reference to itself': (changed('model/dreamfusion', iters='${model.iters}'), [],
                            ['circle', 'model.iters → model.iters']),
    'circle of references': (changed('model/dreamfusion', iters='${model.guidance_scale}',
        guidance_scale='${model.iters}'), [], ['circle', 'model.guidance_scale → model.iters → model.guidance_scale']),
    'reference to what it is part of': (changed('model/dreamfusion', prompt='${model}'), [], ['circle']),
    'missing value': (changed('model/dreamfusion', prompt='???'), [], ['model.prompt', 'must be given']),
    'missing file': ({}, ['model/nerf=torchngb'], ['model/nerf/torchngb', 'there is no', "did you mean 'torchngp'"]),
    'missing page': ({}, ['model=dreamfusoin'], ['model/dreamfusoin', "did you mean 'dreamfusion'"]),
    'circle of defaults': (changed('model/dreamfusion', defaults=['dreamfusion']), [], ['circle', 'model/dreamfusion']),
    'defaults that are no list': (changed('model/dreamfusion', defaults='torchngp'), [], ['defaults must be a list']),
    'line of defaults that is none': (changed('model/dreamfusion', defaults=[{'a': 'b', 'c': 'd'}]), [],
                                      ['a line of defaults']),
    'file that is no mapping': ({'model__nerf__torchngp': '- 1\n- 2\n'}, [], ['torchngp.yaml', 'keys and values']),
    'file that is no YAML': ({'model__nerf__torchngp': 'bound: [1\n'}, [], ['torchngp.yaml', 'line ']),
    'misspelt key': (changed('model/nerf/torchngp', bond=1), [], ["'model.nerf.bond'", 'did you mean nerf.bound']),
    'misspelt key of the encoder': (changed('model/nerf/torchngp', encoder_cfg=dict(log2_hashmap_sise=19)), [],
                                    ["'model.nerf.encoder_cfg.log2_hashmap_sise'", 'log2_hashmap_size']),
    'key in the wrong group': (changed('model/optim/adan', bound=1), [],
                               ["'model.optim.bound'", 'did you mean nerf.bound']),
    'misspelt class': (changed('model/nerf/torchngp', _target_=MODULES + 'geometry.torchngp_nerf.TorchNGPNerff'), [],
                       ['model.nerf._target_', "did you mean 'TorchNGPNerf'"]),
    'class in the wrong group': (changed('model/background/static', _target_=MODULES
        + 'geometry.torchngp_nerf.TorchNGPNerf'), [], ['model.background._target_', 'belongs into nerf']),
    'wrong type': (changed('model/nerf/torchngp', bound='one'), [], ['nerf.bound', "'one'"]),
    'wrong type of what is converted': (changed('model/nerf/torchngp', sigma_net_cfg=fused(64, 'three')), [],
                                        ['model.nerf.sigma_net_cfg.n_hidden_layers', "'three'"]),
    'out of range': (changed('model/dreamfusion', latent_iter_ratio=2), [],
                     ['latent_iter_ratio', 'nearest right value: 1']),
    'value through a value': ({}, ['trainer.max_steps.x=1'], ['trainer.max_steps.x', 'not a group']),
    'mesh losses of a volume': ({}, ['model/loss=dmtet'], ['loss.lambda_mesh_normal must be 0']),
    'an encoding that we lack': (changed('model/nerf/torchngp', encoder_cfg=dict(encoder_type='tiledgrid')), [],
        ['model.nerf.encoder_cfg.encoder_type (here nerf.encoder_type)',
         'one of hashgrid, frequency, sphere_harmonics']),
    'an old optimiser': (changed('model/optim/adan', name='sgd'), [], ['optim.name', 'one of adam, adan']),
}


@pytest.mark.parametrize('name', TREES)
def test_bad_tree(name, tree):
    changes, overrides, says = TREES[name]
    folder = tree(**changes)
    with pytest.raises(ConfigError) as error: load_config(folder, *overrides)
    one_line(error, *says)


def test_deleted_file(tree):
    folder = tree()
    (folder/'model/nerf/torchngp.yaml').unlink()
    with pytest.raises(ConfigError) as error: load_config(folder)
    one_line(error, 'model/dreamfusion: its defaults name model/nerf/torchngp', 'there are tcnn')
    with pytest.raises(ConfigError) as error: load_config(folder/'model')
    one_line(error, 'holds no config.yaml')


def test_page_alone_needs_its_trainer(tree):
    with pytest.raises(ConfigError) as error: load_config(tree()/'model/dreamfusion.yaml')
    one_line(error, '${trainer.', 'not there')
    config, _ = load(tree()/'model/dreamfusion.yaml', 'trainer.max_steps=30', 'trainer.precision=16')
    assert (config.iters, config.nerf.log2_hashmap_size) == (30, 19)


def test_files_that_are_not_asked_for_may_be_missing(tree):
    folder = tree()
    (folder/'model/nerf/torchngp.yaml').unlink()
    assert load(folder, 'model/nerf=tcnn')[0].nerf.density_activation == 'softplus'
    (folder/'model/dreamfusion.yaml').unlink()
    assert load(folder, 'model=dreamfusion-dmtet', 'model/nerf=tcnn')[0].preset == 'dreamfusion-dmtet'


def test_class_of_somebody_else(tree):
    config, told = load(tree(**changed('model/material/basic_shading', _target_='our.own.Glitter')))
    assert (dict(config.not_honoured)['model.material._target_'].startswith("'our.own.Glitter', but")
            and 'Glitter' in told[0])


def test_stretched_pictures_are_not_made(tree):
    data = files()['model/data/data']
    data['train_dataset'] |= dict(fovx_range=[10, 40])
    config, told = load(tree(model__data__data=data))
    assert 'model.data.train_dataset.fovx_range' in told[0] and config.data.train.fovy_range == (10, 30)
    data['train_dataset'] |= dict(fovx_range=[15, 25], fovy_range=[15, 25])
    assert 'fovx_range' not in load(tree(model__data__data=data))[1][0]


def test_names():
    assert resolve('model.data.test_dataset.size') == 'data.test.size'
    assert resolve('n_levels') == 'nerf.n_levels'    # not the background's, which lies deeper
    assert set(PRESETS) == {'toybox', 'quality', 'splats', 'multiview', 'toybox-dmtet', 'dreamgaussian', 'dreamfusion',
                            'dreamfusion-dmtet'}
