"""The state of the house in numbers: names, types, lines, modules, and what the pages show of them.

    python tools/house.py [revision ...] [--no-mypy]      # default: the tree as it lies here

With revisions, such as `d53a678`, a column each, and the tree as it lies here last. tests/test_house.py holds the same
numbers to their bounds, and says which places break them."""
import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 120


def named_in(tree):
    "Every name and attribute that code uses; what it only imports is not used"
    return ({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)})


def definitions(tree):
    "Name → node, of the functions, classes and values at the top of code"
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = (n for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
                found |= {n.id: node for n in names}
    return found


def without_magics(source): return re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)


@dataclass
class Cell:
    id: str
    kind: str       # 'code' or 'markdown'
    source: str

    @cached_property
    def exported(self): return bool(re.search(r'^#\|\s*exporti?\b', self.source, re.M))

    @cached_property
    def tree(self): return ast.parse(without_magics(self.source))

    @cached_property
    def names(self): return named_in(self.tree)

    @cached_property
    def defined(self):
        "What an export cell makes: functions, classes and values"
        return set(definitions(self.tree)) if self.exported else set()


@dataclass
class Page:
    path: Path
    cells: list = field(default_factory=list)

    def __post_init__(self):
        self.cells = [Cell(c.get('id', str(i)), c['cell_type'], ''.join(c['source']))
                      for i, c in enumerate(json.loads(self.path.read_text(encoding='utf-8'))['cells'])]

    @property
    def code(self): return [cell for cell in self.cells if cell.kind == 'code']

    @cached_property
    def module(self):
        "The name of the module that the page makes, if any"
        for cell in self.code:
            found = re.search(r'^#\|\s*default_exp\s+(\S+)', cell.source, re.M)
            if found: return found[1]

    def rows(self):
        "Runs of export cells with no lesson cell between: a list of lists"
        rows, row = [], []
        for cell in self.code:
            if cell.exported: row.append(cell)
            elif not re.fullmatch(r'(#.*\n?|\s)*', cell.source):
                rows, row = [*rows, row], []
        return [row for row in [*rows, row] if row]


class Module:
    def __init__(self, path):
        self.path, self.name = path, path.stem
        self.text = path.read_text(encoding='utf-8')
        self.tree = ast.parse(self.text)

    @cached_property
    def public(self):
        "The names in `__all__`"
        names = []
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node,
                ast.AugAssign) else []
            if any(isinstance(t, ast.Name) and t.id == '__all__' for t in targets):
                names += ast.literal_eval(node.value)
        return names

    @cached_property
    def definitions(self): return definitions(self.tree)

    def public_definitions(self):
        "The public functions and classes that are made here"
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
        return [n for n in self.public if isinstance(self.definitions.get(n), kinds)]

    def assigned_methods(self):
        "Places in which a class gets a method, or another attribute, from outside: (line, what)"
        for node in self.tree.body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                for t in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(t, ast.Attribute) and isinstance(t.value,
                            ast.Name) and t.value.id.lstrip('_')[:1].isupper():
                        yield node.lineno, ast.unparse(t)

    def functions(self):
        "(name, node) of the public functions and of the public methods of the public classes"
        for name in self.public_definitions():
            node = self.definitions[name]
            if not isinstance(node, ast.ClassDef): yield name, node
            else:
                for method in node.body:
                    if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and (method.name in ('__init__',
                            '__call__')
                                                                                        or not method.name.startswith(
                                                                                            '_')):
                        yield f'{name}.{method.name}', method

    def parameters(self):
        "(line, what, whether it has a type) of the parameters of these functions"
        for name, node in self.functions():
            a = node.args
            for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]:
                if arg.arg not in ('self', 'cls'): yield arg.lineno, f'{name}({arg.arg})', arg.annotation is not None

    def untyped_returns(self):
        for name, node in self.functions():
            if node.returns is None and not name.endswith('__init__'): yield node.lineno, f'{name}(…)'

    def imports(self):
        """(line, module) of each import of another module of the package; what a facade looks up when it is asked is
        left out"""
        def walk(node):
            if isinstance(node, ast.FunctionDef) and node.name in ('__getattr__', 'main') and node in self.tree.body:
                return
            if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test): return
            if isinstance(node, ast.ImportFrom) and (node.level
                                                     or (node.module or '').split('.')[0] == 'dreamfusion_nb'):
                part = (node.module or '').removeprefix('dreamfusion_nb').lstrip('.')
                if part: yield node.lineno, part.split('.')[0]
                else: yield from ((node.lineno, alias.name) for alias in node.names)
            for child in ast.iter_child_nodes(node): yield from walk(child)
        yield from walk(self.tree)


class House:
    def __init__(self, root=ROOT):
        self.root = Path(root)
        pages = sorted(p for p in (self.root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
        self.pages = [Page(p) for p in pages]
        files = sorted((self.root/'dreamfusion_nb').glob('*.py'))
        self.modules = {p.stem: Module(p) for p in files if p.stem not in ('__init__', '_modidx')}

    @cached_property
    def page_of(self): return {page.module: page for page in self.pages if page.module}

    def at(self, module, line, what): return f'dreamfusion_nb/{module.name}.py:{line} {what}'

    # Names

    def public_names(self): return [f'{m.name}.{n}' for m in self.modules.values() for n in m.public]

    def names_with_two_meanings(self):
        "Public names that two modules define, each its own"
        where = {}
        for m in self.modules.values():
            for n in m.public:
                if n in m.definitions: where.setdefault(n, []).append(m.name)
        return [f'{n}: {", ".join(modules)}' for n, modules in sorted(where.items()) if len(modules) > 1]

    def unused_on_page(self, definitions_only=False, lesson=False):
        """Public names that no code cell of their own page uses, apart from the one that defines them; with `lesson`,
        those whose word is in no lesson cell"""
        for m in self.modules.values():
            page = self.page_of.get(m.name)
            for n in m.public_definitions() if definitions_only else m.public:
                if n not in m.definitions: continue    # made elsewhere
                cells = [cell for cell in (page.code if page else []) if not (lesson and cell.exported)]
                if not any(self.uses(cell, n, lesson) for cell in cells): yield self.at(m, m.definitions[n].lineno, n)

    def uses(self, cell, name, anyhow):
        "Whether a cell's code uses a name that it does not define; `anyhow`, whether the word is there"
        if anyhow: return bool(re.search(rf'\b{name}\b', cell.source))
        return name in cell.names and name not in cell.defined

    def assigned_methods(self):
        return [self.at(m, *place) for m in self.modules.values() for place in m.assigned_methods()]

    # Types

    def parameters(self, typed):
        return [self.at(m, line, what) for m in self.modules.values()
                for line, what, has in m.parameters() if has == typed]

    def untyped_returns(self):
        return [self.at(m, *place) for m in self.modules.values() for place in m.untyped_returns()]

    def mypy(self):
        "The errors that mypy finds"
        run = subprocess.run([sys.executable, '-m', 'mypy', 'dreamfusion_nb'], cwd=self.root, capture_output=True,
                             text=True)
        assert run.returncode in (0, 1), run.stdout + run.stderr
        return [line for line in run.stdout.splitlines() if ': error: ' in line]

    # Lines and modules

    def lines(self):
        "(place, line) of all code: modules, tests, tools, benchmarks, and cells that make no module"
        for folder in ('dreamfusion_nb', 'tests', 'tools', 'benchmarks'):
            for path in sorted((self.root/folder).glob('*.py')):
                if path.stem == '_modidx': continue
                for i, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
                    yield f'{folder}/{path.name}:{i}', line
        for page in self.pages:
            for cell in page.code:
                if not cell.exported:
                    for line in cell.source.splitlines(): yield f'{page.path.relative_to(self.root)} {cell.id}', line

    def long_lines(self, limit=LIMIT, only=''):
        return [f'{where} ({len(line)})' for where, line in self.lines() if len(line) > limit
                and where.startswith(only)]

    def sizes(self):
        return dict(sorted(((m.name, len(m.text.splitlines())) for m in self.modules.values()),
                           key=lambda item: -item[1]))

    # Pages

    def reading_order(self):
        "Modules in the order in which the front page links to their pages"
        index = next(page for page in self.pages if page.path.name == 'index.ipynb')
        text = '\n'.join(cell.source for cell in index.cells if cell.kind == 'markdown')
        text = text[text.rfind('\n## Read it'):]
        by_file = {page.path.name: page.module for page in self.pages}
        links = re.findall(r'\]\((\w+\.ipynb)\)', text)
        return [by_file[name] for name in dict.fromkeys(links) if by_file.get(name)]

    def not_in_the_reading_order(self): return sorted(set(self.modules) - set(self.reading_order()))

    def arrows_back(self):
        "Imports of a module that comes later, or not at all, in the reading order"
        place = {name: i for i, name in enumerate(self.reading_order())}
        return [self.at(m, line, f'imports {other}') for m in self.modules.values() for line, other in m.imports()
                if other in self.modules and m.name in place and place.get(other, 1e9) >= place[m.name]]

    def circles(self):
        "Rings of imports, each as the modules in it"
        graph = {m.name: {other for _, other in m.imports() if other in self.modules} for m in self.modules.values()}
        def reach(start):
            seen, todo = set(), [start]
            while todo:
                for other in graph[todo.pop()] - seen:
                    seen.add(other)
                    todo.append(other)
            return seen
        reached = {name: reach(name) for name in graph}
        rings = {frozenset(o for o in reached[n] if n in reached[o]) for n in graph if n in reached[n]}
        return [' ↔ '.join(sorted(ring)) for ring in rings]

    def export_rows(self):
        "(length, page, first cell) of each row of export cells, longest first"
        rows = [(len(row), page.path.name, row[0].id) for page in self.pages for row in page.rows()]
        return sorted(rows, reverse=True)

    def followed_by_export(self):
        "Share of the export cells whose next cell, of whatever kind, is one too"
        pairs = [(a.exported, b.exported) for page in self.pages if page.module
                 for a, b in zip(page.cells, page.cells[1:])]
        return sum(a and b for a, b in pairs)/sum(a for a, _ in pairs)

    def prose_to_code(self):
        kinds = [cell.kind for page in self.pages for cell in page.cells]
        return kinds.count('markdown')/kinds.count('code')


def table(house, with_mypy=True):
    "Number → value, as texts"
    definitions = [n for m in house.modules.values() for n in m.public_definitions()]
    unused = list(house.unused_on_page(definitions_only=True, lesson=True))
    typed, untyped = len(house.parameters(True)), len(house.parameters(False))
    lines = [line for where, line in house.lines()]
    modules = [line for where, line in house.lines() if where.startswith('dreamfusion_nb/')]
    row = house.export_rows()[0]
    def share(lines, limit):
        long = sum(len(line) > limit for line in lines)
        return f'{long} of {len(lines):,} ({long/len(lines):.1%})'
    return {
        'exported names': str(len(house.public_names())),
        'names with two meanings': str(len(house.names_with_two_meanings())),
        'methods attached by assignment': str(len(house.assigned_methods())),
        'mypy errors': str(len(house.mypy())) if with_mypy else '–',
        'public parameters without a type': f'{untyped} of {typed + untyped:,}',
        'public functions without a return type': str(len(house.untyped_returns())),
        f'lines over {LIMIT}, modules': share(modules, LIMIT),
        f'lines over {LIMIT}, all code': share(lines, LIMIT),
        'largest modules': ', '.join(f'{name} {n}' for name, n in list(house.sizes().items())[:5]),
        'modules': str(len(house.modules)),
        'imports against the reading order': str(len(house.arrows_back())),
        'circles of imports': str(len(house.circles())),
        'public definitions used in a lesson cell of their page': f'{1 - len(unused)/len(definitions):.0%} of '
            f'{len(definitions)}',
        'prose cells to a code cell': f'{house.prose_to_code():.2f}',
        'export cells followed by export cells': f'{house.followed_by_export():.0%}',
        'longest row of export cells': f'{row[0]} ({row[1]})',
    }


def at_revision(revision, folder):
    "A tree of an earlier commit, written into a folder"
    archive = subprocess.run(['git', 'archive', revision], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(['tar', '-x', '-C', folder], input=archive.stdout, check=True)
    return House(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('revisions', nargs='*')
    parser.add_argument('--no-mypy', action='store_true', help='leave out what takes a minute')
    args = parser.parse_args()
    columns = {}
    for revision in args.revisions:
        with tempfile.TemporaryDirectory() as folder:
            columns[revision] = table(at_revision(revision, folder), not args.no_mypy)
    columns['here'] = table(House(), not args.no_mypy)
    print('| | ' + ' | '.join(columns) + ' |')
    print('|---' * (len(columns) + 1) + '|')
    for key in columns['here']: print(f'| {key} | ' + ' | '.join(column[key] for column in columns.values()) + ' |')


if __name__ == '__main__': main()
