"""What a newcomer meets of the configuration: other words for keys, how it shows itself, what Tab offers, notices,
folders"""
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from dreamfusion_nb.completion import offer_completions, short_names, suggestions
from dreamfusion_nb.config import KEYS, SYNONYMS, Config, load_config, preset, resolve
from dreamfusion_nb.errors import ConfigError, check_folder, notice


def error_of(f, *args, **options):
    with pytest.raises(ConfigError) as caught: f(*args, **options)
    line = str(caught.value)
    assert '\n' not in line
    return line


@pytest.mark.parametrize('word, key', [
    ('steps', 'iters'), ('num_steps', 'iters'), ('n_iter', 'iters'), ('epochs', 'iters'), ('learning_rate', 'optim.lr'),
    ('cfg', 'guidance_scale'),
    ('cfg_scale', 'guidance_scale'), ('scale', 'guidance_scale'), ('negative', 'negative_prompt'),
    ('resolution', 'data.train.width'),
    ('image_size', 'data.train.height'), ('width', 'data.train.width'), ('optimizer', 'optim.name'),
    ('elevation', 'theta_range'), ('azimuth', 'reference.azimuth'), ('picture', 'reference.images'),
    ('model', 'guidance.name'), ('output_dir', '--out'), ('guidance_scal', 'guidance_scale'), ('lrr', 'optim.lr')])
def test_other_words_lead_to_the_key(word, key):
    assert key in error_of(Config().replace, f'{word}=400')
    assert 'optim.eps' not in error_of(Config().replace, f'{word}=400')


def test_synonyms_are_no_keys_and_lead_to_keys():
    for keys, words in SYNONYMS.items():
        for key in re.split(' and | or ', keys): assert key in KEYS or key.startswith('the argument ')
        for word in words.split(): error_of(resolve, word)
    words = ' '.join(SYNONYMS.values()).split()
    assert len(words) == len(set(words))


@pytest.mark.parametrize('changes', [{}, {'prompt': 'no: 1', 'iters': 3},
                                     {'nerf.bound': 1.5, 'lambda_2d_normal_smooth': [0, 0.1, 1, 500]}])
@pytest.mark.parametrize('name', ['toybox', 'dreamfusion-dmtet'])
def test_configuration_shows_what_differs(name, changes):
    config = preset(name).replace(changes)
    shown = repr(config).splitlines()
    assert shown[0] == f'preset: {name}' and len(shown) == 1 + len(changes)
    assert load_config(repr(config)) == config


def test_configuration_as_a_table():
    page = Config(prompt='a <b>mug</b>', iters=7)._repr_html_()
    assert ('<td style="text-align:left">a &lt;b&gt;mug&lt;/b&gt;</td>' in page and '<details>' in page
            and 'guidance_scale' in page)
    assert 'guidance_scale' not in page.split('<details>')[0]


# What Tab offers

@pytest.fixture(scope='module')
def tab():
    from dreamfusion_nb import Result, train
    shell = InteractiveShell()
    assert offer_completions(shell)
    result = object.__new__(Result)
    shell.user_ns.update(train=train, config=Config(), preset=preset, load_config=load_config, result=result)

    def offered(text):
        with provisionalcompleter():
            return [text[:found.start] + found.text for found in shell.Completer.completions(text, len(text))]
    return offered


@pytest.mark.parametrize('text, wanted', [
    ('train("a mug", guidance_s', 'guidance_scale='), ('train("a mug",\n    ite', 'iters='),
    ('result.refine(ite', 'iters='),
    ('train("a mug", preset="qu', 'quality'),
    ("train('a mug', kind='", 'csd'), ('train("a mug", export_video=', 'True'), ('config.optim.name = "', 'adan'),
    ('preset("toybox-d', 'toybox-dmtet'), ('config.nerf.bl', 'blob_density'), ('train("a mug", preset=', "'quality'")])
def test_tab(tab, text, wanted): assert any(found.endswith(wanted) for found in tab(text)), tab(text)


@pytest.mark.parametrize('text', ['print(guidance_s', 'guidance_s', 'result.show(guidance_s',
                                  '"train(guidance_s', '# train(guidance_s'])
def test_tab_offers_keys_only_where_they_are_taken(tab, text):
    assert not any('guidance_scale=' in found for found in tab(text))


def test_every_short_name_is_a_key():
    for name in short_names(): assert resolve(name).endswith(name)
    assert len(short_names()) > 80


@pytest.mark.parametrize('text', ['', '(', ')', "train('", 'train(**{"nerf.', 'a[train(', '# train(', 'x = """train(',
                                  '\\', "'\\"])
def test_half_a_line_is_no_error(text): assert isinstance(suggestions(text, {})[1], list)


def test_tab_works_from_the_first_import():
    program = ('from IPython.core.interactiveshell import InteractiveShell\n'
               'shell = InteractiveShell.instance()\n'
               'shell.run_cell("from dreamfusion_nb import Config")\n'
               'print([m.matcher_identifier for m in shell.Completer.custom_matchers])')
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300)
    assert "['dreamfusion_nb']" in run.stdout, run.stderr


# Notices and folders

def test_notice_quotes_no_source():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        for _ in range(2): notice('one thing')
    assert [str(w.message) for w in told] == ['one thing']*2 and {w.category for w in told} == {UserWarning}
    assert warnings.formatwarning(told[0].message, told[0].category, told[0].filename,
                                  told[0].lineno) == 'dreamfusion_nb:1: UserWarning: one thing\n'


def test_key_without_effect_quotes_no_source():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        preset('dreamfusion').replace({'trainer.sync_batchnorm': True})
    assert told[0].filename == 'dreamfusion_nb'


def test_folder_that_can_be_written_stays_as_it_was(tmp_path):
    check_folder(tmp_path/'a/b/c')
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').touch()
    for folder, words in ((tmp_path/'file', 'is a file'), (tmp_path/'file/a/b', 'is a file'),
                          (Path('/proc/mug'), 'cannot be written'), (tmp_path/('x'*300), 'cannot'),
                          (tmp_path/'a\0b', 'zero byte'), (tmp_path/'\udcff'/'\ud800', 'cannot')):
        line = error_of(check_folder, folder)
        assert words in line and '--out' in line or 'zero byte' in line
    assert [p.name for p in tmp_path.iterdir()] == ['file']
