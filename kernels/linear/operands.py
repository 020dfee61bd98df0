"""Operands of the tiles, made from matrices: float32 and float64 as they are, bfloat16 in pairs or widened to float32.

The instruction for bfloat16 takes two neighbours in k at a time, so its operands are 32-bit words of two elements. In a
row that is contiguous in k, the words are already in memory; two rows that follow each other in k are interleaved.
Without that instruction the elements are widened to float32, block by block, while they are in the cache.

    operand(block)       rows (M, K) of a matrix from `left_rows`, as the left operand of a product
    stack(rows, out)     rows (K, M) written to the first rows of `out` as an operand; returns how many rows that are
    stacked(rows, room, uses)  rows (K, M) as a left operand of `uses` panels: the rows themselves, or a copy in `room`
    stack_in_panels(rows, out)  like `stack` for a right operand, its columns cut into panels `out` (P, K, width); pairs
                         of bfloat16 become one panel
"""

import numpy as np
from numba import types
from numba.core import config
from numba.extending import overload

from ..cpu.arrays import dense
from ..cpu.bfloat16 import DTYPE, NATIVE, as_float, bits, widened
from ..cpu.compiler import body
from ..cpu.vector_loops import as_row
from .microkernel import copy_to_panel

BFLOAT16 = np.dtype(np.uint32 if NATIVE else np.float32)  # what bfloat16 is multiplied as
CROWDED = 512  # bytes; rows that are a multiple of it apart share 8 of the 64 sets of a cache, and evict each other
FEW = 2  # uses of crowded rows for which a copy takes longer than the misses that it avoids
AT_ONCE = 2 if NATIVE else 1  # how many of its elements, neighbours in k, are multiplied at once


def operand_dtype(dtype):
    """Return the dtype of panels for operands of `dtype`."""
    return BFLOAT16 if dtype == DTYPE else dtype


def depth_of(size, dtype):
    """Return the number of rows of a panel for operands with `size` columns."""
    return -(-size // 2) if operand_dtype(dtype) == np.uint32 else size


def left_rows(x):
    """Return a matrix (R, K) as `operand` takes it: dense, with a column of zeros where pairs need an even K."""
    if operand_dtype(x.dtype) != np.uint32:
        return bits(dense(x))
    if x.shape[1] % 2:
        x = np.concatenate([x, np.zeros((x.shape[0], 1), x.dtype)], axis=1)
    x = dense(x)
    return bits(x if x.__array_interface__["data"][0] % 4 == 0 else x.copy())


# Compiled code ------------------------------------------------------------------------------------------------------


@body
def _in_words(block):
    return block.view(np.uint32)


@body
def _zip(rows, out):
    count, columns = rows.shape
    for i in range(count // 2):
        even, odd, words = as_row(rows, 2 * i), as_row(rows, 2 * i + 1), as_row(out, i)
        for j in range(columns):
            words[j] = np.uint32(even[j]) | (np.uint32(odd[j]) << np.uint32(16))
    if count % 2 == 1:
        last, words = as_row(rows, count - 1), as_row(out, count // 2)
        for j in range(columns):
            words[j] = np.uint32(last[j])
    return (count + 1) // 2


@body
def _copy(rows, out):
    for i in range(rows.shape[0]):
        row, numbers = as_row(rows, i), as_row(out, i)
        for j in range(row.size):
            numbers[j] = widened(row[j])
    return rows.shape[0]


@body
def _converted(rows, room, uses):
    return room[: stack(rows, room)]


@body
def _where_lines_differ(rows, room, uses):
    return rows if rows.strides[0] % CROWDED or uses <= FEW else room[: stack(rows, room)]


@body
def _copy_in_panels(rows, out):
    width = out.shape[2]
    whole = rows.shape[1] // width
    for i in range(rows.shape[0]):
        row = as_row(rows, i)
        for p in range(whole):
            copy_to_panel(row, p * width, out, p, i)
        for j in range(whole * width, row.size):
            out[whole, i, j - whole * width] = row[j]
    return rows.shape[0]


@body
def _widen_in_panels(rows, out):
    width = out.shape[2]
    for p in range(out.shape[0]):
        _copy(rows[:, p * width : p * width + width], out[p])
    return rows.shape[0]


@body
def _zip_in_one(rows, out):
    return _zip(rows, out[0])


def operand(block):
    """Return a block of rows as the left operand of a product."""
    return _in_words(block) if NATIVE and block.dtype == np.uint16 else as_float(block)


def stack(rows, out):
    """Write rows that follow each other in k to `out` as an operand, and return how many rows of it they become."""
    return (_zip if NATIVE and rows.dtype == np.uint16 else _copy)(rows, out)


def stacked(rows, room, uses):
    """Return rows that follow each other in k as a left operand: the rows themselves, or a copy in `room`."""
    return (_converted if rows.dtype == np.uint16 else _where_lines_differ)(rows, room, uses)


def stack_in_panels(rows, out):
    """Write rows that follow each other in k to panels, and return how many rows of each they become."""
    if rows.dtype != np.uint16:
        return _copy_in_panels(rows, out)
    return (_zip_in_one if NATIVE else _widen_in_panels)(rows, out)


if not config.DISABLE_JIT:

    @overload(operand, inline="always")
    def _operand(block):
        convert = _in_words if NATIVE and block.dtype == types.uint16 else as_float
        return lambda block: convert(block)

    @overload(stack, inline="always")
    def _stack(rows, out):
        put = _zip if NATIVE and rows.dtype == types.uint16 else _copy
        return lambda rows, out: put(rows, out)

    @overload(stacked, inline="always")
    def _stacked(rows, room, uses):
        take = _converted if rows.dtype == types.uint16 else _where_lines_differ
        return lambda rows, room, uses: take(rows, room, uses)

    @overload(stack_in_panels, inline="always")
    def _stack_in_panels(rows, out):
        put = (_zip_in_one if NATIVE else _widen_in_panels) if rows.dtype == types.uint16 else _copy_in_panels
        return lambda rows, out: put(rows, out)
