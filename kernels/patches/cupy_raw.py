"""Images cut into patches, and for the gradient patches put together to images, in CUDA C++.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one thread for each element of the patches, whose pixel is found by division                           |
| v2      | one thread for each row of a patch, so that all its pixels are found by one division                   |

x (B, C, H, W), y (B, N, C P Q). Each pixel is in exactly one patch, so backward is the same copy in the other
direction.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, dense, device_of, library_of, pointer

_SOURCE = "patches/patches.cu"
_THREADS = 256


class _Patches(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_int) for n in ("channels", "height", "width", "p", "q"))


def _kernel(version: int, ctype: str, back: bool) -> Kernel:
    return Kernel(_SOURCE, f"patches_{version}<{ctype}, {'true' if back else 'false'}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        for version in VERSIONS:
            for back in (False, True):
                yield _kernel(version, ctype, back), 64


def _threads_1(y: Any, q: int) -> int:
    return y.size


def _threads_2(y: Any, q: int) -> int:
    return y.size // q


VERSIONS = {1: _threads_1, 2: _threads_2}  # the number of threads


def _move(x: Any, y: Any, size: tuple[int, int], back: bool, version: int) -> None:
    count = VERSIONS[version](y, size[1])
    arguments = [pointer(x), pointer(y), ctypes.c_longlong(count), _Patches(*x.shape[1:], *size)]
    kernel = _kernel(version, CTYPES[x.dtype.name], back)
    device_of(x).launch(kernel, (-(-count // _THREADS),), _THREADS, arguments)


def forward(x, *, size, version):
    """Map x (B, C, H, W), with patches of size (P, Q), to y (B, N, C P Q) and the shape of x."""
    (b, c, h, w), (height, width) = x.shape, size
    y = library_of(x).empty((b, (h // height) * (w // width), c * height * width), x.dtype)
    _move(dense(x), y, size, False, version)
    return y, x.shape


def backward(dy, shape, *, size, needs, version):
    """Map dy (B, N, C P Q) to dx (B, C, H, W)."""
    dx = library_of(dy).empty(shape, dy.dtype)
    _move(dx, dense(dy), size, True, version)
    return (dx,)
