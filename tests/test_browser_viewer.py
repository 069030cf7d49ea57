"The viewer as a person uses it: in a page of its own, in JupyterLab with and without a kernel, in HTML made offline"
import io
import json
import re
import subprocess

import numpy as np
import pages
import pytest
import trimesh
from conftest import needs_browser, toy_splats, wait_until
from PIL import Image

pytestmark = needs_browser

BACKGROUND = (0xd1, 0xdb, 0xe6)
CODE = """import trimesh
from dreamfusion_nb.viewer import Viewer
ball = trimesh.creation.icosphere(2, .5, vertex_colors=[200, 60, 40, 255])
viewer = Viewer(ball, width=300, height=300, alt='a red ball')
viewer"""


def two_colored_box():
    "A box that looks different from every side, and is longer than the usual picture is high"
    box = trimesh.creation.box((.5, 1.3, .3)).subdivide().subdivide()
    colors = np.full((len(box.vertices), 4), 255, np.uint8)
    colors[:, :3] = np.clip((box.vertices - box.bounds[0])/box.extents*255, 0, 255)
    return trimesh.Trimesh(box.vertices, box.faces, vertex_colors=colors, process=False)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    from dreamfusion_nb.viewer import write_page
    folder = tmp_path_factory.mktemp('page')
    return write_page(two_colored_box(), folder/'box.html', title='A <box>', alt='a box')


@pytest.fixture
def page(opened, written):
    "The page that `write_page` made, with any request refused that is not for the file itself"
    made = pages.new_page(opened, viewport=dict(width=500, height=560))
    asked, errors = [], []
    made.on('request', lambda request: asked.append(request.url))
    made.on('pageerror', lambda error: errors.append(error))
    made.goto(written.as_uri())
    made.locator('canvas').wait_for()
    yield made
    assert not errors
    assert not [url for url in asked if not url.startswith(('file:', 'data:', 'blob:'))]
    made.close()


def camera(page):
    "Traits of the viewer on a page of its own"
    return {name: page.evaluate(f'window.traits.{name}') for name in ('azimuth', 'elevation', 'radius', 'target')}


def shot(page):
    "The canvas as an array [H, W, 3] of bytes, without a frame around it"
    page.locator('canvas').evaluate('canvas => canvas.style.outline = "none"')
    page.wait_for_timeout(150)
    return np.asarray(Image.open(io.BytesIO(page.locator('canvas').screenshot())).convert('RGB')).astype(int)


def test_the_whole_object_is_seen(page):
    "No corner of the box leaves the picture, from wherever it is looked at"
    for key in ['0', *['ArrowRight']*3, 'ArrowUp', *['ArrowDown']*8]:
        page.locator('canvas').press(key)
        page.wait_for_timeout(100)
        edge = np.concatenate([shot(page)[i:j, 3:-3].reshape(-1, 3) for i, j in ((3, 5), (-5, -3))])
        assert np.abs(edge - BACKGROUND).max() < 12, key


def test_keys_turn_move_zoom_and_go_home(page):
    canvas, home = page.locator('canvas'), camera(page)
    assert canvas.get_attribute('aria-label').startswith('3D view of a box')
    canvas.focus()
    for key, name, change in [('Right', 'azimuth', 5), ('Left', 'azimuth', -5), ('Up', 'elevation', 5),
                              ('Down', 'elevation', -5)]:
        before = camera(page)[name]
        canvas.press(f'Arrow{key}')
        assert camera(page)[name] == pytest.approx(before + change)
    canvas.press('+')
    assert camera(page)['radius'] < home['radius']
    canvas.press('Shift+ArrowRight')
    assert camera(page)['target'] != home['target']
    for key in ('Home', '0'):
        canvas.press('-')
        assert camera(page) != home
        canvas.press(key)
        assert camera(page) == home
    canvas.press('Escape')
    assert page.evaluate('document.activeElement.tagName') == 'BODY'


def test_the_wheel_scrolls_the_page_until_the_object_is_clicked(page):
    page.add_style_tag(content='body { height: 3000px !important; } main { max-height: 500px }')
    box, home = page.locator('canvas').bounding_box(), camera(page)
    page.mouse.move(box['x'] + 100, box['y'] + 100)
    page.mouse.wheel(0, 50)
    wait_until(page, lambda: page.evaluate('scrollY') > 0)
    assert camera(page) == home
    assert 'hold Ctrl' in page.locator('.dfnb-viewer-hint').text_content()
    page.keyboard.down('Control')
    page.mouse.wheel(0, 50)
    wait_until(page, lambda: camera(page)['radius'] > home['radius'])
    page.keyboard.up('Control')
    page.mouse.click(box['x'] + 100, box['y'] + 100)
    scrolled, before = page.evaluate('scrollY'), camera(page)['radius']
    page.mouse.wheel(0, 50)
    wait_until(page, lambda: camera(page)['radius'] > before)
    assert page.evaluate('scrollY') == scrolled


@pytest.mark.parametrize('button, shift', [('left', True), ('right', False)])
def test_dragging_moves_the_object(page, button, shift):
    box, home = page.locator('canvas').bounding_box(), camera(page)
    before = shot(page)
    if shift: page.keyboard.down('Shift')
    page.mouse.move(box['x'] + 200, box['y'] + 200)
    page.mouse.down(button=button)
    page.mouse.move(box['x'] + 240, box['y'] + 200, steps=4)
    page.mouse.up(button=button)
    page.keyboard.up('Shift')
    after = camera(page)
    assert after['target'] != home['target'] and after['azimuth'] == home['azimuth']
    # the object follows the hand: 40 pixels to the right
    columns = [np.abs(picture[5:-5, 5:-5] - BACKGROUND).max(-1).max(0) > 20 for picture in (before, shot(page))]
    assert abs(np.flatnonzero(columns[1]).mean() - np.flatnonzero(columns[0]).mean() - 40) < 4


def test_two_fingers_move_and_zoom(page):
    home = camera(page)
    page.locator('canvas').evaluate("""canvas => {
        canvas.setPointerCapture = () => {}
        const send = (kind, pointerId, clientX, clientY) =>
            canvas.dispatchEvent(new PointerEvent(kind, { pointerId, clientX, clientY, bubbles: true }))
        send('pointerdown', 1, 100, 200); send('pointerdown', 2, 200, 200)
        send('pointermove', 2, 300, 200); send('pointermove', 1, 120, 240)
        send('pointerup', 1, 120, 240); send('pointerup', 2, 300, 200)
    }""")
    after = camera(page)
    assert after['radius'] < home['radius'] and after['target'] != home['target']
    assert after['azimuth'] == home['azimuth']


def test_turning_by_itself(opened, written, page):
    turn = page.locator('button', has_text='Turn')
    turn.click()
    start = camera(page)['azimuth']
    wait_until(page, lambda: camera(page)['azimuth'] > start + 5)
    assert turn.get_attribute('aria-pressed') == 'true'
    turn.click()
    stopped = camera(page)['azimuth']
    page.wait_for_timeout(300)
    assert camera(page)['azimuth'] == stopped and turn.get_attribute('aria-pressed') == 'false'
    # who wants less motion gets it only by pressing the button
    calm = pages.new_page(opened, reduced_motion='reduce')
    spinning = written.with_name('spinning.html')
    spinning.write_text(written.read_text().replace('"spin": false', '"spin": true'))
    calm.goto(spinning.as_uri())
    calm.locator('canvas').wait_for()
    start = camera(calm)['azimuth']
    calm.wait_for_timeout(500)
    assert camera(calm)['azimuth'] == start
    calm.locator('button', has_text='Turn').click()
    wait_until(calm, lambda: camera(calm)['azimuth'] > start)
    calm.close()


def test_saving_the_picture_and_the_mesh(page, tmp_path):
    with page.expect_download() as download: page.locator('button', has_text='PNG').click()
    assert download.value.suggested_filename == 'object.png'
    download.value.save_as(tmp_path/'object.png')
    picture = np.asarray(Image.open(tmp_path/'object.png').convert('RGB')).astype(int)
    assert 100 < (np.abs(picture - BACKGROUND).max(-1) > 20).sum() < picture.shape[0]*picture.shape[1]
    with page.expect_download() as download: page.locator('button', has_text='GLB').click()
    download.value.save_as(tmp_path/'object.glb')
    from dreamfusion_nb.viewer import one_mesh
    box, saved = two_colored_box(), one_mesh(tmp_path/'object.glb')
    assert saved.faces.shape == box.faces.shape and np.allclose(saved.bounds, box.bounds)
    where = np.linalg.norm(saved.vertices[:, None] - box.vertices, axis=-1).argmin(1)
    assert np.abs(saved.visual.vertex_colors.astype(int) - box.visual.vertex_colors[where]).max() < 14
    # what Khronos' validator looks at first
    data = (tmp_path/'object.glb').read_bytes()
    assert int.from_bytes(data[8:12], 'little') == len(data)
    tree = json.loads(data[20:20 + int.from_bytes(data[12:16], 'little')])
    assert tree['accessors'][0]['min'] == pytest.approx(box.bounds[0].tolist())
    assert all(view['byteOffset']%4 == 0 for view in tree['bufferViews'])


def test_controls_have_names_and_room(page):
    "At 320 pixels nothing is cut; everything can be reached and has a name"
    page.set_viewport_size(dict(width=320, height=480))
    page.wait_for_timeout(300)
    assert page.evaluate('document.documentElement.scrollWidth') <= 320
    for control in page.locator('.dfnb-viewer-bar :is(select, input, button)').all():
        box = control.bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 320 and box['y'] + box['height'] <= 480
        assert control.get_attribute('aria-label') or control.text_content()
    for _ in range(3): page.keyboard.press('Tab')
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid'


def test_full_screen(page):
    page.locator('button', has_text='Full').click()
    page.wait_for_function('document.fullscreenElement')
    page.wait_for_function("document.querySelector('canvas').getBoundingClientRect().width >= innerWidth - 40")
    page.locator('button', has_text='Full').click()
    page.wait_for_function('!document.fullscreenElement')


# splats

@pytest.fixture(scope='module')
def coated(tmp_path_factory):
    "(viewer of a mesh and of splats, the page that `write_page` makes of them)"
    from dreamfusion_nb.viewer import Viewer, write_page
    options = dict(width=300, height=300, mode='albedo')
    viewer = Viewer(two_colored_box(), toy_splats(), **options)
    path = tmp_path_factory.mktemp('coated')/'toy.html'
    return viewer, write_page(two_colored_box(), path, splats=toy_splats(), **options)


@pytest.fixture
def toy(opened, coated):
    "That page, on which nothing may be said to be wrong"
    made, wrong = pages.new_page(opened, viewport=dict(width=340, height=400)), []    # wider than high
    made.on('console', lambda message: wrong.append(message.text))
    made.on('pageerror', lambda error: wrong.append(error))
    made.goto(coated[1].as_uri())
    made.locator('canvas').wait_for()
    yield made
    assert not wrong
    made.close()


def agrees(seen, viewer):
    "PSNR of a screenshot and of the still picture, without their edges: the page rounds its corners"
    viewer.height, viewer.width = seen.shape[:2]
    still = np.asarray(viewer.still().convert('RGB')).astype(int)
    return -10*np.log10(np.square((seen - still)[6:-6, 6:-6]/255).mean())


@pytest.mark.parametrize('mode', ['albedo', 'shaded', 'textureless', 'normal'])
def test_splats_are_drawn_as_the_renderer_draws_them(toy, coated, mode):
    "From the front, and once they are turned; sizes and turns are sent in few bits, and the lamp is not far away"
    toy.locator('select').select_option(mode)
    views = []
    for keys in ((), ('ArrowRight',)*9 + ('ArrowUp',)*3):
        for key in keys: toy.locator('canvas').press(key)
        views.append(shot(toy))
        coated[0].set_trait('mode', mode)
        for name, value in camera(toy).items(): coated[0].set_trait(name, value)
        assert agrees(views[-1], coated[0]) > (34 if mode == 'normal' else 40)
    assert np.abs(views[0] - views[1]).max() > 50


def test_a_box_chooses_between_splats_and_mesh(toy, coated):
    soft = shot(toy)
    toy.locator('label', has_text='splats').locator('input').uncheck()
    assert toy.evaluate('window.traits.as_splats') is False
    crisp = shot(toy)
    for drawn, either in ((soft, True), (crisp, False)):
        coated[0].set_trait('as_splats', either)
        for name, value in (camera(toy) | dict(mode='albedo')).items(): coated[0].set_trait(name, value)
        assert agrees(drawn, coated[0]) > 26
    coated[0].as_splats = True
    toy.locator('label', has_text='splats').locator('input').check()
    assert (shot(toy) == soft).all()


def test_without_a_choice_there_is_no_box(page): assert not page.locator('label', has_text='splats').count()


# In JupyterLab

LUMINANCE = """color => {
  const linear = c => c <= .04045 ? c/12.92 : ((c + .055)/1.055)**2.4
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => linear(c/255))
  return .2126*r + .7152*g + .0722*b
}"""


def contrast(page, element):
    "Of an element's text with the nearest background behind it"
    ink, paper = element.evaluate("""(e, luminance) => {
        const measure = eval(luminance), ink = getComputedStyle(e).color
        while (/rgba\\(0, 0, 0, 0\\)|transparent/.test(getComputedStyle(e).backgroundColor)) e = e.parentElement
        return [measure(ink), measure(getComputedStyle(e).backgroundColor)]
    }""", LUMINANCE)
    return (max(ink, paper) + .05)/(min(ink, paper) + .05)


def shut_down(page):
    page.evaluate("""async () => {
        const token = { 'X-XSRFToken': (document.cookie.match(/_xsrf=([^;]*)/) || [])[1] }
        for (const session of await (await fetch('/api/sessions')).json())
            await fetch('/api/sessions/' + session.id, { method: 'DELETE', headers: token })
    }""")


@pytest.fixture(scope='module')
def book(tmp_path_factory):
    return pages.write_notebook(tmp_path_factory.mktemp('books')/'viewer.ipynb', CODE)


@pytest.fixture(params=[True, False], ids=['dark', 'light'])
def dark(request): return request.param


@pytest.fixture
def lab(book, dark):
    with pages.served('lab', book.parent, dark) as address: yield address


def test_in_jupyterlab(opened, lab, book, dark):
    "Keys stay in the viewer, its toolbar can be read, and a notebook that is opened without a kernel shows the still"
    pages.write_notebook(book, CODE)    # as it was before it was run
    page = pages.open_lab(opened, lab, book.name)
    pages.run_all(page)
    page.locator('.dfnb-viewer canvas').first.wait_for(timeout=pages.PATIENCE)
    assert not page.locator('.dfnb-still').is_visible()
    for control in page.locator('.dfnb-viewer-bar :is(label, select, button)').all():
        assert contrast(page, control) >= 4.5, control.text_content()
    if not dark:
        # the slider moves; the cell stays selected, and none is added or deleted
        slider = page.locator('.dfnb-viewer input[type=range]')
        slider.focus()
        for key in ('ArrowRight', 'ArrowRight', 'ArrowUp', 'b', 'd', 'd'): slider.press(key)
        assert slider.input_value() == '15'
        page.locator('.dfnb-viewer canvas').focus()
        for key in ('ArrowDown', 'd', 'd', 'a', 'x'): page.keyboard.press(key)
        assert page.locator('.jp-CodeCell').count() == 1 and page.locator('.dfnb-viewer canvas').is_visible()
        assert page.evaluate("document.activeElement.tagName") == 'CANVAS'
    page.keyboard.press('Control+s')
    wait_until(page, lambda: 'widget-view' in book.read_text())
    shut_down(page)
    page.close()
    page = pages.new_page(opened)
    pages.goto_lab(page, lab, book.name)
    lost = page.locator('.jp-OutputArea-output', has_text='model not found')
    lost.wait_for(state='attached', timeout=pages.PATIENCE)
    still = page.locator('.dfnb-still img')
    wait_until(page, still.is_visible)
    assert not page.locator('.jp-OutputArea-output', has_text='model not found').is_visible()
    assert still.get_attribute('alt').startswith('3D view (shaded) of a red ball')
    caption = page.locator('.dfnb-still figcaption')
    assert 'Run this cell' in caption.text_content() and contrast(page, caption) >= 4.5
    page.close()


def test_html_made_offline_shows_the_still(opened, book, tmp_path):
    "Run by nbconvert, which keeps the state of widgets, or only converted"
    for options in ([], ['--execute']):
        command = ['jupyter', 'nbconvert', '--to', 'html', *options, str(book), '--output', str(tmp_path/'viewer')]
        if options or 'dfnb-still' in book.read_text(): subprocess.run(command, check=True, capture_output=True)
        else: continue
        page = pages.new_page(opened)
        page.route(re.compile('^https?:'), lambda route: route.abort())
        page.goto((tmp_path/'viewer.html').as_uri())
        still = page.locator('.dfnb-still img')
        still.wait_for()
        assert still.evaluate('image => image.complete && image.naturalWidth') >= 300
        assert not page.get_by_text('model not found').count()
        page.close()
