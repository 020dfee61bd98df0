"""Scaled dot-product attention in Python for NVIDIA GPUs, forward and backward.

| version | what it changes, and gains                                                                               |
|---------|----------------------------------------------------------------------------------------------------------|
| v1      | one block for each query and one thread for each key, written like the formula, with all scores of the   |
|         | query in shared memory; for the gradients of k and v, one block for each key                             |
| v2      | tiles of 16 rows against tiles of 16 columns, read once from memory into shared memory; a running        |
|         | maximum (online softmax: Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022)                 |

This is attention.cu in numba.cuda, with the same division of the work. Sums go through shared memory and not through
shuffles, so that the simulator runs it too. The gradients of queries and of keys are computed separately, without
atomics.

q (B, H, N, D), k and v (B, H, S, D) are views of any strides; out lies in memory as (B, N, H, D). Forward saves lse
(B, H, N). bias and mask are views (B, H, N, S). `sizes` is (H, N, S), and `how` is (has_bias, has_mask, is_causal,
scale, threshold, factor, seed, offset), as in by_query.py.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32

from ..cuda.device import library_of
from ..cuda.simt import group_max, group_sum, head_of_block, keep_factor, stream_of
from .launches import grid_of_heads, why_too_many
from .operations import as_heads, operations

_THREADS = 32  # of a block of v1
_SQUARE = 256  # threads of v2
_TILE = 16  # rows, columns, and threads in either direction, of v2
_EXACT = 16  # backward uses lse up to this size, see by_query.py
LONGEST = 6144  # queries or keys: v1 needs 8 bytes for each in 48 KB of shared memory


@cuda.jit(device=True)
def _score(product, b, h, n, s, bias, mask, how):
    """Return scale q k^T + bias, from the product; -inf if n may not see s."""
    x = product * how[3]
    if (how[2] and s > n) or (how[1] and not mask[b, h, n, s]):
        x = float32(-np.inf)
    elif how[0]:
        x += bias[b, h, n, s]
    return x


@cuda.jit(device=True)
def _kept(b, h, n, s, sizes, how):
    """Return the factor of dropout."""
    heads, queries, keys = sizes
    if how[4] == 0:
        return float32(1)
    element = ((b * heads + h) * queries + n) * keys + s
    return keep_factor(element, how[4], how[5], how[6], how[7])


@cuda.jit(device=True)
def _product(x, y, b, h, i, j):
    total = float32(0)
    for d in range(x.shape[3]):
        total += x[b, h, i, d] * y[b, h, j, d]
    return total


# v1 ------------------------------------------------------------------------------------------------------------------


@cuda.jit
def _forward_1(q, k, v, bias, mask, out, lse, how):
    p = cuda.shared.array(0, float32)  # (S + 32,)
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    heads, _, keys = sizes = q.shape[1], q.shape[2], k.shape[2]
    b, h = head_of_block(heads)
    scratch = p[keys:]
    top = float32(-np.inf)
    for s in range(t, keys, _THREADS):
        x = _score(_product(q, k, b, h, n, s), b, h, n, s, bias, mask, how)
        p[s] = x
        if x > top or x != x:
            top = x
    top = group_max(top, scratch, t, 0, _THREADS)
    shift = float32(0) if top == -np.inf else top
    part = float32(0)
    for s in range(t, keys, _THREADS):
        e = math.exp(p[s] - shift)
        part += e
        p[s] = e * _kept(b, h, n, s, sizes, how)
    total = group_sum(part, scratch, t, 0, _THREADS)
    share = float32(0) if total == 0 else float32(1) / total
    for d in range(t, v.shape[3], _THREADS):
        value = float32(0)
        for s in range(keys):
            value += p[s] * v[b, h, s, d]
        out[b, h, n, d] = value * share
    if t == 0:
        lse[b, h, n] = shift + math.log(total) if total > 0 else total - float32(np.inf)


@cuda.jit(device=True)
def _slopes(qk, dov, b, h, n, s, bias, mask, shift, rest, r, sizes, how):
    """Return p with dropout, and the gradient of the score."""
    p = math.exp(_score(qk, b, h, n, s, bias, mask, how) - shift[b, h, n] - rest[b, h, n])
    factor = _kept(b, h, n, s, sizes, how)
    # out = (p * m) @ v and p = softmax(s)
    return p * factor, p * (dov * factor - r[b, h, n])


@cuda.jit
def _anchors(q, k, bias, mask, lse, shift, rest, how):
    """Find the numbers with which backward computes p = exp(score - shift - rest) again.

    They are lse and 0 or, where lse is so large that its rounding error would show in p, the largest score and the
    logarithm of the sum of exponentials relative to it.
    """
    n = cuda.grid(1)
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    b, h = head_of_block(heads)
    if n < queries:
        top = lse[b, h, n]
        log_sum = float32(0)
        if top == -np.inf:
            top = float32(0)
        elif abs(top) > _EXACT and top != np.inf:
            top = float32(-np.inf)
            for s in range(keys):
                x = _score(_product(q, k, b, h, n, s), b, h, n, s, bias, mask, how)
                if x > top or x != x:
                    top = x
            total = float32(0)
            for s in range(keys):
                total += math.exp(_score(_product(q, k, b, h, n, s), b, h, n, s, bias, mask, how) - top)
            log_sum = math.log(total)
        shift[b, h, n] = top
        rest[b, h, n] = log_sum


@cuda.jit
def _dq_1(q, k, v, bias, mask, shift, rest, r, dout, dq, ds, how):
    slopes = cuda.shared.array(0, float32)  # (S,)
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    heads, _, keys = sizes = q.shape[1], q.shape[2], k.shape[2]
    b, h = head_of_block(heads)
    for s in range(t, keys, _THREADS):
        qk, dov = _product(q, k, b, h, n, s), _product(dout, v, b, h, n, s)
        slopes[s] = _slopes(qk, dov, b, h, n, s, bias, mask, shift, rest, r, sizes, how)[1]
        if ds.size > 0:
            ds[b, h, n, s] = slopes[s]
    cuda.syncthreads()
    for d in range(t, q.shape[3], _THREADS):
        # s = scale * q @ k.T + bias
        total = float32(0)
        for s in range(keys):
            total += slopes[s] * k[b, h, s, d]
        dq[b, h, n, d] = how[3] * total


@cuda.jit
def _dkv_1(q, k, v, bias, mask, shift, rest, r, dout, dk, dv, how):
    both = cuda.shared.array(0, float32)  # (2 N,): first ds, then p
    s, t = cuda.blockIdx.x, cuda.threadIdx.x
    heads, queries, _ = sizes = q.shape[1], q.shape[2], k.shape[2]
    b, h = head_of_block(heads)
    for n in range(t, queries, _THREADS):
        qk, dov = _product(q, k, b, h, n, s), _product(dout, v, b, h, n, s)
        p, slope = _slopes(qk, dov, b, h, n, s, bias, mask, shift, rest, r, sizes, how)
        both[n] = slope
        both[queries + n] = p
    cuda.syncthreads()
    for d in range(t, q.shape[3], _THREADS):
        dk_d = float32(0)
        dv_d = float32(0)
        for n in range(queries):
            dk_d += both[n] * q[b, h, n, d]
            dv_d += both[queries + n] * dout[b, h, n, d]
        dk[b, h, s, d] = how[3] * dk_d
        dv[b, h, s, d] = dv_d


# v2 ------------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _stage(tile, x, b, h, first, y, t):
    """Copy 16 rows of x, from `first` on, to a tile; zeros past the end."""
    for d in range(t, tile.shape[1], _TILE):
        row = first + y
        tile[y, d] = x[b, h, row, d] if row < x.shape[2] and d < x.shape[3] else float32(0)


@cuda.jit(device=True)
def _row_product(left, right, i, j):
    total = float32(0)
    for d in range(left.shape[1]):
        total += left[i, d] * right[j, d]
    return total


@cache
def _tiled(depth):
    """Return the kernels for head sizes of up to `depth`.

    Thread (y, t) has row y and column t of the scores, and the columns t + 16 i of row y of a result.
    """
    per_thread = depth // _TILE

    @cuda.jit
    def forward(q, k, v, bias, mask, out, lse, how):
        q_tile = cuda.shared.array((_TILE, depth), float32)
        k_tile = cuda.shared.array((_TILE, depth), float32)
        v_tile = cuda.shared.array((_TILE, depth), float32)
        p = cuda.shared.array((_TILE, _TILE), float32)
        scratch = cuda.shared.array(_SQUARE, float32)
        result = cuda.local.array(per_thread, float32)
        t, y = cuda.threadIdx.x, cuda.threadIdx.y
        heads, queries, keys = sizes = q.shape[1], q.shape[2], k.shape[2]
        b, h = head_of_block(heads)
        first = cuda.blockIdx.x * _TILE
        n, thread = first + y, y * _TILE + t
        _stage(q_tile, q, b, h, first, y, t)
        peak = float32(-np.inf)
        total = float32(0)
        for i in range(per_thread):
            result[i] = float32(0)
        end = min(keys, first + _TILE) if how[2] else keys
        for start in range(0, end, _TILE):
            cuda.syncthreads()  # until the previous tiles have been used
            _stage(k_tile, k, b, h, start, y, t)
            _stage(v_tile, v, b, h, start, y, t)
            cuda.syncthreads()
            s = start + t
            x = float32(-np.inf)
            if s < keys and n < queries:
                x = _score(_row_product(q_tile, k_tile, y, t), b, h, n, s, bias, mask, how)
            top = group_max(x, scratch, thread, y * _TILE, _TILE)
            top = peak if peak > top else top
            shift = float32(0) if top == -np.inf else top
            e = math.exp(x - shift)
            fade = math.exp(peak - shift)
            total = total * fade + group_sum(e, scratch, thread, y * _TILE, _TILE)
            peak = top
            p[y, t] = e * _kept(b, h, n, s, sizes, how)
            cuda.syncthreads()
            for i in range(per_thread):
                value = result[i] * fade
                for j in range(_TILE):
                    value += p[y, j] * v_tile[j, i * _TILE + t]
                result[i] = value
        share = float32(0) if total == 0 else float32(1) / total
        if n < queries:
            for i in range(per_thread):
                d = i * _TILE + t
                if d < q.shape[3]:
                    out[b, h, n, d] = result[i] * share
            if t == 0:
                shift = float32(0) if peak == -np.inf else peak
                lse[b, h, n] = shift + math.log(total) if total > 0 else total - float32(np.inf)

    @cuda.jit
    def backward(q, k, v, bias, mask, shift, rest, r, dout, dq, dk, dv, ds, of_keys, how):
        left = cuda.shared.array((_TILE, depth), float32)
        right = cuda.shared.array((_TILE, depth), float32)
        left_columns = cuda.shared.array((_TILE, depth), float32)
        right_columns = cuda.shared.array((_TILE, depth), float32)
        p_tile = cuda.shared.array((_TILE, _TILE), float32)
        ds_tile = cuda.shared.array((_TILE, _TILE), float32)
        dleft = cuda.local.array(per_thread, float32)
        dright = cuda.local.array(per_thread, float32)
        t, y = cuda.threadIdx.x, cuda.threadIdx.y
        heads, queries, keys = sizes = q.shape[1], q.shape[2], k.shape[2]
        b, h = head_of_block(heads)
        first = cuda.blockIdx.x * _TILE
        columns = queries if of_keys else keys
        row = first + y
        if of_keys:
            _stage(left, k, b, h, first, y, t)
            _stage(right, v, b, h, first, y, t)
        else:
            _stage(left, q, b, h, first, y, t)
            _stage(right, dout, b, h, first, y, t)
        for i in range(per_thread):
            dleft[i] = float32(0)
            dright[i] = float32(0)
        for start in range(0, columns, _TILE):
            cuda.syncthreads()
            if of_keys:
                _stage(left_columns, q, b, h, start, y, t)
                _stage(right_columns, dout, b, h, start, y, t)
            else:
                _stage(left_columns, k, b, h, start, y, t)
                _stage(right_columns, v, b, h, start, y, t)
            cuda.syncthreads()
            n, s = (start + t, row) if of_keys else (row, start + t)
            p_tile[y, t] = float32(0)
            ds_tile[y, t] = float32(0)
            if n < queries and s < keys:
                qk, dov = _row_product(left, left_columns, y, t), _row_product(right, right_columns, y, t)
                p, d = _slopes(qk, dov, b, h, n, s, bias, mask, shift, rest, r, sizes, how)
                p_tile[y, t] = p
                ds_tile[y, t] = d
                if ds.size > 0 and not of_keys:
                    ds[b, h, n, s] = d
            cuda.syncthreads()
            for i in range(per_thread):
                for j in range(_TILE):
                    dleft[i] += ds_tile[y, j] * left_columns[j, i * _TILE + t]
                    dright[i] += p_tile[y, j] * right_columns[j, i * _TILE + t]
        for i in range(per_thread):
            d = i * _TILE + t
            if d < q.shape[3]:
                if of_keys and row < keys:
                    dk[b, h, row, d] = how[3] * dleft[i]
                    dv[b, h, row, d] = dright[i]
                elif not of_keys and row < queries:
                    dq[b, h, row, d] = how[3] * dleft[i]

    return forward, backward


# Launchers -----------------------------------------------------------------------------------------------------------


def _grid(blocks: int, q: Any) -> tuple[int, int, int]:
    """Return a grid with so many blocks for each head."""
    return blocks, *grid_of_heads(q.shape[0] * q.shape[1])


def forward_1(q, k, v, bias, mask, out, lse, how):
    grid, shared = _grid(q.shape[2], q), 4 * (k.shape[2] + _THREADS)
    _forward_1[grid, _THREADS, stream_of(q), shared](q, k, v, bias, mask, out, lse, how)


def backward_1(q, k, v, bias, mask, shift, rest, r, dout, dq, dk, dv, ds, how):
    queries, keys, stream = q.shape[2], k.shape[2], stream_of(q)
    given = q, k, v, bias, mask, shift, rest, r, dout
    _dq_1[_grid(queries, q), _THREADS, stream, 4 * keys](*given, dq, ds, how)
    _dkv_1[_grid(keys, q), _THREADS, stream, 8 * queries](*given, dk, dv, how)


def _depth(q: Any) -> int:
    return next(d for d in (16, 32, 64, 128) if d >= q.shape[3])


def forward_2(q, k, v, bias, mask, out, lse, how):
    grid = _grid(-(-q.shape[2] // _TILE), q)
    _tiled(_depth(q))[0][grid, (_TILE, _TILE), stream_of(q)](q, k, v, bias, mask, out, lse, how)


def backward_2(q, k, v, bias, mask, shift, rest, r, dout, dq, dk, dv, ds, how):
    run = _tiled(_depth(q))[1]
    for of_keys, count in ((False, q.shape[2]), (True, k.shape[2])):
        grid = _grid(-(-count // _TILE), q)
        run[grid, (_TILE, _TILE), stream_of(q)](q, k, v, bias, mask, shift, rest, r, dout, dq, dk, dv, ds, of_keys, how)


VERSIONS = {1: (forward_1, backward_1), 2: (forward_2, backward_2)}


def refuses(inputs: Any, params: Any) -> str | None:
    """Return the reason why these inputs cannot be served, or None."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if q.ndim != 4 or q.shape[-1] != v.shape[-1] or q.shape[-1] > 128:
        return f"q has shape {q.shape} and v {v.shape}; it must be (B, H, N, D) with one D of at most 128"
    if max(q.shape[2], k.shape[2]) > LONGEST:
        return f"there are {q.shape[2]} queries and {k.shape[2]} keys; it takes at most {LONGEST}"
    return why_too_many(q, k)


def _given(view: Any, q: Any, dtype: Any) -> Any:
    """Return a bias or mask, or an array that stands for a missing one."""
    return library_of(q).zeros((1, 1, 1, 1), dtype) if view is None else view


def _how(bias, options):
    """Return `how`, see the top of this file."""
    p = options.dropout_p
    switches = (bias is not None, options.mask is not None, bool(options.is_causal))
    scalars = np.float32(options.scale), np.uint64(round(p * 2**32)), np.float32(1 / (1 - p) if p < 1 else 0)
    return (*switches, *scalars, np.uint64(options.seed), np.uint64(options.offset))


def _run_forward(q, k, v, bias, out, lse, options, version):
    views = _given(bias, q, q.dtype), _given(options.mask, q, bool)
    VERSIONS[version][0](q, k, v, *views, out, lse, _how(bias, options))


def _run_backward(q, k, v, bias, out, lse, dout, dq, dk, dv, ds, options, version):
    how, views = _how(bias, options), (_given(bias, q, q.dtype), _given(options.mask, q, bool))
    r = (dout * out).sum(axis=-1)
    shift, rest = library_of(q).empty((2, *lse.shape), lse.dtype)
    grid = _grid(-(-q.shape[2] // _THREADS), q)
    _anchors[grid, _THREADS, stream_of(q)](q, k, *views, lse, shift, rest, how)
    VERSIONS[version][1](q, k, v, *views, shift, rest, r, dout, dq, dk, dv, ds, how)


forward, backward = operations(library_of, as_heads, _run_forward, _run_backward)
