"Dashboards and viewer as a person uses them: JupyterLab and Voila in a headless Chromium (tools/pages.py)"
import re
import shutil
from pathlib import Path

import pages
import pytest
from conftest import needs_browser, wait_until

pytestmark = needs_browser

FAST = "'data.train.width': 32, 'data.train.height': 32, 'renderer.max_steps': 64"
BOOKS = dict(
    step=f"from dreamfusion_nb.dashboard import StepDashboard\ndashboard = StepDashboard('a hamburger', "
         f"iters=100_000, **{{{FAST}}})\ndashboard",
    viewer="from dreamfusion_nb import toybox\nfrom dreamfusion_nb.viewer import Viewer\nviewer = "
           "Viewer(toybox.mesh('a blue penguin', resolution=32), width=300, height=300)\nviewer",
    mesh=f"from dreamfusion_nb.dashboard import MeshDashboard, StepDashboard\nsteps = StepDashboard('a hamburger', "
         f"iters=100, **{{{FAST}}})\nsteps.driver.step()\nMeshDashboard(steps.trainer, resolution=32)",
    compare=f"from dreamfusion_nb.dashboard import CompareDashboard\nCompareDashboard(['a mug', 'a duck'], iters=50, "
            f"every=2, **{{{FAST}}})",
    field=f"from dreamfusion_nb.dashboard import FieldDashboard, StepDashboard\nsteps = StepDashboard('a hamburger', "
          f"iters=100, **{{{FAST}}})\nsteps.driver.step()\nFieldDashboard(steps.trainer)",
    splats="from dreamfusion_nb import Trainer, load_config\nfrom dreamfusion_nb.dashboard import SplatDashboard\n"
           "SplatDashboard(Trainer(load_config('splats', {'prompt': 'a hamburger', 'splats.count': 300})))")


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp('books')
    for name, code in BOOKS.items(): pages.write_notebook(folder/f'{name}.ipynb', code)
    return folder


@pytest.fixture
def page(opened, lab, request):
    "A notebook in JupyterLab that has been run, once what it shows is there"
    made = pages.open_lab(opened, lab, f'{request.param}.ipynb')
    pages.run_all(made)
    made.locator('.dfnb-viewer, .dfnb-dashboard').first.wait_for(timeout=pages.PATIENCE)
    made.wait_for_timeout(1500)
    yield made
    made.close()


def count(page): return int(page.locator('.dfnb-count').first.text_content())
def button(page, text): return page.locator('.dfnb-dashboard button', has_text=re.compile(f'^{text}$')).first
def picture(page, i=0): return page.locator('.dfnb-dashboard img').nth(i).get_attribute('src')


def wait_for_count(page, least):
    page.wait_for_function(f"(document.querySelector('.dfnb-count') || {{}}).textContent >= {least}",
                           timeout=pages.PATIENCE)


def another_look(page, canvas, *before):
    "A screenshot that is none of those before, once it has come to rest"
    looks = [before[-1]]
    def settled():
        looks.append(canvas.screenshot())
        return looks[-1] == looks[-2] and looks[-1] not in before
    wait_until(page, settled)
    return looks[-1]


def run_in_a_new_cell(page, code, says=None):
    "Run code in a cell below the first one; the output that says so, if something is waited for"
    page.locator('.jp-CodeCell .jp-InputPrompt').first.click()
    page.keyboard.press('b')
    page.keyboard.press('Enter')
    page.keyboard.insert_text(code)
    page.keyboard.press('Shift+Enter')
    if not says: return page.wait_for_timeout(500)
    found = page.locator('.jp-OutputArea-output', has_text=re.compile(says)).first
    found.wait_for(timeout=pages.PATIENCE)
    return found.text_content()


def reopen(page):
    """Reload, and ask for the dashboard in a new cell; what the kernel then says in text of the step and of whether it
    runs.

    (The old cell's output is not enough: JupyterLab 4.6 with ipywidgets 8.1 at times asks for a widget while it still
    fetches them, says "model not found", and does not ask again.)"""
    page.reload()
    page.locator('.dfnb-step-dashboard, .jp-OutputArea-output:has-text("model not '
                 'found")').first.wait_for(state='attached', timeout=pages.PATIENCE)
    says = run_in_a_new_cell(page, "print('now at', dashboard.trainer.step_count, dashboard.driver.running); dashboard",
                             r'now at \d+ (True|False)')
    page.locator('.dfnb-step-dashboard').first.wait_for(timeout=pages.PATIENCE)
    step, running = re.search(r'now at (\d+) (\w+)', says).groups()
    return int(step), running == 'True'


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_step_dashboard_in_jupyterlab(page, books):
    assert count(page) == 0
    before = picture(page)
    button(page, 'Step').click()
    wait_for_count(page, 1)
    assert count(page) == 1 and picture(page) != before
    # a run leaves the kernel free: a slider moved by the keyboard is heard while it goes on
    button(page, 'Run').click()
    wait_for_count(page, 5)
    slider = page.locator('.widget-slider:has-text("guidance") .noUi-handle').first
    slider.focus()
    for _ in range(3): slider.press('ArrowRight')
    page.locator('.dfnb-dashboard', has_text='steered: guidance_scale').first.wait_for(timeout=pages.PATIENCE)
    button(page, 'Pause').click()
    button(page, 'Run').wait_for(timeout=pages.PATIENCE)
    stopped = count(page)
    page.wait_for_timeout(1000)
    assert count(page) == stopped >= 5
    # nothing was touched but the slider: what the kernel says of the others does not come back as a hand on the wheel
    assert re.search(r'steered: (.*)', page.locator('.dfnb-dashboard .widget-html',
        has=page.locator('.dfnb-count')).first.inner_text())[1].split('\n')[0] == 'guidance_scale'
    # look back
    live = picture(page)
    button(page, 'Back').click()
    page.locator('.dfnb-dashboard', has_text='looking back').first.wait_for(timeout=pages.PATIENCE)
    wait_until(page, lambda: picture(page) != live)
    # and a step goes on from the newest
    button(page, 'Step').click()
    wait_for_count(page, stopped + 1)
    wait_until(page, lambda: 'looking back' not in page.locator('.dfnb-step-dashboard').first.inner_text())
    # Plotly draws its curves when it finds time
    curves = page.locator('.dfnb-step-dashboard .scatterlayer .trace')
    wait_until(page, lambda: curves.count() >= 2)
    curves = curves.count()
    # a word that the prior refuses is said, and nothing is lost
    words = page.locator('.widget-text:has-text("prompt") input').first
    words.fill('a sonata')
    words.press('Enter')
    page.locator('.dfnb-error', has_text='names no toy').first.wait_for(timeout=pages.PATIENCE)
    # the tab is closed in mid-run and opened again: the run went on
    button(page, 'Run').click()
    page.keyboard.press('Control+s')
    wait_until(page, lambda: 'widget-view' in (books/'step.ipynb').read_text())
    step, running = reopen(page)
    assert running and step > stopped
    # with all that was drawn before
    page.wait_for_function(f"document.querySelectorAll('.dfnb-step-dashboard .scatterlayer .trace').length >= {curves}",
                           timeout=pages.PATIENCE)
    # the kernel's own button stops it, too
    page.locator('[data-command="notebook:interrupt-kernel"], [title^="Interrupt the kernel"]').first.click()
    button(page, 'Run').wait_for(timeout=pages.PATIENCE)


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_a_cell_that_is_run_again_leaves_no_run_behind(page):
    "Nobody could pause it any more"
    button(page, 'Run').click()
    wait_for_count(page, 3)
    run_in_a_new_cell(page, 'before = dashboard')
    page.locator('.jp-CodeCell .jp-InputPrompt').first.click()
    page.keyboard.press('Shift+Enter')
    page.wait_for_function("(document.querySelector('.dfnb-count') || {}).textContent === '0'", timeout=pages.PATIENCE)
    said = run_in_a_new_cell(page,
        "import asyncio; n = before.trainer.step_count; await asyncio.sleep(1); print('then', before.driver.running, "
        "n, before.trainer.step_count)",
        r'then \w+ \d+ \d+')
    running, then, now = re.search(r'then (\w+) (\d+) (\d+)', said).groups()
    assert running == 'False' and then == now


@pytest.mark.parametrize('page', ['viewer'], indirect=True)
def test_more_viewers_than_a_browser_draws(page):
    "Those out of sight are pictures, and those in sight are drawn"
    run_in_a_new_cell(page,
        "from IPython.display import display\nfor _ in range(24): display(Viewer(viewer.mesh, width=120, height=300, "
        "controls=False))")
    page.wait_for_function("document.querySelectorAll('.dfnb-viewer').length >= 20", timeout=pages.PATIENCE)
    seen = """[...document.querySelectorAll('.dfnb-viewer-place')]
        .filter(e => { const r = e.getBoundingClientRect(); return r.bottom > 0 && r.top < innerHeight })
        .map(e => e.firstElementChild.tagName)"""
    wait_until(page, lambda: set(page.evaluate(seen)) == {'CANVAS'}
               and page.locator('.dfnb-viewer-place img').count() > 5)


@pytest.mark.parametrize('page', ['compare'], indirect=True)
def test_a_restarted_kernel_is_said(page):
    page.get_by_role('menuitem', name='Kernel', exact=True).click()
    page.locator('.lm-Menu-item', has_text=re.compile(r'^Restart Kernel…')).first.click()
    page.locator('.jp-Dialog button', has_text='Restart').first.click()
    page.locator('.dfnb-compare-dashboard.jupyter-widgets-disconnected').first.wait_for(timeout=pages.PATIENCE)
    says = page.locator('.dfnb-compare-dashboard').first.evaluate("e => getComputedStyle(e, '::before').content")
    assert 'run the cell again' in says


@pytest.mark.parametrize('page', ['viewer'], indirect=True)
def test_viewer_in_jupyterlab(page):
    canvas = page.locator('.dfnb-viewer canvas').first
    still = another_look(page, canvas, b'')
    box = canvas.bounding_box()
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 20, steps=5)
    page.mouse.up()
    turned = another_look(page, canvas, still)
    page.mouse.wheel(0, -400)
    nearer = another_look(page, canvas, still, turned)
    page.locator('.dfnb-viewer select').select_option('normal')
    normal = another_look(page, canvas, still, turned, nearer)
    page.locator('.dfnb-viewer input[type=checkbox]').check()
    edges = another_look(page, canvas, still, turned, nearer, normal)
    # a list of splats takes the place of the mesh, and another list takes its place, as in a run
    run_in_a_new_cell(page, 'from dreamfusion_nb.splat_renderer import Splats\nviewer.show(splats=Splats(200))')
    first = another_look(page, canvas, still, turned, nearer, normal, edges)
    run_in_a_new_cell(page, 'viewer.show(splats=Splats(100, opacity=.9))')
    another_look(page, canvas, first)
    assert page.locator('.dfnb-viewer').count() == 1


@pytest.mark.parametrize('page', ['mesh'], indirect=True)
def test_mesh_dashboard_in_jupyterlab(page, books):
    faces = page.locator('.dfnb-table td').nth(1)
    before = faces.inner_text()
    budget = page.locator('.widget-text:has-text("triangles") input').first
    budget.fill('200')
    budget.press('Enter')
    wait_until(page, lambda: faces.inner_text() != before)
    assert int(faces.inner_text()) <= 200
    file = page.locator('.widget-text:has-text("file") input').first
    file.fill('thing.gbl')
    file.press('Enter')
    button(page, 'Export').click()
    page.locator('.dfnb-error', has_text='did you mean').first.wait_for(timeout=pages.PATIENCE)
    file.fill('thing.glb')
    file.press('Enter')
    button(page, 'Export').click()
    page.locator('.dfnb-dashboard', has_text='wrote').first.wait_for(timeout=pages.PATIENCE)
    assert (books/'thing.glb').stat().st_size > 1000


@pytest.mark.parametrize('page', ['field'], indirect=True)
def test_field_dashboard_in_jupyterlab(page):
    "A click on the picture is a ray, a level is a button"
    line = page.locator('.dfnb-dashboard .js-plotly-plot .lines path').first
    before = line.get_attribute('d')
    box = page.locator('.dfnb-field-dashboard img').first.bounding_box()
    page.mouse.click(box['x'] + 20, box['y'] + 20)
    wait_until(page, lambda: line.get_attribute('d') != before)
    shown = picture(page)
    # nothing is cut where the page is narrow
    page.set_viewport_size(dict(width=1024, height=1000))
    board = page.locator('.dfnb-field-dashboard').first
    wait_until(page, lambda: board.evaluate('e => e.scrollWidth <= e.clientWidth + 1'))
    for level in range(1, 8): page.locator('.dfnb-dashboard button', has_text=re.compile(f'^{level}$')).first.click()
    page.locator('.dfnb-caption', has_text=re.compile(r'levels 0$')).first.wait_for(timeout=pages.PATIENCE)
    wait_until(page, lambda: picture(page) != shown)


@pytest.mark.parametrize('page', ['splats'], indirect=True)
def test_splat_dashboard_in_jupyterlab(page):
    "A step is other pictures, a click another pixel, and nothing is cut"
    button(page, 'Step').click()
    page.locator('.dfnb-caption', has_text='300 splats').first.wait_for(timeout=pages.PATIENCE)
    bars, shown = page.locator('.dfnb-splat-dashboard .x3y3 .point'), [picture(page, i) for i in range(5)]
    wait_until(page, lambda: bars.count() > 0)
    button(page, 'Step').click()
    wait_until(page, lambda: all(picture(page, i) != shown[i] for i in (0, 4)))
    box = page.locator('.dfnb-splat-dashboard img').first.bounding_box()
    page.mouse.click(box['x'] + 3, box['y'] + 3)    # a corner, which nobody paints
    wait_until(page, lambda: bars.count() == 0)
    drawn = picture(page, 4)
    page.locator('.widget-dropdown:has-text("drawn as") select').first.select_option('points')
    wait_until(page, lambda: picture(page, 4) != drawn)
    board = page.locator('.dfnb-splat-dashboard').first
    wait_until(page, lambda: board.evaluate('e => e.scrollWidth <= e.clientWidth + 1'))


def places(page):
    "Where the parts of a step dashboard are, from its upper edge"
    return page.evaluate("""() => {
        const root = document.querySelector('.dfnb-step-dashboard'), top = root.getBoundingClientRect().top
        const parts = [...root.querySelectorAll('button, .widget-slider, .dfnb-tile, .dfnb-scroll, .js-plotly-plot')]
        const places = parts.map(e => e.getBoundingClientRect())
        return places.map(r => [r.left, r.top - top, r.width, r.height].map(Math.round))
    }""")


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_keys_stay_in_the_dashboard(page):
    "Where they would delete the cell, insert one, or leave the control. And everything has a name"
    cells = page.locator('.jp-CodeCell').count()
    view = page.locator('.widget-dropdown:has-text("view") select').first
    view.focus()
    for key in ('d', 'd', 'b', 'ArrowDown', 'a'): page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert page.locator('.jp-CodeCell').count() == cells and page.locator('.dfnb-step-dashboard').count() == 1
    assert view.evaluate('e => e === document.activeElement')
    # End goes to the newest step, however many there have been since the slider was made
    for n in range(1, 5):
        button(page, 'Step').click()
        wait_for_count(page, n)
    button(page, 'Back').click()
    button(page, 'Back').click()
    slider = page.locator('.widget-slider:has-text("step 2") .noUi-handle').first
    slider.wait_for(timeout=pages.PATIENCE)
    slider.press('End')
    page.locator('.widget-slider:has-text("step 4")').first.wait_for(timeout=pages.PATIENCE)
    wait_until(page, lambda: 'looking back' not in page.locator('.dfnb-step-dashboard').first.inner_text())
    unnamed = """() => [...document.querySelectorAll('.dfnb-step-dashboard :is(.noUi-handle, img, .js-plotly-plot)')]
        .filter(e => !(e.alt || e.getAttribute('aria-label'))).length"""
    wait_until(page, lambda: page.evaluate(unnamed) == 0)
    assert 'step 4' in page.locator('.dfnb-step-dashboard img').first.get_attribute('alt')


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_a_busy_kernel_is_said(page, books):
    "A press waits for the cell that runs, and a line says so"
    run_in_a_new_cell(page, "import time, pathlib\nwhile not pathlib.Path('go-on').exists(): time.sleep(.05)")
    page.wait_for_selector('[data-status="busy"]', timeout=pages.PATIENCE)
    button(page, 'Step').click()
    page.locator('.dfnb-waiting', has_text='kernel is busy').first.wait_for(timeout=pages.PATIENCE)
    assert count(page) == 0
    (books/'go-on').touch()
    wait_for_count(page, 1)
    wait_until(page, lambda: not page.locator('.dfnb-waiting').count())


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_nothing_moves(page):
    """Not when the first facts come, nor when somebody looks back or a prompt is refused. Wider pages get wider
    pictures, and no plot is cut"""
    page.set_viewport_size(dict(width=1440, height=1000))
    button(page, 'Step').click()
    wait_for_count(page, 1)
    wait_until(page, lambda: places(page) == (page.wait_for_timeout(400), places(page))[1])
    before = places(page)
    button(page, 'Step').click()
    wait_for_count(page, 2)
    button(page, 'Back').click()
    page.locator('.dfnb-dashboard', has_text='looking back').first.wait_for(timeout=pages.PATIENCE)
    words = page.locator('.widget-text:has-text("prompt") input').first
    words.fill('a sonata')
    words.press('Enter')
    page.locator('.dfnb-error', has_text='names no toy').first.wait_for(timeout=pages.PATIENCE)
    assert words.input_value() == 'a sonata' and places(page) == before
    sizes = """() => {
        const root = document.querySelector('.dfnb-step-dashboard'), plot = root.querySelector('.main-svg')
        const fits = Math.abs(plot.getBoundingClientRect().right - root.getBoundingClientRect().right) <= 1
        const picture = root.querySelector('.dfnb-tile img')
        return [fits && root.scrollWidth <= root.clientWidth + 1, picture.clientWidth, plot.clientWidth]
    }"""
    picture, plot = 0, 0
    for width in (1024, 1440, 1920):
        page.set_viewport_size(dict(width=width, height=1000))
        def has_grown():
            fits, wider, widest = page.evaluate(sizes)
            return fits and widest > plot and (width == 1440 or wider > picture)
        if width > 1024: wait_until(page, has_grown)
        else: wait_until(page, lambda: page.evaluate(sizes)[0] and page.evaluate(sizes)[2] < 1000)
        _, picture, plot = page.evaluate(sizes)
    # on a dark page, curves and errors have colours of their own
    colors = """dark => { document.body.dataset.jpThemeLight = String(!dark)
        return ['.scatterlayer .js-line', '.dfnb-error']
            .map(s => getComputedStyle(document.querySelector('.dfnb-step-dashboard ' + s)))
            .map((style, i) => i ? style.color : style.stroke) }"""
    light, dark = (page.evaluate(colors, value) for value in (False, True))
    assert light[0] == 'rgb(51, 117, 195)' and dark == ['rgb(65, 141, 115)', 'rgb(255, 154, 144)']
    assert not page.locator('.modebar-container').first.is_visible()


@pytest.mark.parametrize('page', ['step'], indirect=True)
def test_a_saved_dashboard_is_a_picture(opened, lab, page, books):
    "Opened later, in a kernel that has never heard of it"
    button(page, 'Step').click()
    wait_for_count(page, 1)
    page.locator('.jp-CodeCell .jp-InputPrompt').first.click()
    page.keyboard.press('Control+s')
    wait_until(page, lambda: 'dfnb-still' in (books/'step.ipynb').read_text())
    shutil.copy(books/'step.ipynb', books/'later.ipynb')
    later = pages.open_lab(opened, lab, 'later.ipynb')
    later.locator('.dfnb-still img').first.wait_for(timeout=pages.PATIENCE)
    wait_until(later, lambda: later.locator('.dfnb-still img').first.is_visible())
    later.wait_for_timeout(2000)
    assert not later.locator('text=model not found').first.is_visible()
    later.close()


def test_voila(opened, books):
    "Without cells: step, and two runs side by side with one camera"
    with pages.served('voila', books) as address:
        page = pages.new_page(opened, viewport=dict(width=1280, height=900))
        page.goto(f'{address}/voila/render/step.ipynb', wait_until='commit', timeout=pages.PATIENCE)
        page.locator('.dfnb-step-dashboard').first.wait_for(timeout=pages.PATIENCE)
        button(page, 'Step').click()
        wait_for_count(page, 1)
        page.goto(f'{address}/voila/render/compare.ipynb', wait_until='commit', timeout=pages.PATIENCE)
        page.locator('.dfnb-compare-dashboard').first.wait_for(timeout=pages.PATIENCE)
        button(page, 'Step').click()
        page.locator('.dfnb-compare-dashboard', has_text='1 of 50 steps').first.wait_for(timeout=pages.PATIENCE)
        right = page.locator('.dfnb-viewer canvas').nth(1)
        still, box = another_look(page, right, b''), page.locator('.dfnb-viewer canvas').nth(0).bounding_box()
        page.mouse.click(box['x'] + 100, box['y'] + 100)    # the wheel scrolls the page before that
        page.mouse.wheel(0, 600)
        another_look(page, right, still)
        page.close()


def test_a_tutorial_in_jupyterlab(opened, books, lab):
    "The first one, its run shortened: everything runs, and the dashboard at its top is alive"
    text = (Path(__file__).parents[1]/'nbs/tutorials/01_first_object.ipynb').read_text()
    shutil.copy(Path(__file__).parents[1]/'nbs/tutorials/01_first_object.ipynb', books/'tutorial.ipynb')
    (books/'tutorial.ipynb').write_text(text.replace('iters=1000', 'iters=60').replace('score > .5', 'score > 0'))
    page = pages.open_lab(opened, lab, 'tutorial.ipynb')
    pages.run_all(page)
    page.locator('.dfnb-step-dashboard').first.wait_for(timeout=pages.PATIENCE)
    page.locator('.dfnb-viewer canvas, .dfnb-viewer img').first.wait_for(timeout=pages.PATIENCE)
    page.wait_for_selector('.jp-NotebookPanel-toolbar [data-status="idle"], '
                           '.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=pages.PATIENCE)
    assert not page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]',
                            has_text='Traceback').count()
    # what is scrolled away is not drawn
    page.locator('.jp-WindowedPanel-outer').first.evaluate('panel => { panel.scrollTop = 0 }')
    button(page, 'Step').wait_for(timeout=pages.PATIENCE)
    steps = count(page)
    button(page, 'Step').click()
    wait_for_count(page, steps + 1)
    page.close()
