"""What layers and models need beside the operations: tensors, constants, random draws, checks of arguments."""

from typing import Any

import numpy as np

from ..backend import Generator, default_generator, is_floating, is_on_gpu, is_stand_in, to_device_of
from ..backend.checks import check_flags, flag
from ..context import no_draws, no_grad, now
from ..engine import Tensor, tensor
from .arguments import Pair, as_pair, dtype_or_device, integers, is_sequence
from .attention import attention_weights, other_keys
from .constants import constant
from .normalization import checked_eps
from .random import check_probability

__all__ = [
    "Generator",
    "Pair",
    "Tensor",
    "as_pair",
    "attention_weights",
    "check_flags",
    "check_probability",
    "checked_eps",
    "constant",
    "default_generator",
    "dtype_or_device",
    "flag",
    "integers",
    "is_drawing",
    "is_floating",
    "is_sequence",
    "no_draws",
    "no_grad",
    "on_device_of",
    "other_keys",
    "tensor",
]


def is_drawing() -> bool:
    """Return whether new parameters get random values, which is so outside of `no_draws`."""
    return now().drawing


def on_device_of(array: Any, tensor: Tensor) -> Tensor:
    """Return an array as a constant on the device of `tensor`; a tensor is returned as it is."""
    if isinstance(array, Tensor):
        return array
    return Tensor(to_device_of(array if is_on_gpu(array) or is_stand_in(array) else np.asarray(array), tensor.data))
