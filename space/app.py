"""A page on which a sentence becomes a 3D object: the Hugging Face Space of dreamfusion_nb.

    pip install -r requirements.txt
    python app.py

One object is made at a time, since a free Space has two cores. Whoever comes next waits, and is told the place in the
queue. A run whose page is closed stops at its next picture."""
import html
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dreamfusion_nb import ConfigError, Result, Trainer, load_config, toybox
from dreamfusion_nb.parts import parse_prompt
from dreamfusion_nb.progress import Pace
from dreamfusion_nb.viewer import write_page

LONGEST = 200    # characters of a prompt
WAITING = 20     # people in the queue
STEPS = 10       # between two pictures
FRAME = 'allow="fullscreen" style="width: 100%; height: 420px; border: 0"'
EXAMPLES = ['a hamburger', 'a red car', 'a striped blue mug', 'a purple mushroom', 'a snowman']
WORDS = f"""The model behind this page ships inside the package and knows a toybox.
**Things:** {", ".join(toybox.kinds())}. **Colours:** {", ".join(toybox.colors())}. **Finishes:** striped, spotted."""

Shown = tuple[str, Image.Image | None, str, str | None]    # line, picture, HTML of the viewer, file to download


def begin(prompt: str,
          changes: dict[str, Any]     # keys of the configuration
         ) -> tuple[Trainer, str]:    # the run, and what there is to say about the prompt
    "A run for a prompt. Raises `ConfigError`, one line, for a prompt that cannot be made"
    if len(prompt) > LONGEST: raise ConfigError(f'{len(prompt):,} characters are too many: at most {LONGEST}')
    if not prompt.strip(): raise ConfigError('Please write what to make, such as: a hamburger')
    trainer = Trainer(load_config('toybox', changes | dict(prompt=prompt)))
    return trainer, parse_prompt(trainer.guidance, prompt)[1]


def model_of(trainer: Trainer,
             folder: Path               # where its files go
            ) -> tuple[Path, str]:      # GLB file, HTML of a viewer
    "The object of a finished run. Raises `ConfigError` if it came out empty"
    result = Result(trainer.config, trainer.renderer, history=trainer.history, parts=trainer.parts)
    model = result.export(folder/'model.glb', faces=20_000)
    viewer = write_page(model, folder/'view.html', trainer.config.prompt).read_text(encoding='utf-8')
    return model, f'<iframe title="the object" {FRAME} srcdoc="{html.escape(viewer)}"></iframe>'


def maker(changes: dict[str, Any],    # keys of the configuration
          stopped: set[str]           # sessions that want no more of their run
         ) -> Callable[[str, gr.Request], Iterator[Shown]]:
    "The function behind the button: makes an object, and yields what the page shows meanwhile"
    def make(prompt: str, request: gr.Request) -> Iterator[Shown]:
        try: trainer, said = begin(prompt, changes)
        except ConfigError as error:
            yield str(error), None, '', None
            return
        def line(*words: str) -> str: return ' · '.join(filter(None, [said, *words]))
        steps, pace = trainer.config.iters, Pace()
        while trainer.step_count < steps:
            if str(request.session_hash) in stopped:
                stopped.discard(str(request.session_hash))
                yield line('stopped'), trainer.glance(256), '', None
                return
            trainer.fit(min(STEPS, steps - trainer.step_count))
            pace.count(trainer.step_count)
            yield line(f'step {trainer.step_count} of {steps}', pace.words(steps)), trainer.glance(256), '', None
        picture = trainer.glance(256)
        yield line('cutting out the surface'), picture, '', None
        with tempfile.TemporaryDirectory() as folder:    # the page takes a copy
            try: model, viewer = model_of(trainer, Path(folder))
            except ConfigError as error: yield line(str(error)), picture, '', None
            else: yield line('done'), picture, viewer, str(model)
    return make


def page(**changes: Any) -> gr.Blocks:
    "The page, with its queue; `changes`: keys of the configuration, such as `iters=60`"
    stopped: set[str] = set()
    def want(request: gr.Request) -> None: stopped.discard(str(request.session_hash))
    def unwant(request: gr.Request) -> None: stopped.add(str(request.session_hash))

    with gr.Blocks(title='dreamfusion_nb', delete_cache=(3600, 3600)) as made:
        gr.Markdown('# A sentence becomes a 3D object\nScore distillation on two cores, in two or three minutes: '
                    '[how it works](https://github.com/dreamfusion-nb/dreamfusion_nb)')
        with gr.Row():
            prompt = gr.Textbox(label='What to make', placeholder='a hamburger', scale=4)
            button, stop = gr.Button('Make it', variant='primary'), gr.Button('Stop')
        gr.Examples(EXAMPLES, prompt)
        line = gr.Markdown(elem_id='line')
        with gr.Row():
            picture = gr.Image(label='From the front and from the side', elem_id='picture', interactive=False)
            model = gr.HTML(elem_id='model')
        file = gr.DownloadButton('Download the GLB', elem_id='file')
        gr.Markdown(WORDS)
        wanted = gr.on([button.click, prompt.submit], want, queue=False)
        wanted.then(maker(changes, stopped), prompt, [line, picture, model, file], trigger_mode='once', api_name='make')
        stop.click(unwant, queue=False)
    return made.queue(max_size=WAITING, default_concurrency_limit=1)


if __name__ == '__main__':
    Trainer(load_config('toybox', dict(prompt='a hamburger'))).fit(1)    # so that no visitor waits for the compiler
    page().launch()
