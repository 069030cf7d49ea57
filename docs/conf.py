"Sphinx's settings, and the little that it lacks: formulas without a script, links from code names, words for pictures"
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import api_pages  # noqa: E402

cfg = api_pages.project(ROOT)
PACKAGE = api_pages.Package(ROOT)
BOOKS = {page.path.relative_to(ROOT/'nbs').with_suffix('').as_posix() for page in PACKAGE.house.pages}
BLOB = f'{cfg["git_url"]}/blob/{cfg["branch"]}'

project, author, release = cfg['title'], cfg['author'], cfg['version']
copyright = cfg['copyright']
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.linkcode']
exclude_patterns = ['_static']
nb_execution_mode = 'off'    # pages show the outputs that are stored in them
nb_render_markdown_format = 'myst'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'colon_fence', 'deflist', 'attrs_inline', 'attrs_block', 'html_image']
myst_heading_anchors = 4
suppress_warnings = ['myst.header']
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = 'hide'
html_math_renderer = 'mathml'
html_theme = 'pydata_sphinx_theme'
html_title = cfg['title']
html_static_path = ['_static', '../nbs/images/dashboard.jpg']    # what the front page's films show before they run
html_favicon = '_static/cube.svg'
html_css_files = ['site.css']
html_js_files = [('site.js', dict(defer='defer'))]
templates_path = ['_templates']
html_copy_source = False
html_permalinks_icon = '#'
html_domain_indices = False
html_context = dict(default_mode='auto')
html_sidebars = {name: [] for name in ('index', 'glossary', 'settings', 'make', 'start', 'trust')}
html_theme_options = dict(
    github_url=cfg['git_url'], search_as_you_type=True, search_bar_text='search: a name, a key, a word',
    header_links_before_dropdown=7, navigation_depth=2, show_nav_level=1, show_toc_level=2, collapse_navigation=False,
    secondary_sidebar_items=['page-toc', 'sources'],
    footer_start=['footer'], footer_end=[], primary_sidebar_end=[], back_to_top_button=False,
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')


# Formulas: MathML, which browsers draw themselves

def mathml(block):
    def visit(self, node):
        drawn = convert(node.astext(), display='block' if block else 'inline')
        self.body.append(f'<div class="formula">{drawn}</div>' if block else drawn)
        raise nodes.SkipNode
    return visit, None


# Links from code names

def targets():
    "Code name → (page, anchor): public names, their methods, modules with a page"
    found = {}
    for said in PACKAGE.said.values():
        page, prefix = f'api/{said.module.name}', f'dreamfusion_nb.{said.module.name}'
        for name in said.names:
            place = page, f'{prefix}.{name}'
            found |= dict.fromkeys((name, f'{said.module.name}.{name}', f'{prefix}.{name}'), place)
            node = said.module.definitions[name]
            for _, method in said.methods(node) if hasattr(node, 'bases') else ():
                found[f'{name}.{method.name}'] = page, f'{prefix}.{name}.{method.name}'
    return found


TARGETS = targets()


def target(text, docname):
    "(page, anchor) that a piece of code names beyond doubt, or None"
    name = text.removesuffix('()')
    said = PACKAGE.where.get(name)
    if not said: return TARGETS.get(name)
    # a word such as `mesh` may mean anything, unless it is written as a name, or stands on its own page
    own = docname in (f'api/{said.module.name}', PACKAGE.house.page_of[said.module.name].path.stem)
    clear = name != name.lower() or '_' in name or text != name or name in PACKAGE.top
    return TARGETS[name] if clear or own else None


def link(app, doctree, docname):
    "Turns code that names something public, or a key of the configuration, into a link"
    keys = {name: (page, anchor) for (kind, name), (page, anchor)
            in app.env.domains.standard_domain.objects.items() if kind == 'confval' and '.' in name}
    for node in list(doctree.findall(nodes.literal)):
        if any(isinstance(above, (nodes.reference, nodes.title)) for above in around(node)) or node['ids']: continue
        place = target(node.astext(), docname) or keys.get(node.astext().partition('=')[0])
        if not place: continue
        page, anchor = place
        to = '' if page == docname else app.builder.get_relative_uri(docname, page)
        made = nodes.reference('', '', refuri=f'{to}#{anchor}', internal=True, classes=['code-name'])
        node.replace_self(made)
        made += node


def around(node):
    while node.parent is not None:
        node = node.parent
        yield node


def link_type(app, env, node, contnode):
    "Types in signatures are written without their modules"
    place = TARGETS.get(node['reftarget'].split('.')[-1]) if node.get('refdomain') == 'py' else None
    if not place: return None
    to = app.builder.get_relative_uri(node['refdoc'], place[0])
    return nodes.reference('', '', contnode, refuri=f'{to}#{place[1]}', internal=True)


def linkcode_resolve(domain, info):
    "Where a name's source stands"
    name = info['module'].removeprefix('dreamfusion_nb.')
    node = PACKAGE.house.modules[name].definitions.get(info['fullname'].split('.')[0])
    return node and f'{BLOB}/dreamfusion_nb/{name}.py#L{node.lineno}-L{node.end_lineno}'


# Words for pictures, rows of keys

def describe(app, doctree):
    "A picture that code made is described by what the page says before it; keys of the configuration become findable"
    docname, said = app.env.docname, ''
    for node in doctree.findall(lambda n: isinstance(n, (nodes.title, nodes.paragraph, nodes.image, nodes.literal))):
        if isinstance(node, nodes.literal):
            if docname != 'settings' or not node['ids']: continue
            app.env.domains.standard_domain.note_object('confval', node.astext(), node['ids'][0], location=node)
        elif not isinstance(node, nodes.image):
            if not any('cell_output' in above.get('classes', ()) for above in around(node)
                       if isinstance(above, nodes.Element)): said = node.astext()
        elif not node.get('alt'):
            last = re.split(r'(?<=[.!?:])\s', ' '.join(said.split()))[-1]
            node['alt'] = f'made by the code above: {last}'


def page_context(app, pagename, templatename, context, doctree):
    "What the side of a page links to"
    book = 'index' if pagename == 'start' else pagename if pagename in BOOKS - {'index'} else None
    context['notebook'] = book and f'{book}.ipynb'
    context['module'] = next((name for name, page in PACKAGE.house.page_of.items() if page.path.stem == pagename
                              and PACKAGE.said[name].names), None)
    made = f'nbs/{book}.ipynb' if book else 'tools/api_pages.py' if pagename == 'api' else f'docs/{pagename}.md'
    if pagename.startswith('api/'): made = f'dreamfusion_nb/{pagename[4:]}.py'
    context['source'] = f'{BLOB}/{made}' if (ROOT/made).exists() else None


def setup(app):
    app.add_html_math_renderer('mathml', mathml(False), mathml(True))
    app.connect('doctree-read', describe)
    app.connect('doctree-resolved', link)
    app.connect('missing-reference', link_type)
    app.connect('html-page-context', page_context)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
