"""bfloat16 in compiled code, which sees its arrays as uint16: an element is the upper half of a float32.

    widened(x)           an element as float32; elements of other dtypes are returned unchanged
    rounded(value, out)  a value as an element of `out`: rounded to bfloat16, ties to even, if `out` is uint16
    real(value, array)   a constant in the dtype in which elements of `array` are computed

    as_float(matrix)     the matrix with its elements widened; `matrix` itself if it is not bfloat16
    float_like(matrix)   memory for results in float32; `matrix` itself if it is not bfloat16
    settle(x, matrix)    round results in such memory into `matrix`; nothing is left to do if it is not bfloat16

Kernels read with `widened` and write with `rounded`, so they compute in float32 and store bfloat16. Loops over both
become vector instructions. Where the processor has instructions for bfloat16 (`processor`), these treat numbers below
1.2e-38 as 0.
"""

from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, overload

from . import processor
from .compiler import body
from .vector_loops import as_row

DTYPE = np.dtype(ml_dtypes.bfloat16)
NATIVE = processor.has_bfloat16()  # instructions that convert to it, and that sum products of it
_HALF, _WORD = ir.IntType(16), ir.IntType(32)


def bits(array: Any) -> Any:
    """Return a bfloat16 array as a view that compiled code can take, and other arrays unchanged."""
    return array.view(np.uint16) if array.dtype == DTYPE else array


def sum_dtype(dtype: Any) -> Any:
    """Return the dtype in which elements of `dtype` are computed and summed."""
    return np.dtype(np.float32) if dtype == DTYPE else dtype


# LLVM code ----------------------------------------------------------------------------------------------------------


class BFloat(ir.Type):
    """LLVM's type bfloat, for which llvmlite has no class."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


def of_shape(kind: Any, like: Any) -> Any:
    """Return the type `kind`, or a vector of it if `like` is a vector."""
    return ir.VectorType(kind, like.count) if isinstance(like, ir.VectorType) else kind


def constant(kind: Any, value: int) -> Any:
    """Return an integer constant, or a vector of equal ones."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def write_rounding(builder: Any, value: Any) -> Any:
    """Write code that rounds a float32, or a vector of them, to the 16 bits of bfloat16."""
    half, word = of_shape(_HALF, value.type), of_shape(_WORD, value.type)
    if NATIVE:
        short = ir.instructions.CastInstr(builder.block, "fptrunc", value, of_shape(BFloat(), value.type), "")
        builder._insert(short)
        return builder.bitcast(short, half)
    all_bits = builder.bitcast(value, word)
    upper = builder.lshr(all_bits, constant(word, 16))
    to_even = builder.add(builder.and_(upper, constant(word, 1)), constant(word, 0x7FFF))
    nearest = builder.lshr(builder.add(all_bits, to_even), constant(word, 16))
    quiet_nan = builder.or_(upper, constant(word, 0x40))
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, nearest), half)


@intrinsic
def _round(typing_context, value):
    def codegen(context, builder, signature, values):
        return write_rounding(builder, values[0])

    return types.uint16(types.float32), codegen


@intrinsic
def _widen(typing_context, x):
    def codegen(context, builder, signature, values):
        word = builder.shl(builder.zext(values[0], _WORD), constant(_WORD, 16))
        return builder.bitcast(word, ir.FloatType())

    return types.float32(types.uint16), codegen


# Elements -----------------------------------------------------------------------------------------------------------


def widened(x):
    """Return an element of bfloat16 as float32, and elements of other dtypes unchanged."""
    if getattr(x, "dtype", None) != np.uint16:
        return x
    return np.asarray(np.uint32(x) << np.uint32(16)).view(np.float32)[()]


def rounded(value, out):
    """Return a value as an element of the array `out`."""
    return np.asarray(value, np.float32).astype(DTYPE).view(np.uint16)[()] if out.dtype == np.uint16 else value


def real(value, array):
    """Return a constant in the dtype in which elements of `array` are computed."""
    return (np.float32 if array.dtype == np.uint16 else array.dtype.type)(value)


# Matrices with a contiguous last axis ---------------------------------------------------------------------------------


@body
def _itself(matrix):
    return matrix


@body
def _widen_matrix(matrix):
    wide = np.empty(matrix.shape, np.float32)
    for i in range(matrix.shape[0]):
        row, out = as_row(matrix, i), wide[i]
        for j in range(row.size):
            out[j] = widened(row[j])
    return wide


@body
def _new_float(matrix):
    return np.empty(matrix.shape, np.float32)


@body
def _round_matrix(x, matrix):
    for i in range(matrix.shape[0]):
        row, out = x[i], as_row(matrix, i)
        for j in range(row.size):
            out[j] = rounded(row[j], out)


@body
def _leave_matrix(x, matrix):
    pass


def as_float(matrix):
    """Return the matrix with its elements widened, or the matrix itself."""
    return (_widen_matrix if matrix.dtype == np.uint16 else _itself)(matrix)


def float_like(matrix):
    """Return memory for results that will be rounded into `matrix`."""
    return (_new_float if matrix.dtype == np.uint16 else _itself)(matrix)


def settle(x, matrix):
    """Round results from such memory into `matrix`."""
    (_round_matrix if matrix.dtype == np.uint16 else _leave_matrix)(x, matrix)


# The same, for the compiler ------------------------------------------------------------------------------------------

if not config.DISABLE_JIT:

    @overload(widened, inline="always")
    def _widened(x):
        return (lambda x: _widen(x)) if x == types.uint16 else (lambda x: x)

    @overload(rounded, inline="always")
    def _rounded(value, out):
        return (lambda value, out: _round(value)) if out.dtype == types.uint16 else (lambda value, out: value)

    @overload(real, inline="always")
    def _real(value, array):
        if array.dtype == types.float64:
            return lambda value, array: np.float64(value)
        return lambda value, array: np.float32(value)

    @overload(as_float, inline="always")
    def _as_float(matrix):
        convert = _widen_matrix if matrix.dtype == types.uint16 else _itself
        return lambda matrix: convert(matrix)

    @overload(float_like, inline="always")
    def _float_like(matrix):
        allocate = _new_float if matrix.dtype == types.uint16 else _itself
        return lambda matrix: allocate(matrix)

    @overload(settle, inline="always")
    def _settle(x, matrix):
        finish = _round_matrix if matrix.dtype == types.uint16 else _leave_matrix
        return lambda x, matrix: finish(x, matrix)
