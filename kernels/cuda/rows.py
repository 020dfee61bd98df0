"""How a warp holds a row in registers: each of its 32 lanes has P runs of V neighbouring columns."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from .device import Device, Kernel, pointer

LANES = 32
RUN_BYTES = 16  # bytes that one instruction moves
PER_LANE = 32  # the most elements that a lane holds
RUNS = (1, 2, 3, 4, 6, 8)


def spread(columns: int, itemsize: int, aligned: bool) -> tuple[int, int] | None:
    """Return V and P for rows of this many columns; None if they are too long or not aligned to 16 bytes."""
    v = RUN_BYTES // itemsize
    if not aligned or columns % v:
        return None
    return next(((v, p) for p in RUNS if p * v <= PER_LANE and p * v * LANES >= columns), None)


def spreads(itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield every V and P for which kernels are compiled."""
    v = RUN_BYTES // itemsize
    yield from ((v, p) for p in RUNS if p * v <= PER_LANE)


def itemsize_of(ctype: str) -> int:
    """Return the bytes of an element, by its name in CUDA C++."""
    return 4 if ctype == "float" else 2


def parts_of(rows: int, at_once: int, most: int = 512) -> int:
    """Return in how many parts rows are summed: it depends on their number only, and so do the bits of the sum."""
    return int(np.clip(-(-rows // (4 * at_once)), 1, most))


def add_parts(device: Device, source: str, ctype: str, parts: Any, *outs: Any) -> None:
    """Write the sum of parts (G, C) to an array (C,), or those of parts (G, 2, C) to two, by a kernel of `source`."""
    columns, warps = parts.shape[-1], 16
    arguments = [pointer(parts), pointer(outs[0]), pointer(outs[-1])]
    arguments += [ctypes.c_int(parts.shape[0]), ctypes.c_int(columns)]
    grid = (-(-columns // LANES), len(outs))
    device.launch(Kernel(source, f"sum_parts<{ctype}>"), grid, warps * LANES, arguments, 4 * warps * LANES)
