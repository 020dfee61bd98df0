"""Scaled dot-product attention in CUDA C++, forward and backward.

| version | what it changes, and gains                                                                               |
|---------|----------------------------------------------------------------------------------------------------------|
| v1      | one warp for each query, written like the formula, with all scores of the query in shared memory; for    |
|         | the gradients of k and v, one warp for each key                                                          |
| v2      | tiles of rows against tiles of columns, each read once from memory into shared memory; a running maximum |
|         | (online softmax: Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022)                         |
| v3      | tensor cores, for float16 and bfloat16; probabilities stay in registers, and the next tile is copied     |
|         | while this one is used                                                                                   |
| v4      | all keys of a head in shared memory and all scores of a query in registers, where they fit, as in ViTs:  |
|         | nothing is rescaled, and forward and backward read q, k and v only once                                  |
| v5      | no branch between the loads of a tile, its products and its exponentials, so that they overlap: the last |
|         | tile is a template argument, and so is everything that a call may have besides q, k and v; 5 or 6 warps  |
|         | for forward and 8 for backward in long ViTs; r by wide loads during the copies; random bits of dropout   |
|         | once for four elements; a large lse is made exact on tensor cores, and only if there is a bias           |

The gains of v5 are estimated from its machine code, which has these loops without branches and spills: no device was at
hand to measure its speed.

The gradients of queries and of keys are computed separately, each with the products it needs, so that no two blocks add
to the same element: there are no atomics, and the bits are always the same. A version that cannot serve a call leaves
it to the one before: v3, v4 and v5 need 16-bit floats, v4 needs short sequences without mask, bias and dropout, no
`is_causal` and a positive scale, and each needs its shared memory. v5 keeps a whole head in shared memory where that
fits and there is nothing besides q, k and v, and else goes from tile to tile, as v3 does.

q (B, H, N, D), k and v (B, H, S, D) are views of any strides whose last axis is contiguous. If they are aligned to 16
bytes, and so is D, they are read 16 bytes at a time. out lies in memory as (B, N, H, D). Forward saves lse (B, H, N) in
float32. Where lse is so large that its rounding error would show in probabilities of float32, backward computes the
largest score and the logarithm of the sum of exponentials again. v4 does not, nor does v5 without a bias: a score near
lse is then a product that float32 has rounded by as much as lse itself. The error of p is a quarter of a rounding to
float16 up to |lse| = 4096, and of one to bfloat16 up to 32768.
"""

import ctypes
import math
from typing import Any

from ..cuda.device import CTYPES, Device, address, device_of, is_aligned, library_of
from ..cuda.dropout import Dropout, dropout_of
from ..linear import cublaslt, lt
from .launches import DEPTHS, VERSIONS, Extras, Launch, Shape, kernels, plan, why_too_many  # noqa: F401 (for tests)
from .operations import Options, as_heads, operations


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((n, ctypes.c_longlong) for n in ("batch", "head", "row")))


class _Scores(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((n, ctypes.c_longlong) for n in ("batch", "head", "query", "key")))


class _Attention(ctypes.Structure):
    """The struct `Attention` of attention.cuh."""

    _fields_ = (
        *((name, _View) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")),
        *((name, _Scores) for name in ("bias", "mask")),
        *((name, ctypes.c_void_p) for name in ("lse", "r", "ds", "shift", "rest")),
        ("dropout", Dropout),
        *((name, ctypes.c_int) for name in ("heads", "queries", "keys", "depth")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("is_causal", "aligned")),
    )


def refuses(inputs: Any, params: Any) -> str | None:
    """Return the reason why these inputs cannot be served, or None."""
    q, v = inputs["q"], inputs["v"]
    if q.shape[-1] != v.shape[-1] or not 0 < q.shape[-1] <= DEPTHS[-1]:
        return f"the head sizes are {q.shape[-1]} and {v.shape[-1]}; they must be equal and at most {DEPTHS[-1]}"
    if q.dtype.name == "bfloat16" and device_of(q).arch < 80:
        return f"bfloat16 needs compute capability 8.0, and the device has {device_of(q).arch / 10}; use float16"
    return why_too_many(q, inputs["k"])


def _heads(array: Any) -> Any:
    """Return `array` as (B, H, N, D) with a contiguous last axis."""
    array = as_heads(array)
    usable = array.strides[3] == array.itemsize or array.shape[3] == 1
    return array if usable else library_of(array).ascontiguousarray(array)


def _view(array: Any) -> _View:
    b, h, n, _ = (s // array.itemsize for s in array.strides)
    return _View(address(array), b, h, n)


def _scores(view: Any) -> _Scores:
    """Describe a bias or mask (B, H, N, S), or None."""
    return _Scores() if view is None else _Scores(address(view), *(s // view.itemsize for s in view.strides))


def _argument(q: Any, k: Any, bias: Any, options: Options) -> tuple[_Attention, Shape]:
    """Return the argument of all launches, as far as forward and backward share it, and the shape they depend on."""
    dropout = dropout_of(options.dropout_p, options.seed, options.offset)
    given = _Attention(bias=_scores(bias), mask=_scores(options.mask), dropout=dropout)
    (batch, given.heads, given.queries, given.depth), given.keys = q.shape, k.shape[2]
    given.scale, given.is_causal = options.scale, options.is_causal
    extras = Extras(0) if options.scale > 0 else Extras.ANY_SCALE
    extras |= Extras.CAUSAL * options.is_causal | Extras.MASK * (options.mask is not None)
    extras |= Extras.BIAS * (bias is not None) | Extras.DROPOUT * (options.dropout_p > 0)
    return given, Shape(CTYPES[q.dtype.name], batch * q.shape[1], q.shape[2], k.shape[2], q.shape[3], extras)


def _run(launches: list[Launch], device: Device, argument: _Attention) -> None:
    for launch in launches:
        device.launch(launch.kernel, launch.grid, launch.threads, [argument], launch.shared)


def _run_forward(q, k, v, bias, out, lse, options, version):
    (given, shape), device = _argument(q, k, bias, options), device_of(q)
    given.q, given.k, given.v, given.out = map(_view, (q, k, v, out))
    given.lse, given.aligned = address(lse), is_aligned(q, k, v, out)
    _run(plan(version, False, shape, device), device, given)


def _run_backward(q, k, v, bias, out, lse, dout, dq, dk, dv, ds, options, version):
    (given, shape), device, xp = _argument(q, k, bias, options), device_of(q), library_of(q)
    r, shift, rest = xp.empty((3, *q.shape[:3]), "float32")
    arrays = (q, k, v, out, dout, dq, dk, dv)
    given.q, given.k, given.v, given.out, given.dout, given.dq, given.dk, given.dv = map(_view, arrays)
    lse = xp.ascontiguousarray(lse)
    given.lse, given.r, given.shift, given.rest = map(address, (lse, r, shift, rest))
    given.ds, given.aligned = address(ds if ds.size else None), is_aligned(*arrays)
    _run(plan(version, True, shape, device), device, given)


forward, backward = operations(library_of, _heads, _run_forward, _run_backward)


def weights(q, k, lse, bias, *, mask=None, is_causal=False, scale):
    """Return the probabilities (B, H, N, S) before dropout, by CuPy's own functions: speed does not matter here."""
    xp, keys = library_of(q), k.swapaxes(-1, -2)
    scores = scale * (q @ keys if lt.why_not() else cublaslt.matmul(q, keys, tf32=False))
    if scores.size == 0:  # CuPy finds no largest one of no scores
        return scores
    if bias is not None:
        scores += bias
    hidden, zero = scores.dtype.type(-math.inf), scores.dtype.type(0)
    if mask is not None:
        scores = xp.where(mask, scores, hidden)
    if is_causal:
        scores = xp.where(xp.arange(q.shape[-2])[:, None] >= xp.arange(k.shape[-2]), scores, hidden)
    p = xp.exp(scores - xp.where(lse == -math.inf, zero, scores.max(axis=-1))[..., None])
    total = p.sum(axis=-1, keepdims=True)
    return p / xp.where(total == 0, scores.dtype.type(1), total)
