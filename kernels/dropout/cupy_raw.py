"""Dropout in CUDA C++, forward and backward: y = x m and dx = dy m; both draw the factors m from the same stream.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one thread for each element                                                                            |
| v2      | one thread for each 16 bytes, so that one counter gives the factors of 4 elements                      |

v2 leaves sizes that are not a multiple of 16 bytes to v1.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, dense, device_of, is_aligned, library_of, pointer
from ..cuda.dropout import Dropout, dropout_of
from ..cuda.rows import RUN_BYTES, itemsize_of

_SOURCE = "dropout/dropout.cu"
_THREADS = 256


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        yield Kernel(_SOURCE, f"dropout_1<{ctype}>"), 64
        yield Kernel(_SOURCE, f"dropout_2<{ctype}, {RUN_BYTES // itemsize_of(ctype)}>"), 64


def _launch(name: str, run: int, x: Any, y: Any, how: Dropout) -> None:
    arguments = [pointer(x), pointer(y), ctypes.c_longlong(x.size), how]
    device_of(x).launch(Kernel(_SOURCE, name), (-(-x.size // (run * _THREADS)),), _THREADS, arguments)


def _apply_1(x, y, how):
    _launch(f"dropout_1<{CTYPES[x.dtype.name]}>", 1, x, y, how)


def _apply_2(x, y, how):
    run = RUN_BYTES // x.itemsize
    if x.size % run or not is_aligned(x, y):
        return _apply_1(x, y, how)
    _launch(f"dropout_2<{CTYPES[x.dtype.name]}, {run}>", run, x, y, how)


VERSIONS = {1: _apply_1, 2: _apply_2}


def forward(x, *, p, seed, offset, version):
    """Map x of any shape to y; the elements of x are numbered in row-major order."""
    source = dense(x)
    y = library_of(x).empty_like(source)
    if y.size:
        VERSIONS[version](source.reshape(-1), y.reshape(-1), dropout_of(p, seed, offset))
    return (y,)


def backward(dy, *, p, seed, offset, needs, version):
    """Map dy to dx, with the same factors."""
    return forward(dy, p=p, seed=seed, offset=offset, version=version)
