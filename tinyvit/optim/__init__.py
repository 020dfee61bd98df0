"""Optimizers, learning-rate schedules, gradient clipping, the average of the weights, and the scale of float16 losses.

Order: schedules, tree, parameters, average, narrow, bundle, clipping, rules, device, optimizers,
lion, muon, scaler.
"""

from .average import EMA
from .clipping import clip_grad_norm, joint_norm
from .lion import Lion
from .muon import Muon, muon_groups
from .narrow import NarrowWeights
from .optimizers import SGD, Adam, AdamW, Optimizer, decay_groups
from .scaler import LossScaler
from .schedules import (
    SCHEDULES,
    constant_with_cooldown,
    constant_with_warmup,
    cosine_with_warmup,
    linear_with_warmup,
)

__all__ = [
    "EMA",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "LossScaler",
    "Muon",
    "NarrowWeights",
    "Optimizer",
    "clip_grad_norm",
    "constant_with_cooldown",
    "constant_with_warmup",
    "cosine_with_warmup",
    "decay_groups",
    "joint_norm",
    "linear_with_warmup",
    "muon_groups",
]
