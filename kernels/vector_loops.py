"""Loops that LLVM does not turn into vector instructions by itself, written as such: the largest of a row, a transpose."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_BYTES = 64  # of a vector; LLVM cuts it in pieces where the processor has narrower ones


def _word(value):
    return ir.Constant(_WORD, value)


def _plain_largest(row):
    return np.max(row, initial=-np.inf, where=~np.isnan(row))


@intrinsic
def _largest(typing_context, row):
    """The largest element of a contiguous row that is not NaN; -inf if there is none.

    Comparisons in the order of memory would take a few cycles for each element; here a whole vector takes them.
    """
    if not isinstance(row, types.Array) or row.ndim != 1 or row.layout != "C":
        raise TypingError("largest(row): row is a contiguous array with one axis")

    def codegen(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        item = row.dtype.bitwidth // 8
        lanes = _BYTES // item
        number = ir.FloatType() if item == 4 else ir.DoubleType()
        vector = ir.VectorType(number, lanes)
        lowest = ir.Constant(number, float("-inf"))
        (size,) = cgutils.unpack_tuple(builder, array.shape, 1)
        best = cgutils.alloca_once_value(builder, ir.Constant(vector, [lowest] * lanes))
        whole = builder.sub(size, builder.srem(size, _word(lanes)))
        with cgutils.for_range_slice(builder, _word(0), whole, _word(lanes)) as (j, _):
            place = builder.bitcast(builder.gep(array.data, [j]), vector.as_pointer())
            value = builder.load(place)
            value.align = item
            before = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", value, before), value, before), best)
        top = cgutils.alloca_once_value(builder, lowest)

        def take(value):
            before = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", value, before), value, before), top)

        with cgutils.for_range_slice(builder, whole, size, _word(1)) as (j, _):
            take(builder.load(builder.gep(array.data, [j])))
        folded, width = builder.load(best), lanes
        while width > 1:
            width //= 2
            half = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
            other = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width, 2 * width)))
            low = builder.shuffle_vector(folded, folded, half)
            high = builder.shuffle_vector(folded, folded, other)
            folded = builder.select(builder.fcmp_ordered(">", high, low), high, low)
        take(builder.extract_element(folded, ir.Constant(ir.IntType(32), 0)))
        return builder.load(top)

    return row.dtype(row), codegen


@intrinsic
def _as_row(typing_context, matrix, i):
    """Row i of a matrix whose last axis is contiguous, as an array that is known to be so."""
    if not isinstance(matrix, types.Array) or matrix.ndim != 2:
        raise TypingError("as_row(matrix, i): matrix has two axes")
    kind = types.Array(matrix.dtype, 1, "C")

    def codegen(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        row = context.make_array(kind)(context, builder)
        offset = builder.mul(values[1], builder.extract_value(array.strides, 0))
        start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        size, item = builder.extract_value(array.shape, 1), array.itemsize
        context.populate_array(
            row,
            data=builder.bitcast(builder.gep(start, [offset]), array.data.type),
            shape=cgutils.pack_array(builder, [size]),
            strides=cgutils.pack_array(builder, [item]),
            itemsize=item,
            meminfo=None,
        )
        return row._getvalue()

    return kind(matrix, types.intp), codegen


largest = _plain_largest if config.DISABLE_JIT else _largest
as_row = (lambda matrix, i: matrix[i]) if config.DISABLE_JIT else _as_row
