"""GELU of each element in CUDA C++, exact or by the tanh formula, forward and backward.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one thread for each 16 bytes, or for each element if arrays are not aligned to 16 bytes or not a       |
|         | multiple of them                                                                                       |
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, dense, device_of, is_aligned, library_of, pointer
from ..cuda.rows import RUN_BYTES, itemsize_of

_SOURCE = "gelu/gelu.cu"
_THREADS = 256


def _kernel(direction: str, ctype: str, run: int, tanh: bool) -> Kernel:
    return Kernel(_SOURCE, f"gelu_{direction}<{ctype}, {run}, {str(tanh).lower()}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        for run in (1, RUN_BYTES // itemsize_of(ctype)):
            for tanh in (False, True):
                yield _kernel("forward", ctype, run, tanh), 64
                yield _kernel("backward", ctype, run, tanh), 64


def _launch_1(direction: str, arrays: tuple[Any, ...], tanh: bool) -> None:
    x = arrays[0]
    run = RUN_BYTES // x.itemsize
    if x.size % run or not is_aligned(*arrays):
        run = 1
    arguments = [*map(pointer, arrays), ctypes.c_longlong(x.size)]
    grid = (-(-x.size // (run * _THREADS)),)
    device_of(x).launch(_kernel(direction, CTYPES[x.dtype.name], run, tanh), grid, _THREADS, arguments)


VERSIONS = {1: _launch_1}


# Launchers -----------------------------------------------------------------------------------------------------------


def forward(x, *, approximate="none", version):
    """Map x of any shape to y."""
    x = dense(x)
    y = library_of(x).empty_like(x)
    if x.size:
        VERSIONS[version]("forward", (x, y), approximate == "tanh")
    return (y,)


def backward(dy, x, *, approximate="none", needs, version):
    """Map dy and x to dx."""
    x = dense(x)
    dx = library_of(x).empty_like(x)
    if x.size:
        VERSIONS[version]("backward", (dense(dy), x, dx), approximate == "tanh")
    return (dx,)
