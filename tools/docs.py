"""The documentation site, from the notebooks and the code, without Quarto and without a network: pages, search, an
entry for every public name.

    python tools/docs.py [--out _docs]          # then open _docs/index.html
"""
import argparse
import ast
import dataclasses
import html
import importlib
import inspect
import json
import re
import shutil
import textwrap
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
from fastcore.docments import docments
from jinja2 import Template
from latex2mathml.converter import convert
from nbconvert import HTMLExporter, TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.widgetsdatatypefilter import WidgetsDataTypeFilter
from nbdev.config import get_config

ROOT = Path(__file__).parents[1]
CFG = get_config(path=ROOT)
PAGE = Template('''<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · dreamfusion_nb</title><link rel="stylesheet" href="{{ up }}style.css">
<script src="{{ up }}index.js" defer></script><script src="{{ up }}search.js" defer></script></head>
<body data-up="{{ up }}"><nav><a class="home" href="{{ up }}index.html">dreamfusion_nb</a>
<input id="search" type="search" placeholder="search" aria-label="search"><div id="found"></div>
{% for group, links in menu %}<h4>{{ group }}</h4>
{% for link, text in links %}<a href="{{ up }}{{ link }}"{% if link == here %} class="here"{% endif %}>{{ text }}</a>
{% endfor %}{% endfor %}</nav>
<main>{{ body }}</main></body></html>
''')
STYLE = '''
:root { --ink: #1c2430; --paper: #fff; --soft: #f3f5f8; --line: #dde3ea; --link: #1f5fbf }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ee; --paper: #14181f; --soft: #1d232d; --line: #303947; --link: #7fb0ff }
  img { background: #fff }
}
* { box-sizing: border-box }
body { margin: 0; display: flex; font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
nav { width: 240px; flex: none; height: 100vh; position: sticky; top: 0; overflow: auto; padding: 18px;
  border-right: 1px solid var(--line); font-size: 14px }
nav a { display: block; padding: 2px 6px; border-radius: 4px; color: inherit; text-decoration: none }
nav a.here, nav a:hover { background: var(--soft) }
nav .home { font-weight: 700; font-size: 17px; padding-left: 0 }
nav h4 { margin: 16px 0 4px; font-size: 12px; text-transform: uppercase; letter-spacing: .06em; opacity: .65 }
nav input { width: 100%; margin-top: 10px; padding: 5px 8px; border: 1px solid var(--line); border-radius: 5px;
  background: var(--paper); color: inherit }
#found a { border-bottom: 1px solid var(--line); border-radius: 0 } #found small { opacity: .7; display: block }
main { max-width: 860px; min-width: 0; padding: 20px 40px 80px; flex: 1 }
main a { color: var(--link) }
h1 { line-height: 1.2 }
h2 { margin-top: 2em; border-bottom: 1px solid var(--line) }
pre { background: var(--soft); padding: 10px 12px; border-radius: 6px; overflow: auto; font-size: 13px;
  line-height: 1.45 }
code { font-size: .9em }
img { max-width: 100% }
blockquote { margin: 0; padding-left: 14px; border-left: 3px solid var(--line); opacity: .85 }
table { border-collapse: collapse; font-size: 14px; display: block; overflow: auto }
td, th { border: 1px solid var(--line); padding: 4px 10px; text-align: left; vertical-align: top }
.entry { margin: 2em 0 }
.entry h3 { margin-bottom: .2em }
.entry .from { font-size: 12px; opacity: .7 }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none } math { font-size: 1.05em }
.c1, .ch, .cm { color: #6b7787 }
.k, .kn, .kc, .ow { color: #8a3ffc }
.s1, .s2, .sd, .sa { color: #1a7f37 }
.mi, .mf { color: #b35900 }
.nf, .nc { color: #1f5fbf }
@media (prefers-color-scheme: dark) {
  .c1, .ch, .cm { color: #8b98a9 }
  .k, .kn, .kc, .ow { color: #c9a6ff }
  .s1, .s2, .sd, .sa { color: #7ee2a0 }
  .mi, .mf { color: #ffb86b }
  .nf, .nc { color: #8ec1ff } }
@media (max-width: 760px) {
  body { display: block }
  nav { width: auto; height: auto; position: static }
  main { padding: 16px }
}
'''
SEARCH = '''
const box = document.getElementById('search'), found = document.getElementById('found'), up = document.body.dataset.up
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean)
  found.replaceChildren()
  if (!words.length || box.value.trim().length < 2) return
  const scored = INDEX.map(e => {
    const title = e.title.toLowerCase(), page = e.page.toLowerCase(), text = e.text.toLowerCase()
    if (!words.every(w => title.includes(w) || page.includes(w) || text.includes(w))) return [0, e]
    return [words.reduce((n, w) => n + (title === w ? 9 : title.includes(w) ? 4 : text.includes(w) ? 2 : 1), 0), e]
  }).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 12)
  for (const [, e] of scored) {
    const a = document.createElement('a'), small = document.createElement('small')
    a.href = up + e.link; a.textContent = e.title; small.textContent = e.page; a.append(small); found.append(a)
  }
  if (!scored.length) found.textContent = 'nothing found'
})
'''


def with_math(text):
    "Markdown whose formulas are MathML, which browsers draw themselves; code stays as it is"
    def formula(block): return lambda m: convert(m[1], display='block' if block else 'inline')
    parts = re.split(r'(```.*?```|`[^`]*`)', text, flags=re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'\$\$(.+?)\$\$', formula(True), parts[i], flags=re.S)
        parts[i] = re.sub(r'(?<![\w$])\$([^$\n]+?)\$(?![\w$])', formula(False), parts[i])
    return ''.join(parts)


def as_page(text):
    "Markdown with its formulas drawn, whose links lead to pages and not to notebooks"
    return with_math(re.sub(r'\]\((?!https?:)([^)#]+)\.ipynb', r'](\1.html', text))


def title_of(book):
    return next(m[1] for cell in book.cells if cell.cell_type == 'markdown'
                and (m := re.search(r'^# (.+)$', cell.source, re.M)))
def anchor(text): return re.sub(r'\s', '-', re.sub(r'[^\w\s.-]', '', text.lower()))    # as Quarto names headings


@lru_cache
def exporter():
    """nbconvert's, once for all pages, since it compiles its templates. It needn't parse and clean what each cell says,
    because these notebooks are ours"""
    made = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    made.register_filter('clean_html', lambda said: said.decode() if isinstance(said, bytes) else said)
    made.register_filter('highlight_code', Highlight2HTML(pygments_lexer='ipython3'))
    made.register_filter('filter_data_type', WidgetsDataTypeFilter(notebook_metadata={}))
    return made


def with_alt(body):
    "Pictures that nobody described say so"
    return re.sub(r'<img(?![^>]*\balt=)', '<img alt="No description has been provided for this image"', body)


def notebook_page(path):
    "(title, HTML, search entries) of a notebook, without what is hidden in it"
    book = nbformat.read(path, as_version=4)
    book.cells = [c for c in book.cells if not re.match(r'#\|\s*(hide|default_exp)\b', c.source) and c.source.strip()]
    title, link = title_of(book), path.relative_to(ROOT/'nbs').with_suffix('.html').as_posix()
    entries, heading, text = [], title, []
    for cell in book.cells:
        if cell.cell_type == 'code':
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
            for data in (output.data for output in cell.outputs if 'text/markdown' in output.get('data', ())):
                data['text/markdown'] = as_page(data['text/markdown'])
            continue
        for line in cell.source.splitlines():
            if m := re.match(r'#{1,3} (.+)', line):
                entries.append((heading, text))
                heading, text = m[1], []
            else: text.append(line)
        cell.source = as_page(cell.source)
    entries.append((heading, text))
    body = with_alt(TemplateExporter.from_notebook_node(exporter(), book)[0])    # without HTMLExporter's second parsing
    body = re.sub(r'<a class="anchor-link".*?</a>', '', body, flags=re.S)    # to names that are not Quarto's
    body = re.sub(r'(<h[1-6][^>]*? id=")([^"]+)"', lambda m: f'{m[1]}{anchor(unquote(html.unescape(m[2])))}"', body)
    found = [dict(page=title, title=h, text=' '.join(' '.join(t).split())[:600], link=f'{link}#{anchor(h)}')
             for h, t in entries if t or h != title]
    return title, re.sub(r'"(\.\./)+benchmarks/', f'"{CFG.git_url}/tree/{CFG.branch}/benchmarks/', body), found


def prose(text): return re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(text))


def signature(obj):
    try: return re.sub(r' at 0x\w+', '', str(inspect.signature(obj)))
    except (TypeError, ValueError): return ''


def comment_of(lines, node):
    "What stands behind a statement in its last line"
    return (re.search(r'\s#\s?(.*)$', lines[node.end_lineno - 1][node.end_col_offset:]) or ['', ''])[1]


def names_in(node):
    "The names that a statement gives"
    if hasattr(node, 'name'): return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    flat = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [n.id for n in flat if isinstance(n, ast.Name)]


def stated(body, lines):
    """(name, value, comment) of the assignments in a module or a class: constants, fields of a dataclass, traits of a
    widget"""
    for node in (n for n in body if isinstance(n, (ast.Assign, ast.AnnAssign))):
        kind = f': {ast.unparse(node.annotation)}' if isinstance(node, ast.AnnAssign) else ''
        value = f' = {ast.unparse(node.value)}'.replace('traitlets.', '').replace('.tag(sync=True)',
            '') if node.value is not None else ''
        for name in names_in(node):
            if not name.startswith('_'): yield name, kind + value, comment_of(lines, node)


def rows_of(pairs):
    return ''.join(f'<tr><td><code>{html.escape(name)}</code></td><td>{value}</td><td>{prose(text)}</td></tr>'
                   for name, value, text in pairs)


# what a parameter is wherever it has no comment of its own
GLOSSARY = dict(
    text='text', config='`Config`', trainer='`Trainer`', result='`Result`', record='`StepRecord`',
    renderer='`VolumeRenderer` or `MeshRenderer`', field='`Field`',
    guidance='an object with the guidance protocol, as `LatentDiffusion`',
    generator='`torch.Generator` of every draw; None: torch\'s own',
    device='`torch.device` or its name', backend="which implementation; 'auto': the fastest there is",
    chunk='how many are done at a time, for bounded memory',
    mesh='`trimesh.Trimesh`', cameras='`Cameras`, B of them', camera='`Cameras`, one', prompt='text',
    caption='text that the toybox knows', step='step of the run, counted from 0',
    height='rows of a picture', width='columns of a picture', size='pixels along an edge', path='file', folder='folder',
    overwrite='whether what is there may be replaced',
    optim='group `optim` of the configuration', nerf='group `nerf` of the configuration',
    background='a colour, or a module as in `background`', seed='of every random draw',
    callbacks='called as callback(trainer, record) after each step',
    history='list of the lines that `StepRecord.row` gives', steps='how many', n='how many', figure='plotly figure',
    image='picture [B, 3, H, W] in 0..1', opacity='picture [B, 1, H, W] in 0..1',
    resolution='grid points or cells along an axis', vertices='[V, 3]', faces='vertex numbers [F, 3]',
    tri='vertex numbers of triangles [F, 3]', pos='vertices in clip space [B, V, 4]',
    rast='from `rasterize` [B, H, W, 4]', prompts='texts', jobs='processes side by side', shading='mode of `shade`')


def head_of(function):
    "The lines of a function's signature"
    if not inspect.isfunction(function): return ['']
    source = textwrap.dedent(inspect.getsource(function))
    return source.splitlines()[:ast.parse(source).body[0].body[0].lineno - 1]


def returned(function):
    "What the comment behind a signature's last parenthesis says; docments reads it only where a `->` stands"
    return (re.search(r'\)\s*:\s*#\s*(.+)$', head_of(function)[-1]) or ['', ''])[1]


def beside(function, name):
    "The comment in a parameter's line, which docments gives to the last of several"
    lines = (line.partition('#') for line in head_of(function))
    return next((comment.strip() for code, _, comment in lines if comment
                 and re.search(rf'(?<![\w.]){name}\s*[=,]', code)), '')


def parameters(obj):
    "(name, default, meaning) of the parameters of a function or a class, and of what a function returns"
    # a dataclass' own is made up
    own = inspect.isclass(obj) and '__init__' in vars(obj) and not dataclasses.is_dataclass(obj)
    try: known = docments(obj.__init__ if own else obj, full=True)
    except Exception: known = {}    # what it can't read has its docstring
    back = known.pop('return', None)
    for k, v in known.items():
        if k == 'self': continue
        default = ('' if v.default is inspect.Parameter.empty
                   else f'<code>{html.escape(re.sub(r" at 0x[0-9a-f]+", "", repr(v.default)))}</code>')
        named = re.search(rf'\b{k}\b', (inspect.getdoc(obj) or '')
                          + (inspect.getdoc(obj.__init__) or '' if own else ''))
        yield k, default, v.docment or beside(obj.__init__ if own else obj,
                                              k) or ('see above' if named else GLOSSARY.get(k, ''))
    says = back and back.docment or (returned(obj) if inspect.isfunction(obj) else '')
    if says: yield '→', '', says


def members(obj):
    "The public methods and properties of a class, a line each"
    own = [(n, m) for n, m in vars(obj).items() if not n.startswith('_')
           and (inspect.isfunction(m) or isinstance(m, (property, classmethod)))]
    docs = [(n, signature(m) if inspect.isfunction(m) else '',
             inspect.getdoc(m.fget if isinstance(m, property) else m) or '') for n, m in own]
    return ''.join(f'<li><code>{n}{html.escape(s)}</code> {prose(d)}</li>' for n, s, d in docs if n != 'model_config')


def entry(name, obj, node, lines):
    """A public name's entry: signature, what it says of itself, what its parameters, fields and methods are; of a
    constant its value and comment"""
    if not callable(obj) or node is None:
        value, comment = next(((v, c) for n, v, c in stated([node] if node else [], lines) if n == name), ('', ''))
        shown = html.escape((name + value)[:300])
        return (f'<div class="entry" id="{name}"><h3>{name}</h3><pre><code>{shown}</code></pre>'
                f'<p>{prose(comment)}</p></div>')
    table, fields = rows_of(parameters(obj)) if inspect.isfunction(obj) or inspect.isclass(obj) else '', ''
    if inspect.isclass(obj) and isinstance(node, ast.ClassDef):
        fields = rows_of((n, f'<code>{html.escape(v.removeprefix(": "))}</code>', c)
                         for n, v, c in stated(node.body, lines))
        # they are its parameters
        if fields: table = '' if '__init__' not in vars(obj) or hasattr(obj, '__dataclass_fields__') else table
    def as_table(rows, *head):
        return f'<table><tr>{"".join(f"<th>{h}</th>" for h in head)}</tr>{rows}</table>' if rows else ''
    listed = members(obj) if inspect.isclass(obj) else ''
    return (f'<div class="entry" '
            f'id="{name}"><h3>{name}</h3><pre><code>{html.escape(name + signature(obj))}</code></pre>'
        f'<p>{prose(inspect.cleandoc(getattr(obj, "__doc__", None) or "")).replace(chr(10)*2, "</p><p>")}</p>'
        f'{as_table(table, "parameter", "default", "meaning, shape, unit")}'
        f'{as_table(fields, "field", "kind", "meaning, shape, unit")}'
        f'{f"<ul>{listed}</ul>" if listed else ""}</div>')


def api_page(module):
    "(title, HTML, search entries) of a module's public names, in the order of its code"
    found = importlib.import_module(f'dreamfusion_nb.{module}')
    doc, names = inspect.cleandoc(found.__doc__ or ''), [n for n in getattr(found, '__all__', []) if hasattr(found, n)]
    lines = inspect.getsource(found).splitlines()
    where = {name: node for node in ast.parse('\n'.join(lines)).body for name in names_in(node)}
    names.sort(key=lambda n: where[n].lineno if n in where else 0)
    pages = [p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if re.sub(r'^\d+[a-z]?_', '', p.stem) == module]
    read = f' · <a href="../{pages[0].stem}.html">the page that explains it</a>' if pages else ''
    head = f'<h1>{module}</h1><blockquote>{prose(doc)}</blockquote>'
    head += f'<p class="from"><code>dreamfusion_nb.{module}</code>{read}</p>'
    body = head + ''.join(entry(n, getattr(found, n), where.get(n), lines) for n in names)
    def said(obj): return (inspect.getdoc(obj) or '')[:300] if callable(obj) else ''
    entries = [dict(page=f'dreamfusion_nb.{module}', title=n, text=said(getattr(found, n)),
                    link=f'api/{module}.html#{n}') for n in names]
    return module, body, entries


def build(out):
    "Write the site into an empty or earlier folder of its own"
    if out.exists() and any(out.iterdir()) and not (out/'search.js').exists():
        raise SystemExit(f'docs: {out} holds something that is no site of ours; choose another folder')
    shutil.rmtree(out, ignore_errors=True)
    (out/'api').mkdir(parents=True)
    books = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if p.stem != 'index')
    tutorials = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
    modules = [p.stem for p in sorted((ROOT/'dreamfusion_nb').glob('*.py')) if not p.stem.startswith('_')]
    made = {p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix(): notebook_page(p)
            for p in [ROOT/'nbs/index.ipynb', *tutorials, *books]}
    made |= {f'api/{m}.html': api_page(m) for m in modules}
    def links(keys): return [(k, made[k][0]) for k in keys]
    menu = [('Tutorials', links(k for k in made if k.startswith('tutorials/'))),
        ('Pages', links(k for k in made if '/' not in k and k != 'index.html')),
        ('API', links(k for k in made if k.startswith('api/')))]
    for name, (title, body, _) in made.items():
        (out/name).parent.mkdir(exist_ok=True)
        (out/name).write_text(PAGE.render(title=title, body=body, menu=menu, here=name, up='../'*name.count('/')),
                              encoding='utf-8')
    (out/'style.css').write_text(STYLE)
    (out/'search.js').write_text(SEARCH)
    (out/'index.js').write_text('const INDEX = ' + json.dumps([e for *_, entries in made.values() for e in entries],
                                                              ensure_ascii=False), encoding='utf-8')
    shutil.copytree(ROOT/'nbs/images', out/'images')
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='_docs')
    made = build(Path(parser.parse_args().out))
    print(f'{len(made)} pages, {sum(len(entries) for *_, entries in made.values())} search entries')


if __name__ == '__main__': main()
