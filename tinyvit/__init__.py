"""tinyvit: train and study small Vision Transformers without a deep-learning framework.

import tinyvit as tv, tinyvit.functional as F
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, models, nn, optim
from .backend import Generator, allow_tf32, limit_threads, manual_seed, set_default_device
from .checkpoint import load, save
from .context import autocast, no_grad
from .dispatch import use_kernels
from .engine import GradcheckError, Tensor, grad, gradcheck, tensor
from .kernels.cpu.quota import usable_processors
from .optim import LossScaler

if TYPE_CHECKING:
    from . import study

limit_threads(usable_processors())

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "GradcheckError",
    "LossScaler",
    "Tensor",
    "allow_tf32",
    "autocast",
    "functional",
    "grad",
    "gradcheck",
    "load",
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


def __getattr__(name: str) -> Any:
    """Load `tinyvit.study` when it is first asked for: training does not need it."""
    if name == "study":
        return importlib.import_module(".study", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shown_by(function: str) -> Any:
    """Return a method that lets a function of `study.notebook` draw the object in a notebook."""
    return lambda self: getattr(importlib.import_module(".study.notebook", __name__), function)(self)


setattr(Tensor, "_repr_html_", _shown_by("tensor_html"))  # noqa: B010  (a name that type checkers do not know)
setattr(nn.Module, "_repr_html_", _shown_by("module_html"))  # noqa: B010
