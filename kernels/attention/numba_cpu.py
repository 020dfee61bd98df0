"""Scaled dot-product attention, forward and backward.

| version | what it changes, and gains                                                                               |
|---------|----------------------------------------------------------------------------------------------------------|
| v1      | one query at a time, written like the formula; it stores no more than one row of scores                  |
| v2      | blocks of queries against blocks of keys, products in register tiles (`multiply`): each score is         |
|         | computed, exponentiated and used while it is in the cache. Up to 320 keys, as in ViTs, are one block;    |
|         | more of them need a running maximum (online softmax: Milakov and Gimelshein, 2018; Dao et al.,           |
|         | FlashAttention, 2022, algorithm 1)                                                                       |

Measured with two threads on a Zen 4, for (128, 3, 65, 64): v1 is 0.11 and 0.12 times as fast as the plain rule, v2 is
13.6 and 14.4 times as fast as v1 forward and backward (`python -m benchmarks.versions attention`).

q (B, H, N, D), k (B, H, S, D), v (B, H, S, E) and out (B, H, N, E) are views of any strides whose last axis is
contiguous: the packed output of a qkv projection needs no copy, and out lies in memory as (B, N, H, E), so merging the
heads is free. Forward saves lse (B, H, N), the logarithm of the sum of exponentials. Backward computes the
probabilities again as exp(S - lse), or, where lse is so large that its rounding error would show, from the sum of
exponentials itself. bias and mask are views (B, H, N, S), perhaps with strides of 0. One thread computes a head, in one
order.
"""

from functools import cache, lru_cache

import numpy as np

from ..cpu.arrays import copied, dense
from ..cpu.bfloat16 import bits
from ..cpu.chunks import SCORES, team_for
from ..cpu.compiler import entries
from ..cpu.threads import parallel
from ..linear.microkernel import ready
from .by_block import backward_chunk_2, forward_chunk_2, groups_of
from .by_query import backward_chunk_1, forward_chunk_1, weights_chunk
from .operations import Options, as_heads, operations

# Entries ------------------------------------------------------------------------------------------------------------

# {0} is the type of elements, {1} the type they are computed in. Bias and mask may be broadcast views, which NumPy
# marks as read-only.
_ARRAY, _READ, _SEEN = "{0}[:,:,:,:]", "Array({0}, 4, 'A', True)", "Array(boolean, 4, 'A', True)"
_INPUTS = ", ".join((_ARRAY, _ARRAY, _ARRAY, _READ, _SEEN, _ARRAY, "{1}[:,:,::1]"))
_HOW = "Tuple((boolean, boolean, boolean, {1}, uint64, {1}, int64, int64))"
_FORWARD = f"void({_INPUTS}, {_HOW}, int64)"
_BACKWARD = f"void({_INPUTS}, {', '.join([_ARRAY] * 4)}, {{1}}[:,:,:,:], {_HOW}, int64)"


@entries(_FORWARD)
def _forward_1(q, k, v, bias, mask, out, lse, how, team):
    parallel(forward_chunk_1, q.shape[0] * q.shape[1], team, (q, k, v, bias, mask, out, lse, how))


@entries(_BACKWARD)
def _backward_1(q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how, team):
    arguments = (q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how)
    parallel(backward_chunk_1, q.shape[0] * q.shape[1], team, arguments)


@entries(_FORWARD)
def _forward_2(q, k, v, bias, mask, out, lse, how, team):
    heads = q.shape[0] * q.shape[1]
    groups = groups_of(heads, q.shape[2])
    parallel(forward_chunk_2, min(heads * groups, 64), team, (groups, q, k, v, bias, mask, out, lse, how))


@entries(_BACKWARD)
def _backward_2(q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how, team):
    heads = q.shape[0] * q.shape[1]
    parallel(backward_chunk_2, min(heads, 64), team, (q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how))


@entries(f"void({_ARRAY}, {_ARRAY}, {_READ}, {_SEEN}, {{0}}[:,:,::1], {_ARRAY}, {_HOW}, int64)")
def _weights(q, k, bias, mask, lse, p, how, team):
    parallel(weights_chunk, min(q.shape[0] * q.shape[1], 64), team, (q, k, bias, mask, lse, p, how))


VERSIONS = {1: (_forward_1, _backward_1), 2: (_forward_2, _backward_2)}


# Launchers ----------------------------------------------------------------------------------------------------------


def _heads(array):
    """Return `array` as (B, H, N, D) in the form kernels are compiled for: writeable, with a contiguous last axis."""
    array = as_heads(array)
    return bits(array if array.flags.behaved and array.strides[3] == array.itemsize else copied(array))


@cache
def _absent(dtype):
    """Return the array that stands for a missing bias or mask."""
    return np.broadcast_to(bits(np.zeros(1, dtype)), (1, 1, 1, 1))


def _given(view, dtype):
    """Return a bias or mask in the form kernels are compiled for: read-only, and never None."""
    if view is None:
        return _absent(dtype)
    view.flags.writeable = False
    return bits(view)


@lru_cache(64)
def _scalars(dtype, scale, dropout_p):
    """Return scale, threshold and factor of `how`."""
    real = dtype.type
    return real(scale), np.uint64(round(dropout_p * 2**32)), real(0 if dropout_p == 1 else 1 / (1 - dropout_p))


def _how(dtype, bias, options):
    """Return `how` of by_query.py."""
    scalars = _scalars(dtype, options.scale, options.dropout_p)
    return (bias is not None, options.mask is not None, options.is_causal, *scalars, options.seed, options.offset)


def _run_forward(q, k, v, bias, out, lse, options, version):
    ready(lse.dtype)
    how, views = _how(lse.dtype, bias, options), (_given(bias, out.dtype), _given(options.mask, bool))
    run = VERSIONS[version][0][out.dtype]
    run(q, k, v, *views, bits(out), lse, how, team_for(q.size * k.shape[2], SCORES))


def _run_backward(q, k, v, bias, out, lse, dout, dq, dk, dv, ds, options, version):
    ready(lse.dtype)
    how, views = _how(lse.dtype, bias, options), (_given(bias, dq.dtype), _given(options.mask, bool))
    run, gradients = VERSIONS[version][1][dq.dtype], map(bits, (dq, dk, dv))
    run(q, k, v, *views, out, dense(lse), dout, *gradients, ds, how, team_for(q.size * k.shape[2], SCORES))


forward, backward = operations(lambda array: np, _heads, _run_forward, _run_backward)


def weights(q, k, lse, bias, *, mask=None, is_causal=False, scale):
    """Return the probabilities (B, H, N, S) before dropout, from lse (B, H, N) of forward."""
    ready(lse.dtype)
    q, k = _heads(q), _heads(k)
    p = np.empty((*q.shape[:3], k.shape[2]), q.dtype)
    if p.size:
        bias, mask = (None if x is None else np.broadcast_to(x, p.shape) for x in (bias, mask))
        how = _how(p.dtype, bias, Options(scale, mask, is_causal))
        team = team_for(q.size * k.shape[2], SCORES)
        _weights[p.dtype](q, k, _given(bias, p.dtype), _given(mask, bool), dense(lse), p, how, team)
    return p
