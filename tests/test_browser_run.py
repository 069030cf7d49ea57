"A run as a person sees it in JupyterLab: its live cell, a reload in mid-run, an interrupt, a mistake"
import re

import pages
import pytest
from conftest import needs_browser, wait_until

pytestmark = needs_browser

FAST = "{'data.train.width': 32, 'data.train.height': 32, 'renderer.max_steps': 64, 'data.test.size': 2}"
RUN = f"from dreamfusion_nb import train\nresult = train('a hamburger', iters=100_000, **{FAST})"


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp('books')
    pages.write_notebook(folder/'run.ipynb', RUN)
    pages.write_notebook(folder/'mistake.ipynb', "from dreamfusion_nb import train\ntrain('a hamburger', itres=3)")
    return folder


def steps(page):
    "How many steps the live cell shows; -1 while there is none"
    shown = page.locator('.dfnb-live:visible')
    found = re.search(r'(\d+) of 100000 steps', shown.first.inner_text()) if shown.count() else None
    return int(found[1]) if found else -1


def test_the_live_cell_goes_on_after_a_reload(opened, lab, books):
    "And an interrupt ends in one line that says what is saved"
    page = pages.open_lab(opened, lab, 'run.ipynb')
    pages.run_all(page)
    wait_until(page, lambda: steps(page) > 3)
    assert page.locator('.dfnb-live:visible').count() == 1
    assert re.search(r'\d (s|min|h|days?)\b.*left', page.locator('.dfnb-live:visible').inner_text())
    page.keyboard.press('Control+s')
    wait_until(page, lambda: 'widget-view' in (books/'run.ipynb').read_text())
    before = steps(page)
    page.reload()
    wait_until(page, lambda: steps(page) > before)
    again = steps(page)
    wait_until(page, lambda: steps(page) > again)
    page.locator('[data-command="notebook:interrupt-kernel"], [title^="Interrupt the kernel"]').first.click()
    wait_until(page, lambda: 'stopped' in page.locator('.dfnb-live:visible').first.inner_text())
    page.close()


def test_a_mistake_is_one_line(opened, lab):
    page = pages.open_lab(opened, lab, 'mistake.ipynb')
    pages.run_all(page)
    error = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"], .jp-OutputArea-output')
    error.first.wait_for(timeout=pages.PATIENCE)
    wait_until(page, lambda: 'ConfigError' in error.first.inner_text())
    said = error.first.inner_text().strip()
    assert '\n' not in said and 'itres' in said and 'Traceback' not in said
    page.close()
