"The toybox reads what people write, and the prior says what it does not know"
import pytest

from dreamfusion_nb import ConfigError, toybox
from dreamfusion_nb.prior import ToyboxPrior, make_tokenizer


@pytest.mark.parametrize('said, meant', [
    ('a mug with spots', 'a spotted mug'), ('a red mug with dots', 'a spotted red mug'),
    ('A sofa with stripes, side view', 'a striped sofa, side view'), ('two ducks with stripes', 'a striped duck')])
def test_with_spots_means_spotted(said, meant): assert str(toybox.parse(said)) == meant


def test_with_anything_else_is_named():
    assert toybox.parse('a mug with a lid').unknown == ('with', 'lid')
    assert toybox.parse('a mug with spots').unknown == ()


def test_the_tokenizer_knows_the_words_that_it_was_trained_with():
    "The shipped text model reads numbers: a word that the parser translates must not move them"
    assert not {'with', 'spots', 'dots', 'stripes'} & set(toybox.vocabulary())
    shipped = pytest.importorskip('transformers').CLIPTokenizer.from_pretrained(
        toybox.__file__.replace('toybox.py', 'prior_weights/tokenizer'), local_files_only=True)
    assert make_tokenizer().get_vocab() == shipped.get_vocab()


def test_the_prior_parses_prompts():
    # it needs no weights for that
    parse_prompt = ToyboxPrior.parse_prompt
    assert parse_prompt(None, 'a photo of a cup with spots, front view') == ('a spotted mug', '')
    prompt, warning = parse_prompt(None, 'a shiny red mug')
    assert prompt == 'a red mug' and "'shiny'" in warning and warning.count('\n') == 0
    with pytest.raises(ConfigError, match='names no toy'): parse_prompt(None, 'a pangolin')


def test_toys_are_private():
    assert not {'camera', 'table', 'lamp', 'bed', 'clock', 'toy'} & set(toybox.__all__)


def test_moved_names_are_found_where_they_were():
    from dreamfusion_nb import benchmark, judge, pipelines, prior_training
    from dreamfusion_nb.guidance import LatentDiffusion, find_pipeline
    from dreamfusion_nb.metrics import benchmark as run
    from dreamfusion_nb.metrics import prompt_set
    from dreamfusion_nb.prior import Judge, Run, shipped_judge
    assert (LatentDiffusion, find_pipeline) == (pipelines.LatentDiffusion, pipelines.find_pipeline)
    assert (run, prompt_set) == (benchmark.benchmark, benchmark.prompt_set)
    assert (Judge, shipped_judge, Run) == (judge.Judge, judge.shipped_judge, prior_training.Run)
    for module in ('guidance', 'prior', 'metrics'):
        with pytest.raises(ImportError): exec(f'from dreamfusion_nb.{module} import nonsense')


def test_what_a_run_is_meant_to_make():
    "A right answer is known for what the toybox prior teaches, by name or as an object, and for nothing else"
    from dreamfusion_nb import load_config
    from dreamfusion_nb.metrics import true_toy
    for name in ('toybox', 'dreamfusion_nb.prior.ToyboxPrior', 'ToyboxPrior'):
        assert true_toy(load_config('toybox', {'prompt': 'a red cup', 'guidance.name': name})).prompt == 'a red mug'
    assert true_toy(load_config('toybox', {'prompt': 'a red cup', 'guidance.name': 'someone/stable-diffusion'})) is None
