"Text to 3D by score distillation, one notebook at a time"
__version__ = "0.1.0"

import os
import sys

if sys.version_info < (3, 11):    # pip refuses too; this is for who has a checkout
    raise ImportError(f'dreamfusion_nb needs Python 3.11 or newer, and this is {sys.version.split()[0]}')

# OpenMP's threads sleep while they wait, instead of spinning; read when PyTorch is imported. See the page on threads
if 'torch' not in sys.modules and not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & set(os.environ):
    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'

_lazy = {'train': 'run', 'load': 'result', 'Trainer': 'trainer', 'Result': 'result', 'StepRecord': 'trainer',
         'Config': 'config', 'ConfigError': 'config', 'preset': 'config', 'load_config': 'config'}
__all__ = list(_lazy)


def __getattr__(name):
    # Lazy (PEP 562): importing one submodule must not import torch for all of them
    if name not in _lazy: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    import_module('.completion', __name__).offer_completions()
    value = globals()[name] = getattr(import_module('.' + _lazy[name], __name__), name)
    return value


def __dir__(): return sorted({*globals(), *_lazy})
