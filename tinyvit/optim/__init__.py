"""Optimizers, learning-rate schedules, gradient clipping, the average of the weights, and the scale of float16 losses.

Order: schedules, parameters, average, narrow, bundle, device, optimizers, scaler.
"""

from .average import EMA
from .narrow import NarrowWeights
from .optimizers import SGD, Adam, AdamW, Optimizer, clip_grad_norm, decay_groups, joint_norm
from .scaler import LossScaler
from .schedules import SCHEDULES, constant_with_warmup, cosine_with_warmup, linear_with_warmup

__all__ = [
    "EMA",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "LossScaler",
    "NarrowWeights",
    "Optimizer",
    "clip_grad_norm",
    "constant_with_warmup",
    "cosine_with_warmup",
    "decay_groups",
    "joint_norm",
    "linear_with_warmup",
]
