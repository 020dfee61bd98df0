"""Version 1 of attention, one query at a time, and the steps on scores that all versions share."""

import numpy as np

from ..cpu.bfloat16 import as_float, float_like, settle, widened
from ..cpu.chunks import bounds
from ..cpu.compiler import body
from ..cpu.philox import keep_row
from ..cpu.vector_loops import as_row, largest, transpose
from ..cpu.vector_math import exp, less
from ..linear.microkernel import multiply

EXACT = 16  # backward uses lse up to this size: the relative error of exp(s - lse) grows with |lse|


# Steps that all versions share --------------------------------------------------------------------------------------

# `how` is (has_bias, has_mask, is_causal, scale, threshold, factor, seed, offset). Dropout keeps a probability if its
# random word is at least `threshold`, and multiplies it by `factor`.


@body
def mask_row(row, b, h, n, start, bias, mask, how):
    """Add the bias to the scaled scores of query n with the keys from `start` on, and hide the keys it may not see."""
    has_bias, has_mask, is_causal = how[0], how[1], how[2]
    count = max(0, min(row.size, n + 1 - start)) if is_causal else row.size
    hidden = row.dtype.type(-np.inf)
    if has_bias:
        for j in range(count):
            row[j] += widened(bias[b, h, n, start + j])
    if has_mask:
        for j in range(count):
            row[j] = row[j] if mask[b, h, n, start + j] else hidden
    for j in range(count, row.size):
        row[j] = hidden


@body
def draw_row(factors, words, b, h, n, start, lse, keys, how):
    """Draw the factors of dropout for the scores of query n with the keys from `start` on."""
    _, heads, queries = lse.shape
    first = ((b * heads + h) * queries + n) * keys + start
    keep_row(factors, words, first, how[4], how[5], how[6], how[7])


@body
def is_coarse(lse):
    """Whether this lse is so large that probabilities must be computed from the scores themselves."""
    return abs(lse) > EXACT and lse != -np.inf


# v1 -----------------------------------------------------------------------------------------------------------------


@body
def _score_row_1(row, q, k, b, h, n, bias, mask, how):
    for s in range(row.size):
        total = row.dtype.type(0)
        for d in range(q.shape[1]):
            total += q[n, d] * k[s, d]
        row[s] = how[3] * total
    mask_row(row, b, h, n, 0, bias, mask, how)


@body
def forward_chunk_1(chunk, chunks, q, k, v, bias, mask, out, lse, how):
    """Compute one head."""
    b, h = chunk // q.shape[1], chunk % q.shape[1]
    keys = k.shape[2]
    row, kept, words = np.empty(keys, lse.dtype), np.empty(keys, lse.dtype), np.empty(keys + 8, np.uint32)
    zero = row.dtype.type(0)
    q_, k_, v_, out_ = as_float(q[b, h]), as_float(k[b, h]), as_float(v[b, h]), float_like(out[b, h])
    for n in range(q.shape[2]):
        _score_row_1(row, q_, k_, b, h, n, bias, mask, how)
        top = largest(row)
        shift = zero if top == -np.inf else top
        total = zero
        for s in range(keys):
            row[s] = exp(less(row[s], shift))
            total += row[s]
        lse[b, h, n] = shift + np.log(total)
        if how[4] > 0:
            draw_row(kept, words, b, h, n, 0, lse, keys, how)
            for s in range(keys):
                row[s] *= kept[s]
        for e in range(v.shape[3]):
            value = zero
            for s in range(keys):
                value += row[s] * v_[s, e]
            out_[n, e] = zero if total == zero else value / total
    settle(out_, out[b, h])


@body
def backward_chunk_1(chunk, chunks, q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how):
    """Compute the gradients of one head."""
    b, h = chunk // q.shape[1], chunk % q.shape[1]
    keys, scale = k.shape[2], how[3]
    row, kept, words = np.empty(keys, lse.dtype), np.empty(keys, lse.dtype), np.empty(keys + 8, np.uint32)
    zero = row.dtype.type(0)
    kept[:] = row.dtype.type(1)
    q_, k_, v_ = as_float(q[b, h]), as_float(k[b, h]), as_float(v[b, h])
    out_, dout_ = as_float(out[b, h]), as_float(dout[b, h])
    dq_, dk_, dv_ = float_like(dq[b, h]), float_like(dk[b, h]), float_like(dv[b, h])
    dq_[:, :] = zero
    dk_[:, :] = zero
    dv_[:, :] = zero
    for n in range(q.shape[2]):
        _score_row_1(row, q_, k_, b, h, n, bias, mask, how)
        shift = zero if lse[b, h, n] == -np.inf else lse[b, h, n]
        share = row.dtype.type(1)
        if is_coarse(shift):
            shift, total = largest(row), zero
            for s in range(keys):
                total += exp(less(row[s], shift))
            share /= total
        if how[4] > 0:
            draw_row(kept, words, b, h, n, 0, lse, keys, how)
        r = zero
        for e in range(v.shape[3]):
            r += dout_[n, e] * out_[n, e]
        for s in range(keys):
            p = share * exp(less(row[s], shift))
            dp = zero
            for e in range(v.shape[3]):
                # out = (p * m) @ v
                dv_[s, e] += p * kept[s] * dout_[n, e]
                dp += dout_[n, e] * v_[s, e]
            # p = softmax(s)
            d = p * (dp * kept[s] - r)
            if ds.size > 0:
                ds[b, h, n, s] = d
            for c in range(q.shape[3]):
                # s = scale * q @ k.T + bias
                dq_[n, c] += scale * d * k_[s, c]
                dk_[s, c] += scale * d * q_[n, c]
    settle(dq_, dq[b, h])
    settle(dk_, dk[b, h])
    settle(dv_, dv[b, h])


# The probabilities -------------------------------------------------------------------------------------------------


@body
def weights_chunk(chunk, chunks, q, k, bias, mask, lse, p, how):
    """Compute the probabilities of some heads from their scores and lse."""
    batch, heads, queries, depth = q.shape
    transposed = np.empty((depth, k.shape[2]), q.dtype)
    zero = q.dtype.type(0)
    for head in range(*bounds(batch * heads, chunk, chunks)):
        b, h = head // heads, head % heads
        transpose(k[b, h], how[3], transposed)
        multiply(q[b, h], transposed, p[b, h], False)
        for n in range(queries):
            row = as_row(p[b, h], n)
            mask_row(row, b, h, n, 0, bias, mask, how)
            shift = zero if lse[b, h, n] == -np.inf else lse[b, h, n]
            coarse, total = is_coarse(shift), zero
            if coarse:
                shift = largest(row)
            for j in range(row.size):
                row[j] = exp(less(row[j], shift))
                total += row[j]
            if coarse:
                for j in range(row.size):
                    row[j] /= total
