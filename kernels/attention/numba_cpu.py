"""Scaled dot-product attention, forward and backward.

| version | what it changes, and gains                                                                               |
|---------|----------------------------------------------------------------------------------------------------------|
| v1      | one query after the other, in the words of the formula; nothing but a row of scores is stored            |
| v2      | blocks of queries against blocks of keys, products in register tiles (`multiply`), so that each score is |
|         | computed, exponentiated and used while it is in the cache. All keys are one block up to 320 of them, as  |
|         | in ViTs; more are gone through with a running maximum (online softmax: Milakov and Gimelshein, 2018;     |
|         | Dao et al., FlashAttention, 2022, algorithm 1)                                                           |

q (B, H, N, D), k (B, H, S, D), v (B, H, S, E), out (B, H, N, E) are views of any strides whose last axis is
contiguous: the packed output of a qkv projection goes in as it is, and out lies in memory as (B, N, H, E), so that
merging the heads is free. Saved is lse (B, H, N), the logarithm of the sum of exponentials, from which P is computed
again: exp(S - lse), or from the sum itself where lse is so large that rounding it would tell on P. bias and mask are
views of shape (B, H, N, S), perhaps with strides of 0. Each head is computed by one thread, in one order.
"""

import math
from functools import cache, lru_cache

import numpy as np

from ..cpu import threads as pool
from ..cpu.arrays import dense, sum_to_shape
from ..cpu.bfloat16 import bits, sum_dtype
from ..cpu.compiler import entries
from ..cpu.threads import parallel
from ..linear.microkernel import ready
from .by_block import backward_chunk_2, forward_chunk_2, groups_of
from .by_query import backward_chunk_1, forward_chunk_1, weights_chunk

_SERIAL = 100_000  # multiply-adds below which waking another thread costs more than it saves


# What Python calls --------------------------------------------------------------------------------------------------

# {0} is the type of elements, {1} the one they are computed in. What is only read may be a broadcast view, which NumPy
# calls read-only.
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
    """`array` as (B, H, N, D) that kernels can read: last axis contiguous, writeable in the eyes of NumPy."""
    ready(sum_dtype(array.dtype))
    if array.ndim != 4:
        lead = (1,) * (4 - array.ndim) + array.shape[:-2]
        array = array.reshape(math.prod(lead[:-1]), lead[-1], *array.shape[-2:])
    usable = array.strides[3] == array.itemsize and array.flags.writeable and array.flags.aligned
    return bits(array if usable else np.array(array, order="C"))


@cache
def _nothing(dtype):
    """What stands for a bias or mask that is not given."""
    return np.broadcast_to(bits(np.zeros(1, dtype)), (1, 1, 1, 1))


def _scores_view(array, q, k, dtype):
    """Bias or mask as a read-only view of shape (B, H, N, S); a dummy if there is none."""
    if array is None:
        return _nothing(dtype)
    lead = q.shape[:-2]
    view = np.broadcast_to(bits(array), (*lead, q.shape[-2], k.shape[-2]))
    if len(lead) != 2:
        lead = (1,) * (2 - len(lead)) + lead
        view = view.reshape(math.prod(lead[:-1]), lead[-1], *view.shape[-2:])
        view.flags.writeable = False
    return view


@lru_cache(64)
def _scalars(dtype, scale, dropout_p):
    """scale, threshold and factor as compiled code takes them."""
    real = dtype.type
    return real(scale), np.uint64(round(dropout_p * 2**32)), real(0 if dropout_p == 1 else 1 / (1 - dropout_p))


def _how(q, bias, mask, is_causal, scale, dropout_p, seed, offset):
    scalars = _scalars(sum_dtype(q.dtype), scale, dropout_p)
    return (bias is not None, mask is not None, is_causal, *scalars, seed, offset)


def _team(q, k):
    return pool.team(q.size * k.shape[2] > _SERIAL)


def forward(q, k, v, bias, *, mask=None, is_causal=False, scale, dropout_p=0.0, seed=0, offset=0, version):
    """q (..., N, D), k (..., S, D), v (..., S, E), bias or None -> out (..., N, E), lse (..., N)."""
    q_, k_, v_ = _heads(q), _heads(k), _heads(v)
    (b, h, n, _), e = q_.shape, v_.shape[3]
    out, lse = np.empty((b, n, h, e), q.dtype).transpose(0, 2, 1, 3), np.empty((b, h, n), sum_dtype(q.dtype))
    if k_.shape[2] == 0:
        out[...], lse[...] = 0, -np.inf
    elif q_.size:
        how = _how(q, bias, mask, is_causal, scale, dropout_p, seed, offset)
        bias, mask = _scores_view(bias, q, k, q.dtype), _scores_view(mask, q, k, bool)
        VERSIONS[version][0][q.dtype](q_, k_, v_, bias, mask, bits(out), lse, how, _team(q_, k_))
    shape = q.shape[:-1]
    return (out, lse) if q.ndim == 4 else (out.reshape(*shape, e), lse.reshape(shape))


def backward(
    dout,
    q,
    k,
    v,
    bias,
    out,
    lse,
    *,
    mask=None,
    is_causal=False,
    scale,
    dropout_p=0.0,
    seed=0,
    offset=0,
    needs,
    version,
    out_grads=None,
):
    """dq, dk, dv, and dbias in the shape of bias; written to the arrays `out_grads` (dq, dk, dv) if given.

    Otherwise, where their shapes allow, dq, dk and dv are views of one array (B, N, 3, H, D), the gradient of a packed
    qkv projection.
    """
    q_, k_, v_, out_, dout_ = _heads(q), _heads(k), _heads(v), _heads(out), _heads(dout)
    dq, dk, dv = _empty_gradients(q_, k_, v_, q.dtype) if out_grads is None else out_grads
    ds = np.zeros((*q_.shape[:3], k_.shape[2]) if needs[3] else (0, 0, 0, 0), sum_dtype(q.dtype))  # hidden: skipped
    if k_.shape[2] == 0 or q_.size == 0:
        dq[...], dk[...], dv[...] = 0, 0, 0
    else:
        how = _how(q, bias, mask, is_causal, scale, dropout_p, seed, offset)
        views = _scores_view(bias, q, k, q.dtype), _scores_view(mask, q, k, bool)
        lse = dense(lse.reshape(q_.shape[:3]))
        given = (q_, k_, v_, *views, out_, lse, dout_, bits(dq), bits(dk), bits(dv), ds, how, _team(q_, k_))
        VERSIONS[version][1][q.dtype](*given)
    dbias = None
    if needs[3]:
        dbias = sum_to_shape(ds.reshape(*q.shape[:-1], k.shape[-2]), bias.shape).astype(bias.dtype, copy=False)
    if q.ndim != 4:
        dq, dk, dv = dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)
    return dq, dk, dv, dbias


def weights(q, k, lse, bias, *, mask=None, is_causal=False, scale):
    """The probabilities (B, H, N, S) before dropout, from what forward returned as lse (B, H, N)."""
    q, k = _heads(q), _heads(k)
    p = np.empty((*q.shape[:3], k.shape[2]), q.dtype)
    if p.size:
        how = _how(q, bias, mask, is_causal, scale, 0.0, 0, 0)
        bias, mask = _scores_view(bias, q, k, q.dtype), _scores_view(mask, q, k, bool)
        _weights[q.dtype](q, k, bias, mask, dense(lse), p, how, _team(q, k))
    return p


def _empty_gradients(q, k, v, dtype):
    b, h, n, d = q.shape
    if k.shape == q.shape == v.shape:
        return np.empty((b, n, 3, h, d), dtype).transpose(2, 0, 3, 1, 4)
    return tuple(np.empty((x.shape[0], x.shape[2], h, x.shape[3]), dtype).transpose(0, 2, 1, 3) for x in (q, k, v))
