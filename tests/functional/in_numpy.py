"""The functions of `tinyvit.functional` once more, for float64 arrays: its names and arguments, the oracles' values.

Only functions whose arguments are not those of an operation of the same name have an entry here.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from oracles import ORACLES, dropout_mask

import tinyvit.functional as F

Array = np.ndarray


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


def _reduction(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda x, axis=None, keepdims=False: np.asarray(function(x, axis=axis, keepdims=keepdims))


def _count(x: Array, axis: Any) -> int:
    return math.prod(x.shape[a] for a in (range(x.ndim) if axis is None or x.ndim == 0 else np.atleast_1d(axis)))


def _mean(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims) / np.float64(_count(x, axis)))


def _var(x: Array, axis: Any = None, correction: float = 0, keepdims: bool = False) -> Array:
    """Return the sum of the squared deviations, divided by n - correction, or by 0 where that is negative."""
    squares = np.sum((x - _mean(x, axis, keepdims=True)) ** 2, axis=axis, keepdims=keepdims)
    return np.asarray(squares / np.float64(max(_count(x, axis) - correction, 0)))


def _logsumexp(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    np.sum(x, axis)  # refuses what is no axis
    axes = tuple(range(x.ndim)) if axis is None else tuple(np.atleast_1d(axis)) if x.ndim else ()
    out = x
    for a in axes:
        out = np.logaddexp.reduce(out, axis=a, keepdims=True, initial=-np.inf)
    return out if keepdims else np.squeeze(out, axis=axes)


def _along(name: str) -> Callable[..., Array]:
    """Return a kind of softmax; along an axis without elements it has none, and a scalar is a row of one."""

    def function(x: Array, axis: int = -1) -> Array:
        np.sum(x, axis)  # refuses what is no axis
        if x.ndim == 0:
            return ORACLES[name](x.reshape(1)).reshape(())
        return ORACLES[name](x, axis) if x.size else np.zeros(x.shape)

    return function


def _attention(
    q: Array, k: Array, v: Array, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, generator: Any = None,
) -> Array:  # fmt: skip
    """Attention over any leading axes; a floating mask is added to the scores."""
    lead, scores = q.shape[:-2], (*q.shape[:-1], k.shape[-2])
    q, k, v = (x.reshape(math.prod(lead), 1, *x.shape[-2:]) for x in (q, k, v))
    given = None if attn_mask is None else np.broadcast_to(attn_mask, scores).reshape(len(q), 1, *scores[-2:])
    is_boolean = given is not None and given.dtype == bool
    seed, offset = generator.draw() if dropout_p else (0, 0)
    out = ORACLES["attention"](
        q, k, v, None if is_boolean else given, mask=given if is_boolean else None, is_causal=is_causal,
        scale=max(q.shape[-1], 1) ** -0.5 if scale is None else scale, dropout_p=dropout_p, seed=seed, offset=offset,
    )  # fmt: skip
    return out.reshape(*lead, *out.shape[-2:])


def _cross_entropy(logits: Array, target: Any, ignore_index: int = -100, label_smoothing: float = 0.0,
                   reduction: str = "mean") -> Array:  # fmt: skip
    target = np.asarray(target)
    both = (None, target) if target.dtype.kind in "iu" else (target, None)
    return np.asarray(ORACLES["cross_entropy"](
        logits, both[0], ids=both[1], ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    ))  # fmt: skip


def _contrastive_loss(image: Array, text: Array, logit_scale: Any) -> Array:
    logits, pairs = image @ text.T * logit_scale, np.arange(len(image))
    return (_cross_entropy(logits, pairs) + _cross_entropy(logits.T, pairs)) / 2


def _loss(name: str) -> Callable[..., Array]:
    return lambda x, target, reduction="mean": np.asarray(ORACLES[name](x, np.asarray(target), reduction=reduction))


def _pool(name: str) -> Callable[..., Array]:
    return lambda x, size, stride=None, padding=0: ORACLES[name](
        x, _pair(size), _pair(size if stride is None else stride), _pair(padding)
    )


def _patches(x: Array, size: Any) -> Array:
    (b, c, h, w), (p, q) = x.shape, _pair(size)
    tiles = [x[:, :, i : i + p, j : j + q].reshape(b, c * p * q) for i in range(0, h, p) for j in range(0, w, q)]
    return np.stack(tiles, axis=1) if tiles else np.zeros((b, 0, c * p * q))


def _interpolate(x: Array, size: Any) -> Array:
    """Each output pixel is the mean of all input pixels, by weights that fall to 0 at a distance of one pixel."""
    out = np.zeros((*x.shape[:2], *_pair(size)))
    (n, m), (h, w) = x.shape[2:], out.shape[2:]
    for i, j in np.ndindex(h, w):
        s, t = min(max((i + 0.5) * n / h - 0.5, 0), n - 1), min(max((j + 0.5) * m / w - 0.5, 0), m - 1)
        for k, q in np.ndindex(n, m):
            out[:, :, i, j] += max(0, 1 - abs(s - k)) * (max(0, 1 - abs(t - q)) * x[:, :, k, q])
    return out


def _pixel_shuffle(x: Array, r: int) -> Array:
    b, c, h, w = x.shape
    out = np.zeros((b, c // r**2, h * r, w * r))
    for k, i, j in np.ndindex(c // r**2, r, r):
        out[:, k, i::r, j::r] = x[:, k * r**2 + i * r + j]
    return out


def _generalized_iou(x: Array, y: Array) -> Array:
    def area(left: Any, top: Any, right: Any, bottom: Any) -> Any:
        return (right - left) * (bottom - top)

    (a, b, c, d), (e, f, g, h) = (np.moveaxis(box, -1, 0) for box in (x, y))
    width, height = np.minimum(c, g) - np.maximum(a, e), np.minimum(d, h) - np.maximum(b, f)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    union = area(a, b, c, d) + area(e, f, g, h) - common
    around = area(np.minimum(a, e), np.minimum(b, f), np.maximum(c, g), np.maximum(d, h))
    return common / np.maximum(union, 1e-12) - (around - union) / np.maximum(around, 1e-12)


def _dropout(x: Array, p: float = 0.5, training: bool = True, generator: Any = None) -> Array:
    if p == 1:
        return x * 0.0
    return x * dropout_mask(x.shape, p, *generator.draw()) if training and p else x


def _split(x: Array, parts: Any, axis: int = 0) -> tuple[Array, ...]:
    return tuple(np.split(x, parts, axis))


def _merge_heads(x: Array) -> Array:
    return ORACLES["merge_heads"](x) if x.shape[1] else np.zeros((*x.shape[:1], x.shape[2], 0))


def _join_heads(parts: Sequence[Array]) -> Array:
    return np.concatenate([_merge_heads(part) for part in parts], axis=-1)


def _within(x: Array, ids: Any) -> Array:
    """Return x after NumPy has accepted these ids of its rows."""
    np.take(x, ids, axis=0)
    return x


def _pad(x: Array, width: Any, value: float = 0.0) -> Array:
    return np.pad(x, width, constant_values=value) if x.ndim else x


_OTHERS: dict[str, Any] = dict(
    **{name: _reduction(getattr(np, name)) for name in ("sum", "max", "min")},
    mean=_mean,
    **{name: _along(name) for name in ("softmax", "log_softmax")},
    **{name: _pool(name) for name in ("max_pool2d", "avg_pool2d")},
    **{name: _loss(name) for name in ("mse_loss", "binary_cross_entropy_with_logits")},
    cast=lambda x, dtype: x,
    clip=lambda x, lowest=None, highest=None: ORACLES["clip"](x, lowest, highest),
    col2im=lambda x, shape, kernel, stride, padding: ORACLES["col2im"](x, shape, kernel, stride, padding),
    concatenate=lambda arrays, axis=0: np.concatenate(arrays, axis),
    contrastive_loss=_contrastive_loss,
    conv2d=lambda x, weight, bias=None, stride=1, padding=0: ORACLES["conv2d"](
        x, weight, bias, stride=_pair(stride), padding=_pair(padding)
    ),
    cross_entropy=_cross_entropy,
    cumsum=lambda x, axis=None: np.cumsum(x, axis).reshape(x.shape if axis is not None and x.ndim else (x.size,)),
    depthwise_conv=lambda x, weight, bias=None: ORACLES["depthwise_conv"](x, weight, bias) if x.size else x,
    dropout=_dropout,
    dropout_mask=lambda shape, p, seed, offset, dtype: dropout_mask(shape, p, seed, offset),
    einsum=np.einsum,
    embedding=lambda ids, weight: ORACLES["embedding"](_within(weight, ids), np.asarray(ids)),
    generalized_iou=_generalized_iou,
    interpolate=_interpolate,
    pixel_shuffle=_pixel_shuffle,
    flip=lambda x, axis=None: np.flip(x, axis) if x.ndim or np.sum(x, axis) is None else x,
    im2col=lambda x, kernel, stride, padding, value=0.0: ORACLES["im2col"](x, kernel, stride, padding, value),
    index=lambda x, key: np.asarray(x[key]),
    index_put=lambda x, value, index: ORACLES["index_put"](x, value, index),
    join_heads=_join_heads,
    logsumexp=_logsumexp,
    merge_heads=_merge_heads,
    matmul=lambda x, y: np.asarray(np.matmul(x, y)),
    ones_like=np.ones_like,
    pad=_pad,
    patches=_patches,
    reshape=np.reshape,
    rms_norm=lambda x, weight, eps=1e-5: ORACLES["rms_norm"](x, weight, eps) if x.size else x,
    scaled_dot_product_attention=_attention,
    sign=np.sign,
    split_heads=lambda x, heads, parts: ORACLES["split_heads"](x, parts, heads),
    split=_split,
    stack=lambda arrays, axis=0: np.stack(arrays, axis),
    stop_gradient=lambda x: x,
    swapaxes=np.swapaxes,
    take=lambda x, indices, axis=None: np.take(x, np.asarray(indices, int), axis),
    to_device=lambda x, device: x,
    transpose=np.transpose,
    unbind=lambda x, axis=0: tuple(np.take(x, i, axis) for i in range(x.shape[axis])),
    var=_var,
    where=lambda condition, x, y: np.where(np.asarray(condition) != 0, x, y),
    zeros=lambda shape, dtype: np.zeros(shape),
    zeros_like=np.zeros_like,
)
# A function that is called like its operation is the oracle itself.
IN_NUMPY = SimpleNamespace(**{name: ORACLES[name] for name in F.__all__ if name in ORACLES} | _OTHERS)
