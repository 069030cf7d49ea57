"""The documentation site: notebooks and the pages of docs/, made into HTML by Sphinx with MyST-NB, without a network.

    python tools/docs.py [--out _docs]          # then open _docs/index.html

Notebooks are not run: their stored outputs are shown. What is said of the code comes from tools/api_pages.py.
docs/conf.py holds the settings; a warning of Sphinx, such as a dead link, ends the build."""
import argparse
import base64
import copy
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import api_pages

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'
HIDDEN = re.compile(r'#\|\s*(hide|default_exp)\b')
ALT, SHOWN = re.compile(r'<img(?![^>]*\balt=)'), '<img alt="what the cell above showed while it ran"'
MADE_BY_US = '.dreamfusion_nb-docs'    # a mark in the folder of a site


def books():
    "Notebooks that become pages: path below nbs/ without its ending → what the file holds"
    found = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
    return {path.relative_to(NBS).with_suffix('').as_posix(): json.loads(path.read_text(encoding='utf-8'))
            for path in found}


def title_of(book):
    text = '\n'.join(''.join(cell['source']) for cell in book['cells'] if cell['cell_type'] == 'markdown')
    return re.search(r'^# (.+)$', text, re.M)[1], re.search(r'^> (.+)$', text, re.M)[1]


def with_links(text, name, blob):
    """Markdown of the notebook `name` whose links hold on the site: the front page is called start, and what is no page
    is on GitHub"""
    def led(match):
        path, anchor = match[1], match[2] or ''
        if re.match(r'\w+:|#', path): return match[0]
        there = os.path.normpath(NBS/Path(name).parent/path)
        if not there.startswith(str(NBS)): return f']({blob}/{os.path.relpath(there, ROOT)}{anchor})'
        path = re.sub(r'(^|/)index\.ipynb$', r'\1start.ipynb', path)
        return f']({path}{anchor})'
    return re.sub(r'\]\(([^)#\s]+)(#[^)\s]*)?\)', led, text)


def as_page(book, name, blob):
    "A notebook as the site shows it: without hidden cells and without nbdev's marks"
    def lines(text): return with_links(''.join(text), name, blob)
    cells = []
    for cell in book['cells']:
        source = ''.join(cell['source'])
        if HIDDEN.match(source) or not source.strip(): continue
        if cell['cell_type'] == 'markdown': cells.append(cell | dict(source=lines(source)))
        else:
            outputs = copy.deepcopy(cell['outputs'])
            for output in outputs:
                data = output.get('data', {})
                if 'text/markdown' in data: data['text/markdown'] = lines(data['text/markdown'])
                if 'text/html' in data: data['text/html'] = ALT.sub(SHOWN, ''.join(data['text/html']))
            cells.append(cell | dict(source=re.sub(r'^#\|.*\n?', '', source, flags=re.M), outputs=outputs))
    if name == 'index': cells[0]['source'] = cells[0]['source'].replace('# dreamfusion_nb', '# Getting started', 1)
    return book | dict(cells=cells)


def largest_picture(book):
    "(ending, bytes) of the largest picture that a notebook holds"
    found = [(kind.split('/')[1], base64.b64decode(''.join(data))) for cell in book['cells']
             for output in cell.get('outputs', ()) for kind, data in output.get('data', {}).items()
             if kind in ('image/png', 'image/jpeg')]
    return max(found, key=lambda item: len(item[1]))


def tutorials(found, source):
    "The list of tutorials, each with a picture of its own, as Markdown"
    rows = []
    for name, book in found.items():
        if not name.startswith('tutorials/'): continue
        ending, data = largest_picture(book)
        picture = source/'pictures'/f'{Path(name).name}.{ending}'
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(data)
        title, subtitle = title_of(book)
        rows.append(f'- [![a picture from the tutorial: {subtitle}](pictures/{picture.name})]({name}.ipynb)\n\n'
                    f'  **[{title}]({name}.ipynb)**\n\n  {subtitle}\n')
    listed = '\n'.join(name for name in found if name.startswith('tutorials/'))
    return '{.cards}\n' + '\n'.join(rows) + f'\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n'


def reading_order(index):
    "Title → names of pages, from the list on the front page"
    text = '\n'.join(''.join(cell['source']) for cell in index['cells'])
    rows = re.findall(r'^- ([\w ]+?): (.*\.ipynb.*)$', text[text.rfind('\n## Read it'):], re.M)
    return {title: list(dict.fromkeys(re.findall(r'\]\((\w+)\.ipynb\)', line))) for title, line in rows}


def pages_in_order(found, groups):
    "All pages in reading order, as lists with titles and subtitles"
    text = ''
    for title, names in groups.items():
        rows = '\n'.join(f'| [{title_of(found[n])[0]}]({n}.ipynb) | {title_of(found[n])[1]} |' for n in names)
        listed = '\n'.join(names)
        text += (f'## {title}\n\n| page | what it is about |\n|---|---|\n{rows}\n\n'
                 f'```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n\n')
    return text


def obeyed(paper):
    "Key → Markdown links to what obeys it, from the stored table of nbs/paper.ipynb"
    tables = [''.join(output['data']['text/markdown']) for cell in paper['cells'] for output in cell.get('outputs', ())
              if 'text/markdown' in output.get('data', {})]
    table = next(text for text in tables if text.startswith("| key | value on NeMo's page"))
    return dict(re.findall(r'^\| `([\w.]+)` \|.*\| (\[.*) \|$', table, re.M))


def prepare(source, blob):
    "Write all that Sphinx reads into an empty folder"
    shutil.copytree(ROOT/'docs', source, dirs_exist_ok=True)
    shutil.copytree(NBS/'images', source/'images')
    found = books()
    for name, book in found.items():
        path = source/f'{"start" if name == "index" else name}.ipynb'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(as_page(book, name, blob)), encoding='utf-8')
    sys.path.append(str(ROOT/'tests'))
    import bad_inputs  # a table; it imports nothing of ours

    package = api_pages.Package(ROOT)
    groups = reading_order(found['index'])
    made_by = {page.path.stem: page.module for page in package.house.pages if page.module}
    modules = {title: [made_by[n] for n in names if n in made_by] for title, names in groups.items()}
    (source/'api').mkdir()
    for name, said in package.said.items(): (source/'api'/f'{name}.md').write_text(said.page(), encoding='utf-8')
    (source/'api.md').write_text(package.index(modules), encoding='utf-8')
    for page, made in (('learn', tutorials(found, source)),
                       ('research', pages_in_order(found, {'The papers': ['paper']} | groups)),
                       ('settings', api_pages.settings(package, obeyed(found['paper']))),
                       ('trust', bad_inputs.table())):
        path = source/f'{page}.md'
        path.write_text(f'{path.read_text(encoding="utf-8").rstrip()}\n\n{made}', encoding='utf-8')


def build(out, jobs=1):
    "Write the site into an empty or earlier folder of its own"
    from sphinx.application import Sphinx
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out/MADE_BY_US).exists():
        raise SystemExit(f'docs: {out} holds something that is no site of ours; choose another folder')
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out/MADE_BY_US).touch()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)/'source'
        cfg = api_pages.project(ROOT)
        prepare(source, f'{cfg["git_url"]}/blob/{cfg["branch"]}')
        app = Sphinx(source, ROOT/'docs', out, Path(scratch)/'doctrees', 'html', status=None, warning=sys.stderr,
                     warningiserror=True, parallel=jobs)
        app.build()
    if app.statuscode: raise SystemExit('docs: see the warnings above')
    shutil.copytree(NBS, out/'_notebooks', ignore=lambda folder, names: [n for n in names if not n.endswith('.ipynb')
                                                                       and n != 'tutorials'])
    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='_docs')
    parser.add_argument('--jobs', type=int, default=1, help='processes')
    options = parser.parse_args()
    app = build(options.out, options.jobs)
    print(f'{len(app.env.all_docs)} pages in {options.out}')


if __name__ == '__main__': main()
