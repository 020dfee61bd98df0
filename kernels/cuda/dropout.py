"""Dropout as an argument of a kernel."""

import ctypes
from typing import Any

from .device import address


class Dropout(ctypes.Structure):
    """The struct `Dropout` of common.cuh."""

    _fields_ = (
        ("threshold", ctypes.c_ulonglong),
        ("stream", ctypes.c_void_p),
        ("seed", ctypes.c_ulonglong),
        ("offset", ctypes.c_ulonglong),
        ("factor", ctypes.c_float),
    )


def dropout_of(p: float, seed: Any, offset: int) -> Dropout:
    """Return dropout with probability `p` from the stream (seed, offset).

    `seed` may be a device array (2,) of uint64 that holds a seed and an offset, to which `offset` is added. A captured
    graph then draws other numbers each time the array changes.
    """
    factor = 1 / (1 - p) if p < 1 else 0.0
    on_device = not isinstance(seed, int)
    return Dropout(round(p * 2**32), address(seed) if on_device else 0, 0 if on_device else seed, offset, factor)
