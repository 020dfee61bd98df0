"""What the kernels in Python share: reductions in shared memory, which the simulator can run, and Philox.

In the simulator (NUMBA_ENABLE_CUDASIM=1) two `cuda.shared.array` on one source line would silently be one: none share
a line.
"""

from typing import Any

import numpy as np
from numba import cuda

from .device import library_of

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def stream_of(array: Any) -> Any:
    """CuPy's current stream for a launch; numba's own, 0, where that is the default one, and in the simulator."""
    library = library_of(array)
    stream = library.cuda.get_current_stream().ptr if hasattr(library, "cuda") else 0
    return cuda.external_stream(stream) if stream else 0


@cuda.jit(device=True)
def group_sum(value, scratch, thread, first, size):
    """The sum over the `size` (a power of two) neighbouring threads from `first` on; all threads of a block call it."""
    cuda.syncthreads()  # the scratch of the sum before has been read
    scratch[thread] = value
    cuda.syncthreads()
    step = size // 2
    while step > 0:
        if thread - first < step:
            scratch[thread] += scratch[thread + step]
        cuda.syncthreads()
        step //= 2
    return scratch[first]


@cuda.jit(device=True)
def group_max(value, scratch, thread, first, size):
    """The largest likewise; NaN is larger than all."""
    cuda.syncthreads()
    scratch[thread] = value
    cuda.syncthreads()
    step = size // 2
    while step > 0:
        if thread - first < step:
            other = scratch[thread + step]
            if other > scratch[thread] or other != other:
                scratch[thread] = other
        cuda.syncthreads()
        step //= 2
    return scratch[first]


@cuda.jit(device=True)
def keep_factor(element, threshold, factor, seed, offset):
    """The factor of dropout for an element: the same words as kernels/philox.py."""
    counter = np.uint64(element // 4)
    c0 = counter & _LOW
    c1 = counter >> _HIGH
    c2 = np.uint64(offset) & _LOW
    c3 = np.uint64(offset) >> _HIGH
    k0 = np.uint64(seed) & _LOW
    k1 = np.uint64(seed) >> _HIGH
    for _ in range(10):
        p0 = c0 * _M0
        p1 = c2 * _M1
        c0 = (p1 >> _HIGH) ^ c1 ^ k0
        c1 = p1 & _LOW
        c2 = (p0 >> _HIGH) ^ c3 ^ k1
        c3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    word = element % 4
    drawn = c0
    if word == 1:
        drawn = c1
    elif word == 2:
        drawn = c2
    elif word == 3:
        drawn = c3
    return factor if drawn >= threshold else np.float32(0)
