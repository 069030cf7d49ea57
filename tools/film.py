"""The step dashboard in motion, docs/_static/dashboard.mp4, for the front page of the documentation, and its last
picture, nbs/images/dashboard.jpg, for the README: a real notebook in a real browser, with buttons pressed and a slider
moved.

    python tools/film.py                    # some minutes; then look at both
    python tools/film.py --frames /tmp/film # all pictures as PNG, too
"""
import argparse
import io
import re
import tempfile
from pathlib import Path

from glb import browser
from pages import PATIENCE, open_lab, run_all, served, write_notebook
from PIL import Image
from stills import packed

from dreamfusion_nb.export import write_video

ROOT = Path(__file__).parents[1]
FILM = ROOT/'docs/_static/dashboard.mp4'
STILL = ROOT/'nbs/images/dashboard.jpg'
FPS = 4
QUALITY = 3         # of `write_video`: the words stay sharp
STILL_QUALITY = 55  # of the JPEG
PRESSED = 4         # steps that are pressed one by one, each in view for half a second
RUN, EVERY = 800, 48    # steps of the run that follows, and how many go by at least from picture to picture
MOVED = 384         # the step of it at which the slider of the guidance scale is moved
NOTCHES = 40        # of that slider, each by an arrow key
REST = 8            # frames for which the last picture stays
CODE = """from dreamfusion_nb.dashboard import StepDashboard
dashboard = StepDashboard('a hamburger', iters=1000)
dashboard"""
# the number of finished steps, which the dashboard writes after their pictures; the curves have drawn them
REACHED = """least => {
  const count = document.querySelector('.dfnb-step-dashboard .dfnb-count')
  return Number(count?.textContent) >= least
    && [...document.querySelectorAll('.dfnb-step-dashboard img')].every(picture => picture.complete)
}"""


class Film:
    "Pictures of a step dashboard in a page"
    def __init__(self, page):
        self.page, self.board = page, page.locator('.dfnb-step-dashboard').first
        self.board.locator('.main-svg').first.wait_for(timeout=PATIENCE)    # of the curves, which come last
        self.board.scroll_into_view_if_needed()
        self.size = None
        self.frames = []

    def button(self, text): return self.board.locator('button', has_text=re.compile(f'^{text}$')).first

    def wait_for(self, steps): self.page.wait_for_function(REACHED, arg=steps, timeout=PATIENCE)

    def count(self): return int(self.board.locator('.dfnb-count').first.text_content())

    def take(self, held=1):
        "A picture of the board, which stays for `held` frames; all have the size of the first"
        box = self.board.bounding_box()
        self.size = self.size or {side: box[side] for side in ('width', 'height')}
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=box | self.size))).convert('RGB')
        self.frames += [shot]*held

    def press_step(self):
        last = self.count()
        self.button('Step').click()
        self.wait_for(last + 1)
        self.take(held=FPS//2)

    def move_slider(self):
        "By the keyboard"
        slider = self.board.locator('.widget-slider:has-text("guidance") .noUi-handle').first
        slider.focus()
        for i in range(NOTCHES):
            slider.press('ArrowRight')
            if i % 8 == 7: self.take()
        self.board.locator('.widget-html', has_text='steered: guidance_scale').first.wait_for(timeout=PATIENCE)

    def run(self, steps):
        "Run for at least so many, and pause: a picture of a run that goes on would show two steps at once"
        last = self.count()
        self.button('Run').click()
        self.wait_for(last + steps)
        self.button('Pause').click()
        self.button('Run').wait_for(timeout=PATIENCE)
        self.take()


def take_film():
    "Its frames, all of one size"
    with tempfile.TemporaryDirectory() as folder, browser() as opened, served('lab', folder) as address:
        write_notebook(Path(folder)/'step.ipynb', CODE)
        page = open_lab(opened, address, 'step.ipynb', width=1280, height=1200)
        run_all(page)
        film = Film(page)
        film.take(held=FPS//2)
        for _ in range(PRESSED): film.press_step()
        for last in range(0, RUN, EVERY):
            if last <= MOVED < last + EVERY: film.move_slider()
            film.run(EVERY)
        film.take(held=REST)
    return film.frames


def write(frames):
    "The film and its still, of one size"
    wide, high = (side//2*2 for side in frames[0].size)
    write_video(frames, FILM, FPS, QUALITY)
    jpeg = io.BytesIO()
    frames[-1].crop((0, 0, wide, high)).save(jpeg, 'JPEG', quality=STILL_QUALITY)
    STILL.write_bytes(packed(jpeg.getvalue()))
    print(f'{FILM}: {len(frames)/FPS:.1f} s, {FILM.stat().st_size/1e3:.0f} kB, {wide} × {high}')
    print(f'{STILL}: {STILL.stat().st_size/1e3:.0f} kB')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--frames', type=Path, help='folder for the pictures as PNG')
    options = parser.parse_args()
    frames = take_film()
    if options.frames:
        options.frames.mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(frames): frame.save(options.frames/f'{i:03}.png')
    write(frames)


if __name__ == '__main__': main()
