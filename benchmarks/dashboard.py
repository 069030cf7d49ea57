"""What a dashboard costs: a run as StepDashboard drives it, and steps that are pressed one by one, against bare
Trainer.step(); and what stays in memory after thousands of steps.

    python benchmarks/dashboard.py [--steps 200] [--rounds 3] [--long 2000]

All three do the same number of steps of the toybox preset, in turns, and the ratios of their medians are printed, by
the clock and by the processor's time, which other jobs do not disturb. The dashboard has no page to draw in: what a
browser does, it does in another process."""
import argparse
import asyncio
import gc
import time

import numpy as np
import psutil
from step import machine

from dreamfusion_nb import Trainer, load_config
from dreamfusion_nb.dashboard import StepDashboard
from dreamfusion_nb.driver import MAX_FRAMES


def now(): return np.array([time.perf_counter(), time.process_time()])    # of the clock, of the processor


def bare(trainer, steps):
    began = now()
    for _ in range(steps): trainer.step()
    return (now() - began)/steps


async def driven(dashboard, steps):
    end, began = dashboard.trainer.step_count + steps, now()
    dashboard.driver.run()
    while dashboard.trainer.step_count < end: await asyncio.sleep(.001)
    dashboard.driver.pause()
    await dashboard.driver.task
    return (now() - began)/(steps + dashboard.trainer.step_count - end)


def pressed(dashboard, steps):
    "Every press makes its pictures, where a run leaves out what would slow it"
    began = now()
    for _ in range(steps): dashboard.button['step'].click()
    return (now() - began)/steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--long', type=int, default=2000, help='steps of the run whose memory is watched')
    o = parser.parse_args()
    print(machine())
    config = load_config('toybox', dict(prompt='a hamburger', iters=10**6, phase_iters=1000))
    plain = Trainer(config)
    dashboard, by_hand = (StepDashboard(Trainer(config, plain.guidance)) for _ in range(2))
    bare(plain, 20), asyncio.run(driven(dashboard, 20)), pressed(by_hand, 20)
    rounds = [(bare(plain, o.steps), asyncio.run(driven(dashboard, o.steps)), pressed(by_hand, o.steps))
              for _ in range(o.rounds)]
    for name, step, run, press in zip(('clock', 'processor'), *np.median(rounds, axis=0)):
        print(f'by the {name}: Trainer.step {step*1e3:.0f} ms, in a dashboard\'s run {run*1e3:.0f} ms: {run/step:.2f} '
              f'times, pressed {press*1e3:.0f} ms: {press/step:.2f} times')
    by_hand.close()
    print(f'{len(dashboard.driver.frames)} frames shown of {dashboard.trainer.step_count} steps', flush=True)
    process, sizes = psutil.Process(), []
    # the optimisation's own memory follows its NeRF, so the frames are counted too
    for _ in range(4):
        asyncio.run(driven(dashboard, o.long//4))
        gc.collect()
        kept = sum(len(picture) for frame in dashboard.driver.frames for picture in frame.pictures.values())
        sizes.append((dashboard.trainer.step_count, len(dashboard.driver.frames), kept, process.memory_info().rss))
    for step, frames, kept, rss in sizes:
        print(f'step {step}: {frames} frames (at most {MAX_FRAMES}), {kept/1e6:.2f} MB of pictures, process '
              f'{rss/1e6:.0f} MB')


if __name__ == '__main__': main()
