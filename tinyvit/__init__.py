"""tinyvit: train and study small Vision Transformers without a deep-learning framework.

import tinyvit as tv, tinyvit.functional as F
"""

from . import functional, models, nn, optim, study
from .autocast import autocast
from .backend import Generator, allow_tf32, limit_threads, manual_seed, set_default_device
from .checkpoint import load, save
from .dispatch import use_kernels
from .engine.autograd import Tensor, grad, no_grad, tensor
from .engine.gradcheck import GradcheckError, gradcheck
from .optim import LossScaler

limit_threads()

__version__ = "0.1.0"

__all__ = [
    "Generator", "GradcheckError", "LossScaler", "Tensor", "allow_tf32", "autocast", "functional", "grad", "gradcheck",
    "load", "manual_seed", "models", "nn", "no_grad", "optim", "save", "set_default_device", "study", "tensor",
    "use_kernels",
]  # fmt: skip
