"""Attention as the registry calls it, made from the two functions that each technology has for it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..sums import sum_to_shape

Function = Callable[..., Any]


class Options(NamedTuple):
    """The parameters of attention besides its inputs.

    mask : boolean, broadcastable to (B, H, N, S), or None
        True where attention is allowed.
    is_causal : bool
        Key s is visible to query n only if s <= n.
    dropout_p, seed, offset
        Dropout of the probabilities, drawn from the stream (seed, offset).
    """

    scale: float
    mask: Any = None
    is_causal: bool = False
    dropout_p: float = 0.0
    seed: Any = 0
    offset: int = 0


def operations(library: Function, heads: Function, run_forward: Function, run_backward: Function) -> Any:
    """Return forward and backward of attention, as the registry calls them.

    Parameters
    ----------
    library : array -> the module that makes arrays like it
    heads : array (..., N, D) -> a view of it (B, H, N, D) that kernels can read, or a copy
    run_forward : (q, k, v, bias, out, lse, options, version) -> None
        Fills out (B, H, N, E) and lse (B, H, N).
    run_backward : (q, k, v, bias, out, lse, dout, dq, dk, dv, ds, options, version) -> None
        Fills dq, dk, dv and, unless it has no elements, ds (B, H, N, S), the gradient of the scores.

    The bias that they get, and the mask in the options, is a view (B, H, N, S) or None. They are not called if there is
    no query or no key.
    """

    def forward(q, k, v, bias, *, version, **params):
        """Map q (..., N, D), k (..., S, D), v (..., S, E) and bias, or None, to out (..., N, E) and lse (..., N)."""
        xp = library(q)
        q_, k_, v_ = _with_columns(xp, heads(q), heads(k), heads(v))
        (b, h, n, _), e = q_.shape, v_.shape[3]
        out = xp.empty((b, n, h, e), q.dtype).transpose(0, 2, 1, 3)
        lse = xp.empty((b, h, n), _sum_dtype(q.dtype))
        if k_.shape[2] == 0:
            out[...], lse[...] = 0, -math.inf
        elif q_.size:
            options = _options(xp, q, k, params)
            run_forward(q_, k_, v_, _scores_view(xp, bias, q, k), out, lse, options, version)
        shape, out = q.shape[:-1], _columns_of(out, v)
        return (out, lse) if q.ndim == 4 else (out.reshape(*shape, out.shape[-1]), lse.reshape(shape))

    def backward(dout, q, k, v, bias, out, lse, *, needs, version, **params):
        """Return dq, dk, dv, and dbias in the shape of bias.

        Where their shapes allow, dq, dk and dv are views of one array (B, N, 3, H, D), the gradient of a packed qkv
        projection.
        """
        xp = library(q)
        q_, k_, v_, out_, dout_ = _with_columns(xp, heads(q), heads(k), heads(v), heads(out), heads(dout))
        dq, dk, dv = _empty_gradients(xp, q_, k_, v_, q.dtype)
        # Zeros, because kernels skip blocks of keys that is_causal hides.
        ds = xp.zeros((*q_.shape[:3], k_.shape[2]) if needs[3] else (0, 0, 0, 0), _sum_dtype(q.dtype))
        if k_.shape[2] == 0 or q_.size == 0:
            dq[...], dk[...], dv[...] = 0, 0, 0
        else:
            options, view = _options(xp, q, k, params), _scores_view(xp, bias, q, k)
            lse = lse.reshape(q_.shape[:3])
            run_backward(q_, k_, v_, view, out_, lse, dout_, dq, dk, dv, ds, options, version)
        dbias = None
        if needs[3]:
            dbias = sum_to_shape(ds.reshape(*q.shape[:-1], k.shape[-2]), bias.shape).astype(bias.dtype, copy=False)
        dq, dk, dv = _columns_of(dq, q), _columns_of(dk, k), _columns_of(dv, v)
        if q.ndim != 4:
            dq, dk, dv = dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)
        return dq, dk, dv, dbias

    return forward, backward


def as_heads(array: Any) -> Any:
    """Reshape (..., N, D) to (B, H, N, D)."""
    if array.ndim == 4:
        return array
    lead = (1,) * (4 - array.ndim) + array.shape[:-2]
    return array.reshape(math.prod(lead[:-1]), lead[-1], *array.shape[-2:])


def _with_columns(xp: Any, *arrays: Any) -> Sequence[Any]:
    """Return arrays (B, H, N, D) as they are, or with a column of zeros where D is 0, which changes no score."""
    if 0 not in [array.shape[3] for array in arrays]:
        return arrays
    return [x if x.shape[3] else xp.zeros((*x.shape[:3], 1), x.dtype) for x in arrays]


def _columns_of(result: Any, array: Any) -> Any:
    """Return the first columns of `result`, as many as `array` has."""
    return result if result.shape[-1] == array.shape[-1] else result[..., : array.shape[-1]]


def _options(xp: Any, q: Any, k: Any, params: dict[str, Any]) -> Options:
    options = Options(**params)
    return options if options.mask is None else options._replace(mask=_scores_view(xp, options.mask, q, k))


def _scores_view(xp: Any, array: Any, q: Any, k: Any) -> Any:
    """Return a bias or mask as a view (B, H, N, S), perhaps with strides of 0; None for None."""
    return None if array is None else as_heads(xp.broadcast_to(array, (*q.shape[:-1], k.shape[-2])))


def _sum_dtype(dtype: Any) -> Any:
    """Return the dtype that scores are computed in: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _empty_gradients(xp: Any, q: Any, k: Any, v: Any, dtype: Any) -> Any:
    b, h, n, d = q.shape
    if k.shape == q.shape == v.shape:
        return xp.empty((b, n, 3, h, d), dtype).transpose(2, 0, 3, 1, 4)
    return tuple(xp.empty((b, x.shape[2], h, x.shape[3]), dtype).transpose(0, 2, 1, 3) for x in (q, k, v))
