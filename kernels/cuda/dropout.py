"""Dropout as a kernel's argument."""

import ctypes
from typing import Any

from .device import address


class Dropout(ctypes.Structure):
    """`Dropout` of common.cuh."""

    _fields_ = (
        ("threshold", ctypes.c_ulonglong),
        ("stream", ctypes.c_void_p),
        ("seed", ctypes.c_ulonglong),
        ("offset", ctypes.c_ulonglong),
        ("factor", ctypes.c_float),
    )


def dropout_of(p: float, seed: Any, offset: int) -> Dropout:
    """Dropout with probability `p` from the stream (seed, offset).

    `seed` may be a device array (2,) of uint64 that holds a seed and an offset, to which `offset` is added: a captured
    graph then draws anew each time the array changes.
    """
    factor = 1 / (1 - p) if p < 1 else 0.0
    on_device = not isinstance(seed, int)
    return Dropout(round(p * 2**32), address(seed) if on_device else 0, 0 if on_device else seed, offset, factor)
