"The table of bad inputs: each gets one line, and leaves the disk as it was"
import bad_inputs
import pytest
from conftest import snapshot

ROWS = list(bad_inputs.rows())


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bad')
    bad_inputs.make_files(folder)
    return folder


@pytest.fixture(scope='module')
def known(): return bad_inputs.names()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('door', ['setting', 'command', 'Python'])
def test_one_line_for_each(door, place, known, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    before, wrong = snapshot(place), []
    for _, code, pieces in (row for row in ROWS if row[0] == door):
        try: bad_inputs.check(bad_inputs.line_of(door, code, known), code, pieces)
        except Exception as error: wrong.append(f'{code}: {type(error).__name__}: {error}')
    assert not wrong, '\n'.join(wrong)
    assert snapshot(place) == before


def test_there_are_two_hundred(): assert len({code for _, code, _ in ROWS}) == len(ROWS) >= 200
