"""Copies of all parameters in bfloat16 by one kernel, in CUDA C++.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one block for each 8192 elements, which may span several small arrays or be a part of a large one      |
"""

import ctypes
from collections.abc import Iterator

from ..cuda.device import CTYPES, Kernel, device_of, pointer

_CHUNK, _THREADS = 8192, 256


def _kernel(version: int, dtype: str) -> Kernel:
    return Kernel("narrow/narrow.cu", f"narrow_{version}<{CTYPES[dtype]}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    yield _kernel(1, "bfloat16"), 64


VERSIONS = {1: _kernel}


def step(table, copies, *, version):
    """Write the copies, in place.

    Parameters
    ----------
    table : (T, 3) int64, a row of `Source` (narrow.cu) for each array: its address, the element at which its copy
        begins, its size.
    copies : (E,) bfloat16.
    """
    kernel = VERSIONS[version](version, copies.dtype.name)
    arguments = [pointer(table), ctypes.c_int(table.shape[0]), pointer(copies)]
    device_of(copies).launch(kernel, (-(-copies.size // _CHUNK),), _THREADS, arguments)
    return ()
