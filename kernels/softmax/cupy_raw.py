"""Softmax of rows in CUDA C++, forward and backward.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one block for each row, which reads it three times                                                     |
| v2      | one warp for each row, which it reads once, 16 bytes at a time, into registers                         |

x (R, C): the softmax is over the last axis; another axis is swapped with the last one, which costs a copy. v2 serves
rows of up to 1024 columns that are aligned to 16 bytes, and leaves others to v1.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, device_of, is_aligned, library_of, pointer, rows_of
from ..cuda.rows import itemsize_of, spread, spreads

_SOURCE = "softmax/softmax.cu"
_WARPS, _THREADS, _SCRATCH = 4, 128, 4 * 32


def _kernel(name: str, *arguments: Any) -> Kernel:
    return Kernel(_SOURCE, f"{name}<{', '.join(map(str, arguments))}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        for direction in ("forward", "backward"):
            yield _kernel(f"softmax_{direction}_1", ctype), 64
            for layout in spreads(itemsize_of(ctype)):
                yield _kernel(f"softmax_{direction}_2", ctype, *layout), 128


# Versions, of which `arrays` are the operands (R, C) in the order of the kernel's parameters, the result last ---------


def _launch_1(name: str, *arrays: Any) -> None:
    rows, columns = arrays[0].shape
    arguments = [*map(pointer, arrays), ctypes.c_int(rows), ctypes.c_int(columns)]
    kernel = _kernel(f"{name}_1", CTYPES[arrays[0].dtype.name])
    device_of(arrays[0]).launch(kernel, (rows,), _THREADS, arguments, _SCRATCH)


def _launch_2(name: str, *arrays: Any) -> None:
    rows, columns = arrays[0].shape
    layout = spread(columns, arrays[0].itemsize, is_aligned(*arrays))
    if layout is None:
        return _launch_1(name, *arrays)
    arguments = [*map(pointer, arrays), ctypes.c_int(rows), ctypes.c_int(columns)]
    kernel = _kernel(f"{name}_2", CTYPES[arrays[0].dtype.name], *layout)
    device_of(arrays[0]).launch(kernel, (-(-rows // _WARPS),), _THREADS, arguments)


VERSIONS = {1: _launch_1, 2: _launch_2}


# Launchers -----------------------------------------------------------------------------------------------------------


def forward(x, *, axis=-1, version):
    """Map x of any shape to y."""
    swapped = x.swapaxes(axis, -1)
    rows = rows_of(swapped)
    y = library_of(x).empty_like(rows)
    if rows.size:
        VERSIONS[version]("softmax_forward", rows, y)
    return (y.reshape(swapped.shape).swapaxes(axis, -1),)


def backward(dy, out, *, axis=-1, needs, version):
    """Map dy and out, both in the shape of x, to dx."""
    swapped = out.swapaxes(axis, -1)
    rows = rows_of(swapped)
    dx = library_of(out).empty_like(rows)
    if rows.size:
        VERSIONS[version]("softmax_backward", rows_of(dy.swapaxes(axis, -1)), rows, dx)
    return (dx.reshape(swapped.shape).swapaxes(axis, -1),)
