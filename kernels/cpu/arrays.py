"""Arrays in the form in which kernels take them: contiguous, and with their leading axes flattened."""

import math
from typing import Any

import numpy as np

from .compiler import is_watched, note


def dense(array: Any) -> Any:
    """Return `array`, or a copy if it is not contiguous, aligned and writeable, as kernels are compiled for."""
    return array if array.flags.carray else copied(array)


def copied(array: Any, dtype: Any = None) -> Any:
    """Return a contiguous copy of `array`, perhaps in another dtype, and report it to the thread's watcher, if any."""
    made = np.array(array, dtype, order="C")
    note(np.copyto, (made, array))
    return made


def as_matrix(array: Any) -> Any:
    """Reshape `array` (..., C) to a matrix (R, C), if possible without a copy."""
    if array.ndim == 2:
        return array
    columns = array.shape[-1]
    made = array.reshape(array.size // columns if columns else math.prod(array.shape[:-1]), columns)
    if is_watched() and not np.may_share_memory(made, array):
        note(np.copyto, (made.reshape(array.shape), array))
    return made


def rows_of(array: Any) -> Any:
    """Reshape `array` (..., C) to a dense matrix (R, C)."""
    return dense(as_matrix(array))
