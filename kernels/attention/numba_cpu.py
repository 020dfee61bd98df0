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

from .. import threads as pool
from ..arrays import dense
from ..compiler import body, entries
from ..linear.microkernel import ROWS, multiply, ready
from ..philox import keep_row
from ..threads import parallel
from ..vector_loops import as_row, largest, transpose
from ..vector_math import exp

QUERIES = 5 * ROWS[0]  # in a block
KEYS = 320  # in a block, at most
EXACT = 16  # |lse| beyond which backward does not rely on it: P is off by as many roundings as lse is large
_SERIAL = 100_000  # multiply-adds below which waking another thread costs more than it saves


# What the versions share --------------------------------------------------------------------------------------------

# `how` is (has_bias, has_mask, is_causal, scale, threshold, factor, seed, offset): dropout keeps what draws
# `threshold` or more, and multiplies it by `factor`.


@body
def _mask_row(row, b, h, n, start, bias, mask, how):
    """Add the bias to the scaled scores of query n with the keys from `start` on, and hide what it may not see."""
    has_bias, has_mask, is_causal = how[0], how[1], how[2]
    count = max(0, min(row.size, n + 1 - start)) if is_causal else row.size
    hidden = row.dtype.type(-np.inf)
    if has_bias:
        for j in range(count):
            row[j] += bias[b, h, n, start + j]
    if has_mask:
        for j in range(count):
            row[j] = row[j] if mask[b, h, n, start + j] else hidden
    for j in range(count, row.size):
        row[j] = hidden


@body
def _draw_row(factors, words, b, h, n, start, lse, keys, how):
    """The factors of dropout for the scores of query n with the keys from `start` on."""
    _, heads, queries = lse.shape
    first = ((b * heads + h) * queries + n) * keys + start
    keep_row(factors, words, first, how[4], how[5], how[6], how[7])


@body
def _is_coarse(lse):
    """Whether a row's probabilities are better computed from its scores than from this logarithm of their sum."""
    return abs(lse) > EXACT and lse != -np.inf


# v1 -----------------------------------------------------------------------------------------------------------------


@body
def _score_row_1(row, q, k, b, h, n, bias, mask, how):
    for s in range(row.size):
        total = row.dtype.type(0)
        for d in range(q.shape[3]):
            total += q[b, h, n, d] * k[b, h, s, d]
        row[s] = how[3] * total
    _mask_row(row, b, h, n, 0, bias, mask, how)


@body
def _forward_chunk_1(chunk, chunks, q, k, v, bias, mask, out, lse, how):
    """One head."""
    b, h = chunk // q.shape[1], chunk % q.shape[1]
    keys = k.shape[2]
    row, kept, words = np.empty(keys, q.dtype), np.empty(keys, q.dtype), np.empty(keys + 8, np.uint32)
    zero = row.dtype.type(0)
    for n in range(q.shape[2]):
        _score_row_1(row, q, k, b, h, n, bias, mask, how)
        top = largest(row)
        shift = zero if top == -np.inf else top
        total = zero
        for s in range(keys):
            row[s] = exp(row[s] - shift)
            total += row[s]
        lse[b, h, n] = shift + np.log(total)
        if how[4] > 0:
            _draw_row(kept, words, b, h, n, 0, lse, keys, how)
            for s in range(keys):
                row[s] *= kept[s]
        for e in range(v.shape[3]):
            value = zero
            for s in range(keys):
                value += row[s] * v[b, h, s, e]
            out[b, h, n, e] = zero if total == zero else value / total


@body
def _backward_chunk_1(chunk, chunks, q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how):
    """One head."""
    b, h = chunk // q.shape[1], chunk % q.shape[1]
    keys, scale = k.shape[2], how[3]
    row, kept, words = np.empty(keys, q.dtype), np.empty(keys, q.dtype), np.empty(keys + 8, np.uint32)
    zero = row.dtype.type(0)
    kept[:] = row.dtype.type(1)
    dq[b, h] = zero
    dk[b, h] = zero
    dv[b, h] = zero
    for n in range(q.shape[2]):
        _score_row_1(row, q, k, b, h, n, bias, mask, how)
        shift = zero if lse[b, h, n] == -np.inf else lse[b, h, n]
        share = row.dtype.type(1)
        if _is_coarse(shift):
            shift, total = largest(row), zero
            for s in range(keys):
                total += exp(row[s] - shift)
            share /= total
        if how[4] > 0:
            _draw_row(kept, words, b, h, n, 0, lse, keys, how)
        r = zero
        for e in range(v.shape[3]):
            r += dout[b, h, n, e] * out[b, h, n, e]
        for s in range(keys):
            p = share * exp(row[s] - shift)
            dp = zero
            for e in range(v.shape[3]):
                # out = (p * m) @ v
                dv[b, h, s, e] += p * kept[s] * dout[b, h, n, e]
                dp += dout[b, h, n, e] * v[b, h, s, e]
            # p = softmax(s)
            d = p * (dp * kept[s] - r)
            if ds.size > 0:
                ds[b, h, n, s] = d
            for c in range(q.shape[3]):
                # s = scale * q @ k.T + bias
                dq[b, h, n, c] += scale * d * k[b, h, s, c]
                dk[b, h, s, c] += scale * d * q[b, h, n, c]


# v2 -----------------------------------------------------------------------------------------------------------------


@body
def _key_block(keys):
    """Size of the blocks that the keys are cut into: equal ones, and no more of them than must be."""
    blocks = -(-keys // KEYS)
    return -(-keys // (16 * blocks)) * 16


@body
def _softmax_rows(scores, b, h, start, s0, bias, mask, out, lse, total, kept, words, keys, how):
    """Exponentiate a block of scores, about the largest that each query has met (kept in lse), and sum them."""
    zero = scores.dtype.type(0)
    masked = how[0] or how[1] or how[2]
    for i in range(scores.shape[0]):
        row, n = as_row(scores, i), start + i
        if masked:
            _mask_row(row, b, h, n, s0, bias, mask, how)
        top = largest(row)
        if s0 > 0 and lse[b, h, n] > top:
            top = lse[b, h, n]
        shift = zero if top == -np.inf else top
        part = zero
        for j in range(row.size):
            e = exp(row[j] - shift)
            row[j] = e
            part += e
        if s0 > 0:
            fade = exp(lse[b, h, n] - shift)
            part += total[i] * fade
            before = as_row(out, n)
            for e in range(before.size):
                before[e] *= fade
        total[i], lse[b, h, n] = part, top
        if how[4] > 0:
            _draw_row(kept[: row.size], words, b, h, n, s0, lse, keys, how)
            for j in range(row.size):
                row[j] *= kept[j]


@body
def _forward_chunk_2(chunk, chunks, groups, q, k, v, bias, mask, out, lse, how):
    """Some heads, or a part of the queries of one."""
    batch, heads, queries, depth = q.shape
    keys = k.shape[2]
    block = _key_block(keys)
    zero = q.dtype.type(0)
    transposed, scores = np.empty((depth, keys), q.dtype), np.empty((QUERIES, block), q.dtype)
    total, kept, words = np.empty(QUERIES, q.dtype), np.empty(block, q.dtype), np.empty(block + 8, np.uint32)
    tasks, step = batch * heads * groups, -(-queries // (groups * QUERIES)) * QUERIES
    for task in range(tasks * chunk // chunks, tasks * (chunk + 1) // chunks):
        b, h, begin = task // groups // heads, task // groups % heads, task % groups * step
        q_, v_, out_ = q[b, h], v[b, h], out[b, h]
        transpose(k[b, h], how[3], transposed)
        for start in range(begin, min(begin + step, queries), QUERIES):
            stop = min(start + QUERIES, begin + step, queries)
            for s0 in range(0, min(keys, stop) if how[2] else keys, block):
                s1 = min(s0 + block, keys)
                s = scores[: stop - start, : s1 - s0]
                multiply(q_[start:stop], transposed[:, s0:s1], s, False)
                _softmax_rows(s, b, h, start, s0, bias, mask, out_, lse, total, kept, words, keys, how)
                multiply(s, v_[s0:s1], out_[start:stop], s0 > 0)
            for n in range(start, stop):
                row, sum_ = as_row(out_, n), total[n - start]
                share = zero if sum_ == zero else q.dtype.type(1) / sum_
                for e in range(row.size):
                    row[e] *= share
                lse[b, h, n] += np.log(sum_)


@body
def _anchor_rows(q, kt, b, h, start, bias, mask, lse, scores, shift, share, block, how):
    """What the probabilities of some queries are made with: p = share exp(score - shift)."""
    zero, one = shift.dtype.type(0), shift.dtype.type(1)
    coarse = False
    for i in range(q.shape[0]):
        lse_n = lse[b, h, start + i]
        shift[i], share[i] = zero if lse_n == -np.inf else lse_n, one
        coarse = coarse or _is_coarse(lse_n)
    if not coarse:
        return
    for s0 in range(0, kt.shape[1], block):  # the largest score of each row and the sum over it, as in forward
        s = scores[: q.shape[0], : min(block, kt.shape[1] - s0)]
        multiply(q, kt[:, s0 : s0 + block], s, False)
        for i in range(q.shape[0]):
            if _is_coarse(lse[b, h, start + i]):
                row = as_row(s, i)
                _mask_row(row, b, h, start + i, s0, bias, mask, how)
                top = largest(row)
                if s0 > 0 and shift[i] > top:
                    top = shift[i]
                base = zero if top == -np.inf else top
                total = share[i] * exp(shift[i] - base) if s0 > 0 else zero
                for j in range(row.size):
                    total += exp(row[j] - base)
                shift[i], share[i] = top, total
    for i in range(q.shape[0]):
        if _is_coarse(lse[b, h, start + i]):
            share[i] = one / share[i]


@body
def _backward_rows(p, dp, b, h, start, s0, bias, mask, lse, shift, share, r, ds, kept, words, keys, how):
    """From scores and (dout v^T): p = the probabilities, with dropout, and dp = scale * the gradient of the scores."""
    scale = how[3]
    masked = how[0] or how[1] or how[2]
    for i in range(p.shape[0]):
        row, slope, n = as_row(p, i), as_row(dp, i), start + i
        if masked:
            _mask_row(row, b, h, n, s0, bias, mask, how)
        shift_n, share_n, r_n = shift[i], share[i], r[i]
        if how[4] > 0:
            _draw_row(kept[: row.size], words, b, h, n, s0, lse, keys, how)
            for j in range(row.size):
                e = share_n * exp(row[j] - shift_n)
                slope[j] = e * (slope[j] * kept[j] - r_n)
                row[j] = e * kept[j]
        else:
            for j in range(row.size):
                e = share_n * exp(row[j] - shift_n)
                slope[j] = e * (slope[j] - r_n)
                row[j] = e
        if ds.size > 0:
            for j in range(row.size):
                ds[b, h, n, s0 + j] = slope[j]
        for j in range(row.size):
            slope[j] *= scale


@body
def _backward_chunk_2(chunk, chunks, q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how):
    """Some heads."""
    batch, heads, queries, depth = q.shape
    keys, width = k.shape[2], v.shape[3]
    block, is_causal = _key_block(keys), how[2]
    zero, one = q.dtype.type(0), q.dtype.type(1)
    kt, vt = np.empty((depth, keys), q.dtype), np.empty((width, keys), q.dtype)
    scores, slopes = np.empty((QUERIES, block), q.dtype), np.empty((QUERIES, block), q.dtype)
    r, kept, words = np.empty(QUERIES, q.dtype), np.empty(block, q.dtype), np.empty(block + 8, np.uint32)
    shift, share = np.empty(QUERIES, q.dtype), np.empty(QUERIES, q.dtype)
    for head in range(batch * heads * chunk // chunks, batch * heads * (chunk + 1) // chunks):
        b, h = head // heads, head % heads
        q_, k_, out_, dout_, dq_, dk_, dv_ = q[b, h], k[b, h], out[b, h], dout[b, h], dq[b, h], dk[b, h], dv[b, h]
        transpose(k_, how[3], kt)
        transpose(v[b, h], one, vt)
        if is_causal:  # not every block of keys is met by the first block of queries
            dk_[:, :] = zero
            dv_[:, :] = zero
        for start in range(0, queries, QUERIES):
            stop = min(start + QUERIES, queries)
            for n in range(start, stop):
                left, right, total = as_row(dout_, n), as_row(out_, n), zero
                for e in range(width):
                    total += left[e] * right[e]
                r[n - start] = total
            _anchor_rows(q_[start:stop], kt, b, h, start, bias, mask, lse, scores, shift, share, block, how)
            for s0 in range(0, min(keys, stop) if is_causal else keys, block):
                s1 = min(s0 + block, keys)
                p, dp = scores[: stop - start, : s1 - s0], slopes[: stop - start, : s1 - s0]
                multiply(q_[start:stop], kt[:, s0:s1], p, False)
                multiply(dout_[start:stop], vt[:, s0:s1], dp, False)
                _backward_rows(p, dp, b, h, start, s0, bias, mask, lse, shift, share, r, ds, kept, words, keys, how)
                later = start > 0 or is_causal
                multiply(p.T, dout_[start:stop], dv_[s0:s1], later)
                multiply(dp, k_[s0:s1], dq_[start:stop], s0 > 0)
                multiply(dp.T, q_[start:stop], dk_[s0:s1], later)


# What Python calls --------------------------------------------------------------------------------------------------

# {0} is the floating type. What is only read may be a broadcast view, which NumPy calls read-only.
_ARRAY, _READ, _SEEN = "{0}[:,:,:,:]", "Array({0}, 4, 'A', True)", "Array(boolean, 4, 'A', True)"
_INPUTS = ", ".join((_ARRAY, _ARRAY, _ARRAY, _READ, _SEEN, _ARRAY, "{0}[:,:,::1]"))
_HOW = "Tuple((boolean, boolean, boolean, {0}, uint64, {0}, int64, int64))"
_FORWARD = f"void({_INPUTS}, {_HOW}, int64)"
_BACKWARD = f"void({_INPUTS}, {', '.join([_ARRAY] * 5)}, {_HOW}, int64)"


@entries(_FORWARD)
def _forward_1(q, k, v, bias, mask, out, lse, how, team):
    parallel(_forward_chunk_1, q.shape[0] * q.shape[1], team, (q, k, v, bias, mask, out, lse, how))


@entries(_BACKWARD)
def _backward_1(q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how, team):
    arguments = (q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how)
    parallel(_backward_chunk_1, q.shape[0] * q.shape[1], team, arguments)


@entries(_FORWARD)
def _forward_2(q, k, v, bias, mask, out, lse, how, team):
    heads = q.shape[0] * q.shape[1]
    groups = min(-(-q.shape[2] // QUERIES), -(-16 // heads))  # a few long heads are shared out too
    parallel(_forward_chunk_2, min(heads * groups, 64), team, (groups, q, k, v, bias, mask, out, lse, how))


@entries(_BACKWARD)
def _backward_2(q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how, team):
    heads = q.shape[0] * q.shape[1]
    parallel(_backward_chunk_2, min(heads, 64), team, (q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how))


@body
def _weights_chunk(chunk, chunks, q, k, bias, mask, lse, p, how):
    """The probabilities of some heads."""
    batch, heads, queries, depth = q.shape
    transposed = np.empty((depth, k.shape[2]), q.dtype)
    zero = q.dtype.type(0)
    for head in range(batch * heads * chunk // chunks, batch * heads * (chunk + 1) // chunks):
        b, h = head // heads, head % heads
        transpose(k[b, h], how[3], transposed)
        multiply(q[b, h], transposed, p[b, h], False)
        for n in range(queries):
            row = as_row(p[b, h], n)
            _mask_row(row, b, h, n, 0, bias, mask, how)
            shift = zero if lse[b, h, n] == -np.inf else lse[b, h, n]
            coarse, total = _is_coarse(shift), zero
            if coarse:
                shift = largest(row)
            for j in range(row.size):
                row[j] = exp(row[j] - shift)
                total += row[j]
            if coarse:
                for j in range(row.size):
                    row[j] /= total


@entries(f"void({_ARRAY}, {_ARRAY}, {_READ}, {_SEEN}, {{0}}[:,:,::1], {_ARRAY}, {_HOW}, int64)")
def _weights(q, k, bias, mask, lse, p, how, team):
    parallel(_weights_chunk, min(q.shape[0] * q.shape[1], 64), team, (q, k, bias, mask, lse, p, how))


VERSIONS = {1: (_forward_1, _backward_1), 2: (_forward_2, _backward_2)}


# Launchers ----------------------------------------------------------------------------------------------------------


def _heads(array):
    """`array` as (B, H, N, D) that kernels can read: last axis contiguous, writeable in the eyes of NumPy."""
    ready(array.dtype)
    if array.ndim != 4:
        lead = (1,) * (4 - array.ndim) + array.shape[:-2]
        array = array.reshape(math.prod(lead[:-1]), lead[-1], *array.shape[-2:])
    usable = array.strides[3] == array.itemsize and array.flags.writeable and array.flags.aligned
    return array if usable else np.array(array, order="C")


@cache
def _nothing(dtype):
    """What stands for a bias or mask that is not given."""
    return np.broadcast_to(np.zeros(1, dtype), (1, 1, 1, 1))


def _scores_view(array, q, k, dtype):
    """Bias or mask as a read-only view of shape (B, H, N, S); a dummy if there is none."""
    if array is None:
        return _nothing(dtype)
    lead = q.shape[:-2]
    view = np.broadcast_to(array, (*lead, q.shape[-2], k.shape[-2]))
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
    return (bias is not None, mask is not None, is_causal, *_scalars(q.dtype, scale, dropout_p), seed, offset)


def _team(q, k):
    return pool.team(q.size * k.shape[2] > _SERIAL)


def forward(q, k, v, bias, *, mask=None, is_causal=False, scale, dropout_p=0.0, seed=0, offset=0, version):
    """q (..., N, D), k (..., S, D), v (..., S, E), bias or None -> out (..., N, E), lse (..., N)."""
    q_, k_, v_ = _heads(q), _heads(k), _heads(v)
    (b, h, n, _), e = q_.shape, v_.shape[3]
    out, lse = np.empty((b, n, h, e), q.dtype).transpose(0, 2, 1, 3), np.empty((b, h, n), q.dtype)
    if k_.shape[2] == 0:
        out[...], lse[...] = 0, -np.inf
    elif q_.size:
        how = _how(q, bias, mask, is_causal, scale, dropout_p, seed, offset)
        bias, mask = _scores_view(bias, q, k, q.dtype), _scores_view(mask, q, k, bool)
        VERSIONS[version][0][q.dtype](q_, k_, v_, bias, mask, out, lse, how, _team(q_, k_))
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
    dq, dk, dv = _empty_gradients(q_, k_, v_) if out_grads is None else out_grads
    ds = np.zeros((*q_.shape[:3], k_.shape[2]) if needs[3] else (0, 0, 0, 0), q.dtype)  # hidden blocks are skipped
    if k_.shape[2] == 0 or q_.size == 0:
        dq[...], dk[...], dv[...] = 0, 0, 0
    else:
        how = _how(q, bias, mask, is_causal, scale, dropout_p, seed, offset)
        views = _scores_view(bias, q, k, q.dtype), _scores_view(mask, q, k, bool)
        lse = dense(lse.reshape(q_.shape[:3]))
        VERSIONS[version][1][q.dtype](q_, k_, v_, *views, out_, lse, dout_, dq, dk, dv, ds, how, _team(q_, k_))
    dbias = _sum_to(ds.reshape(*q.shape[:-1], k.shape[-2]), bias.shape) if needs[3] else None
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


def _empty_gradients(q, k, v):
    b, h, n, d = q.shape
    if k.shape == q.shape == v.shape:
        return np.empty((b, n, 3, h, d), q.dtype).transpose(2, 0, 3, 1, 4)
    return tuple(np.empty((x.shape[0], x.shape[2], h, x.shape[3]), q.dtype).transpose(0, 2, 1, 3) for x in (q, k, v))


def _sum_to(array, shape):
    """The sum over the axes along which an array of this shape was broadcast."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
