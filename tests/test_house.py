"""The rules of the house: names, types, lines, modules, and what pages show of them. Each test says which places break
it.

`python tools/house.py` prints the numbers; a bound may be lowered here, and rises only with a reason in the pull
request."""
import house
import pytest

HOUSE = house.House()
PUBLIC = 210        # names in `__all__`, all modules together
MODULE = 600        # lines of a module ...
LARGER = {'_toys': 1000, 'trainer': 350}    # ... but of a list of toys more, and of the loop fewer
ROW = 10            # export cells with no lesson cell between
ON_PAGE = .9        # share of public functions and classes that a lesson cell of their page uses


def none(places):
    "Fails with the list of places, one a line"
    places = list(places)
    assert not places, f'{len(places)} places\n' + '\n'.join(places)


# Names

def test_few_public_names():
    names = HOUSE.public_names()
    each = {m.name: len(m.public) for m in HOUSE.modules.values() if m.public}
    assert len(names) <= PUBLIC, f'{len(names)} public names: {dict(sorted(each.items(), key=lambda item: -item[1]))}'


def test_no_public_name_means_two_things(): none(HOUSE.names_with_two_meanings())


def test_every_public_name_is_used_on_its_page(): none(HOUSE.unused_on_page())


def test_most_public_definitions_are_shown_on_their_page():
    definitions = [name for m in HOUSE.modules.values() for name in m.public_definitions()]
    missing = list(HOUSE.unused_on_page(definitions_only=True, lesson=True))
    assert 1 - len(missing)/len(definitions) >= ON_PAGE, 'no lesson cell of their page uses\n' + '\n'.join(missing)


def test_no_method_is_attached_by_assignment(): none(HOUSE.assigned_methods())


# Types

def test_every_public_parameter_has_a_type(): none(HOUSE.parameters(typed=False))


def test_every_public_function_says_what_it_returns(): none(HOUSE.untyped_returns())


# Lines, cells, modules

@pytest.mark.parametrize('where', ['dreamfusion_nb/', 'tests/', 'tools/', 'benchmarks/', 'nbs/'])
def test_lines_are_short(where): none(HOUSE.long_lines(only=where))


def test_modules_are_small():
    none((f'{name}: {size} lines, at most {LARGER.get(name, MODULE)}'
          for name, size in HOUSE.sizes().items() if size > LARGER.get(name, MODULE)))


def test_lesson_cells_stand_between_export_cells():
    none((f'{page}: {n} export cells in a row from {first}' for n, page, first in HOUSE.export_rows() if n > ROW))


# Order

def test_every_module_has_its_place_in_the_reading_order(): none(HOUSE.not_in_the_reading_order())


def test_no_import_runs_back(): none(HOUSE.arrows_back())


def test_imports_make_no_circle(): none(HOUSE.circles())


# The measure itself

def page(*cells):
    "A page of cells: sources, and whether they are exported"
    made = house.Page.__new__(house.Page)
    made.cells = [house.Cell(str(i), 'code', ('#| export\n' if exported else '') + source)
                  for i, (source, exported) in enumerate(cells)]
    return made


def test_rows_end_at_lesson_cells():
    rows = page(('a = 1', True), ('b = 1', True), ('a + b', False), ('c = 1', True)).rows()
    assert [len(row) for row in rows] == [2, 1]


def test_a_definition_is_no_use():
    define, use, lesson = page(('def f(): return f', True), ('def g(): return f()', True), ('f()', False)).cells
    assert not HOUSE.uses(define, 'f', False) and HOUSE.uses(use, 'f', False) and HOUSE.uses(lesson, 'f', True)


def test_what_a_module_is_measured_by(tmp_path):
    path = tmp_path/'sample.py'
    path.write_text('__all__ = ["A", "f"]\nfrom .other import x\nclass A:\n    def m(self, a: int, b): return a\n'
                    'A.n, A.k = f, f\ndef f(c, *d: int) -> int: from . import late\n'
                    'def __getattr__(name): from .hidden import y\n')
    module = house.Module(path)
    assert module.public == ['A', 'f'] and module.public_definitions() == ['A', 'f']
    assert [what for _, what in module.assigned_methods()] == ['A.n', 'A.k']
    assert [(what, has) for _, what, has in module.parameters()] == [('A.m(a)', True), ('A.m(b)', False),
        ('f(c)', False), ('f(d)', True)]
    assert [what for _, what in module.untyped_returns()] == ['A.m(…)']
    assert [name for _, name in module.imports()] == ['other', 'late']
