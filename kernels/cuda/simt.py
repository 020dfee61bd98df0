"""Functions of the kernels in Python: reductions in shared memory for the simulator, the head of a block, and Philox.

In the simulator (NUMBA_ENABLE_CUDASIM=1) two calls of `cuda.shared.array` on one source line silently return the same
array, so each has a line of its own.
"""

import os
from typing import Any

import numpy as np
from numba import config, cuda

from .device import library_of

# Numba advises against grids of fewer than 128 blocks, which short sequences and few rows have.
if "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS" not in os.environ:
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

_LEGACY = 1  # cudaStreamLegacy, the default stream by a name that is not 0

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def stream_of(array: Any) -> Any:
    """Return CuPy's current stream for a launch; 0 in the simulator.

    For 0, the default stream, Numba would ask arrays of CuPy for their stream, and CuPy would warn about that number.
    """
    library = library_of(array)
    return cuda.external_stream(library.cuda.get_current_stream().ptr or _LEGACY) if hasattr(library, "cuda") else 0


@cuda.jit(device=True)
def group_sum(value, scratch, thread, first, size):
    """Return the sum over the `size` neighbouring threads from `first` on. All threads of the block must call it.

    `size` is a power of two.
    """
    cuda.syncthreads()  # until the scratch of the previous sum has been read
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
    """Return the largest value over these threads; NaN counts as larger than any number."""
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
def head_of_block(heads):
    """Return which image and which of its heads this block serves, if the heads have two dimensions of the grid."""
    index = cuda.blockIdx.y + cuda.gridDim.y * cuda.blockIdx.z
    return index // heads, index % heads


@cuda.jit(device=True)
def keep_factor(element, threshold, factor, seed, offset):
    """Return the factor of dropout for an element, from the same words as kernels/cpu/philox.py."""
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
