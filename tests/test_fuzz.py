"A fixed share of the fuzzing: always the same examples, through every door. `python tests/fuzz.py` is the long form"
import fuzz
import pytest

# those that take longest get fewer
COUNT = {'checkpoints': 15, 'meshes written': 15, 'meshes read': 20, 'mappings': 30}


@pytest.fixture(scope='module')
def doors(model): return fuzz.doors(model)


@pytest.mark.parametrize('name', fuzz.DOORS)
def test_only_a_line_comes_back(name, doors, monkeypatch):
    monkeypatch.chdir(fuzz.PLACE)
    fuzz.examples(doors[name], COUNT.get(name, 40))


def test_every_door_is_named(doors): assert tuple(doors) == fuzz.DOORS


def test_a_traceback_is_found():
    "The harness itself: an error that is no line, and a line that is two"
    from hypothesis import strategies as st
    class TwoLines(fuzz.ConfigError):
        def __str__(self): return 'one\ntwo'    # which our own errors cannot say
    for error in (KeyError('x'), TwoLines()):
        def door(value): fuzz.tried(lambda: (_ for _ in ()).throw(error))
        with pytest.raises((KeyError, AssertionError)): fuzz.examples((st.integers(), door), 5)
