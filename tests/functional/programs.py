"""Random programs of a few operations on arrays of corner shapes and values, drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

Rng = np.random.Generator
SHAPES = [(), (1,), (3,), (0,), (2, 3), (3, 1), (1, 4), (0, 3), (3, 0), (2, 3, 4), (2, 1, 3), (1, 2, 3, 4),
          (2, 2, 4, 4), (2, 1, 5, 3), (17, 5), (1, 1, 1, 1), (2, 0, 3), (33, 16)]  # fmt: skip
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-30, 88.0, 700.0, 1.0])


@dataclass(frozen=True)
class Step:
    """One operation: its name, and a function of the tensors so far (constants are arrays in float64)."""

    name: str
    apply: Callable[..., Tensor]
    places: tuple[int, ...]
    constants: tuple[np.ndarray, ...] = ()


@dataclass
class Program:
    """Leaves, and steps that each add a tensor; the last tensor is the result."""

    leaves: list[np.ndarray]
    steps: list[Step] = field(default_factory=list)
    is_special: bool = False

    def run(self, leaves: list[Tensor], jitter: int = 0) -> Tensor:
        """Return the result; `jitter` is the seed of changes by about one rounding of every tensor, 0 for none."""
        pool, dtype = list(leaves), leaves[0].dtype
        rng, limits = np.random.default_rng(jitter), ml_dtypes.finfo(dtype)
        eps, tiny = float(limits.eps), float(limits.tiny)
        for step in self.steps:
            constants = [Tensor(c.astype(dtype)) if c.dtype.kind == "f" else c for c in step.constants]
            y = step.apply(*[pool[i] for i in step.places], *constants)
            if jitter:
                factor, more = 1 + eps * rng.normal(size=y.shape), 1e4 * tiny * rng.normal(size=y.shape)
                y = y * factor.astype(dtype) + more.astype(dtype)
            pool.append(y)
        return pool[-1]

    def __str__(self) -> str:
        shapes = [x.shape for x in self.leaves]
        return f"leaves {shapes}{' with special values' if self.is_special else ''}: " + ", ".join(
            f"{s.name}{s.places}" for s in self.steps
        )


# The operations: each function draws the parameters for a tensor x and returns a function of it, or None -------------


def _axis(rng: Rng, x: np.ndarray, several: bool = True) -> Any:
    if x.ndim == 0:
        return [None, 0, -1][rng.integers(3)] if several else [0, -1][rng.integers(2)]
    choices: list[Any] = [*range(-x.ndim, x.ndim)]
    if several:
        choices += [None, tuple(range(x.ndim)), (0,), (-1,)]
    return choices[rng.integers(len(choices))]


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def draw(rng: Rng, x: np.ndarray) -> Any:
        axis, keepdims = _axis(rng, x), bool(rng.integers(2))
        return lambda t: function(t, axis=axis, keepdims=keepdims)

    return draw


def _along(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def draw(rng: Rng, x: np.ndarray) -> Any:
        axis = _axis(rng, x, several=False)
        return lambda t: function(t, axis=axis)

    return draw


def _plain(function: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda rng, x: function


def _var(rng: Rng, x: np.ndarray) -> Any:
    axis, correction = _axis(rng, x), int(rng.integers(0, 3))
    return lambda t: F.var(t, axis=axis, correction=correction)


def _reshape(rng: Rng, x: np.ndarray) -> Any:
    shape = [(-1,), (x.size,), (*x.shape, 1), (1, *x.shape), x.shape[::-1]][rng.integers(5)]
    if x.size == 0 and -1 in shape:
        shape = (0,)
    return lambda t: t.reshape(shape)


def _index(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim == 0:
        key: Any = [None, ..., (None, ...)][rng.integers(3)]
    else:
        n = x.shape[0]
        keys: list[Any] = [slice(None, None, -1), slice(1, None), slice(0, 0), (..., None), np.zeros(0, int)]
        if n:
            keys += [0, -1, rng.integers(-n, n, (2, 2)), np.arange(n) % 2 == 0, rng.integers(0, n, 5)]
        key = keys[rng.integers(len(keys))]
    return lambda t: t[key]


def _pad(rng: Rng, x: np.ndarray) -> Any:
    width = rng.integers(0, 3, (x.ndim, 2)) if x.ndim else 0
    return lambda t: F.pad(t, width, 1.5)


def _power(rng: Rng, x: np.ndarray) -> Any:
    exponent = [0, 0.0, 1, 2, -1, 0.5, 3][rng.integers(7)]
    return lambda t: t**exponent


def _scalar(rng: Rng, x: np.ndarray) -> Any:
    c = [0.0, 1.0, -2.5, 0.5][rng.integers(4)]
    forms: list[Any] = [
        lambda t: t + c, lambda t: c - t, lambda t: t * c, lambda t: F.maximum(t, c), lambda t: F.minimum(t, c),
        lambda t: t / 2.0, lambda t: 1.5 / t, lambda t: F.where(t > c, t, c), lambda t: t.clip(-1.0, 1.5),
        lambda t: 2.0**t,
    ]  # fmt: skip
    return forms[rng.integers(len(forms))]


def _matrix(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim == 0:
        return None
    k, n = x.shape[-1], [0, 1, 3, 17][rng.integers(4)]
    w, b = rng.normal(size=(n, k)), rng.normal(size=n)
    if rng.integers(2):
        return (lambda t, w, b: F.linear(t, w, b)), (w, b)
    return (lambda t, w: t @ w), (w.T.copy(),)


def _norm(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim == 0:
        return None
    w, b = rng.normal(size=(2, x.shape[-1]))
    return [
        ((lambda t, w, b: F.layer_norm(t, w, b)), (w, b)),
        ((lambda t, w, b: F.add_layer_norm(t, t, w, b)[1]), (w, b)),
        ((lambda t, w: F.bias_gelu(t, w)), (w,)),
    ][rng.integers(3)]


def _attention(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim < 2:
        return None
    n = x.shape[-2]
    keys = [0, 1, n][rng.integers(3)]
    mask = [None, rng.random((n, keys)) < 0.6, rng.normal(size=(n, keys))][rng.integers(3)]
    causal = bool(rng.integers(2))
    if keys == n:
        if mask is not None and mask.dtype != bool:
            return (lambda t, m: F.scaled_dot_product_attention(t, t, t, attn_mask=m, is_causal=causal)), (mask,)
        return lambda t: F.scaled_dot_product_attention(t, t, t, attn_mask=mask, is_causal=causal)
    k = rng.normal(size=(*x.shape[:-2], keys, x.shape[-1]))
    return (lambda t, k: F.scaled_dot_product_attention(t, k, k, is_causal=causal)), (k,)


def _image(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim != 4:
        return None
    window, stride, padding = (int(v) for v in (rng.integers(1, 4), rng.integers(1, 3), rng.integers(0, 2)))
    w = rng.normal(size=(2, x.shape[1], window, window))
    return [
        lambda t: F.max_pool2d(t, window, stride, min(padding, window // 2)),
        lambda t: F.avg_pool2d(t, window, stride, padding),
        ((lambda t, w: F.conv2d(t, w, None, stride, padding)), (w,)),
        lambda t: F.patches(t, 1),
    ][rng.integers(4)]


def _loss(rng: Rng, x: np.ndarray) -> Any:
    reduction = ["mean", "sum", "none"][rng.integers(3)]
    target = rng.random(x.shape)
    forms: list[Any] = [
        ((lambda t, y: F.mse_loss(t, y, reduction)), (target,)),
        ((lambda t, y: F.binary_cross_entropy_with_logits(t, y, reduction)), (target,)),
    ]
    if x.ndim and x.shape[-1]:
        ids = rng.integers(0, x.shape[-1], x.shape[:-1])
        if ids.size and rng.integers(2):
            ids.reshape(-1)[0] = -100
        smoothing = [0.0, 0.1][rng.integers(2)]
        forms.append(lambda t: F.cross_entropy(t, ids, label_smoothing=smoothing, reduction=reduction))
        forms.append(((lambda t, y: F.cross_entropy(t, y, reduction=reduction)), (target,)))
    return forms[rng.integers(len(forms))]


def _joined(rng: Rng, x: np.ndarray) -> Any:
    axis = _axis(rng, x, several=False)
    return [
        lambda t: F.concatenate([t, t], axis), lambda t: F.stack([t, t * 2], axis), lambda t: F.unbind(t, axis)[0],
        lambda t: F.split(t, [1], axis)[0], lambda t: F.split(t, 1, axis)[0],
    ][rng.integers(5)]  # fmt: skip


def _embedding(rng: Rng, x: np.ndarray) -> Any:
    if x.ndim == 0 or x.shape[0] == 0:
        return None
    ids = rng.integers(0, x.shape[0], [(0,), (3,), (2, 2), ()][rng.integers(4)])
    return lambda t: F.embedding(ids, t)


def _dropout(rng: Rng, x: np.ndarray) -> Any:
    p, seed = [0.0, 0.3, 1.0][rng.integers(3)], int(rng.integers(100))
    return lambda t: F.dropout(t, p, generator=tv.Generator(seed))


UNARY: dict[str, Callable[[Rng, np.ndarray], Any]] = {
    **{f.__name__: _reduction(f) for f in (F.sum, F.mean, F.max, F.min, F.logsumexp)},
    **{f.__name__: _along(f) for f in (F.softmax, F.log_softmax, F.cumsum, F.flip)},
    **{f.__name__: _plain(f) for f in (F.negative, F.exp, F.log, F.sqrt, F.tanh, F.sigmoid, F.erf, F.abs, F.relu)},
    "silu": _plain(F.silu), "gelu": _plain(F.gelu),
    "gelu_tanh": _plain(lambda t: F.gelu(t, "tanh")),
    "transpose": _plain(lambda t: t.T),
    "var": _var, "reshape": _reshape, "index": _index, "pad": _pad, "power": _power, "scalar": _scalar,
    "matrix": _matrix, "norm": _norm, "attention": _attention, "image": _image, "loss": _loss, "joined": _joined,
    "embedding": _embedding, "dropout": _dropout,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (F.add, F.subtract, F.multiply, F.divide, F.maximum, F.minimum, F.power, F.matmul)
} | {"where": lambda a, b: F.where(a > 0, a, b)}  # fmt: skip


def program_of(seed: int) -> Program:
    """Return program number `seed`. Steps that raise an error of ours are drawn again."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[rng.integers(len(SHAPES))]
    shapes = [shape] + [[shape, shape[-1:], SHAPES[rng.integers(len(SHAPES))]][rng.integers(3)]] * int(rng.integers(2))
    program = Program([rng.normal(size=s) for s in shapes])
    if rng.random() < 0.3:
        program.is_special = True
        for x in program.leaves:
            if x.size:
                flat = x.reshape(-1)
                flat[rng.integers(0, x.size, 2)] = SPECIAL[rng.integers(0, SPECIAL.size, 2)]
    pool = [Tensor(x) for x in program.leaves]
    for _ in range(int(rng.integers(1, 7))):
        for _attempt in range(20):
            step = _drawn(rng, pool)
            try:
                if step is not None and (y := _result(step, pool)).size <= 4096:
                    program.steps.append(step)
                    pool.append(y)
                    break
            except (ValueError, TypeError, IndexError):
                continue
    return program


def _result(step: Step, pool: list[Tensor]) -> Tensor:
    with np.errstate(all="ignore"), tv.use_kernels("numpy"):
        constants = [Tensor(c) if c.dtype.kind == "f" else c for c in step.constants]
        return step.apply(*[pool[i] for i in step.places], *constants)


def _drawn(rng: Rng, pool: list[Tensor]) -> Step | None:
    last = len(pool) - 1
    if rng.random() < 0.2:
        name = list(BINARY)[rng.integers(len(BINARY))]
        return Step(name, BINARY[name], (last, int(rng.integers(len(pool)))))
    name = list(UNARY)[rng.integers(len(UNARY))]
    drawn = UNARY[name](rng, pool[last].data)
    if drawn is None:
        return None
    function, constants = drawn if isinstance(drawn, tuple) else (drawn, ())
    return Step(name, function, (last,), constants)
