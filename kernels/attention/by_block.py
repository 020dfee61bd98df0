"""Version 2 of attention: blocks of queries against blocks of keys."""

import numpy as np

from ..cpu.bfloat16 import as_float, float_like, settle
from ..cpu.chunks import bounds
from ..cpu.compiler import body
from ..cpu.vector_loops import as_row, borrowed, largest, transpose
from ..cpu.vector_math import exp, less
from ..linear.microkernel import ROWS, VECTOR_BYTES, multiply
from .by_query import draw_row, is_coarse, mask_row

QUERIES = 5 * ROWS[0]  # in a block
KEYS = 320  # in a block, at most


@body
def groups_of(heads, queries):
    """Return into how many parts the queries of a head are cut, so that threads can share a few long heads too."""
    return min(-(-queries // QUERIES), -(-16 // heads))


@body
def _key_block(keys):
    """Return the size of the blocks of keys: as few as possible, and equal but for rounding up to 16."""
    blocks = -(-keys // KEYS)
    return -(-keys // (16 * blocks)) * 16


@body
def _multiply_all(a, bt, b, scale, c):
    """Set c = scale a b^T, where bt is scale b^T.

    A ViT with a class token has one key more than a multiple of a vector's lanes. A tile for this one column would take
    almost as long as one for a vector, and its masked stores far longer on some processors, so its elements are sums
    over rows of a and b.
    """
    columns = c.shape[1]
    whole = columns - 1 if columns % (VECTOR_BYTES // c.itemsize) == 1 else columns
    multiply(a, bt[:, :whole], c[:, :whole], False)
    if whole < columns:
        row = as_row(b, whole)
        for i in range(a.shape[0]):
            left, total = as_row(a, i), scale * c.dtype.type(0)
            for d in range(row.size):
                total += left[d] * row[d]
            c[i, whole] = scale * total


@body
def _softmax_rows(scores, b, h, start, s0, bias, mask, out, lse, total, kept, words, keys, how):
    """Exponentiate and sum a block of scores, less the largest score so far of each query, which is kept in lse."""
    zero = scores.dtype.type(0)
    masked = how[0] or how[1] or how[2]
    for i in range(scores.shape[0]):
        row, n = as_row(scores, i), start + i
        if masked:
            mask_row(row, b, h, n, s0, bias, mask, how)
        top = largest(row)
        if s0 > 0 and lse[b, h, n] > top:
            top = lse[b, h, n]
        shift = zero if top == -np.inf else top
        part = zero
        for j in range(row.size):
            e = exp(less(row[j], shift))
            row[j] = e
            part += e
        if s0 > 0:
            rescale = exp(less(lse[b, h, n], shift))
            part += total[i] * rescale
            before = as_row(out, n)
            for e in range(before.size):
                before[e] *= rescale
        total[i], lse[b, h, n] = part, top
        if how[4] > 0:
            draw_row(kept[: row.size], words, b, h, n, s0, lse, keys, how)
            for j in range(row.size):
                row[j] *= kept[j]


@body
def forward_chunk_2(chunk, chunks, groups, q, k, v, bias, mask, out, lse, how):
    """Compute some heads, or some of the queries of one head."""
    batch, heads, queries, depth = q.shape
    keys = k.shape[2]
    block = _key_block(keys)
    zero, one = lse.dtype.type(0), lse.dtype.type(1)
    own_transposed, own_scores = np.empty((depth, keys), lse.dtype), np.empty((QUERIES, block), lse.dtype)
    q, k, v, out, lse = borrowed(q), borrowed(k), borrowed(v), borrowed(out), borrowed(lse)
    transposed, scores = borrowed(own_transposed), borrowed(own_scores)
    total, kept, words = np.empty(QUERIES, lse.dtype), np.empty(block, lse.dtype), np.empty(block + 8, np.uint32)
    tasks, step = batch * heads * groups, -(-queries // (groups * QUERIES)) * QUERIES
    for task in range(*bounds(tasks, chunk, chunks)):
        b, h, begin = task // groups // heads, task // groups % heads, task % groups * step
        q_, k_, v_, out_ = as_float(q[b, h]), as_float(k[b, h]), as_float(v[b, h]), float_like(out[b, h])
        transpose(k_, how[3], transposed)
        for start in range(begin, min(begin + step, queries), QUERIES):
            stop = min(start + QUERIES, begin + step, queries)
            for s0 in range(0, min(keys, stop) if how[2] else keys, block):
                s1 = min(s0 + block, keys)
                s = scores[: stop - start, : s1 - s0]
                _multiply_all(q_[start:stop], transposed[:, s0:s1], k_[s0:s1], how[3], s)
                _softmax_rows(s, b, h, start, s0, bias, mask, out_, lse, total, kept, words, keys, how)
                multiply(s, v_[s0:s1], out_[start:stop], s0 > 0)
            for n in range(start, stop):
                row, sum_ = as_row(out_, n), total[n - start]
                share = zero if sum_ == zero else one / sum_
                for e in range(row.size):
                    row[e] *= share
                lse[b, h, n] += np.log(sum_)
            settle(out_[start:stop], out[b, h, start:stop])
    own_transposed[0, 0], own_scores[0, 0] = zero, zero  # so that their memory is not freed before


@body
def _anchor_rows(q, kt, k, b, h, start, bias, mask, lse, scores, shift, share, block, how):
    """Find shift and share for some queries, such that their probabilities are share exp(score - shift)."""
    zero, one = shift.dtype.type(0), shift.dtype.type(1)
    coarse = False
    for i in range(q.shape[0]):
        lse_n = lse[b, h, start + i]
        shift[i], share[i] = zero if lse_n == -np.inf else lse_n, one
        coarse = coarse or is_coarse(lse_n)
    if not coarse:
        return
    for s0 in range(0, kt.shape[1], block):  # the largest score of each row, and the sum of exponentials, as in forward
        s = scores[: q.shape[0], : min(block, kt.shape[1] - s0)]
        _multiply_all(q, kt[:, s0 : s0 + block], k[s0 : s0 + block], how[3], s)
        for i in range(q.shape[0]):
            if is_coarse(lse[b, h, start + i]):
                row = as_row(s, i)
                mask_row(row, b, h, start + i, s0, bias, mask, how)
                top = largest(row)
                if s0 > 0 and shift[i] > top:
                    top = shift[i]
                base = zero if top == -np.inf else top
                total = share[i] * exp(less(shift[i], base)) if s0 > 0 else zero
                for j in range(row.size):
                    total += exp(less(row[j], base))
                shift[i], share[i] = top, total
    for i in range(q.shape[0]):
        if is_coarse(lse[b, h, start + i]):
            share[i] = one / share[i]


@body
def _backward_rows(p, dp, b, h, start, s0, bias, mask, lse, shift, share, r, ds, kept, words, keys, how):
    """Turn scores p into probabilities with dropout, and dp = dout v^T into scale times the gradient of the scores."""
    scale = how[3]
    masked = how[0] or how[1] or how[2]
    for i in range(p.shape[0]):
        row, slope, n = as_row(p, i), as_row(dp, i), start + i
        if masked:
            mask_row(row, b, h, n, s0, bias, mask, how)
        shift_n, share_n, r_n = shift[i], share[i], r[i]
        if how[4] > 0:
            draw_row(kept[: row.size], words, b, h, n, s0, lse, keys, how)
            for j in range(row.size):
                e = share_n * exp(less(row[j], shift_n))
                slope[j] = e * (slope[j] * kept[j] - r_n)
                row[j] = e * kept[j]
        else:
            for j in range(row.size):
                e = share_n * exp(less(row[j], shift_n))
                slope[j] = e * (slope[j] - r_n)
                row[j] = e
        if ds.size > 0:
            for j in range(row.size):
                ds[b, h, n, s0 + j] = slope[j]
        for j in range(row.size):
            slope[j] *= scale


@body
def backward_chunk_2(chunk, chunks, q, k, v, bias, mask, out, lse, dout, dq, dk, dv, ds, how):
    """Compute the gradients of some heads."""
    batch, heads, queries, depth = q.shape
    keys, width = k.shape[2], v.shape[3]
    block, is_causal = _key_block(keys), how[2]
    zero, one = lse.dtype.type(0), lse.dtype.type(1)
    own_kt, own_vt = np.empty((depth, keys), lse.dtype), np.empty((width, keys), lse.dtype)
    own_scores, own_slopes = np.empty((QUERIES, block), lse.dtype), np.empty((QUERIES, block), lse.dtype)
    kt, vt, scores, slopes = borrowed(own_kt), borrowed(own_vt), borrowed(own_scores), borrowed(own_slopes)
    q, k, v, out, lse, dout = borrowed(q), borrowed(k), borrowed(v), borrowed(out), borrowed(lse), borrowed(dout)
    dq, dk, dv = borrowed(dq), borrowed(dk), borrowed(dv)
    r, kept, words = np.empty(QUERIES, lse.dtype), np.empty(block, lse.dtype), np.empty(block + 8, np.uint32)
    shift, share = np.empty(QUERIES, lse.dtype), np.empty(QUERIES, lse.dtype)
    for head in range(*bounds(batch * heads, chunk, chunks)):
        b, h = head // heads, head % heads
        q_, k_, v_ = as_float(q[b, h]), as_float(k[b, h]), as_float(v[b, h])
        out_, dout_ = as_float(out[b, h]), as_float(dout[b, h])
        dq_, dk_, dv_ = float_like(dq[b, h]), float_like(dk[b, h]), float_like(dv[b, h])
        transpose(k_, how[3], kt)
        transpose(v_, one, vt)
        if is_causal:  # the first block of queries does not reach every block of keys
            dk_[:, :] = zero
            dv_[:, :] = zero
        for start in range(0, queries, QUERIES):
            stop = min(start + QUERIES, queries)
            for n in range(start, stop):
                left, right, total = as_row(dout_, n), as_row(out_, n), zero
                for e in range(width):
                    total += left[e] * right[e]
                r[n - start] = total
            _anchor_rows(q_[start:stop], kt, k_, b, h, start, bias, mask, lse, scores, shift, share, block, how)
            for s0 in range(0, min(keys, stop) if is_causal else keys, block):
                s1 = min(s0 + block, keys)
                p, dp = scores[: stop - start, : s1 - s0], slopes[: stop - start, : s1 - s0]
                _multiply_all(q_[start:stop], kt[:, s0:s1], k_[s0:s1], how[3], p)
                _multiply_all(dout_[start:stop], vt[:, s0:s1], v_[s0:s1], one, dp)
                _backward_rows(p, dp, b, h, start, s0, bias, mask, lse, shift, share, r, ds, kept, words, keys, how)
                later = start > 0 or is_causal
                multiply(p.T, dout_[start:stop], dv_[s0:s1], later)
                multiply(dp, k_[s0:s1], dq_[start:stop], s0 > 0)
                multiply(dp.T, q_[start:stop], dk_[s0:s1], later)
        settle(dq_, dq[b, h])
        settle(dk_, dk[b, h])
        settle(dv_, dv[b, h])
    own_kt[0, 0], own_vt[0, 0], own_scores[0, 0], own_slopes[0, 0] = zero, zero, zero, zero  # not freed before
