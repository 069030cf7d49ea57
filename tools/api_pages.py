"""What the documentation says of the code: MyST pages of every public name and of every key, for tools/docs.py.

Everything is read from the source, nothing is imported but the configuration: signatures with their types, and the
comment that stands behind a parameter, which says what it means, in which shape or unit."""
import ast
import inspect
import io
import re
import sys
import tokenize
from configparser import ConfigParser
from functools import cached_property, lru_cache
from operator import attrgetter

import house

# what users call first, in this order, and what it is for
FIRST = {'Run': ('train', 'load', 'Result', 'Trainer', 'StepRecord'),
         'Settings': ('preset', 'load_config', 'Config', 'ConfigError'),
         'Look and steer': ('Viewer', 'StepDashboard', 'FieldDashboard', 'MeshDashboard', 'SplatDashboard',
                            'CompareDashboard'),
         'Guide': ('LatentDiffusion', 'PixelDiffusion', 'toybox_prior', 'sds'),
         'Many, and how good': ('run_batch', 'benchmark', 'score', 'f_score', 'chamfer', 'r_precision'),
         'Your own parts': ('GuidanceProtocol', 'FieldProtocol', 'BackgroundProtocol', 'RendererProtocol',
                            'LossFunction', 'OptimizerFactory')}
# what a parameter is wherever it has no comment of its own; some of them by their type
USUAL = dict(
    ambient='share of the light that comes from everywhere, 0..1, a number or [B]', args="PyTorch's own",
    background='a colour, or a module as in `background`', backend="which implementation; 'auto': the fastest there is",
    callbacks='called as callback(trainer, record) after each step', camera='`Cameras`, one',
    cameras='`Cameras`, B of them', caption='text that the toybox knows',
    chunk='how many are done at a time, for bounded memory', config='`Config`',
    density='function of points [N, 3] that gives densities [N]', device='`torch.device` or its name',
    directions='unit vectors [N, 3]', dtype='of the weights', every='steps between two looks',
    faces='vertex numbers [F, 3]', features='of these points, if they are known [N, C]',
    field='`Field`, or another field', figure='plotly figure', folder='its path',
    generator="`torch.Generator` of every draw; None: torch's own",
    guidance='an object with the guidance protocol, as `LatentDiffusion`', height='rows of a picture',
    history='list of the lines that `StepRecord.row` gives', i='place of a step in the history',
    image='picture [B, 3, H, W] in 0..1', images='pictures [B, 3, H, W] in 0..1', jobs='processes side by side',
    kwargs="PyTorch's own", latents='[B, C, h, w]', light='directions towards the lamp [B, 3]',
    local_files_only='whether the Hub may not be asked', mesh='`trimesh.Trimesh`',
    min_share='pieces smaller than this share of the largest are left out', n='how many',
    n_images='how many pictures the directions belong to', noisy='latents under noise [B, C, h, w]',
    normals='whether a normal map is made', opacity='picture [B, 1, H, W] in 0..1', options='passed on, see above',
    out='result folder', overwrite='whether what is there may be replaced',
    parts='replaceable parts by name', path='file or folder', perturb='whether samples are moved at random along a ray',
    pos='vertices in clip space [B, V, 4]', preset='name of a preset', prompt='text', prompts='texts',
    rast='from `rasterize` [B, H, W, 4]', record='`StepRecord`', renderer='`VolumeRenderer` or `MeshRenderer`',
    resolution='grid points or cells along an axis', result='`Result`', return_normal='whether normals are drawn',
    seconds='after this time the rest is done coarsely', seed='of every random draw', shading='mode of `shade`',
    size='pixels along an edge', splats='`Splats`', step='step of the run, from 0',
    steps='how many', t='noise levels [B]', text='text', texts='list of texts', texture='pixels along an edge of it',
    threshold="density of the surface; 'auto': where the field turns solid", tokens='numbers of words [n, length]',
    trainer='`Trainer`', tri='vertex numbers of triangles [F, 3]', vertices='[V, 3]', weights='one a row',
    width='columns of a picture', workers='processes that share the views of a step', x='points [N, 3]',
    act='what is done', aspect='width over height of a picture', axis='0, 1 or 2: along which the grid is seen',
    azimuth='degrees; 0 looks at the front', back='likewise of the back', changes='name=value, see `Steering`',
    choice='`ShadingChoice` of the schedule', compile='whether networks are compiled',
    elevation='degrees above ground', embeddings='of the texts, a row for each latent', error='what went wrong',
    fovy='opening angle of the camera, degrees', grown='whether a step was made', look='`ShadingChoice` of the step',
    low_memory='less memory for more time', material='gloss of shading phong', overhead='likewise from above',
    radius='distance of the camera, world units', save_every='steps between two files',
    show='whether pictures are drawn', side='likewise of the side', source='what is read') | {
    'out: RenderOutput': 'what the renderer gave', 'faces: int | None': 'how many at most; None: all',
    'splats: bool': 'whether a list of splats is written instead of a mesh'}


def project(root):
    "The section of settings.ini"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def comments(text):
    "Line → comment, and the lines on which nothing else stands"
    found, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = re.sub(r'\s*(# )?(type: ignore|noqa)\S*.*$', '', token.string.lstrip('# '))
            if not token.line[:token.start[1]].strip(): alone.add(token.start[0])
    return found, alone


def arguments(node):
    "(argument, name with its stars, default or None) of a function's parameters, without self"
    a = node.args
    placed = [*a.posonlyargs, *a.args]
    pairs = [*zip(placed, [None]*(len(placed) - len(a.defaults)) + a.defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    rows = [(arg, arg.arg, default) for arg, default in pairs if arg.arg not in ('self', 'cls')]
    if a.vararg: rows.insert(sum(arg in placed for arg, *_ in rows), (a.vararg, f'*{a.vararg.arg}', None))
    return rows + ([(a.kwarg, f'**{a.kwarg.arg}', None)] if a.kwarg else [])


def beside(spans, found, alone, first):
    """Name → comment, of things that stand at `spans`: (name, first line, last line), in order. A comment belongs to
    the line that it ends. One with a line of its own belongs to what follows, unless that has a comment: then it goes
    on with the one before"""
    said, before = {}, first
    for i, (name, start, end) in enumerate(spans):
        own = ' '.join(found[line] for line in range(start, end + 1) if line in found)
        above = ' '.join(found[line] for line in range(before + 1, start) if line in alone)
        if own and above and i and spans[i - 1][0] in said: said[spans[i - 1][0]] += f' {above}'
        elif above and not own: own = above
        if own and not (i + 1 < len(spans) and spans[i + 1][1] == start): said[name] = own
        before = end
    return said


def kind(node):
    "An annotation as text, without the quotes of a forward reference"
    return re.sub(r"'([^']*)'", r'\1', ast.unparse(node)) if node is not None else ''


def value(node): return ast.unparse(node) if node is not None else ''


def usual(node):
    "The default of a field of a dataclass as text: of a key of the configuration, what its maker is given first"
    if not isinstance(node, ast.Call): return value(node)
    maker = ast.unparse(node.func)
    if maker == 'not_compared': return usual(node.args[0])
    if maker in ('number', 'choice', 'text', 'flag', 'range_key'): return value(node.args[0])
    return '' if maker == 'group' else value(node).replace('traitlets.', '').replace('.tag(sync=True)', '')


def signature(node):
    "A function's parameters and return as text, without self and without quotes round types"
    copy = ast.parse(ast.unparse(node)).body[0]
    a = copy.args
    for group in (a.posonlyargs, a.args): group[:] = [arg for arg in group if arg.arg not in ('self', 'cls')]
    for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]:
        if arg.annotation: arg.annotation = ast.parse(kind(arg.annotation), mode='eval').body
    back = f' -> {kind(copy.returns)}' if copy.returns and kind(copy.returns) != 'None' else ''
    return f'({ast.unparse(a)}){back}'


def prose(text):
    "A docstring or comment as Markdown: code stays, and nothing else means anything"
    parts = re.split(r'(`[^`]+`)', text)
    parts[::2] = [re.sub(r'([\\*_<$\[\]#])', r'\\\1', part) for part in parts[::2]]
    return re.sub(r'^(\s*)([-+]|\d+\.) ', r'\1\\\2 ', ''.join(parts), flags=re.M)


def code(text): return f'`` {text} ``' if '`' in text else f'`{text}`' if text else ''


def table(head, rows):
    def cell(text): return ' '.join(text.split()).replace('|', r'\|')
    lines = [head, ['---']*len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(cell, line)) + ' |' for line in lines) if rows else ''


class Documented:
    "What is said of the names of one module"
    def __init__(self, module, package):
        self.module, self.package = module, package
        self.found, self.alone = comments(module.text)

    def parameters(self, node, more=''):
        """(rows of name, type, default, meaning; what the comment behind the return says) of a function; `more`: what
        is said of it besides its docstring"""
        shown = arguments(node)
        back = node.returns.end_lineno if node.returns and kind(node.returns) != 'None' else 0
        # a comment in the line of the return is the return's
        found = {line: said for line, said in self.found.items() if line != back}
        spans = [(name.strip('*'), arg.lineno, max(arg.end_lineno, default.end_lineno if default else 0))
                 for arg, name, default in shown]
        said = beside(spans, found, self.alone, node.lineno - 1)
        doc = f'{ast.get_docstring(node) or ""} {more}'
        def meaning(name, of):
            named = re.search(rf'\b{name}\b' if len(name) > 1 else f'`{name}`', doc)
            return said.get(name) or ('see above' if named else USUAL.get(f'{name}: {of}', USUAL.get(name, '')))
        rows = [(name, kind(arg.annotation), value(default), meaning(name.strip('*'), kind(arg.annotation)))
                for arg, name, default in shown]
        own_line = node.body[0].lineno > back
        above = [line for line in range(max((end for *_, end in spans), default=0) + 1, back) if line in self.alone]
        says = ' '.join(self.found[line] for line in [*above, *([back] if own_line and back in self.found else [])])
        return rows, says

    def fields(self, node):
        "(name, type, default, meaning) of what a class states: the fields of a dataclass, the traits of a widget"
        stated = [n for n in node.body if isinstance(n, (ast.Assign, ast.AnnAssign))]
        spans = [(n.lineno, n.lineno, n.end_lineno) for n in stated]
        said = beside(spans, self.found, self.alone, node.lineno)
        for n in stated:
            target = n.target if isinstance(n, ast.AnnAssign) else n.targets[0]
            if not isinstance(target, ast.Name) or target.id.startswith('_'): continue
            if isinstance(n.value, ast.Name): continue    # an earlier name
            if isinstance(n.value, ast.Call) and ast.unparse(n.value.func) == 'property':
                doc = next((k.value.value for k in n.value.keywords if k.arg == 'doc'), '')
                yield target.id, 'property', '', doc or said.get(n.lineno, '')
                continue
            yield target.id, kind(getattr(n, 'annotation', None)), usual(n.value), said.get(n.lineno, '')

    def tables(self, node, more=''):
        rows, says = self.parameters(node, more)
        made = table(('parameter', 'type', 'default', 'meaning, shape, unit'),
                     [(code(name), code(of), code(default), prose(meaning)) for name, of, default, meaning in rows])
        return f'{made}\n\n' + (f'**Returns:** {prose(says)}\n\n' if says else '')

    def function(self, node, name, directive='function', depth=3):
        doc = prose(ast.get_docstring(node) or '')
        marks = {ast.unparse(d) for d in node.decorator_list}
        options = ''.join(f':{mark}:\n' for mark in ('classmethod', 'staticmethod') if mark in marks)
        if 'property' in marks:
            options, head = f':type: {kind(node.returns)}\n', name
            directive = 'property'
        else: head = name + signature(node)
        fence = ':'*depth
        return f'{fence}{{py:{directive}}} {head}\n{options}\n{doc}\n\n{self.tables(node)}{fence}\n\n'

    def methods(self, node):
        "(page, node) of a class's public methods, those of its bases that are no public names among them"
        named, found = set(), []
        for owner, of in self.package.bases(self.module, node):
            for m in of.body:
                if isinstance(m, ast.FunctionDef) and not m.name.startswith('_') and m.name not in named:
                    named.add(m.name)
                    if not any(ast.unparse(d).endswith('.setter') for d in m.decorator_list):
                        found.append((self.package.said[owner.name], m))
        return found

    def a_class(self, node, name):
        init = next((m for m in node.body if getattr(m, 'name', '') == '__init__'), None)
        data = any('dataclass' in ast.unparse(d) for d in node.decorator_list)
        bases = ', '.join(code(b) for b in map(ast.unparse, node.bases) if b in self.package.where or '.' in b)
        text = f'{prose(ast.get_docstring(node) or "")}\n\n' + (f'Built on {bases}.\n\n' if bases else '')
        if init and not data:
            text += f'{prose(ast.get_docstring(init) or "")}\n\n{self.tables(init, ast.get_docstring(node) or "")}'
        fields = [(code(n), code(of), code(given), prose(said)) for n, of, given, said in self.fields(node)]
        text += table(('field', 'type', 'default', 'meaning, shape, unit'), fields) + '\n\n'
        text += ''.join(owner.function(m, m.name, 'method', 3) for owner, m in self.methods(node))
        head = name + (signature(init) if init and not data else '')
        return f'::::{{py:class}} {head}\n\n{text}::::\n\n'

    def constant(self, node, name):
        said = beside([(name, node.lineno, node.end_lineno)], self.found, self.alone, node.lineno - 1)
        shown = value(node.value)
        shown = shown if len(shown) < 200 else f'{shown[:200]} …'
        return f':::{{py:data}} {name}\n\n{prose(said.get(name, ""))}\n\n```text\n{name} = {shown}\n```\n:::\n\n'

    def entry(self, name):
        node = self.module.definitions[name]
        if isinstance(node, ast.ClassDef): return self.a_class(node, name)
        if isinstance(node, ast.FunctionDef): return self.function(node, name)
        return self.constant(node, name)

    @cached_property
    def names(self):
        "Public names: first what the package itself offers, then as the code has them"
        return sorted((n for n in self.module.public if n in self.module.definitions),
                      key=lambda n: (n not in self.package.top, self.module.definitions[n].lineno))

    def first_line(self, name):
        "The first sentence about a name"
        doc = ast.get_docstring(self.module.definitions[name], clean=True) if isinstance(
            self.module.definitions[name], (ast.ClassDef, ast.FunctionDef)) else ''
        return re.split(r'(?<=[.!?])\s|\n\n', ' '.join((doc or '').split('\n')))[0].rstrip('.')

    def page(self):
        "The page of a module"
        doc = ast.get_docstring(self.module.tree) or ''
        book = self.package.house.page_of[self.module.name].path.name
        more = '' if self.names else 'No public names: what is here serves the other pages.\n'
        name = f'dreamfusion_nb.{self.module.name}'
        return (f'# {self.module.name}\n\n> {prose(doc)}\n\n`{name}` is explained, built and tried out on '
                f'[its page](../{book}).\n\n:::{{py:currentmodule}} {name}\n:::\n\n'
                f'{more}{"".join(map(self.entry, self.names))}')


@lru_cache
class Package:
    "What is said of all modules; read once"
    def __init__(self, root):
        self.house = house.House(root)
        self.said = {name: Documented(module, self) for name, module in self.house.modules.items()}
        init = (root/'dreamfusion_nb/__init__.py').read_text(encoding='utf-8')
        self.top = set(re.findall(r"'(\w+)': '\w+'", init))
        self.where = {n: said for said in self.said.values() for n in said.names}

    def bases(self, module, node):
        "(module, class) of a class and of those of its bases in the package that are no public names"
        yield module, node
        for name in map(ast.unparse, node.bases):
            for other in self.house.modules.values():
                of = other.definitions.get(name)
                if isinstance(of, ast.ClassDef) and name not in self.where: yield from self.bases(other, of)

    def index(self, groups):
        "The page that leads to all of it; `groups`: title → names of modules"
        text = '# API\n\nEvery public name, with its types, and the shape or unit of every parameter.\n\n'
        for title, names in FIRST.items():
            rows = [(code(n), prose(self.where[n].first_line(n)), f'[{self.where[n].module.name}]'
                     f'(api/{self.where[n].module.name}.md)') for n in names]
            text += f'## {title}\n\n{table(("name", "what it does", "module"), rows)}\n\n'
        text += '## All modules\n\nIn the order in which they build on each other.\n\n'
        for title, names in groups.items():
            listed = '\n'.join(f'api/{n}' for n in names)
            text += f'```{{toctree}}\n:caption: {title}\n:maxdepth: 1\n\n{listed}\n```\n\n'
        return text


def shown(value):
    "A value as YAML has it"
    if value is None or isinstance(value, bool): return {None: 'null', True: 'true', False: 'false'}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"


def anchor(key): return 'key-' + re.sub(r'[._]+', '-', key)


def settings(package, readers):
    "The settings page: a Markdown table a group, a row a key; `readers`: key → Markdown links to what obeys it"
    sys.path.insert(0, str(package.house.root))
    from dreamfusion_nb.config import KEYS, preset
    from dreamfusion_nb.values import _allowed
    said = {(name, field): meaning for owner in package.said.values()
            for name, node in owner.module.definitions.items() if isinstance(node, ast.ClassDef)
            for field, *_, meaning in owner.fields(node)}
    groups = {}
    for key, spec in KEYS.items():
        above, _, last = key.rpartition('.')
        group = attrgetter(above)(preset('toybox')) if above else preset('toybox')
        doc = inspect.getdoc(type(group)) or ''
        # the groups of a background have keys of a NeRF's; a group whose keys say nothing says it for all of them
        meaning = said.get((type(group).__name__, last)) or said.get(('Nerf', last)) or doc*bool(above)
        groups.setdefault(above, (doc, []))[1].append((
            f'`{key}`{{#{anchor(key)}}}', code(shown(getattr(group, last))), _allowed(spec.type, spec.metadata),
            prose(meaning), readers.get(key, '')))
    head = 'key', 'default', 'allowed', 'what it is', 'obeyed by'
    return '\n\n'.join(f'## {above or "The run"}\n\n{prose(doc)}\n\n{table(head, rows)}'
                       for above, (doc, rows) in groups.items())
