"""How matrices become what the tiles multiply: float32 and float64 as they are; bfloat16 in pairs, or widened.

An instruction for bfloat16 takes two neighbours in k at a time, so its operands are words of two: of a row that is
contiguous in k, what lies there already; of two rows that follow each other in k, their elements zipped. Without that
instruction the elements are widened to float32, block by block, while they are in the cache.

    operand(block)   (M, K), rows of what `left_rows` gave, to be an operand of the depth K
    stacked(rows)    (K, M) to be the same, as it is or transposed
"""

import numpy as np
from numba import types
from numba.core import config
from numba.extending import overload

from ..arrays import dense
from ..bfloat16 import DTYPE, NATIVE, as_float, bits
from ..compiler import body
from ..vector_loops import as_row

BFLOAT16 = np.dtype(np.uint32 if NATIVE else np.float32)  # what bfloat16 is multiplied as


def operand_dtype(dtype):
    """The dtype of panels for operands of a dtype."""
    return BFLOAT16 if dtype == DTYPE else dtype


def depth_of(size, dtype):
    """The number of rows of a panel for operands with this many columns."""
    return -(-size // 2) if operand_dtype(dtype) == np.uint32 else size


def left_rows(x):
    """A matrix (R, K) as `operand` takes it: dense, with a column of zeros where elements go in pairs and K is odd."""
    if operand_dtype(x.dtype) != np.uint32:
        return bits(dense(x))
    if x.shape[1] % 2:
        x = np.concatenate([x, np.zeros((x.shape[0], 1), x.dtype)], axis=1)
    x = dense(x)
    return bits(x if x.ctypes.data % 4 == 0 else x.copy())


# Compiled code ------------------------------------------------------------------------------------------------------


@body
def _in_words(block):
    return block.view(np.uint32)


@body
def _zipped(rows):
    count, columns = rows.shape
    words = np.empty((-(-count // 2), columns), np.uint32)
    for i in range(count // 2):
        even, odd, out = as_row(rows, 2 * i), as_row(rows, 2 * i + 1), words[i]
        for j in range(columns):
            out[j] = np.uint32(even[j]) | (np.uint32(odd[j]) << np.uint32(16))
    if count % 2 == 1:
        last, out = as_row(rows, count - 1), words[count // 2]
        for j in range(columns):
            out[j] = np.uint32(last[j])
    return words


def operand(block):
    """A block of rows, as the left operand of a product."""
    return _in_words(block) if NATIVE and block.dtype == np.uint16 else as_float(block)


def stacked(rows):
    """Rows that follow each other in k, as an operand."""
    return _zipped(rows) if NATIVE and rows.dtype == np.uint16 else as_float(rows)


if not config.DISABLE_JIT:

    @overload(operand, inline="always")
    def _operand(block):
        convert = _in_words if NATIVE and block.dtype == types.uint16 else as_float
        return lambda block: convert(block)

    @overload(stacked, inline="always")
    def _stacked(rows):
        convert = _zipped if NATIVE and rows.dtype == types.uint16 else as_float
        return lambda rows: convert(rows)
