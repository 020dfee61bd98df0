"""GELU of x + bias in CUDA C++, exact or by the tanh formula, forward and backward.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one thread for each element; backward, one thread for each column, which sums its dbias                |
| v2      | 16 bytes at a time; warps share the rows, each with its part of dbias; the bias stays in registers     |

x (R, C), bias (C,), y (R, C); the leading axes are flattened into R. v2 leaves arrays that are not aligned to 16 bytes
to v1. Parts of dbias are added in an order that depends on R only.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, dense, device_of, is_aligned, library_of, pointer, rows_of
from ..cuda.rows import LANES, RUN_BYTES, add_parts, itemsize_of, parts_of

_SOURCE = "bias_gelu/bias_gelu.cu"
_WARPS, _THREADS = 4, 128


def _kernel(name: str, *arguments: Any) -> Kernel:
    spelled = (str(a).lower() if isinstance(a, bool) else str(a) for a in arguments)
    return Kernel(_SOURCE, f"{name}<{', '.join(spelled)}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        yield _kernel("sum_parts", ctype), 64
        for tanh in (False, True):
            for name in ("gelu_forward_1", "gelu_backward_1"):
                yield _kernel(name, ctype, tanh), 64
            for name in ("gelu_forward_2", "gelu_backward_2"):
                yield _kernel(name, ctype, RUN_BYTES // itemsize_of(ctype), tanh), 128


# Versions ------------------------------------------------------------------------------------------------------------


def forward_1(x, bias, y, tanh):
    size = [ctypes.c_int(n) for n in x.shape]
    kernel = _kernel("gelu_forward_1", CTYPES[x.dtype.name], tanh)
    device_of(x).launch(kernel, (-(-x.size // _THREADS),), _THREADS, [*map(pointer, (x, bias, y)), *size])


def backward_1(dy, x, bias, dx, dbias, tanh):
    size = [ctypes.c_int(n) for n in x.shape]
    kernel = _kernel("gelu_backward_1", CTYPES[x.dtype.name], tanh)
    arguments = [*map(pointer, (dy, x, bias, dx, dbias)), *size]
    device_of(x).launch(kernel, (-(-x.shape[1] // _THREADS),), _THREADS, arguments)


def _grid(rows: int, columns: int, v: int) -> tuple[int, int]:
    return -(-columns // (LANES * v)), parts_of(rows, _WARPS)


def forward_2(x, bias, y, tanh):
    if not is_aligned(x, bias, y):
        return forward_1(x, bias, y, tanh)
    v = RUN_BYTES // x.itemsize
    kernel = _kernel("gelu_forward_2", CTYPES[x.dtype.name], v, tanh)
    arguments = [*map(pointer, (x, bias, y)), *(ctypes.c_int(n) for n in x.shape)]
    device_of(x).launch(kernel, _grid(*x.shape, v), _THREADS, arguments)


def backward_2(dy, x, bias, dx, dbias, tanh):
    if not is_aligned(dy, x, bias, dx):
        return backward_1(dy, x, bias, dx, dbias, tanh)
    device, ctype, v = device_of(x), CTYPES[x.dtype.name], RUN_BYTES // x.itemsize
    rows, columns = x.shape
    grid = _grid(rows, columns, v)
    parts = library_of(x).empty((grid[1], columns), "float32")
    arguments = [*map(pointer, (dy, x, bias, dx, parts)), ctypes.c_int(rows), ctypes.c_int(columns)]
    device.launch(_kernel("gelu_backward_2", ctype, v, tanh), grid, _THREADS, arguments, 4 * _THREADS * v)
    add_parts(device, _SOURCE, ctype, parts, dbias)


VERSIONS = {1: (forward_1, backward_1), 2: (forward_2, backward_2)}


# Launchers -----------------------------------------------------------------------------------------------------------


def forward(x, bias, *, approximate="none", version):
    """Map x (..., C) and bias (C,) to y (..., C)."""
    rows = rows_of(x)
    y = library_of(x).empty_like(rows)
    if rows.size:
        VERSIONS[version][0](rows, dense(bias), y, approximate == "tanh")
    return (y.reshape(x.shape),)


def backward(dy, x, bias, *, approximate="none", needs, version):
    """Map dy (..., C) to dx (..., C) and dbias (C,)."""
    rows, bias = rows_of(x), dense(bias)
    dx, dbias = library_of(x).empty_like(rows), library_of(x).zeros_like(bias)
    if rows.size:
        VERSIONS[version][1](dense(dy.reshape(rows.shape)), rows, bias, dx, dbias, approximate == "tanh")
    return dx.reshape(x.shape), dbias
