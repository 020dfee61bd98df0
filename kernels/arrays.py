"""What the launchers of the kernels ask of the arrays they are given."""

from typing import Any

import numpy as np


def dense(array: Any) -> Any:
    """`array` itself if it is contiguous, aligned and writeable, so that one compiled form serves it; else a copy."""
    return array if array.flags.carray else np.array(array, order="C")


def rows_of(array: Any) -> Any:
    """`array` (..., C) as a dense matrix (R, C), leading axes flattened; a copy only if it must be."""
    return dense(array.reshape(-1, array.shape[-1]) if array.ndim != 2 else array)


def sum_to_shape(array: Any, shape: tuple[int, ...]) -> Any:
    """The sum of `array` over the axes along which something of this shape was broadcast to its own."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
