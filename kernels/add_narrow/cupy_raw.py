"""The sum of an array in float32, such as the residual stream, and one in bfloat16, such as a branch, in CUDA C++.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one thread for each 16 bytes of float32, or for each element if arrays are not aligned to 16 bytes or  |
|         | not a multiple of them; y is not widened in memory first                                               |
"""

import ctypes
from collections.abc import Iterator

from ..cuda.device import CTYPES, Kernel, address, dense, device_of, library_of, pointer

_THREADS, _RUN = 256, 4


def _kernel(ctype: str, run: int) -> Kernel:
    return Kernel("add_narrow/add_narrow.cu", f"add_narrow<{ctype}, {run}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for dtype in ("bfloat16", "float32"):
        for run in (1, _RUN):
            yield _kernel(CTYPES[dtype], run), 64


def _launch_1(x, y, z):
    aligned = x.size % _RUN == 0 and all(address(a) % (_RUN * a.itemsize) == 0 for a in (x, y, z))
    run = _RUN if aligned else 1
    arguments = [*map(pointer, (x, y, z)), ctypes.c_longlong(x.size)]
    grid = (-(-x.size // (run * _THREADS)),)
    device_of(x).launch(_kernel(CTYPES[y.dtype.name], run), grid, _THREADS, arguments)


VERSIONS = {1: _launch_1}


# Launchers -----------------------------------------------------------------------------------------------------------


def forward(x, y, *, version):
    """Map x and y, of one shape, to z and the dtype of y."""
    x, y = dense(x), dense(y)
    z = library_of(x).empty_like(x)
    if x.size:
        VERSIONS[version](x, y, z)
    return z, y.dtype


def backward(dz, y_dtype, *, needs, version):
    """Map dz to dx, and dy in the dtype of y."""
    return dz, dz.astype(y_dtype, copy=False) if needs[1] else None
