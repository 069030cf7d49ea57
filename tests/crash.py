"""A place where runs may die: `python crash.py PIPELINE` reads jobs from stdin, one JSON a line, and runs each in a
child process.

A job: {"out": folder, "given": arguments of train, "at": n, "after": seconds, "limit": bytes}. The child kills itself
with SIGKILL just before it changes the folder for the n-th time, leaving half of what it was about to write; or it is
killed after some seconds; or no file may grow beyond the limit, as on a full disk. The answer: {"signal": number,
"said": text, "changes": n, "last": change}. One process for all saves the imports."""
import json
import os
import resource
import select
import signal
import sys
import time
import warnings


def child(job, pipe, train, checkpoints, model, save):
    count, busy, last = 0, False, ''

    def change(what, path, tear):
        nonlocal count, busy, last
        count, last = count + 1, f'{what} {os.path.basename(path)}'
        if count != job.get('at'): return
        busy = True
        tear()
        answer(signal=int(signal.SIGKILL))
        os.kill(os.getpid(), signal.SIGKILL)

    def answer(**more): os.write(pipe, (json.dumps(dict(changes=count, last=last, said='') | more) + '\n').encode())

    def below(path): return isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(job['out'])

    def half(path, mode='wb', data=b'{"torn": '):
        with open(path, mode) as f: f.write(data)

    def watch(event, args):
        if busy: return
        # a file without a name in a folder (`check_folder`) leaves nothing
        named = event == 'open' and below(args[0]) and not os.path.isdir(args[0])
        if named and isinstance(args[1], str) and set(args[1]) & set('wax+'):
            change('write', args[0], lambda: half(args[0], 'ab' if 'a' in args[1] else 'wb'))
        elif event in ('os.rename', 'os.mkdir') and below(args[0]): change(event, args[0], lambda: None)
        elif event in ('os.remove', 'os.rmdir') and (args[1] >= 0 or below(args[0])):
            change(event, args[0], lambda: None)
        elif event == 'subprocess.Popen':    # ffmpeg
            for path in filter(below, args[1]): change('film', path, lambda path=path: half(path))

    def save_file(tensors, path):
        change('save', path, lambda: half(path, data=save(tensors)[:-1000]))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 'wb') as f: f.write(save(tensors))

    checkpoints.save_file = save_file
    sys.addaudithook(watch)
    if 'limit' in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job['limit'], job['limit']))
    try: train(guidance=model, out=job['out'], progress=False, **job['given'])
    except ValueError as error: answer(said=f'{type(error).__name__}: {error}')
    except BaseException as error: answer(said=f'unexpected {type(error).__name__}: {error}')
    else: answer()


def warm(guidance=None):
    """Import and compile once what every child of a fork uses; autograd alone may not run before it.

    `guidance`: a model, or None for the shipped one"""
    import imageio_ffmpeg
    import scipy.sparse.csgraph  # noqa: F401  used by every child
    import skimage.measure  # noqa: F401
    import torch
    import trimesh  # noqa: F401

    from dreamfusion_nb import Trainer, load_config
    torch.set_num_threads(1)    # no thread of OpenMP before the fork: it would not survive it
    imageio_ffmpeg.get_ffmpeg_exe()
    first = Trainer(load_config('toybox', dict(prompt='a mug', iters=1)), guidance)
    first.renderer.update(0, first.generator)
    first.glance()


def main(pipeline):
    warnings.simplefilter('ignore')
    from safetensors.torch import save

    from dreamfusion_nb import checkpoints, train
    from dreamfusion_nb.guidance import LatentDiffusion, fastest_dtype
    model = LatentDiffusion.from_pretrained(pipeline, dtype=fastest_dtype())
    warm(model)
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            child(job, write, train, checkpoints, model, save)
            os._exit(0)
        os.close(write)
        # the answer can be long in coming, the end of the child must not be missed
        if 'after' in job:
            select.select([read], [], [], job['after'])
            time.sleep(0)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        with os.fdopen(read) as f: said = f.readline()
        found = json.loads(said) if said else dict(signal=os.WTERMSIG(status), changes=None, last=None, said='')
        print(json.dumps(dict(signal=0) | found), flush=True)


if __name__ == '__main__': main(sys.argv[1])
