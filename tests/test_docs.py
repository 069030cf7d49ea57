"""The documentation site: every page, every link, every public name, every key, a search that finds, and what a person
with a keyboard, in the dark or on a phone meets (tools/docs.py)"""
import ast
import html
import http.server
import json
import re
import threading
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import api_pages
import imageio.v3 as iio
import pytest
from conftest import needs_browser
from pages import new_page
from PIL import Image

import docs
from dreamfusion_nb.config import KEYS

ROOT = Path(__file__).parents[1]
PACKAGE = api_pages.Package(ROOT)
# one page of each kind, which a browser looks at closely
KINDS = ('index', 'learn', 'tutorials/02_sds_in_2d', '06_raymarch', 'api', 'api/run', 'settings', 'make', 'glossary')


class Page:
    "Links, pictures and anchors of a page; in Sphinx's HTML no `>` stands inside a tag"
    def __init__(self, path):
        self.text = path.read_text(encoding='utf-8')
        self.ids = {html.unescape(found) for found in re.findall(r'\sid="([^"]+)"', self.text)}
        tags = re.findall(r'<(\w+)\s([^>]*)>', self.text)
        def named(kinds): return [html.unescape(link) for tag, rest in tags if not kinds or tag in kinds
                                  for link in re.findall(r'\b(?:href|src)="([^"]+)"', rest)]
        self.links, self.fetched = named(()), named(('script', 'img', 'video', 'iframe', 'link'))
        self.undescribed = [rest for tag, rest in tags if tag == 'img' and not re.search(r'\balt="[^"]', rest)]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'docs'
    docs.build(out)
    return out


@pytest.fixture(scope='module')
def pages(site):
    "Pages of ours: `search` and `genindex` are Sphinx's, and what lies in _static is the theme's"
    return {path: Page(path) for path in site.rglob('*.html') if path.stem not in ('search', 'genindex')
            and '_static' not in path.parts}


# Whole

def test_every_notebook_has_its_page_and_its_file(site):
    for name in docs.books():
        assert (site/f'{"start" if name == "index" else name}.html').exists(), name
        assert (site/'_notebooks'/f'{name}.ipynb').read_bytes() == (ROOT/'nbs'/f'{name}.ipynb').read_bytes()


def test_links_lead_somewhere(pages):
    lost = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r'\w+:', link): continue
            name, _, anchor = link.partition('#')
            target = (path.parent/unquote(name.partition('?')[0])).resolve() if name else path
            if not target.exists(): lost.append((path.name, link))
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids: lost.append((path.name, link))
    assert not lost


def test_links_to_github_lead_to_our_files(pages):
    blob = re.compile(rf'{re.escape(api_pages.project(ROOT)["git_url"])}/(?:blob|tree)/main/([^#"]+)')
    named = {unquote(match) for page in pages.values() for match in blob.findall(page.text)}
    assert len(named) > 80 and not [name for name in named if not (ROOT/name).exists()]


def test_nothing_comes_from_the_network(pages):
    for path, page in pages.items():
        assert not [link for link in page.fetched if link.startswith(('http:', 'https:', '//'))], path.name


def test_every_picture_is_described(pages):
    assert sum(page.text.count('<img') for page in pages.values()) > 200
    assert not [(path.name, found) for path, page in pages.items() for found in page.undescribed]


def test_every_page_leads_to_the_glossary_and_on(pages):
    for path, page in pages.items():
        assert any(link.partition('#')[0].endswith('glossary.html') or path.stem == 'glossary' for link in page.links)
        assert 'prev-next' in page.text, path.name


def test_formulas_are_drawn_without_a_script(pages):
    assert sum(page.text.count('<math') for page in pages.values()) > 300
    assert not [path.name for path, page in pages.items() if re.search('<script[^>]*mathjax', page.text, re.I)]


def test_a_warning_ends_the_build(tmp_path, monkeypatch, capfd):
    book = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[dict(
        cell_type='markdown', id='a', metadata={}, source='# Page\n\n> One\n\n[lost](nowhere.ipynb)')])
    monkeypatch.setattr(docs, 'prepare', lambda source, blob: (source.mkdir(), (source/'index.ipynb').write_text(
        json.dumps(book))))
    with pytest.raises(SystemExit, match='warnings'): docs.build(tmp_path/'out')
    assert 'nowhere.ipynb' in capfd.readouterr().err


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path/'mine.txt').write_text('x')
    with pytest.raises(SystemExit, match='no site of ours'): docs.build(tmp_path)
    assert (tmp_path/'mine.txt').exists()


# What is said of the code

def functions():
    "(where, documented module, node, what is said besides) of every public function and method"
    for said in PACKAGE.said.values():
        for name in said.names:
            node = said.module.definitions[name]
            if isinstance(node, ast.FunctionDef): yield name, said, node, ''
            elif isinstance(node, ast.ClassDef):
                inits = [m for m in node.body if getattr(m, 'name', '') == '__init__']
                for owner, m in [*((said, m) for m in inits), *said.methods(node)]:
                    yield f'{name}.{m.name}', owner, m, ast.get_docstring(node) or ''


def test_every_public_name_has_its_entry(pages, site):
    assert sum(len(m.public) for m in PACKAGE.house.modules.values()) == len(PACKAGE.where)
    for name, said in PACKAGE.where.items():
        assert f'dreamfusion_nb.{said.module.name}.{name}' in pages[site/f'api/{said.module.name}.html'].ids, name


def test_every_public_definition_says_what_it_does():
    kinds = ast.FunctionDef, ast.ClassDef
    silent = [name for name, said in PACKAGE.where.items()
              if isinstance(said.module.definitions[name], kinds) and not said.first_line(name)]
    assert not silent


def test_every_parameter_means_something():
    "By a comment of its own, in its function's docstring, or because it is called as everywhere"
    silent = [f'{where}: {name}' for where, said, node, more in functions()
              for name, _, _, meaning in said.parameters(node, more)[0] if not meaning and name != '_']
    assert not silent


def test_what_stands_beside_the_parameters_of_train(pages, site):
    "One comment a parameter, each its own, and none beside the return"
    said = PACKAGE.where['train']
    rows, returned = said.parameters(said.module.definitions['train'])
    meanings = [meaning for *_, meaning in rows]
    assert len(set(meanings)) == len(rows) == 22 and 'see above' not in meanings and not returned
    assert rows[0] == ('prompt', 'str | None', 'None', 'what to make; None: what the picture shows, if the judge knows '
                                                   'it')
    assert rows[-1][0] == '**overrides' and 'key of the configuration' in rows[-1][3]
    text = pages[site/'api/run.html'].text
    shown = re.findall(r'<tr[^>]*>(.*?)</tr>', text[text.index('id="dreamfusion_nb.run.train"'):
                                                  text.index('id="dreamfusion_nb.run.start_run"')], re.S)
    cells = [[' '.join(re.sub('<[^>]+>', '', cell).split())
              for cell in re.findall(r'<t[dh][^>]*>(.*?)</t[dh]>', row, re.S)] for row in shown]
    assert [cell[0] for cell in cells] == ['parameter', *(name for name, *_ in rows)]
    assert [cell[1] for cell in cells[1:]] == [kind for _, kind, *_ in rows]


SAMPLE = '''
class Some:
    a: int = 1    # first
    # second, on a line
    # or two
    b: float = 2.
    c: str = 'x'

    def f(self, x: int,    # how many [N]
          # above its line
          y: 'Some | None' = None,
          *rest: str,      # words,
                           # and more words
          z: float = .5,   # last
          w: bool = True, **more: int
         ) -> tuple[int, 'Some']:    # two things
        "Does, with `w`"

    def g(self, x: int) -> None:    # of points
        "Does"
'''


def test_comments_belong_to_what_they_stand_beside(tmp_path):
    path = tmp_path/'sample.py'
    path.write_text(SAMPLE)
    said = api_pages.Documented(api_pages.house.Module(path), PACKAGE)
    node = said.module.definitions['Some']
    assert list(said.fields(node)) == [('a', 'int', '1', 'first'), ('b', 'float', '2.0', 'second, on a line or two'),
                                       ('c', 'str', "'x'", '')]
    rows, returned = said.parameters(node.body[3])
    assert returned == 'two things'
    assert rows == [('x', 'int', '', 'how many [N]'), ('y', 'Some | None', 'None', 'above its line'),
                    ('*rest', 'str', '', 'words, and more words'), ('z', 'float', '0.5', 'last'),
                    ('w', 'bool', 'True', 'see above'), ('**more', 'int', '', '')]
    assert said.parameters(node.body[4]) == ([('x', 'int', '', 'of points')], '')
    assert api_pages.signature(node.body[3]).endswith('**more: int) -> tuple[int, Some]')


def test_prose_means_nothing_but_code():
    assert api_pages.prose('*args and `a_b*c` in <b>, [x](y)\n- no list') == (
        r'\*args and `a_b*c` in \<b>, \[x\](y)' '\n' r'\- no list')


def test_every_key_has_its_row(pages, site):
    text = pages[site/'settings.html'].text
    assert set(map(api_pages.anchor, KEYS)) <= pages[site/'settings.html'].ids
    rows = re.findall(r'<tr[^>]*>(.*?)</tr>', text, re.S)
    cells = [re.findall(r'<td[^>]*>(.*?)</td>', row, re.S) for row in rows]
    found = [row for row in cells if row]
    assert len(found) == len(KEYS)
    assert all(all(re.sub(r'<[^>]+>', '', cell).strip() for cell in row) for row in found)


def test_recipes_import_what_there_is():
    "Their lines are run by hand; here each is read, and each name that it imports is looked up"
    text = (ROOT/'docs/make.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(blocks) >= 10
    for block in blocks:
        imports = [line for line in block.splitlines() if line.startswith(('from ', 'import '))]
        compile(block, 'docs/make.md', 'exec')
        exec('\n'.join(imports), {})


def test_pictures_of_the_documentation_are_small():
    kept = [path for path in (ROOT/'docs').rglob('*') if path.suffix in ('.mp4', '.jpg', '.png', '.svg', '.gif')]
    assert all(path.stat().st_size <= 300_000 for path in kept)
    assert sum(path.stat().st_size for path in kept) <= 450_000


def test_films_are_short_and_play_in_browsers():
    for path in (ROOT/'docs/_static').glob('*.mp4'):
        film = iio.immeta(path)
        assert film['codec'] == 'h264' and film['pix_fmt'].startswith('yuv420p'), path.name
        assert 1 <= film['duration'] <= 15, path.name


def test_films_are_described_and_silent_and_can_be_stopped(pages, site):
    "They have the shape that the page keeps free for them, and so has what is shown before they run"
    films = [tag for page in pages.values() for tag in re.findall(r'<video\s[^>]*>', page.text)]
    assert len(films) == 2
    for tag in films:
        assert re.search(r'\saria-label="[^"]{20,}"', tag)
        assert {'controls', 'loop', 'muted', 'playsinline'} <= set(tag.strip('<>').split())
        named = dict(re.findall(r'(\w+)="([^"]+)"', tag))
        sizes = [(int(named['width']), int(named['height'])), iio.immeta(site/named['src'])['size']]
        if 'poster' in named: sizes.append(Image.open(site/named['poster']).size)
        assert len({wide/high for wide, high in sizes}) == 1


# In a browser

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said): pass


@pytest.fixture(scope='module')
def address(site):
    "Where the site is served, as on GitHub's pages"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def visit(opened, address, name, **how):
    "(a page of the site, what it complained of), in a context of its own"
    page = new_page(opened, **how)
    complaints = []
    page.on('console', lambda said: complaints.append(said.text) if said.type in ('error', 'warning') else None)
    page.on('pageerror', lambda error: complaints.append(str(error)))
    # what a page that is left had still asked for is no fault
    page.on('requestfailed', lambda asked: complaints.extend([asked.url]*(asked.failure != 'net::ERR_ABORTED')))
    page.goto(f'{address}/{name}.html')
    return page, complaints


# contrast of every text with what is behind it: (text, ratio) of those below 4.5, or 3 where it is large
CONTRAST = '''() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const rgba = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a/255] }
  const known = new Map(), seen = color => known.get(color) ?? known.set(color, rgba(color)).get(color)
  const over = ([r, g, b, a], [R, G, B]) => [r*a + R*(1 - a), g*a + G*(1 - a), b*a + B*(1 - a)]
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
    return .2126*r + .7152*g + .0722*b }
  const behind = e => { const layers = []
    for (; e; e = e.parentElement) { const c = seen(getComputedStyle(e).backgroundColor); layers.push(c)
      if (c[3] == 1) break }
    return layers.reverse().reduce((under, c) => over(c, under), [255, 255, 255]) }
  const poor = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) { const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim()
    if (!text || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue
    if (e.closest('script, style, .visually-hidden')) continue
    const how = getComputedStyle(e), under = behind(e), size = parseFloat(how.fontSize)
    const a = light(over(seen(how.color), under)), b = light(under)
    const ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05)
    if (ratio < (size >= 24 || size >= 18.66 && how.fontWeight >= 700 ? 3 : 4.5))
      poor.add(`${text.slice(0, 40)} ${e.className} ${ratio.toFixed(2)}`) }
  return [...poor] }'''
# what the keyboard ought to reach and cannot: links, buttons, and boxes that have to be scrolled
UNREACHED = '''() => [...document.querySelectorAll('a[href], button, input, pre, .pst-scrollable-table-container')]
  .filter(e => e.checkVisibility({visibilityProperty: true}) && e.tabIndex < 0
    && (e.matches('a, button, input') || e.scrollWidth > e.clientWidth + 1))
  .map(e => e.outerHTML.slice(0, 120))'''


@needs_browser
def test_pages_are_quiet_legible_and_reached_by_keyboard_and_fit_a_phone(opened, address):
    "In light and dark, and at 390 pixels, where the content comes first"
    found = {}
    for name in KINDS:
        page, found[name] = visit(opened, address, name, color_scheme='light')
        page.add_style_tag(content='* { transition: none !important }')
        for scheme in ('light', 'dark'):
            page.evaluate('scheme => document.documentElement.dataset.theme = scheme', scheme)
            found[name] += [(scheme, said) for said in page.evaluate(CONTRAST)]
        found[name] += page.evaluate(UNREACHED)
        page.set_viewport_size(dict(width=390, height=844))
        page.wait_for_function('window.innerWidth == 390')
        if page.evaluate('document.documentElement.scrollWidth') > 390: found[name].append('too wide for a phone')
        if not 0 < page.locator('h1').first.bounding_box()['y'] < 200: found[name].append('its content comes late')
        page.close()
    assert not {name: said for name, said in found.items() if said}


@needs_browser
def test_theme_follows_the_reader_and_a_phone_has_its_menu(opened, address):
    page, complaints = visit(opened, address, 'api/run', viewport=dict(width=390, height=844), color_scheme='dark')
    assert page.evaluate('document.documentElement.dataset.theme') == 'dark'
    page.locator('.primary-toggle').click()
    page.get_by_role('dialog').get_by_role('link', name='raymarch').first.wait_for()
    assert not complaints
    page.close()


@needs_browser
def test_films_run_only_for_those_who_want_motion(opened, address):
    "The others see a still, and can press play"
    for wish, paused in (('no-preference', 'false'), ('reduce', 'true')):
        page, complaints = visit(opened, address, 'index', reduced_motion=wish)
        for i in range(2):
            page.locator('video').nth(i).scroll_into_view_if_needed()    # out of sight a browser does not begin
            page.wait_for_function(f"(film => film.readyState == 4 && film.paused == {paused})"
                                   f"(document.querySelectorAll('video')[{i}])")
        assert not complaints
        page.close()


@needs_browser
def test_search_finds_names_and_keys(opened, address):
    page, complaints = visit(opened, address, 'index')
    for asked, there in (('occupancy grid', 'OccupancyGrid'), ('Janus', 'Janus')):
        page.goto(f'{address}/search.html?q={asked}')
        page.locator('#search-results li a', has_text=there).first.wait_for()
    for asked, first in (('train', 'dreamfusion_nb.run.train'), ('data.train.batch_size', 'data.train.batch_size')):
        page.goto(f'{address}/search.html?q={asked}')
        page.locator('#search-results li:first-child a', has_text=re.compile(rf'^\s*{re.escape(first)}')).wait_for()
    page.goto(f'{address}/search.html?q=Janus')
    page.locator('#search-results .context').first.wait_for()
    assert not page.evaluate(CONTRAST)
    page.locator('#search-results li a', has_text='Janus').first.click()
    page.wait_for_load_state()
    assert not complaints
    page.close()


@needs_browser
def test_search_works_from_a_folder(opened, site):
    "Without a server, too: it only leaves the summaries out"
    page = new_page(opened)
    page.goto(f'file://{site}/search.html?q=nerf.bound')
    page.locator('#search-results li a[href*="#key-nerf-bound"]').wait_for()
    page.close()


@needs_browser
def test_keyboard_alone_searches_and_opens(opened, address):
    page, complaints = visit(opened, address, 'index')
    page.keyboard.press('Tab')
    assert 'Skip to main content' in page.evaluate('document.activeElement.textContent')
    page.keyboard.press('Control+k')
    page.keyboard.type('guidance_scale')
    page.keyboard.press('Enter')
    page.wait_for_url('**/search.html?q=guidance_scale*')
    page.locator('#search-results li a', has_text='guidance_scale').first.focus()
    page.keyboard.press('Enter')
    page.wait_for_url(lambda url: 'search.html' not in url)
    assert not complaints
    page.close()
