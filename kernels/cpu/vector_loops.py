"""Loops that LLVM does not vectorize by itself, written with vector instructions: a maximum and a transpose."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .compiler import body

_WORD = ir.IntType(64)
_BYTES = 64  # of a vector; LLVM splits it where the processor has narrower ones


def _word(value):
    return ir.Constant(_WORD, value)


def _plain_largest(row):
    return np.max(row, initial=-np.inf, where=~np.isnan(row))


@intrinsic
def _largest(typing_context, row):
    """Return the largest element of a contiguous row that is not NaN; -inf if there is none.

    A scalar loop would take a few cycles for each element; this takes them for each vector.
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
    """Return row i of a matrix whose last axis is contiguous, as an array whose type says that it is contiguous."""
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


@intrinsic
def _borrowed(typing_context, array):
    """Return the same array as one that does not count its users: somebody else must keep it alive.

    An array that the function itself has made is freed after its last use, so it must be used again at the end.
    Each slice of a counted array adds to its counter and subtracts again, in atomic operations of a few nanoseconds,
    which is as long as a row of a small head takes.
    """

    def codegen(context, builder, signature, values):
        fresh = context.make_array(array)(context, builder)
        given = context.make_array(array)(context, builder, values[0])
        context.populate_array(
            fresh,
            data=given.data,
            shape=given.shape,
            strides=given.strides,
            itemsize=given.itemsize,
            meminfo=None,
        )
        return fresh._getvalue()

    return array(array), codegen


borrowed = (lambda array: array) if config.DISABLE_JIT else _borrowed
largest = _plain_largest if config.DISABLE_JIT else _largest
as_row = (lambda matrix, i: matrix[i]) if config.DISABLE_JIT else _as_row


@intrinsic
def _transpose_block(typing_context, x, i, j, out, scale):
    """Set out[j + b, i + a] = scale x[i + a, j + b] for all a and b that are less than the lanes of a vector.

    The rows of the block are vectors. Interleaving the first half of them with the second half turns rows into columns
    after as many rounds as the number of lanes has factors of two.
    """
    for array in (x, out):
        if not isinstance(array, types.Array) or array.ndim != 2 or array.dtype != scale:
            raise TypingError("transpose_block(x, i, j, out, scale): x and out are matrices of the type of scale")

    def codegen(context, builder, signature, values):
        source = context.make_array(signature.args[0])(context, builder, values[0])
        target = context.make_array(signature.args[3])(context, builder, values[3])
        i, j, scale_value = values[1], values[2], values[4]
        item = scale.bitwidth // 8
        lanes = _BYTES // item
        vector = ir.VectorType(source.data.type.pointee, lanes)

        def places(array, row, column):
            start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
            stride = builder.extract_value(array.strides, 0)
            first = builder.add(builder.mul(row, stride), builder.mul(column, _word(item)))
            at = builder.gep(start, [first])
            for _ in range(lanes):
                yield builder.bitcast(at, vector.as_pointer())
                at = builder.gep(at, [stride])

        rows = []
        for place in places(source, i, j):
            rows.append(builder.load(place))
            rows[-1].align = item
        half = lanes // 2
        low, high = (
            ir.Constant(ir.VectorType(ir.IntType(32), lanes), [k // 2 + start + k % 2 * lanes for k in range(lanes)])
            for start in (0, half)
        )
        for _ in range(lanes.bit_length() - 1):
            rows = [builder.shuffle_vector(rows[k // 2], rows[k // 2 + half], (low, high)[k % 2]) for k in range(lanes)]
        spread = builder.insert_element(ir.Constant(vector, ir.Undefined), scale_value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        spread = builder.shuffle_vector(spread, ir.Constant(vector, ir.Undefined), zeros)
        for row, place in zip(rows, places(target, j, i), strict=True):
            scaled = builder.mul(row, spread) if isinstance(scale, types.Integer) else builder.fmul(row, spread)
            builder.store(scaled, place).align = item
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, out, scale), codegen


def _plain_transpose_block(x, i, j, out, scale):
    lanes = _BYTES // x.itemsize
    out[j : j + lanes, i : i + lanes] = scale * x[i : i + lanes, j : j + lanes].T


transpose_block = _plain_transpose_block if config.DISABLE_JIT else _transpose_block


@body
def transpose(x, scale, out):
    """Set out (N, M) = scale x^T for x (M, N); the last axis of both is contiguous."""
    lanes = _BYTES // x.itemsize
    rows, columns = x.shape
    whole_rows, whole_columns = rows - rows % lanes, columns - columns % lanes
    for i in range(0, whole_rows, lanes):
        for j in range(0, whole_columns, lanes):
            transpose_block(x, i, j, out, scale)
    for i in range(rows):
        row = as_row(x, i)
        for j in range(whole_columns if i < whole_rows else 0, columns):
            out[j, i] = scale * row[j]
