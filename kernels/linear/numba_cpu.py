"""The affine map of a layer, y = x W^T + b, forward and backward.

| version | what it changes, and gains                                                                              |
|---------|---------------------------------------------------------------------------------------------------------|
| v1      | one dot product for each output                                                                         |
| v2      | register tiles (`microkernel`) over panels of W that are packed once, with the bias added at the end of |
|         | a tile; dW in tiles of its own, for parts of the rows, which are then summed                            |

Measured with two threads on a Zen 4, for (8320, 192) to 768: v1 is 0.44 and 0.005 times as fast as the plain rule, v2
is 2.6 and 194 times as fast as v1 forward and backward (`python -m benchmarks.versions linear`).

x (R, K), W (N, K), b (N,), y (R, N); the leading axes of x are flattened into R. The sums of dW and db run over parts
and blocks of the rows, so that rounding errors do not grow with R; shapes alone decide how the rows are cut. bfloat16
is multiplied in pairs (`operands`), and all sums are float32.
"""

from functools import cache

import numpy as np

from ..cast.numba_cpu import forward as cast
from ..cpu.arrays import as_matrix, dense, rows_of
from ..cpu.bfloat16 import bits, real, rounded, sum_dtype, widened
from ..cpu.chunks import PACKED, PRODUCTS, TOGETHER, bounds, team_for
from ..cpu.compiler import body, entry
from ..cpu.threads import parallel
from ..cpu.vector_loops import as_row, transpose
from .microkernel import PANEL_BYTES, ROWS, multiply, multiply_add, ready
from .operands import AT_ONCE, depth_of, left_rows, operand, operand_dtype, stack, stack_in_panels, stacked

BLOCK = 8 * ROWS[0]  # rows that are multiplied with all panels together: their x and y stay in the second-level cache
DEPTH = 192  # rows of operands that are multiplied at once in dW = dy^T x
WIDTH, TILE_BYTES = 1536, 320 * 1024  # the most bytes of a row of a tile of dW, and of the whole tile
TASKS = 8  # the least number of tasks for threads to share
FEW_BLOCKS = 64  # so few that two threads would not have equally much to do if their number is odd
ROWS_AT_LEAST, PRODUCTS_AT_LEAST = 64, 3_000_000  # rows and multiply-adds of a part of the rows


# v1 -----------------------------------------------------------------------------------------------------------------


@body
def _forward_chunk_1(chunk, chunks, x, weight, bias, y):
    """Compute some rows of y."""
    rows, depth = x.shape
    for i in range(*bounds(rows, chunk, chunks)):
        for j in range(weight.shape[0]):
            total = bias[j] if bias.size else bias.dtype.type(0)
            for k in range(depth):
                total += widened(x[i, k]) * widened(weight[j, k])
            y[i, j] = rounded(total, y)


@entry
def _forward_1(x, weight, panels, bias, y, team):
    parallel(_forward_chunk_1, min(x.shape[0], 16), team, (x, weight, bias, y))


@entry
def _backward_1(dy, x, weight, panels, dx, dweight, dbias, wants_dx, wants_dweight, team):
    if wants_dx:
        for i in range(dx.shape[0]):
            for k in range(dx.shape[1]):
                total = real(0, dx)
                for j in range(weight.shape[0]):
                    total += widened(dy[i, j]) * widened(weight[j, k])
                dx[i, k] = rounded(total, dx)
    if wants_dweight:
        for j in range(dweight.shape[0]):
            for k in range(dweight.shape[1]):
                total = real(0, x)
                for i in range(x.shape[0]):
                    total += widened(dy[i, j]) * widened(x[i, k])
                dweight[j, k] = rounded(total, dweight)
    for j in range(dbias.size):
        all_rows = np.float64(0)
        for i in range(x.shape[0]):
            all_rows += widened(dy[i, j])
        dbias[j] = all_rows


# v2 -----------------------------------------------------------------------------------------------------------------


@body
def _pack_chunk(chunk, chunks, weight, transposed, panels):
    """Fill panels (P, K, tile) with the columns of W^T, or of W if not transposed; zeros beyond the last column."""
    count, depth, width = panels.shape
    zero = panels.dtype.type(0)
    for p in range(chunk, count, chunks):
        panel, start = panels[p], p * width
        columns = min(width, weight.shape[0 if transposed else 1] - start)
        if transposed:
            transpose(operand(weight[start : start + columns]), panels.dtype.type(1), panel)
        else:
            stack(weight[:, start : start + columns], panel)
        for k in range(depth):
            for j in range(columns, width):
                panel[k, j] = zero


def groups_of(rows, size, panels):
    """Return into how many groups the panels of a weight with `size` elements are cut.

    A thread multiplies one block of rows with one group at a time.
    """
    blocks = max(1, -(-rows // BLOCK))
    is_uneven = blocks % 2 == 1 and blocks < FEW_BLOCKS and BLOCK * size > 2 * PRODUCTS
    return max(1, min(panels, max(TASKS // blocks, 2 if is_uneven else 1)))


_groups_of = body(groups_of)  # compiled


@body
def _product_chunk(chunk, chunks, x, panels, bias, y, groups):
    """Multiply one block of rows with one group of panels, and add the bias, if there is one."""
    n, width = y.shape[1], panels.shape[2]
    block, group = chunk // groups, chunk % groups
    start, stop = block * BLOCK, min(block * BLOCK + BLOCK, x.shape[0])
    rows = operand(x[start:stop])
    for p in range(*bounds(panels.shape[0], group, groups)):
        j = p * width
        multiply_add(rows, panels[p], bias[j : j + width], y[start:stop, j : min(j + width, n)])


@body
def _weight_chunk(chunk, chunks, dy, x, dweights, dbiases, panels, height, width):
    """Compute a tile of dy^T x, with `height` rows and `width` columns, over one part of the rows; likewise of db."""
    parts, _, k = dweights.shape
    tiles = chunks // parts
    part, tile, across = chunk // tiles, chunk % tiles, max(1, -(-k // width))
    i, j = tile // across * height, tile % across * width
    target, dbias = dweights[part, i : i + height, j : j + width], dbiases[part, i : i + height]
    target[:] = dweights.dtype.type(0)
    if j == 0:
        dbias[:] = 0
    rows, columns = target.shape
    strip = columns if AT_ONCE == 2 and x.itemsize == 2 else panels.shape[2]
    left = np.empty((DEPTH, _odd_lines(rows, panels.itemsize)), panels.dtype)[:, :rows]
    right = np.empty((-(-columns // max(strip, 1)), DEPTH + 1, strip), panels.dtype)
    sums = np.empty(rows, dweights.dtype)
    step = DEPTH * AT_ONCE if x.itemsize == 2 else DEPTH
    start, stop = bounds(x.shape[0], part, parts)
    for r in range(start, stop, step):
        end = min(r + step, stop)
        upstream = dy[r:end, i : i + rows]
        block = stacked(upstream, left, right.shape[0])
        depth = stack_in_panels(x[r:end, j : j + columns], right)
        for p in range(right.shape[0]):
            first, last = p * strip, min(p * strip + strip, columns)
            multiply(block.T, right[p, :depth], target[:, first:last], True)
        if j == 0 and dbias.size:
            _add_columns(upstream, sums, dbias)


@body
def _odd_lines(size, itemsize):
    """Return a size of at least `size` whose rows begin in different sets of the first-level cache."""
    return (-(-size * itemsize // 64) // 2 * 2 + 1) * 64 // itemsize


@body
def _add_columns(rows, part, total):
    """Add the sum of `rows` over the first axis to total. `part` is scratch memory."""
    for start in range(0, rows.shape[0], 2 * TOGETHER):
        stop = min(start + 2 * TOGETHER, rows.shape[0])
        whole = start + (stop - start) // 4 * 4
        part[:] = part.dtype.type(0)
        for i in range(start, whole, 4):
            a, b, c, d = as_row(rows, i), as_row(rows, i + 1), as_row(rows, i + 2), as_row(rows, i + 3)
            for j in range(part.size):
                part[j] += (widened(a[j]) + widened(b[j])) + (widened(c[j]) + widened(d[j]))
        for i in range(whole, stop):
            row = as_row(rows, i)
            for j in range(part.size):
                part[j] += widened(row[j])
        for j in range(part.size):
            total[j] += part[j]


@body
def _sum_chunk(chunk, chunks, dweights, dbiases, dweight, dbias):
    """Sum the parts of some rows of dW and db."""
    parts, n, _ = dweights.shape
    for i in range(*bounds(n, chunk, chunks)):
        total, out = dweights[0, i], dweight[i]
        for part in range(1, parts):
            more = dweights[part, i]
            for j in range(total.size):
                total[j] += more[j]
        for j in range(total.size):
            out[j] = rounded(total[j], out)
        if dbias.size:
            dbias[i] = np.sum(dbiases[:, i])


@body
def _even_part(size, most, unit):
    """Cut `size` into equal parts of at most `most`, and return the size of one, rounded up to a multiple of `unit`."""
    parts = max(1, -(-size // most))
    return max(1, -(-size // (parts * unit))) * unit


@body
def _cut(rows, n, k, itemsize):
    """Return the height and width of the tiles of dW (N, K), and the number of parts into which R rows are cut.

    With larger tiles, each number of dy and x is read fewer times; the sums of a tile stay in the second-level cache.
    """
    width = _even_part(k, WIDTH // itemsize, PANEL_BYTES // itemsize)
    height = _even_part(n, max(1, TILE_BYTES // (width * itemsize)), ROWS[0])
    tiles = max(1, -(-n // height)) * max(1, -(-k // width))
    parts = max(1, min(-(-TASKS // tiles), rows // ROWS_AT_LEAST, max(2, rows * n * k // PRODUCTS_AT_LEAST)))
    if parts > 1 and parts * tiles % 2 == 1:  # so that two threads have equally many tasks
        parts += 1
    return height, width, parts


@entry
def _forward_2(x, weight, panels, bias, y, team):
    _multiply_all(x, weight, True, panels, bias, y, team)


@body
def _multiply_all(x, weight, transposed, panels, bias, y, team):
    """Set y = x W^T + b, or x W + b if not transposed, by all threads of the team."""
    parallel(_pack_chunk, min(panels.shape[0], 8), team if panels.size > PACKED else 0, (weight, transposed, panels))
    groups = _groups_of(x.shape[0], weight.size, panels.shape[0])
    parallel(_product_chunk, -(-x.shape[0] // BLOCK) * groups, team, (x, panels, bias, y, groups))


@entry
def _pack(weight, panels):
    _pack_chunk(0, 1, weight, True, panels)


@entry
def _backward_2(dy, x, weight, panels, dx, dweight, dbias, wants_dx, wants_dweight, team):
    if wants_dx:
        _multiply_all(dy, weight, False, panels, dbias[:0], dx, team)
    if wants_dweight:
        n, k = dweight.shape
        height, width, parts = _cut(x.shape[0], n, k, dbias.itemsize)
        dweights, dbiases = np.empty((parts, n, k), dbias.dtype), np.empty((parts, dbias.size), np.float64)
        tiles = -(-n // height) * max(1, -(-k // width))  # db is also needed if there are no columns
        parallel(_weight_chunk, tiles * parts, team, (dy, x, dweights, dbiases, panels, height, width))
        parallel(_sum_chunk, min(n, 8), team, (dweights, dbiases, dweight, dbias))


VERSIONS = {1: (_forward_1, _backward_1), 2: (_forward_2, _backward_2)}


# Launchers ----------------------------------------------------------------------------------------------------------


@cache
def _tiles_ready(dtype):
    """Make the tiles for inputs of this dtype available, for outputs and for dW."""
    ready(operand_dtype(dtype), bits(np.empty(0, dtype)).dtype)
    ready(operand_dtype(dtype), sum_dtype(dtype))


def _as_dtype(weight, dtype):
    """Return the weight in the dtype of x; with x in bfloat16 it may be float32."""
    if weight.dtype == dtype:
        return weight
    (narrow,) = cast(weight, dtype=dtype, source=weight.dtype, version=1)
    return narrow


def _new_panels(columns, depth, dtype):
    """Return memory for a matrix with this many columns, as panels."""
    dtype, depth = operand_dtype(dtype), depth_of(depth, dtype)
    width = PANEL_BYTES // dtype.itemsize
    return np.empty((-(-columns // width), depth, width), dtype)


def pack(weight):
    """Return weight (N, K) in panels (P, K, tile), which a caller that multiplies with it often packs only once."""
    _tiles_ready(weight.dtype)
    panels = _new_panels(weight.shape[0], weight.shape[1], weight.dtype)
    _pack(left_rows(weight), panels)
    return panels


def forward(x, weight, bias, *, version):
    """Map x (..., K), weight (N, K) and bias (N,), or None, to y (..., N)."""
    _tiles_ready(x.dtype)
    weight = _as_dtype(weight, x.dtype)
    rows, n = left_rows(as_matrix(x)), weight.shape[0]
    y = np.empty((rows.shape[0], n), x.dtype)
    sums = sum_dtype(x.dtype)
    bias = np.empty(0, sums) if bias is None else dense(bias.astype(sums, copy=False))
    team = team_for(rows.shape[0] * weight.size, PRODUCTS)
    panels = _new_panels(n, x.shape[-1], x.dtype)
    VERSIONS[version][0](rows, left_rows(weight), panels, bias, bits(y), team)
    return (y.reshape((*x.shape[:-1], n)),)


def backward(dy, x, weight, *, needs, version):
    """Map dy (..., N) to dx (..., K), dweight (N, K) and dbias (N,)."""
    _tiles_ready(x.dtype)
    master, weight = weight.dtype, _as_dtype(weight, x.dtype)
    upstream, rows, weight = left_rows(as_matrix(dy)), bits(rows_of(x)), bits(dense(weight))
    dx = np.empty(x.shape if needs[0] else (1, 1), x.dtype)
    wants_dweight, sums = needs[1] or needs[2], sum_dtype(x.dtype)
    dweight = np.empty(weight.shape if wants_dweight else (0, 0), master)
    dbias = np.empty(weight.shape[0] if needs[2] else 0, sums)
    panels = _new_panels(x.shape[-1] if needs[0] else 0, weight.shape[0], x.dtype)
    team = team_for(rows.shape[0] * weight.size, PRODUCTS)
    arrays = (upstream, rows, weight, panels, bits(as_matrix(dx)), bits(dweight), dbias)
    VERSIONS[version][1](*arrays, needs[0], wants_dweight, team)
    return dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None
