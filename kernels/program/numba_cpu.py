"""Run a table of descriptors: each row is one kernel with the places, sizes and strides of its arrays.

The kernels are the bodies of the other folders, called for one row after the other without a return to Python, and
compiled once for all models. All arrays are float32, except ids (int64) and masks (boolean).

A row of `table` is 64 int64: the number of the kernel, the number of its chunks, whether threads share them, the places
of up to 7 arrays, and from `SIZES` on the sizes and strides (in bytes) that the kernel below unpacks. A place is a base
and an offset: `bases` holds the address of the memory that a call works in, and of its inputs, so one table serves
calls from several threads at once. A row of `reals` is what the kernel needs in floating point.
"""

import numpy as np

from ..attention.by_block import forward_chunk_2 as attend
from ..bias_gelu.formula import gelu_row
from ..cpu.chunks import bounds
from ..cpu.compiler import body, entry, exact
from ..cpu.threads import parallel
from ..cpu.vector_loops import as_row
from ..layer_norm.numba_cpu import normalize_row
from ..linear.microkernel import multiply_add
from ..linear.numba_cpu import BLOCK
from ..patches.numba_cpu import move_chunk
from .places import dense_at, flags_at, floats_at, ids_at

WIDTH, SIZES = 64, 17  # of a row, and where its sizes begin
LINEAR, LAYER_NORM, ATTENTION, PATCHES, EMBEDDING, ONE, TWO = range(1, 8)  # the numbers of the kernels
COPY, RELU, GELU, GELU_TANH = range(4)  # what ONE does with an element
ADD, SUBTRACT, MULTIPLY, DIVIDE = range(4)  # what TWO does with two elements
ITEM = 4  # bytes of a float32


@body
def _place(row, bases, i):
    """Return the address of array `i` of a row."""
    return bases[row[3 + 2 * i]] + row[4 + 2 * i]


@body
def _linear(chunk, chunks, row, bases):
    """y = x W^T + b, with W in panels, and perhaps GELU: one block of rows with one group of panels."""
    rows, depth, columns, panels = row[SIZES], row[SIZES + 1], row[SIZES + 2], row[SIZES + 3]
    groups, width, gelu = row[SIZES + 4], row[SIZES + 5], row[SIZES + 6]
    block, group = chunk // groups, chunk % groups
    start, stop = block * BLOCK, min(block * BLOCK + BLOCK, rows)
    x = floats_at(_place(row, bases, 0), (rows, depth), (row[SIZES + 7], ITEM))[start:stop]
    w = dense_at(_place(row, bases, 1), (panels, depth, width), (depth * width * ITEM, width * ITEM, ITEM))
    bias = dense_at(_place(row, bases, 2), (row[SIZES + 9],), (ITEM,))
    y = floats_at(_place(row, bases, 3), (rows, columns), (row[SIZES + 8], ITEM))
    for p in range(*bounds(panels, group, groups)):
        j = p * width
        part = y[start:stop, j : min(j + width, columns)]
        multiply_add(x, w[p], bias[j : j + width], part)
        if gelu > 0:
            for i in range(part.shape[0]):
                numbers = as_row(part, i)
                gelu_row(numbers, numbers, gelu == 2)


@body
def _layer_norm(chunk, chunks, row, reals, bases):
    """y = the layer norm of x, or of total = x + residual, whose rows may repeat."""
    rows, columns, repeats, add = row[SIZES], row[SIZES + 1], row[SIZES + 2], row[SIZES + 3]
    x, residual, total = _place(row, bases, 0), _place(row, bases, 1), _place(row, bases, 4)
    weight = dense_at(_place(row, bases, 2), (columns,), (ITEM,))
    bias = dense_at(_place(row, bases, 3), (columns,), (ITEM,))
    y, eps = _place(row, bases, 5), np.float32(reals[0])
    for i in range(*bounds(rows, chunk, chunks)):
        numbers = dense_at(x + i * row[SIZES + 4], (columns,), (ITEM,))
        if add:
            more = dense_at(residual + i % repeats * row[SIZES + 5], (columns,), (ITEM,))
            sums = dense_at(total + i * row[SIZES + 6], (columns,), (ITEM,))
            for j in range(columns):
                sums[j] = numbers[j] + more[j]
            numbers = sums
        normalize_row(numbers, weight, bias, dense_at(y + i * row[SIZES + 7], (columns,), (ITEM,)), eps)


@body
def _heads(address, b, h, n, d, row, i):
    return floats_at(address, (b, h, n, d), (row[i], row[i + 1], row[i + 2], ITEM))


@body
def _attention(chunk, chunks, row, reals, bases):
    s = SIZES
    b, h, n, keys, d, e = row[s], row[s + 1], row[s + 2], row[s + 3], row[s + 4], row[s + 5]
    q = _heads(_place(row, bases, 0), b, h, n, d, row, s + 6)
    k = _heads(_place(row, bases, 1), b, h, keys, d, row, s + 9)
    v = _heads(_place(row, bases, 2), b, h, keys, e, row, s + 12)
    out = _heads(_place(row, bases, 3), b, h, n, e, row, s + 15)
    steps = (row[s + 18], row[s + 19], row[s + 20], row[s + 21])
    bias = floats_at(_place(row, bases, 4), (b, h, n, keys), steps)
    steps = (row[s + 22], row[s + 23], row[s + 24], row[s + 25])
    mask = flags_at(_place(row, bases, 5), (b, h, n, keys), steps)
    lse = dense_at(_place(row, bases, 6), (b, h, n), (h * n * ITEM, n * ITEM, ITEM))
    nothing = np.uint64(0)
    how = (row[s + 26] > 0, row[s + 27] > 0, row[s + 28] > 0, np.float32(reals[0]), nothing, np.float32(1), 0, 0)
    attend(chunk, chunks, row[s + 29], q, k, v, bias, mask, out, lse, how)


@body
def _patches(chunk, chunks, row, bases):
    s = SIZES
    b, c, high, wide, p, q = row[s], row[s + 1], row[s + 2], row[s + 3], row[s + 4], row[s + 5]
    down, across, size = high // p, wide // q, c * p * q
    steps = (c * high * wide * ITEM, high * wide * ITEM, wide * ITEM, ITEM)
    x = dense_at(_place(row, bases, 0), (b, c, high, wide), steps)
    y = dense_at(_place(row, bases, 1), (b, down * across, size), (down * across * size * ITEM, size * ITEM, ITEM))
    move_chunk(chunk, chunks, x, y, p, q, False)


@body
def _embedding(chunk, chunks, row, bases):
    count, columns = row[SIZES], row[SIZES + 1]
    ids = ids_at(_place(row, bases, 1), (count,), (8,))
    for r in range(*bounds(count, chunk, chunks)):
        numbers = dense_at(_place(row, bases, 0) + ids[r] * row[SIZES + 2], (columns,), (ITEM,))
        out = dense_at(_place(row, bases, 2) + r * columns * ITEM, (columns,), (ITEM,))
        for j in range(columns):
            out[j] = numbers[j]


@body
def _offset(r, row, i):
    """Return where row `r` of an array with four axes begins; its strides are in the table from `i` on."""
    second, third = row[SIZES + 1], row[SIZES + 2]
    return r // (second * third) * row[i] + r // third % second * row[i + 1] + r % third * row[i + 2]


@exact
def one(chunk, chunks, row, bases):
    """y = x, relu(x) or gelu(x), for arrays with four axes; the last axis of y is contiguous."""
    s = SIZES
    rows, columns, what = row[s] * row[s + 1] * row[s + 2], row[s + 3], row[s + 12]
    for r in range(*bounds(rows, chunk, chunks)):
        address = _place(row, bases, 0) + _offset(r, row, s + 4)
        out = dense_at(_place(row, bases, 1) + _offset(r, row, s + 8), (columns,), (ITEM,))
        if row[s + 7] != ITEM:  # only COPY
            apart = floats_at(address, (columns,), (row[s + 7],))
            for j in range(columns):
                out[j] = apart[j]
            continue
        x = dense_at(address, (columns,), (ITEM,))
        if what == COPY:
            for j in range(columns):
                out[j] = x[j]
        elif what == RELU:
            for j in range(columns):
                out[j] = np.maximum(x[j], np.float32(0))
        else:
            gelu_row(x, out, what == GELU_TANH)


@exact
def two(chunk, chunks, row, bases):
    """z = x + y, x - y, x y or x / y, for arrays with four axes; a y whose last stride is 0 repeats one number."""
    s = SIZES
    rows, columns, what = row[s] * row[s + 1] * row[s + 2], row[s + 3], row[s + 16]
    for r in range(*bounds(rows, chunk, chunks)):
        x = dense_at(_place(row, bases, 0) + _offset(r, row, s + 4), (columns,), (ITEM,))
        y = dense_at(_place(row, bases, 1) + _offset(r, row, s + 8), (columns,), (ITEM,))
        out = dense_at(_place(row, bases, 2) + _offset(r, row, s + 12), (columns,), (ITEM,))
        if row[s + 11] == 0 and columns > 0:
            _with_number(x, y[0], out, what)
        elif what == ADD:
            for j in range(columns):
                out[j] = x[j] + y[j]
        elif what == SUBTRACT:
            for j in range(columns):
                out[j] = x[j] - y[j]
        elif what == MULTIPLY:
            for j in range(columns):
                out[j] = x[j] * y[j]
        else:
            for j in range(columns):
                out[j] = x[j] / y[j]


@exact
def _with_number(x, number, out, what):
    if what == ADD:
        for j in range(out.size):
            out[j] = x[j] + number
    elif what == SUBTRACT:
        for j in range(out.size):
            out[j] = x[j] - number
    elif what == MULTIPLY:
        for j in range(out.size):
            out[j] = x[j] * number
    else:
        for j in range(out.size):
            out[j] = x[j] / number


@body
def _chunk(chunk, chunks, row, reals, bases):
    """Compute one chunk of one row of the table."""
    kernel = row[0]
    if kernel == LINEAR:
        _linear(chunk, chunks, row, bases)
    elif kernel == LAYER_NORM:
        _layer_norm(chunk, chunks, row, reals, bases)
    elif kernel == ATTENTION:
        _attention(chunk, chunks, row, reals, bases)
    elif kernel == PATCHES:
        _patches(chunk, chunks, row, bases)
    elif kernel == EMBEDDING:
        _embedding(chunk, chunks, row, bases)
    elif kernel == ONE:
        one(chunk, chunks, row, bases)
    elif kernel == TWO:
        two(chunk, chunks, row, bases)


@entry
def run(table, reals, bases, first, last, team):
    """Run the rows `first` ... `last` - 1 of a table. `team` is what `parallel` takes."""
    for i in range(first, last):
        row = table[i]
        parallel(_chunk, row[1], team if row[2] > 0 else 0, (row, reals[i], bases))
