"""tinyvit: train and study small Vision Transformers without a deep-learning framework.

import tinyvit as tv, tinyvit.functional as F
"""

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from . import functional, models, nn, optim
from .backend import Generator, allow_tf32, limit_threads, manual_seed, set_default_device
from .checkpoint import load, save
from .context import autocast, no_grad
from .dispatch import use_kernels
from .engine import Tensor, grad, tensor
from .kernels.cpu import quota as _quota
from .optim import LossScaler

if TYPE_CHECKING:
    from . import study
    from .program import freeze
    from .run.folder import load_run
    from .study import GradcheckError, gradcheck

with contextlib.suppress(ValueError):  # of TINYVIT_THREADS: the first kernel raises it again, where commands show it
    limit_threads(_quota.usable_processors(), _quota.wanted_threads())

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "GradcheckError",
    "LossScaler",
    "Tensor",
    "allow_tf32",
    "autocast",
    "freeze",
    "functional",
    "grad",
    "gradcheck",
    "load",
    "load_run",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "save",
    "set_default_device",
    "study",
    "tensor",
    "use_kernels",
]


# What training does not need is loaded when it is first asked for: the modules of these names.
_LATER = {"GradcheckError": ".study", "freeze": ".program", "gradcheck": ".study", "load_run": ".run.folder"}


def __getattr__(name: str) -> Any:
    if name == "study":
        return importlib.import_module(".study", __name__)
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_PRETRAINED = ("from_pretrained", "save_pretrained")


def _of_interop(name: str) -> Any:
    """Load `models.from_pretrained` and `models.save_pretrained` when they are first asked for.

    They belong to `tinyvit.interop`, which stands above `tinyvit.models`; so it is this file that puts them there.
    """
    if name in _PRETRAINED:
        from . import interop

        return getattr(interop, name)
    raise AttributeError(f"module {models.__name__!r} has no attribute {name!r}")


models.__getattr__ = _of_interop  # type: ignore[method-assign]
models.__dir__ = lambda: sorted({*vars(models), *_PRETRAINED})  # type: ignore[method-assign]


def _shown_by(function: str) -> Any:
    """Return a method that lets a function of `study.notebook` draw the object in a notebook."""
    return lambda self: getattr(importlib.import_module(".study.notebook", __name__), function)(self)


setattr(Tensor, "_repr_html_", _shown_by("tensor_html"))  # noqa: B010  (a name that type checkers do not know)
setattr(nn.Module, "_repr_html_", _shown_by("module_html"))  # noqa: B010
