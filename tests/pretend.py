"""A CUDA device that is pretended: real numbers in the memory of the CPU, and the rules and the books of a GPU.

Inside `with Gpu() as gpu:` the word 'cuda' names a device. Two of PyTorch's modes look at every call: one at what
Python asks for (devices, conversions, random draws), one at the kernels that this becomes. A tensor is on the GPU if
its storage is in the books. So
* what CUDA refuses raises here: tensors of two devices in one kernel, NumPy, a CPU's generator, whole-number matrices;
* what makes a program wait for the GPU is counted by the line that asks for it: `.item()`, `nonzero`, masks, copies;
* kernels are counted, with the bytes that they touch and the most memory that was held at once. With a `limit` on
  that memory it runs out as a GPU does.
The numbers are real, so control flow that depends on them is too. Kernels of ours that Warp compiles run too, on the
CPU, and count as one launch each; those of others cannot be seen."""
import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.utils.clip_grad as clip_grad
import torch.utils.checkpoint as checkpoint
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dreamfusion_nb import hashgrid, kernels

HERE = torch.device('cuda', 0)

# Kernels that are none: other views of the same memory, or memory without numbers
FREE = set('''view _unsafe_view expand permute t transpose unsqueeze squeeze select slice split split_with_sizes unbind
    detach alias as_strided unfold diagonal lift_fresh view_as_real real resize_ set_ _reshape_alias empty empty_like
    new_empty empty_strided new_empty_strided unsafe_split unsafe_chunk is_same_size narrow'''.split())
# Those that end with a number on the CPU, or whose result has a size that depends on the numbers
WAITS = set('''_local_scalar_dense nonzero masked_select _unique2 unique_dim unique_consecutive equal is_nonzero
    bincount _linalg_check_errors'''.split())
MATRICES = {'mm', 'addmm', 'mv', 'addmv', 'bmm', 'baddbmm', 'dot', 'vdot', 'linear', 'addbmm', 'addmm_', 'addmv_'}
# Most kernels take a lonely number of the CPU; these do not
STRICT = MATRICES | set('''cat stack index_select gather scatter scatter_add searchsorted bucketize embedding index_add
    index_add_ convolution native_group_norm native_layer_norm grid_sampler_2d _fused_adam_'''.split())
INDEXED = {'index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'}
LIKE = ('new_', 'zeros_like', 'ones_like', 'empty_like', 'full_like', 'rand_like', 'randn_like', 'randint_like')
ENGINE = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)


def tensors_of(tree):
    "All tensors of nested arguments"
    if isinstance(tree, torch.Tensor): return [tree]
    if isinstance(tree, dict): tree = tree.values()
    elif not isinstance(tree, (tuple, list)): return []
    return [tensor for part in tree for tensor in tensors_of(part)]


def names(device, kind):
    "Whether this names a device of a kind"
    return isinstance(device, (str, torch.device)) and str(device).partition(':')[0] == kind


def size_of(tensors): return sum(t.numel()*t.element_size() for t in tensors)


class Gpu:
    "The device, and its books"
    def __init__(self, warp=True):    # whether Warp, if it is installed, finds a driver
        self.warp, self.blind = warp and find_spec('warp') is not None, False
        self.held = {}         # storage -> (weak reference, bytes)
        self.pinned = {}       # likewise, of memory of the CPU that a GPU reads by itself
        self.unknown = {}      # likewise, made by C++ in a backward pass, which does not say where
        self.made_by = {}      # number of a node of the graph -> the line that made it
        self.callers = []      # of the calls that Python is in: whether one of its tensors is here; None: unknown
        self.limit, self.bytes_held = None, 0    # bytes of its memory; None: there is always more
        self.refused = []      # what CUDA would not have done, also where a program went on
        self.quiet = False
        self.reset()

    def reset(self):
        "Begin new books; memory stays as it is"
        self.launches, self.waits, self.moved = Counter(), Counter(), Counter()    # by place
        self.made_by.clear()
        self.tidy()
        self.peak = self.bytes_held

    # Where a tensor is

    def owns(self, tensor): return tensor.untyped_storage()._cdata in self.held

    def take(self, tensor):
        "Note that a tensor is here"
        storage = tensor.untyped_storage()
        self.unknown.pop(storage._cdata, None)
        if storage._cdata in self.held: return tensor
        self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bytes_held += storage.nbytes()
        if self.bytes_held > self.peak: self.tidy()
        self.peak = max(self.peak, self.bytes_held)
        if self.limit is not None and self.bytes_held > self.limit:
            raise torch.OutOfMemoryError(f'CUDA out of memory. Tried to allocate {storage.nbytes()} bytes')
        return tensor

    def leave(self, tensor):
        "Note that a tensor is on the CPU"
        self.bytes_held -= self.held.pop(tensor.untyped_storage()._cdata, (None, 0))[1]
        return tensor

    def tidy(self):
        "Forget what is gone"
        for cdata in [c for c, (ref, _) in self.held.items() if ref.expired()]:
            self.bytes_held -= self.held.pop(cdata)[1]
        for book in self.pinned, self.unknown:
            for cdata in [c for c, ref in book.items() if ref.expired()]: del book[cdata]

    # Books

    def place(self):
        """The line of the package that asks for something, or else the one of whoever does. What autograd's C++ asks
        for in a backward pass is booked on the line of the forward pass whose derivative it is"""
        frame, outside = sys._getframe(1), None
        while frame is not None:
            path = frame.f_code.co_filename
            if path == __file__ and frame.f_code is _run.__code__:
                node = torch._C._current_autograd_node()
                if node is not None and (line := self.made_by.get(node._sequence_nr())): return f'{line}, backward'
            if '/dreamfusion_nb/' in path: return f'{path.rpartition("/")[2]}:{frame.f_lineno} {frame.f_code.co_name}'
            if outside is None and path != __file__ and '/torch/' not in path:
                outside = f'{path.rpartition("site-packages/")[2]}:{frame.f_lineno} {frame.f_code.co_name}'
            frame = frame.f_back
        return outside or '?'

    def wait(self, why):
        if not self.quiet: self.waits[f'{self.place()} [{why}]'] += 1

    def refuse(self, kind, why):
        self.refused.append(f'{self.place()}: {why}')
        raise kind(f'{why} ({self.place()})')

    def launch(self, n_bytes):
        if self.quiet: return
        where = self.place()
        self.launches[where] += 1
        self.moved[where] += n_bytes

    def report(self, top=30):
        "The books in lines, for a person"
        lines = [f'{self.launches.total():,} launches, {self.waits.total()} waits, '
                 f'{self.moved.total()/1e9:.2f} GB moved, at most {self.peak/2**20:,.1f} MiB held']
        lines += [f'{n:7,} launches {self.moved[place]/1e6:9.1f} MB  {place}' for place, n in
                  self.launches.most_common(top)]
        return '\n'.join(lines + [f'{n:7,} waits  {place}' for place, n in self.waits.most_common(top)])

    def __enter__(self):
        self.modes = _Kernels(self), _Calls(self)
        # C++ that looks at devices by itself would see the CPU
        self.group = clip_grad._group_tensors_by_device_and_dtype
        def group(lists, *rest, **options):
            found = self.group(lists, *rest, **options).items()
            return {(HERE if self.owns(v[0][0][0]) else device, kind): v for (device, kind), v in found}
        clip_grad._group_tensors_by_device_and_dtype = group
        # what is computed anew is compared with what was kept, which C++ did out of sight of the second mode
        self.compared = checkpoint._allowed_determinism_checks_to_fns['default']
        checkpoint._allowed_determinism_checks_to_fns['default'] = lambda x: dict(shape=x.shape, dtype=x.dtype)
        self.offer_warp()
        for mode in self.modes: mode.__enter__()
        return self

    def offer_warp(self):
        "Let Warp find a driver, and our kernels run on the CPU"
        if not self.warp: return
        warp, launch = kernels._warp(), kernels._Kernels.launch
        kept = warp.is_cuda_available, launch

        def counted(page, f, dim, *arrays):
            given = [a for a in arrays if isinstance(a, torch.Tensor)]
            here = [self.owns(a) or a.untyped_storage()._cdata in self.unknown for a in given]
            if not any(map(self.owns, given)): return launch(page, f, dim, *arrays)
            if not all(here): self.refuse(RuntimeError, f'{f.__name__}: tensors on cuda and on cpu: {here}')
            self.launch(size_of(given))
            self.blind = True
            try: launch(page, f, dim, *arrays)
            finally: self.blind = False

        def put(available, run):
            warp.is_cuda_available, kernels._Kernels.launch = available, run
            kernels.warp_trouble.cache_clear()
            kernels.kernels_trouble.cache_clear()
            hashgrid.encoder_trouble.cache_clear()
            hashgrid._on_device.clear()    # what an earlier GPU held is not here
        self.withdraw_warp = lambda: put(*kept)
        put(lambda: True, counted)

    def __exit__(self, *why):
        for mode in reversed(self.modes): mode.__exit__(*why)
        if self.warp: self.withdraw_warp()
        clip_grad._group_tensors_by_device_and_dtype = self.group
        checkpoint._allowed_determinism_checks_to_fns['default'] = self.compared


class _Kernels(TorchDispatchMode):
    "What PyTorch really does"
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        gpu, kwargs, name = self.gpu, kwargs or {}, func._schema.name.rpartition('::')[2]
        if gpu.blind: return func(*args, **kwargs)
        # autograd has numbered the node of this call, if it makes one, before it passes the call on
        if torch.is_grad_enabled(): gpu.made_by.setdefault(torch._C._autograd._get_sequence_nr() - 1, gpu.place())
        given = tensors_of((args, kwargs))
        here = [gpu.owns(t) for t in given]
        if any(here): self.check(func, name, args, kwargs, given, here)
        out = func(*args, **kwargs)
        made = tensors_of(out)
        if any(here):
            for tensor in made: gpu.take(tensor)
            if name not in FREE: gpu.launch(size_of([t for t, h in zip(given, here) if h]) + size_of(made))
        elif not given and gpu.callers and gpu.callers[-1]:
            for tensor in made: gpu.take(tensor)
        elif not given and (not gpu.callers or gpu.callers[-1] is None):
            for storage in (t.untyped_storage() for t in made): gpu.unknown[storage._cdata] = StorageWeakRef(storage)
        return out

    def check(self, func, name, args, kwargs, given, here):
        "Raise or book what CUDA would raise or wait for"
        gpu = self.gpu
        others = [t for t, h in zip(given, here) if not h and t.untyped_storage()._cdata not in gpu.unknown]
        if name in ('copy_', '_foreach_copy_'):
            free = kwargs.get('non_blocking') or len(args) > 2 and args[2] is True
            if others and not (free and all(t.untyped_storage()._cdata in gpu.pinned for t in others)):
                gpu.wait('a copy between CPU and GPU')
        elif name in INDEXED:
            if not here[0]: gpu.refuse(RuntimeError, f'{name}: indices on cuda, but the indexed tensor on cpu')
            if any(t.ndim and t.dtype.is_floating_point for t in others):
                gpu.refuse(RuntimeError, f'{name}: values on cpu for a tensor on cuda')
            if any(t.ndim for t in others): gpu.wait(f'{name} by numbers on the CPU')
            if any(t.dtype in (torch.bool, torch.uint8) and t.ndim for t in tensors_of(args[1])):
                gpu.wait(f'{name} by a mask')
        elif [t for t in others if t.ndim or name in STRICT]:
            shapes = [list(t.shape) for t in given]
            gpu.refuse(RuntimeError, f'{func}: all tensors must be on the same device, not {shapes} on cuda: {here}')
        if name in MATRICES and not (given[0].is_floating_point() or given[0].is_complex()):
            gpu.refuse(RuntimeError, f'"{name}" not implemented for {given[0].dtype} on CUDA')
        if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
            gpu.refuse(RuntimeError, f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        if name in WAITS or name == 'repeat_interleave' and kwargs.get('output_size') is None: gpu.wait(name)


class _Calls(TorchFunctionMode):
    "What Python asks for"
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if self.gpu.blind: return func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        if name == '__get__': return self.attribute(func, args)
        if func in ENGINE: return self.differentiate(func, args, kwargs)
        here = any(map(self.gpu.owns, tensors_of((args, kwargs))))
        if here and name in ('numpy', '__array__'):
            self.gpu.refuse(TypeError, "can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        if here and name in ('__getitem__', '__setitem__'): self.look_at_index(args[1])
        if here and name == 'tolist': self.gpu.wait('tolist')
        if name == 'pin_memory': return self.pin(args[0])
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu, torch.Tensor.type):
            return self.convert(func, name, args, kwargs)
        if 'device' in kwargs and name != '_parse_to': return self.make(func, name, args, kwargs, here)
        out = self.call(func, args, kwargs, here)
        if name != 'new_tensor' or not here: return out
        self.gpu.wait('new_tensor: numbers of the CPU')
        return self.gpu.take(out)

    def call(self, func, args, kwargs, here):
        self.gpu.callers.append(here)
        try: return func(*args, **kwargs)
        finally: self.gpu.callers.pop()

    def attribute(self, func, args):
        what = func.__self__
        if what is torch.Tensor.device and self.gpu.owns(args[0]): return HERE
        if what is torch.Tensor.is_cuda: return self.gpu.owns(args[0])
        if what is torch.Tensor.is_cpu: return not self.gpu.owns(args[0])
        return func(*args)

    def differentiate(self, func, args, kwargs):
        "A backward pass, with this mode on: there is Python in it too"
        self.gpu.callers.append(None)
        try:
            with self: return (_grad if func is torch.autograd.grad else _backward)(*args, **kwargs)
        finally: self.gpu.callers.pop()

    def look_at_index(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(p, (list, range, np.ndarray)) for p in parts): self.gpu.wait('an index that is a list')

    def pin(self, tensor):
        if self.gpu.owns(tensor): self.gpu.refuse(RuntimeError, 'cannot pin a tensor that is not on the CPU')
        copy = self.copied(tensor).untyped_storage()
        self.gpu.pinned[copy._cdata] = StorageWeakRef(copy)
        return torch.empty(0, dtype=tensor.dtype).set_(copy, 0, tensor.shape, tensor.contiguous().stride())

    def make(self, func, name, args, kwargs, here):
        "A call that says where its result should be"
        gpu, device = self.gpu, kwargs['device']
        there = here and name.startswith(LIKE) if device is None else names(device, 'cuda')
        if there and isinstance(kwargs.get('generator'), torch.Generator):
            gpu.refuse(RuntimeError, f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        if not there:
            out = self.call(func, args, kwargs, False)
            return gpu.leave(out) if isinstance(out, torch.Tensor) and here and device is not None else out
        source = args[0] if args else None
        given = func in (torch.tensor, torch.as_tensor, torch.asarray) or name == 'new_tensor'
        if given and isinstance(source, torch.Tensor) and gpu.owns(source):
            return self.call(func, args, kwargs | dict(device=None), True)
        out = self.call(func, args, kwargs | dict(device='cpu'), False)
        if not isinstance(out, torch.Tensor): return out
        if given:
            gpu.wait(f'{name}: numbers of the CPU')
            if func is not torch.tensor: out = self.copied(out)    # it may share memory with what is on the CPU
        elif name not in FREE: gpu.launch(size_of([out]))
        return gpu.take(out)

    def convert(self, func, name, args, kwargs):
        "`.to`, `.cuda()`, `.cpu()`: another type here, then the way there"
        source, rest = args[0], list(args[1:])
        there, free = self.gpu.owns(source), bool(kwargs.pop('non_blocking', False))
        kwargs.pop('copy', None)
        wanted = {'cuda': 'cuda', 'cpu': 'cpu'}.get(name, kwargs.pop('device', None))
        like = kwargs.pop('other', None)
        for given in (*rest, like):
            if isinstance(given, torch.device) or isinstance(given, str) and name == 'to': wanted = given
            elif isinstance(given, torch.Tensor):
                wanted, kwargs['dtype'] = HERE if self.gpu.owns(given) else 'cpu', given.dtype
        free = free or any(given is True for given in rest[:3])
        rest = [r for r in rest if isinstance(r, (torch.dtype, torch.memory_format)) or name == 'type']
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        out = self.call(func, (source, *rest), kwargs, there) if rest or kwargs else source
        if wanted is None or names(wanted, 'cuda') == there: return out
        pinned = out.untyped_storage()._cdata in self.gpu.pinned
        if not (free and pinned): self.gpu.wait('GPU to CPU' if there else 'CPU to GPU')
        out = self.copied(out)
        return self.gpu.leave(out) if there else self.gpu.take(out)

    def copied(self, tensor):
        quiet, self.gpu.quiet = self.gpu.quiet, True
        try: return self.call(torch.clone, (tensor,), dict(memory_format=torch.preserve_format), False)
        finally: self.gpu.quiet = quiet


def _run(outputs, given, keep, again, inputs, unused, adds):
    "PyTorch's engine without its doors, which with a mode on would ask the mode for ever"
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    given = (given,) if isinstance(given, torch.Tensor) else given or (None,)*len(outputs)
    grads = torch.autograd._make_grads(outputs, tuple(given), is_grads_batched=False)
    return torch.autograd.graph._engine_run_backward(outputs, grads, again if keep is None else keep, again, inputs,
                                                     unused, accumulate_grad=adds)


def _backward(tensor, gradient=None, retain_graph=None, create_graph=False, inputs=()):
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs or ())
    _run(tensor, gradient, retain_graph, create_graph, inputs, True, True)


def _grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, allow_unused=None, **_):
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    return _run(outputs, grad_outputs, retain_graph, create_graph, inputs, bool(allow_unused), False)
