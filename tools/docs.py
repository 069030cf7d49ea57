"""The documentation site, from the notebooks and the code, without Quarto and without a network: pages, search, an entry for every public name.

    python tools/docs.py [--out _docs]          # then open _docs/index.html
"""
import argparse
import ast
import html
import importlib
import inspect
import json
import re
import shutil
from pathlib import Path

import nbformat
from fastcore.docments import docments
from jinja2 import Template
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbdev.config import get_config

ROOT = Path(__file__).parents[1]
CFG = get_config(path=ROOT)
PAGE = Template('''<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · dreamfusion_nb</title><link rel="stylesheet" href="{{ up }}style.css"><script src="{{ up }}index.js" defer></script><script src="{{ up }}search.js" defer></script></head>
<body data-up="{{ up }}"><nav><a class="home" href="{{ up }}index.html">dreamfusion_nb</a><input id="search" type="search" placeholder="search" aria-label="search"><div id="found"></div>
{% for group, links in menu %}<h4>{{ group }}</h4>{% for link, text in links %}<a href="{{ up }}{{ link }}"{% if link == here %} class="here"{% endif %}>{{ text }}</a>{% endfor %}{% endfor %}</nav>
<main>{{ body }}</main></body></html>
''')
STYLE = '''
:root { --ink: #1c2430; --paper: #fff; --soft: #f3f5f8; --line: #dde3ea; --link: #1f5fbf }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ee; --paper: #14181f; --soft: #1d232d; --line: #303947; --link: #7fb0ff } img { background: #fff } }
* { box-sizing: border-box } body { margin: 0; display: flex; font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
nav { width: 240px; flex: none; height: 100vh; position: sticky; top: 0; overflow: auto; padding: 18px; border-right: 1px solid var(--line); font-size: 14px }
nav a { display: block; padding: 2px 6px; border-radius: 4px; color: inherit; text-decoration: none } nav a.here, nav a:hover { background: var(--soft) }
nav .home { font-weight: 700; font-size: 17px; padding-left: 0 } nav h4 { margin: 16px 0 4px; font-size: 12px; text-transform: uppercase; letter-spacing: .06em; opacity: .65 }
nav input { width: 100%; margin-top: 10px; padding: 5px 8px; border: 1px solid var(--line); border-radius: 5px; background: var(--paper); color: inherit }
#found a { border-bottom: 1px solid var(--line); border-radius: 0 } #found small { opacity: .7; display: block }
main { max-width: 860px; min-width: 0; padding: 20px 40px 80px; flex: 1 } main a { color: var(--link) } h1 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid var(--line) }
pre { background: var(--soft); padding: 10px 12px; border-radius: 6px; overflow: auto; font-size: 13px; line-height: 1.45 } code { font-size: .9em } img { max-width: 100% }
blockquote { margin: 0; padding-left: 14px; border-left: 3px solid var(--line); opacity: .85 } table { border-collapse: collapse; font-size: 14px; display: block; overflow: auto }
td, th { border: 1px solid var(--line); padding: 4px 10px; text-align: left; vertical-align: top } .entry { margin: 2em 0 } .entry h3 { margin-bottom: .2em } .entry .from { font-size: 12px; opacity: .7 }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none } math { font-size: 1.05em }
.c1, .ch, .cm { color: #6b7787 } .k, .kn, .kc, .ow { color: #8a3ffc } .s1, .s2, .sd, .sa { color: #1a7f37 } .mi, .mf { color: #b35900 } .nf, .nc { color: #1f5fbf }
@media (max-width: 760px) { body { display: block } nav { width: auto; height: auto; position: static } main { padding: 16px } }
'''
SEARCH = '''
const box = document.getElementById('search'), found = document.getElementById('found'), up = document.body.dataset.up
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean)
  found.replaceChildren()
  if (!words.length || box.value.trim().length < 2) return
  const scored = INDEX.map(e => {
    const title = `${e.page} ${e.title}`.toLowerCase(), text = e.text.toLowerCase()
    return [words.every(w => title.includes(w) || text.includes(w)) ? words.reduce((n, w) => n + (e.title.toLowerCase() === w ? 9 : title.includes(w) ? 3 : 1), 0) : 0, e]
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


def title_of(book): return next(m[1] for cell in book.cells if cell.cell_type == 'markdown' and (m := re.search(r'^# (.+)$', cell.source, re.M)))
def anchor(text): return re.sub(r'\s', '-', re.sub(r'[^\w\s.-]', '', text.lower()))    # as Quarto names headings


def notebook_page(path):
    "(title, HTML, search entries) of a notebook, without what is hidden in it"
    book = nbformat.read(path, as_version=4)
    book.cells = [c for c in book.cells if not re.match(r'#\|\s*(hide|default_exp)\b', c.source) and c.source.strip()]
    title, link = title_of(book), path.relative_to(ROOT/'nbs').with_suffix('.html').as_posix()
    entries, heading, text = [], title, []
    for cell in book.cells:
        if cell.cell_type == 'code':
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
            continue
        for line in cell.source.splitlines():
            if m := re.match(r'#{1,3} (.+)', line):
                entries.append((heading, text))
                heading, text = m[1], []
            else: text.append(line)
        cell.source = with_math(re.sub(r'\]\((?!https?:)([^)#]+)\.ipynb', r'](\1.html', cell.source))
    entries.append((heading, text))
    body, _ = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(book)
    body = re.sub(r'<a class="anchor-link".*?</a>', '', body, flags=re.S)    # to names that are not Quarto's
    body = re.sub(r'(<h[1-6][^>]*? id=")([^"]+)"', lambda m: f'{m[1]}{anchor(html.unescape(m[2]))}"', body)
    found = [dict(page=title, title=h, text=' '.join(' '.join(t).split())[:600], link=f'{link}#{anchor(h)}') for h, t in entries if t or h != title]
    return title, re.sub(r'"(\.\./)+benchmarks/', f'"{CFG.git_url}/tree/{CFG.branch}/benchmarks/', body), found


def prose(text): return re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(text))


def signature(obj):
    try: return str(inspect.signature(obj))
    except (TypeError, ValueError): return ''


def entry(name, obj):
    "A public name's entry: signature, what it says of itself, what its parameters are"
    rows, doc = '', inspect.cleandoc(getattr(obj, '__doc__', None) or '') if callable(obj) else ''
    if inspect.isfunction(obj) or inspect.isclass(obj):
        try: known = docments(obj.__init__ if inspect.isclass(obj) and '__init__' in vars(obj) else obj, full=True)
        except Exception: known = {}    # what it can't read has its docstring
        rows = ''.join(f'<tr><td><code>{html.escape("→" if k == "return" else k)}</code></td><td>{"" if v.default is inspect.Parameter.empty or k == "return" else f"<code>{html.escape(repr(v.default))}</code>"}</td>'
            f'<td>{prose(v.docment or "")}</td></tr>' for k, v in known.items() if k != 'self' and (v.docment or k != 'return'))
    head = f'{name}{signature(obj)}' if callable(obj) else f'{name} = {html.escape(repr(obj))[:200]}'
    table = f'<table><tr><th>parameter</th><th>default</th><th>meaning, shape, unit</th></tr>{rows}</table>' if rows else ''
    members = ''
    if inspect.isclass(obj):
        own = [(n, m) for n, m in vars(obj).items() if not n.startswith('_') and (inspect.isfunction(m) or isinstance(m, (property, classmethod)))]
        members = ''.join(f'<li><code>{n}{html.escape(signature(m)) if inspect.isfunction(m) else ""}</code> {html.escape(((m.fget or m).__doc__ if isinstance(m, property) else m.__doc__) or "")}</li>' for n, m in own)
    return (f'<div class="entry" id="{name}"><h3>{name}</h3><pre><code>{html.escape(head) if callable(obj) else head}</code></pre><p>{prose(doc)}</p>{table}'
            f'{f"<ul>{members}</ul>" if members else ""}</div>')


def api_page(module):
    "(title, HTML, search entries) of a module's public names, in the order of its code"
    found = importlib.import_module(f'dreamfusion_nb.{module}')
    doc, names = inspect.cleandoc(found.__doc__ or ''), [n for n in getattr(found, '__all__', []) if hasattr(found, n)]
    order = {getattr(node, 'name', ''): node.lineno for node in ast.parse(inspect.getsource(found)).body}
    names.sort(key=lambda n: order.get(n, 0))
    pages = [p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if re.sub(r'^\d+[a-z]?_', '', p.stem) == module]
    read = f' · <a href="../{pages[0].stem}.html">the page that explains it</a>' if pages else ''
    body = f'<h1>{module}</h1><blockquote>{prose(doc)}</blockquote><p class="from"><code>dreamfusion_nb.{module}</code>{read}</p>' + ''.join(entry(n, getattr(found, n)) for n in names)
    entries = [dict(page=f'dreamfusion_nb.{module}', title=n, text=(inspect.getdoc(getattr(found, n)) or '')[:300] if callable(getattr(found, n)) else '', link=f'api/{module}.html#{n}') for n in names]
    return module, body, entries


def build(out):
    "Write the site into an empty or earlier folder of its own"
    if out.exists() and any(out.iterdir()) and not (out/'search.js').exists(): raise SystemExit(f'docs: {out} holds something that is no site of ours; choose another folder')
    shutil.rmtree(out, ignore_errors=True)
    (out/'api').mkdir(parents=True)
    books = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if p.stem != 'index')
    tutorials = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
    modules = [p.stem for p in sorted((ROOT/'dreamfusion_nb').glob('*.py')) if not p.stem.startswith('_')]
    made = {p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix(): notebook_page(p) for p in [ROOT/'nbs/index.ipynb', *tutorials, *books]}
    made |= {f'api/{m}.html': api_page(m) for m in modules}
    def links(keys): return [(k, made[k][0]) for k in keys]
    menu = [('Tutorials', links(k for k in made if k.startswith('tutorials/'))), ('Pages', links(k for k in made if '/' not in k and k != 'index.html')), ('API', links(k for k in made if k.startswith('api/')))]
    for name, (title, body, _) in made.items():
        (out/name).parent.mkdir(exist_ok=True)
        (out/name).write_text(PAGE.render(title=title, body=body, menu=menu, here=name, up='../'*name.count('/')), encoding='utf-8')
    (out/'style.css').write_text(STYLE)
    (out/'search.js').write_text(SEARCH)
    (out/'index.js').write_text('const INDEX = ' + json.dumps([e for *_, entries in made.values() for e in entries], ensure_ascii=False), encoding='utf-8')
    shutil.copytree(ROOT/'nbs/images', out/'images')
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='_docs')
    made = build(Path(parser.parse_args().out))
    print(f'{len(made)} pages, {sum(len(entries) for *_, entries in made.values())} search entries')


if __name__ == '__main__': main()
