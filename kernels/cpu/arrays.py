"""What the launchers of the kernels ask of the arrays they are given."""

import math
from typing import Any

import numpy as np


def dense(array: Any) -> Any:
    """`array` itself if it is contiguous, aligned and writeable, so that one compiled form serves it; else a copy."""
    return array if array.flags.carray else np.array(array, order="C")


def as_matrix(array: Any) -> Any:
    """`array` (..., C) as a matrix (R, C), leading axes flattened; a copy only if it must be."""
    return array if array.ndim == 2 else array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def rows_of(array: Any) -> Any:
    """`array` (..., C) as a dense matrix (R, C)."""
    return dense(as_matrix(array))


def sum_to_shape(array: Any, shape: tuple[int, ...]) -> Any:
    """The sum of `array` over the axes along which something of this shape was broadcast to its own."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
