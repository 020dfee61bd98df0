"""tinyvit: train and study small Vision Transformers without a deep-learning framework.

import tinyvit as tv, tinyvit.functional as F
"""

from . import functional, models, nn, optim, study
from .autocast import LossScaler
from .backend import Generator, allow_tf32, limit_threads, manual_seed, set_default_device
from .checkpoint import load, save
from .context import autocast, no_grad
from .dispatch import use_kernels
from .engine import Tensor, grad, tensor
from .engine.gradcheck import GradcheckError, gradcheck

limit_threads()

__version__ = "0.1.0"

__all__ = [
    "Generator", "GradcheckError", "LossScaler", "Tensor", "allow_tf32", "autocast", "functional", "grad", "gradcheck",
    "load", "manual_seed", "models", "nn", "no_grad", "optim", "save", "set_default_device", "study", "tensor",
    "use_kernels",
]  # fmt: skip
