"""Layer norm of rows, or of the sum of two, in Python for NVIDIA GPUs, forward and backward.

| version | what it changes, and gains                                                                                |
|---------|-----------------------------------------------------------------------------------------------------------|
| v1      | one block for each row, written like the formula; the gradients of weight and bias in a pass of their     |
|         | own, one thread for each column                                                                           |
| v2      | 4 rows in a block, 32 threads for each, which keep its elements in registers; the gradients of weight and |
|         | bias in the same pass, each group of threads with its own part                                            |

This is layer_norm.cu in numba.cuda, with the same tiling. Sums go through shared memory and not through shuffles, so
that the simulator runs it too. v2 serves rows of up to 1024 columns. x (R, C), weight and bias (C,), mean and rstd
(R,).
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32

from ..cuda.device import dense, library_of, rows_of
from ..cuda.rows import parts_of
from ..cuda.simt import group_sum, stream_of
from .operations import operations

_GROUPS, _LANES = 4, 32  # rows in a block, and threads of each row
_THREADS = _GROUPS * _LANES


# v1 ------------------------------------------------------------------------------------------------------------------


@cuda.jit
def _forward_1(x, residual, weight, bias, total, y, mean, rstd, eps, add):
    scratch = cuda.shared.array(_THREADS, float32)
    row, t = cuda.blockIdx.x, cuda.threadIdx.x
    columns = x.shape[1]
    if add:
        for c in range(t, columns, _THREADS):
            total[row, c] = x[row, c] + residual[row, c]
    sum_ = float32(0)
    for c in range(t, columns, _THREADS):
        sum_ += total[row, c]
    m = group_sum(sum_, scratch, t, 0, _THREADS) / float32(columns)
    squares = float32(0)
    for c in range(t, columns, _THREADS):
        squares += (total[row, c] - m) * (total[row, c] - m)
    variance = group_sum(squares, scratch, t, 0, _THREADS) / float32(columns)
    r = float32(1) / math.sqrt(variance + eps)
    for c in range(t, columns, _THREADS):
        y[row, c] = (total[row, c] - m) * r * weight[c] + bias[c]
    if t == 0:
        mean[row] = m
        rstd[row] = r


@cuda.jit
def _dx_1(dy, dtotal, x, weight, mean, rstd, dx, add):
    scratch = cuda.shared.array(_THREADS, float32)
    row, t = cuda.blockIdx.x, cuda.threadIdx.x
    columns = x.shape[1]
    m, r = mean[row], rstd[row]
    sum_g = float32(0)
    sum_gx = float32(0)
    for c in range(t, columns, _THREADS):
        g = dy[row, c] * weight[c]
        sum_g += g
        sum_gx += g * (x[row, c] - m) * r
    mean_g = group_sum(sum_g, scratch, t, 0, _THREADS) / float32(columns)
    mean_gx = group_sum(sum_gx, scratch, t, 0, _THREADS) / float32(columns)
    for c in range(t, columns, _THREADS):
        # xhat = (x - mean) * rstd, and mean and rstd both depend on x
        d = r * (dy[row, c] * weight[c] - mean_g - (x[row, c] - m) * r * mean_gx)
        dx[row, c] = d + dtotal[row, c] if add else d


@cuda.jit
def _dweight_1(dy, x, mean, rstd, parts):
    c = cuda.grid(1)
    if c < x.shape[1]:
        dweight = float32(0)
        dbias = float32(0)
        for row in range(x.shape[0]):
            # y = xhat * weight + bias
            dweight += dy[row, c] * (x[row, c] - mean[row]) * rstd[row]
            dbias += dy[row, c]
        parts[0, 0, c] = dweight
        parts[0, 1, c] = dbias


# v2 ------------------------------------------------------------------------------------------------------------------


@cache
def _in_registers(count):
    """Return the kernels for rows of up to 32 `count` columns."""

    @cuda.jit
    def forward(x, residual, weight, bias, total, y, mean, rstd, eps, add):
        scratch = cuda.shared.array(_THREADS, float32)
        kept = cuda.local.array(count, float32)
        t = cuda.threadIdx.x
        lane = t % _LANES
        first = t - lane
        row = cuda.blockIdx.x * _GROUPS + t // _LANES
        columns = x.shape[1]
        real = row < x.shape[0]
        sum_ = float32(0)
        for i in range(count):
            c = i * _LANES + lane
            kept[i] = float32(0)
            if real and c < columns:
                kept[i] = x[row, c]
                if add:
                    kept[i] += residual[row, c]
                    total[row, c] = kept[i]
            sum_ += kept[i]
        m = group_sum(sum_, scratch, t, first, _LANES) / float32(columns)
        squares = float32(0)
        for i in range(count):
            if i * _LANES + lane < columns:
                squares += (kept[i] - m) * (kept[i] - m)
        variance = group_sum(squares, scratch, t, first, _LANES) / float32(columns)
        r = float32(1) / math.sqrt(variance + eps)
        for i in range(count):
            c = i * _LANES + lane
            if real and c < columns:
                y[row, c] = (kept[i] - m) * r * weight[c] + bias[c]
        if real and lane == 0:
            mean[row] = m
            rstd[row] = r

    @cuda.jit
    def backward(dy, dtotal, x, weight, mean, rstd, dx, parts, add):
        scratch = cuda.shared.array(_THREADS, float32)
        g = cuda.local.array(count, float32)
        xhat = cuda.local.array(count, float32)
        dweight = cuda.local.array(count, float32)
        dbias = cuda.local.array(count, float32)
        t = cuda.threadIdx.x
        lane = t % _LANES
        first = t - lane
        columns = x.shape[1]
        for i in range(count):
            dweight[i] = float32(0)
            dbias[i] = float32(0)
        stride = cuda.gridDim.x * _GROUPS
        for start in range(cuda.blockIdx.x * _GROUPS, x.shape[0], stride):
            row = start + t // _LANES
            real = row < x.shape[0]
            sum_g = float32(0)
            sum_gx = float32(0)
            for i in range(count):
                c = i * _LANES + lane
                if real and c < columns:
                    xhat[i] = (x[row, c] - mean[row]) * rstd[row]
                    # y = xhat * weight + bias
                    dweight[i] += dy[row, c] * xhat[i]
                    dbias[i] += dy[row, c]
                    g[i] = dy[row, c] * weight[c]
                    sum_g += g[i]
                    sum_gx += g[i] * xhat[i]
            mean_g = group_sum(sum_g, scratch, t, first, _LANES) / float32(columns)
            mean_gx = group_sum(sum_gx, scratch, t, first, _LANES) / float32(columns)
            for i in range(count):
                c = i * _LANES + lane
                if real and c < columns:
                    # xhat = (x - mean) * rstd, and mean and rstd both depend on x
                    d = rstd[row] * (g[i] - mean_g - xhat[i] * mean_gx)
                    dx[row, c] = d + dtotal[row, c] if add else d
        part = cuda.blockIdx.x * _GROUPS + t // _LANES
        for i in range(count):
            c = i * _LANES + lane
            if c < columns:
                parts[part, 0, c] = dweight[i]
                parts[part, 1, c] = dbias[i]

    return forward, backward


# Launchers -----------------------------------------------------------------------------------------------------------


def _forward_of_1(arrays, eps, add):
    _forward_1[arrays[0].shape[0], _THREADS, stream_of(arrays[0])](*arrays, eps, add)


def _backward_of_1(arrays, columns, add):
    *arrays, parts = arrays
    dy, _, x, _, mean, rstd, _ = arrays
    parts[...] = 0
    stream = stream_of(x)
    _dx_1[x.shape[0], _THREADS, stream](*arrays, add)
    _dweight_1[-(-columns // _THREADS), _THREADS, stream](dy, x, mean, rstd, parts)


def _count(columns: int) -> int | None:
    return next((n for n in (4, 8, 16, 32) if n * _LANES >= columns), None)


def _forward_of_2(arrays, eps, add):
    rows, columns = arrays[0].shape
    count = _count(columns)
    if count is None:
        return _forward_of_1(arrays, eps, add)
    _in_registers(count)[0][-(-rows // _GROUPS), _THREADS, stream_of(arrays[0])](*arrays, eps, add)


def _backward_of_2(arrays, columns, add):
    count = _count(columns)
    if count is None:
        return _backward_of_1(arrays, columns, add)
    blocks = arrays[-1].shape[0] // _GROUPS
    _in_registers(count)[1][blocks, _THREADS, stream_of(arrays[0])](*arrays, add)


VERSIONS = {1: (_forward_of_1, _backward_of_1), 2: (_forward_of_2, _backward_of_2)}


def normalize(
    x: Any, residual: Any, weight: Any, bias: Any, eps: float, version: int, y_dtype: Any = None
) -> tuple[Any, ...]:
    """Return x + residual (..., C), or x if residual is None, its layer norm y (..., C), mean and rstd (...).

    These kernels compute in float32; a residual and a `y_dtype` of 16 bits are converted.
    """
    xp, rows, add = library_of(x), rows_of(x), residual is not None
    total = xp.empty_like(rows) if add else rows
    y, (mean, rstd) = xp.empty_like(rows), xp.empty((2, rows.shape[0]), "float32")
    if rows.size:
        other = rows_of(residual).astype(x.dtype, copy=False) if add else rows
        arrays = (rows, other, dense(weight), dense(bias), total, y, mean, rstd)
        VERSIONS[version][0](arrays, np.float32(eps), add)
    y = y.astype(y_dtype or y.dtype, copy=False)
    lead = x.shape[:-1]
    return total.reshape(x.shape) if add else x, y.reshape(x.shape), mean.reshape(lead), rstd.reshape(lead)


def normalize_backward(
    dy: Any, dtotal: Any, x: Any, weight: Any, mean: Any, rstd: Any, version: int, branch_dtype: Any = None
) -> tuple[Any, ...]:
    """Map dy (..., C) and dtotal (..., C), or None, to dx (..., C), dweight and dbias (C,), and dx in `branch_dtype`.

    The last is left out if `branch_dtype` is None.
    """
    xp, rows, upstream, add = library_of(x), rows_of(x), rows_of(dy).astype(x.dtype, copy=False), dtotal is not None
    dx = xp.empty_like(rows)
    parts = xp.zeros((_GROUPS * parts_of(rows.shape[0], _GROUPS), 2, rows.shape[1]), "float32")
    if rows.size:
        before = rows_of(dtotal) if add else upstream
        statistics = dense(mean.reshape(-1)), dense(rstd.reshape(-1))
        arrays = (upstream, before, rows, dense(weight), *statistics, dx, parts)
        VERSIONS[version][1](arrays, rows.shape[1], add)
    dweight, dbias = parts.sum(axis=0)
    dx = dx.reshape(x.shape)
    return dx, dweight, dbias, *(() if branch_dtype is None else (dx.astype(branch_dtype, copy=False),))


forward, backward, add_forward, add_backward = operations(normalize, normalize_backward)
