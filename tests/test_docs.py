"The documentation site: every page, every link, every public name, a search that finds (tools/docs.py)"
import html.parser
import importlib
import inspect
import json
from pathlib import Path
from urllib.parse import unquote

import docs
import glb
import pytest

ROOT = Path(__file__).parents[1]


class Page(html.parser.HTMLParser):
    "Links, pictures and anchors of a page"
    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if 'id' in found: self.ids.add(found['id'])
        self.links += [v for k, v in found.items() if k in ('href', 'src') and v]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'docs'
    docs.build(out)
    return out


@pytest.fixture(scope='module')
def pages(site): return {path: Page(path) for path in site.rglob('*.html')}


def test_every_notebook_has_its_page(site):
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in path.parts:
            assert (site/path.relative_to(ROOT/'nbs').with_suffix('.html')).exists(), path


def test_links_lead_somewhere(pages):
    lost = []
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(('http://', 'https://', 'data:', 'mailto:')): continue
            name, _, anchor = link.partition('#')
            target = (path.parent/unquote(name)).resolve() if name else path
            if not target.exists(): lost.append((path.name, link))
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids: lost.append((path.name, link))
    assert not lost


def test_nothing_comes_from_the_network(pages):
    for path, page in pages.items():
        text = path.read_text(encoding='utf-8')
        assert '<script src="http' not in text and 'rel="stylesheet" href="http' not in text, path.name


def test_every_public_function_says_what_it_does(site):
    silent = []
    for path in sorted((ROOT/'dreamfusion_nb').glob('*.py')):
        if path.stem.startswith('_'): continue
        module = importlib.import_module(f'dreamfusion_nb.{path.stem}')
        page = (site/'api'/f'{path.stem}.html').read_text(encoding='utf-8')
        for name in getattr(module, '__all__', []):
            assert f'id="{name}"' in page, (path.stem, name)
            found = getattr(module, name)
            doc = inspect.getdoc(found) or ''
            # a dataclass has its signature for a docstring when nobody wrote one
            if callable(found) and (not doc or doc.startswith(f'{name}(')): silent.append(f'{path.stem}.{name}')
    assert not silent


def test_every_parameter_means_something():
    "By a comment of its own, in its function's docstring, or because it is called as everywhere"
    silent = []
    for path in sorted((ROOT/'dreamfusion_nb').glob('*.py')):
        if path.stem.startswith('_'): continue
        module = importlib.import_module(f'dreamfusion_nb.{path.stem}')
        found = [getattr(module, name) for name in getattr(module, '__all__', [])]
        for obj in (o for o in found if inspect.isfunction(o) or inspect.isclass(o)
                    and not hasattr(o, '__dataclass_fields__')):
            silent += [f'{path.stem}.{obj.__name__}: {name}' for name, _, meaning in docs.parameters(obj)
                       if not meaning and name not in ('_', 'args', 'kwargs', 'options', 'overrides')]
    assert not silent


def test_search_knows_where(site, pages):
    entries = json.loads((site/'index.js').read_text(encoding='utf-8').removeprefix('const INDEX = '))
    assert {'OccupancyGrid', 'train', 'sds'} <= {e['title'] for e in entries}
    for e in entries:
        name, _, anchor = e['link'].partition('#')
        assert (site/name).exists()
        assert anchor in pages[site/name].ids or not anchor, e['link']


@pytest.mark.skipif(bool(glb.missing_browser()), reason=f'needs {", ".join(glb.missing_browser())}')
def test_search_in_a_browser(site):
    with glb.browser() as opened:
        page = opened.new_page()
        page.goto(f'file://{site}/index.html')
        page.fill('#search', 'occupancy grid')
        page.locator('#found a', has_text='OccupancyGrid').first.click()
        page.wait_for_url('**/api/raymarch.html#OccupancyGrid')
        assert page.locator('#OccupancyGrid').is_visible()
        page.fill('#search', 'zxqv')
        assert 'nothing found' in page.locator('#found').inner_text()
