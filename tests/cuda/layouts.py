"""Arrays of the host on the device, in the same layout: with the strides, the offset and the alignment they have here.

`cupy.asarray` would make each of them dense and aligned, so that no kernel would meet a view.
"""

from typing import Any

import numpy as np

BOUNDARY = 256  # bytes; every allocation on a device begins at a multiple of this, and no instruction needs more


def uploaded(array: np.ndarray, cupy: Any) -> tuple[Any, Any]:
    """Return a view on the device like this one on the host, and the bytes there of which it is a view.

    The bytes are those of the whole array that `array` is a view of, from the last boundary before it.
    """
    memory = bytes_of(array)
    before = memory.ctypes.data % BOUNDARY
    padded = np.zeros(before + memory.nbytes, np.uint8)
    padded[before:] = memory
    there = cupy.asarray(padded)
    if array.size == 0:
        return cupy.asarray(np.array(array)), there
    begin = before + array.ctypes.data - memory.ctypes.data
    first = there[begin : begin + array.itemsize].view(array.dtype)
    return cupy.lib.stride_tricks.as_strided(first, array.shape, array.strides), there


def bytes_of(array: np.ndarray) -> np.ndarray:
    """Return the memory of the whole array that `array` is a view of, as bytes."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    low, high = np.lib.array_utils.byte_bounds(root)
    memory = np.lib.stride_tricks.as_strided(root, (1,) * root.ndim, root.strides) if root.size else root
    first = memory.reshape(-1)[:1].view(np.uint8)  # a root without negative strides begins at its lowest address
    assert root.size == 0 or first.ctypes.data == low
    return np.lib.stride_tricks.as_strided(first, (high - low,), (1,)) if root.size else np.zeros(0, np.uint8)


def packed(x: np.ndarray) -> np.ndarray:
    """Return one of three arrays whose rows take turns in memory, as q, k and v do; the other two are NaN."""
    three = np.full((*x.shape[:-1], 3, x.shape[-1]), np.nan).astype(x.dtype)
    three[..., 1, :] = x
    return three[..., 1, :]


def shifted(x: np.ndarray) -> np.ndarray:
    """Return a dense array that begins one element after a boundary: it is not aligned to 16 bytes."""
    memory = np.zeros(x.size + 1 + BOUNDARY // x.itemsize, x.dtype)
    begin = (-memory.ctypes.data % BOUNDARY) // x.itemsize + 1
    view = memory[begin : begin + x.size].reshape(x.shape)
    view[...] = x
    return view
