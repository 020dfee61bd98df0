"""Oracles: every operation once more, computed element by element or by the NumPy function of the same name.

`ORACLES[name](*arrays, **params)` takes float64 arrays and the parameters of `Op.forward`. Nothing here is shared with
the package. An oracle gives infinity and NaN as IEEE says, and raises nothing for them, for 0 or for empty arrays.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Array = np.ndarray


def each(function: Callable[..., float]) -> Callable[..., Array]:
    """Apply a function to every element, as a number of NumPy, which gives infinity or NaN where Python raises."""
    of_numbers = np.vectorize(lambda *numbers: function(*map(np.float64, numbers)), otypes=[np.float64])

    def apply(*arrays: Any) -> Array:
        with np.errstate(all="ignore"):
            return of_numbers(*arrays)

    return apply


def total(terms: Any) -> float:
    """Add exactly what is finite, and otherwise as IEEE says."""
    terms = np.asarray(terms, np.float64)
    return math.fsum(terms) if np.isfinite(terms).all() else float(np.sum(terms))


def rows_along(function: Callable[[Array], Array]) -> Callable[..., Array]:
    """Apply a function of one row along an axis."""
    return lambda x, axis=-1: np.apply_along_axis(function, axis, x) if x.size else np.zeros(x.shape)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def silu(x: float) -> float:
    return -0.0 if x == -math.inf else x * sigmoid(x)  # the limit


def gelu(x: float, approximate: str = "none") -> float:
    if x == -math.inf:
        return -0.0  # the limit
    if approximate == "tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def softmax(row: Array) -> Array:
    weights = np.exp(row - row.max(initial=-math.inf))
    return np.array([w / total(weights) for w in weights])


def log_softmax(row: Array) -> Array:
    shifted = row - row.max(initial=-math.inf)
    return np.array([v - np.log(total(np.exp(shifted))) for v in shifted])


def logsumexp(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    y = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place]
        if not len(row):
            break
        mean = total(row) / len(row)
        variance = total((row - mean) ** 2) / len(row)
        y[place] = [(v - mean) / np.sqrt(variance + eps) * w + b for v, w, b in zip(row, weight, bias, strict=True)]
    return y


def rms_norm(x: Array, weight: Array, eps: float = 1e-5) -> Array:
    y = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place]
        y[place] = row / math.sqrt(total(row**2) / len(row) + eps) * weight
    return y


def add_layer_norm(x: Array, residual: Array, weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, Array]:
    return x + residual, layer_norm(x + residual, weight, bias, eps)


def attention(
    q: Array, k: Array, v: Array, bias: Array | None = None, *, mask: Array | None = None, is_causal: bool = False,
    scale: float, dropout_p: float = 0.0, seed: int = 0, offset: int = 0,
) -> Array:  # fmt: skip
    (batch, heads, n_queries, _), n_keys = q.shape, k.shape[2]
    scores = (batch, heads, n_queries, n_keys)
    bias = np.zeros(scores) if bias is None else np.broadcast_to(bias, scores)
    mask = np.ones(scores, bool) if mask is None else np.broadcast_to(mask, scores)
    kept = dropout_mask(scores, dropout_p, seed, offset)
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, n in np.ndindex(batch, heads, n_queries):
        keys = [s for s in range(n_keys) if mask[b, h, n, s] and not (is_causal and s > n)]
        scores_of_keys = np.array([scale * total(q[b, h, n] * k[b, h, s]) + bias[b, h, n, s] for s in keys])
        weights = np.zeros(n_keys)  # of a hidden key 0, which is multiplied with its values all the same
        if keys and not np.isneginf(scores_of_keys).all():
            weights[keys] = softmax(scores_of_keys)
        for s in range(n_keys):
            out[b, h, n] += weights[s] * kept[b, h, n, s] * v[b, h, s]
    return out


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in Python integers, after Salmon et al., 2011, section 3.3."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def dropout_mask(shape: tuple[int, ...], p: float, seed: int, offset: int) -> Array:
    """Element e is kept where word e % 4 of Philox at counter (e // 4, offset), key seed, is at least p 2**32."""
    factors = []
    for e in range(math.prod(shape)):
        block = e // 4
        counter = (block % 2**32, block >> 32, offset % 2**32, offset >> 32)
        word = philox(counter, (seed % 2**32, seed >> 32))[e % 4]
        factors.append(1 / (1 - p) if word >= p * 2**32 else 0.0)
    return np.array(factors).reshape(shape)


def windows(x: Array, kernel: Any, stride: Any, padding: Any, value: float) -> Any:
    """Yield every window of x (B, C, H, W): its position (b, oh, ow) and its values (C, KH, KW)."""
    width = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    padded = np.pad(x, width, constant_values=value)
    tops = range(0, padded.shape[2] - kernel[0] + 1, stride[0])
    lefts = range(0, padded.shape[3] - kernel[1] + 1, stride[1])
    for b, (i, top), (j, left) in itertools.product(range(len(x)), enumerate(tops), enumerate(lefts)):
        yield (b, i, j), padded[b, :, top : top + kernel[0], left : left + kernel[1]]


def over_windows(x: Array, kernel: Any, stride: Any, padding: Any, value: float, function: Any) -> Array:
    """Apply a function from windows (C, KH, KW) to (O,) everywhere; the result is (B, O, OH, OW)."""
    results = {place: function(w) for place, w in windows(x, kernel, stride, padding, value)}
    oh, ow = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True))
    out = np.empty((len(x), len(function(np.zeros((x.shape[1], *kernel)))), oh, ow))
    for (i, j, k), result in results.items():
        out[i, :, j, k] = result
    return out


def conv2d(x: Array, weight: Array, bias: Array | None = None, *, stride: Any, padding: Any) -> Array:
    bias = np.zeros(len(weight)) if bias is None else bias
    function = lambda w: [total((w * f).ravel()) + b for f, b in zip(weight, bias, strict=True)]  # noqa: E731
    return over_windows(x, weight.shape[2:], stride, padding, 0.0, function)


def depthwise_conv(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """One channel at a time, as a convolution of images with one channel."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    channels = []
    for c in range(x.shape[3]):
        b = None if bias is None else bias[c : c + 1]
        channels.append(conv2d(x[:, None, :, :, c], weight[c : c + 1], b, stride=(1, 1), padding=padding)[:, 0])
    return np.stack(channels, axis=-1)


def im2col(x: Array, kernel: Any, stride: Any, padding: Any, value: float = 0.0) -> Array:
    columns = over_windows(x, kernel, stride, padding, value, np.ravel)
    return columns.reshape(*columns.shape[:2], math.prod(columns.shape[2:]))


def col2im(x: Array, shape: Any, kernel: Any, stride: Any, padding: Any) -> Array:
    """The adjoint of im2col by its definition: multiply with the transposed matrix of im2col."""
    size = math.prod(shape)
    pixels = np.eye(size).reshape(size, *shape)
    read = [im2col(p, kernel, stride, padding) != 0 for p in pixels]
    return np.array([np.sum(x, where=column) for column in read]).reshape(shape)


def distribution(
    logits: Array, target: Array | None, ids: Array | None, ignore_index: int, label_smoothing: float
) -> Array:
    counted = np.ones((*logits.shape[:-1], 1), bool) if ids is None else (ids != ignore_index)[..., None]
    if target is None:
        target = np.zeros_like(logits)
        for place in np.ndindex(ids.shape):
            if ids[place] != ignore_index:
                target[(*place, ids[place])] = 1
    return np.where(counted, (1 - label_smoothing) * target + label_smoothing / max(logits.shape[-1], 1), 0)


def cross_entropy(
    logits: Array, target: Array | None = None, *, ids: Array | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, reduction: str = "mean",
) -> Array:  # fmt: skip
    t = distribution(logits, target, ids, ignore_index, label_smoothing)
    loss = -np.sum(np.where(t == 0, 0, t * rows_along(log_softmax)(logits)), axis=-1)  # 0 log 0 = 0
    rows = loss.size if ids is None else (ids != ignore_index).sum()
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / max(1, rows)}[reduction]


def reduced(loss: Callable[[float, float], float]) -> Callable[..., Array]:
    def function(x: Array, target: Array, *, reduction: str = "mean") -> Array:
        with np.errstate(all="ignore"):
            losses = each(loss)(x, target)
            return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / np.float64(losses.size)}[reduction]

    return function


def stacked(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """Stack arrays of this shape, of which there may be none."""
    return np.array(parts).reshape(len(parts), *shape)


def sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape)
    for place in np.ndindex(x.shape):
        tail = place[len(place) - len(shape) :]
        out[tuple(0 if n == 1 else i for i, n in zip(tail, shape, strict=True))] += x[place]
    return out


def transpose(x: Array, axes: tuple[int, ...]) -> Array:
    out = np.empty([x.shape[a] for a in axes])
    for place in np.ndindex(x.shape):
        out[tuple(place[a] for a in axes)] = x[place]
    return out


def split_heads(x: Array, parts: int, heads: int) -> tuple[Array, ...]:
    pieces = np.split(x, parts * heads, axis=-1)
    return tuple(np.stack(pieces[i * heads : (i + 1) * heads], axis=1) for i in range(parts))


def unbind(x: Array, axis: int) -> tuple[Array, ...]:
    return tuple(np.take(x, i, axis) for i in range(x.shape[axis]))


def index_add(x: Array, index: Any, shape: tuple[int, ...]) -> Array:
    out = np.zeros(math.prod(shape))
    for place, value in zip(np.arange(out.size).reshape(shape)[index].ravel(), x.ravel(), strict=True):
        out[place] += value
    return out.reshape(shape)


def index_put(x: Array, value: Array, index: Any) -> Array:
    out = x.copy()
    out[index] = value
    return out


ORACLES: dict[str, Callable[..., Any]] = {
    "add": each(lambda x, y: x + y), "add_narrow": each(lambda x, y: x + y),
    "subtract": each(lambda x, y: x - y), "multiply": each(lambda x, y: x * y),
    "divide": each(lambda x, y: x / y), "power": each(np.power), "negative": each(lambda x: -x),
    "exp": each(np.exp), "log": each(np.log), "sqrt": each(np.sqrt), "tanh": each(math.tanh),
    "sigmoid": each(sigmoid), "erf": each(math.erf), "abs": each(math.fabs),
    "maximum": each(np.maximum), "minimum": each(np.minimum),
    "where": lambda x, y, condition: each(lambda c, a, b: a if c else b)(condition, x, y),
    "clip": lambda x, lowest, highest: each(
        lambda v: min(max(v, -math.inf if lowest is None else lowest), math.inf if highest is None else highest)
    )(x),
    "relu": each(lambda x: max(x, 0.0)), "silu": each(silu),
    "gelu": lambda x, approximate="none": each(lambda v: gelu(v, approximate))(x),
    "patches": lambda x, size: im2col(x, size, size, (0, 0)).swapaxes(1, 2),
    "split_heads": split_heads, "merge_heads": lambda x: np.concatenate([x[:, h] for h in range(x.shape[1])], -1),
    "bias_gelu": lambda x, bias, approximate="none": each(lambda v, b: gelu(v + b, approximate))(x, bias),
    "softmax": rows_along(softmax), "log_softmax": rows_along(log_softmax),
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "cumsum": np.cumsum, "logsumexp": logsumexp,
    "var": lambda x, axis=None, correction=0, keepdims=False: np.var(x, axis=axis, ddof=correction, keepdims=keepdims),
    "broadcast_to": np.broadcast_to, "sum_to_shape": sum_to_shape,
    "reshape": np.reshape, "transpose": transpose, "concatenate": lambda *parts, axis: np.concatenate(parts, axis),
    "stack": lambda *parts, axis: np.stack(parts, axis), "unbind": unbind,
    "split": lambda x, stops, axis: tuple(np.split(x, stops, axis)),
    "pad": lambda x, width, value=0.0: np.pad(x, width, constant_values=value), "flip": np.flip,
    "cast": lambda x, dtype, source: x.astype(dtype),
    "to_device": lambda x, device, source: x,
    "basic_index": lambda x, index: x[index], "advanced_index": lambda x, index: x[index],
    "index_add": index_add, "index_put": index_put,
    "take_rows": lambda x, rows: stacked(
        [matrix[numbers] for matrix, numbers in zip(x, rows, strict=True)], (rows.shape[1], x.shape[2])
    ),
    "add_rows": lambda x, rows, count: stacked(
        [index_add(matrix, (numbers,), (count, x.shape[2])) for matrix, numbers in zip(x, rows, strict=True)],
        (count, x.shape[2]),
    ),
    "embedding": lambda weight, ids: stacked([weight[i] for i in ids.ravel()], weight.shape[1:]).reshape(
        (*ids.shape, *weight.shape[1:])
    ),
    "depthwise_conv": depthwise_conv, "rms_norm": rms_norm, "im2col": im2col, "col2im": col2im, "conv2d": conv2d,
    "max_pool2d": lambda x, window, stride, padding: over_windows(
        x, window, stride, padding, -math.inf, lambda w: w.max(axis=(1, 2))
    ),
    "avg_pool2d": lambda x, window, stride, padding: over_windows(
        x, window, stride, padding, 0.0, lambda w: w.mean(axis=(1, 2))
    ),
    "matmul": np.matmul,
    "linear": lambda x, weight, bias: np.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias),
    "attention": attention, "layer_norm": layer_norm, "add_layer_norm": add_layer_norm, "cross_entropy": cross_entropy,
    "mse_loss": reduced(lambda x, t: (x - t) ** 2),
    "binary_cross_entropy_with_logits": reduced(
        lambda x, t: np.logaddexp(0, x) - x * t
    ),
    "dropout": lambda x, p, seed, offset: x * dropout_mask(x.shape, p, seed, offset),
}  # fmt: skip


def oracle_of(name: str) -> Callable[..., Any]:
    """Return the oracle of an operation, or fail the test if it has none."""
    if name not in ORACLES:
        pytest.fail(f"operation {name} has no oracle in tests/support/oracles.py")
    return ORACLES[name]
