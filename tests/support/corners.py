"""Corners of every function of `tinyvit.functional`: a call in a namespace, and the shapes of its arrays.

Functions of one array, or of two that broadcast, have corners without a row here; so have functions with the arguments
of an operation, whose samples are called, and once more with axes of the lengths 0 and 1. A row states more of them.

The namespace is `tinyvit.functional` itself, with tensors, or `in_numpy`, with float64 arrays. What stands in REFUSED
has no answer, and is an error in both.
"""

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from names import functions
from oracles import ORACLES

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op

Shape = tuple[int, ...]
Corner = tuple[Callable[..., Any], list[Shape]]

SHAPES: list[Shape] = [(), (0,), (1,), (3,), (0, 3), (3, 0), (1, 1), (2, 3), (2, 0, 3)]
HIDDEN = np.array([[True, False, True], [False, False, False]])  # the second query sees no key


def ids(*numbers: Any) -> np.ndarray:
    return np.array(numbers, int)


def functions_of(arrays: int) -> list[str]:
    """Return the functions that are operations of so many arrays, and have no other arguments."""
    ops = [(name, Op.registry[name]) for name in functions() if name in Op.registry]
    signatures = [(name, op.inputs, [*inspect.signature(op.forward).parameters][1:]) for name, op in ops]
    return [
        name
        for name, inputs, of_forward in signatures
        if len(inputs) == arrays and inputs == (*of_forward,) == (*inspect.signature(getattr(F, name)).parameters,)
    ]


def elementwise(name: str) -> list[Corner]:
    return [(lambda f, x: getattr(f, name)(x), [shape]) for shape in SHAPES]


def of_two(name: str) -> list[Corner]:
    """Equal shapes, and shapes that are broadcast; and numbers of Python on either side."""
    function = lambda f, x, y: getattr(f, name)(x, y)  # noqa: E731
    pairs = [((2, 1), (1, 3)), *((s, s) for s in SHAPES), ((), (3,)), ((2, 3), (3,)), ((0, 1), (1, 3)), ((1,), (0,))]
    numbers: list[Corner] = [(lambda f, x, c=c: getattr(f, name)(x, c), [(3,)]) for c in (0, 0.0, 1, 2, -1, 0.5)]
    numbers += [(lambda f, x, c=c: getattr(f, name)(c, x), [(3,)]) for c in (0.0, 1.0, -2.5)]
    return [(function, list(pair)) for pair in pairs] + numbers


def called_like_operations() -> list[str]:
    """Return the functions that have the inputs and parameters of the operation of their name."""
    ops = {name: Op.registry[name] for name in functions() if name in Op.registry}
    arguments = {name: [*inspect.signature(op.forward).parameters][1:] for name, op in ops.items()}
    return [name for name in ops if arguments[name] == [*inspect.signature(getattr(F, name)).parameters]]


def of_samples(name: str) -> list[Corner]:
    """The samples of an operation; and those that remain right calls when the axes of one length become 0 or 1 long."""
    found: list[Corner] = []
    for sample in Op.registry[name].samples():
        call = functools.partial(_call_with, name=name, given=sample.inputs, params=sample.params)
        shapes = [x.shape for x in sample.inputs if x is not None]
        found.append((call, shapes))
        for length, shorter in itertools.product({n for shape in shapes for n in shape if n > 1}, (0, 1)):
            fewer = [tuple(shorter if n == length else n for n in shape) for shape in shapes]
            if _is_answered(call, [np.ones(shape) for shape in fewer]):
                found.append((call, fewer))
    return found


def _is_answered(call: Callable[..., Any], arrays: list[np.ndarray]) -> bool:
    """Whether function and oracle accept these arrays."""
    with warnings.catch_warnings(action="ignore"), tv.use_kernels("numpy"):
        try:
            call(SimpleNamespace(**ORACLES), *arrays)
            call(F, *map(tv.Tensor, arrays))
        except (ValueError, TypeError, IndexError, ArithmeticError):
            return False
    return True


def _call_with(f: Any, *arrays: Any, name: str, given: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Call a function with `arrays` in the places of the inputs that are not None."""
    rest = iter(arrays)
    return getattr(f, name)(*(None if x is None else next(rest) for x in given), **params)


def reduction(name: str, empty: bool = True) -> list[Corner]:
    """All axes, each, several and none of them, kept or not; unless `empty`, of at least one element."""
    found: list[Corner] = []
    for shape in SHAPES:
        axes = [None, 0, -1] if len(shape) < 2 else [None, 0, -1, (0, -1), ()]
        for axis in axes:
            reduced = range(len(shape)) if axis is None else np.atleast_1d(axis).astype(int) if shape else []
            if empty or all(shape[a] for a in reduced):
                for kept in (False, True):
                    found.append((lambda f, x, a=axis, k=kept: getattr(f, name)(x, axis=a, keepdims=k), [shape]))
    return found


def along(name: str) -> list[Corner]:
    return [
        (lambda f, x, a=axis: getattr(f, name)(x, axis=a), [shape])
        for shape in SHAPES
        for axis in sorted({0, -1, max(len(shape) - 2, 0)})
    ]


def variance() -> list[Corner]:
    return [
        (lambda f, x, a=axis, c=correction: f.var(x, axis=a, correction=c), [shape])
        for shape in SHAPES
        for axis in ((None, 0, -1) if shape else (None, 0))
        for correction in (0, 1, 2, 3, 7)
    ]


def norm(*leading: Shape) -> list[Corner]:
    normed: list[Corner] = []
    for lead in leading:
        for c in (0, 1, 3):
            shape, row = (*lead, c), (c,)
            for eps in (1e-5, 0.1):
                normed.append((lambda f, x, w, b, e=eps: f.layer_norm(x, w, b, eps=e), [shape, row, row]))
    return normed


def attention() -> list[Corner]:
    """No queries, keys, columns, heads or images; masks that hide some keys, and all; causal ones; dropout of all."""

    def call(f: Any, q: Any, k: Any, v: Any, *mask: Any, **options: Any) -> Any:
        return f.scaled_dot_product_attention(q, k, v, *mask, **options)

    sizes = [((1, 1), 2, 3, 2, 2), ((1, 1), 2, 0, 2, 2), ((1, 1), 0, 3, 2, 2), ((1, 1), 2, 3, 0, 0),
             ((0, 2), 2, 3, 2, 2), ((2, 0), 2, 3, 2, 2), ((1, 1), 1, 1, 1, 1), ((), 2, 3, 2, 2), ((2,), 3, 3, 1, 1),
             ((1, 1), 0, 0, 0, 0), ((1, 1), 2, 3, 0, 2), ((1, 1), 2, 3, 2, 0), ((1, 1), 2, 3, 1, 3)]  # fmt: skip
    found: list[Corner] = []
    for lead, n, s, d, e in sizes:
        shapes = [(*lead, n, d), (*lead, s, d), (*lead, s, e)]
        found += [(call, shapes), (lambda *a: call(*a, is_causal=True), shapes)]
        hides_all = np.zeros((n, s), bool)
        found += [(lambda *a, m=hides_all: call(*a, m), shapes), (call, [*shapes, (n, s)])]
    shapes = [(1, 1, 2, 2), (1, 1, 3, 2), (1, 1, 3, 2)]
    found += [(lambda *a: call(*a, HIDDEN), shapes), (lambda *a: call(*a, HIDDEN, is_causal=True), shapes)]
    found += [
        (lambda *a: call(*a, _like(a[1], np.where(HIDDEN, 0.0, -np.inf))), shapes),
        (lambda *a: call(*a, scale=0.0), shapes),
    ]
    found += [(lambda *a, p=p: call(*a, dropout_p=p, generator=tv.Generator(3)), shapes) for p in (0.5, 1.0)]
    return found


def pool(name: str) -> list[Corner]:
    shapes = [(1, 1, 3, 3), (0, 1, 3, 3), (1, 0, 3, 3), (2, 2, 1, 1), (1, 1, 2, 5)]
    settings = [(1, None, 0), (1, 2, 0), ((1, 2), 1, (0, 1)), (2, 1, 1), (3, 3, 1)]
    return [
        (lambda f, x, s=setting: getattr(f, name)(x, *s), [shape])
        for shape in shapes
        for setting in settings
        if all(n + 2 * p >= k for n, p, k in zip(shape[2:], _two(setting[2]), _two(setting[0]), strict=True))
    ]


def _two(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value, value)


def loss(name: str, constant: Callable[[Shape], Any]) -> list[Corner]:
    """A loss of two arrays, and of one and constants."""
    both: list[Corner] = [
        (lambda f, x, y, r=r: getattr(f, name)(x, y, reduction=r), [shape, shape])
        for shape in SHAPES
        for r in ("mean", "sum", "none")
    ]
    constants = [(constant(shape), shape) for shape in SHAPES]
    return both + [(lambda f, x, c=c: getattr(f, name)(x, c), [shape]) for c, shape in constants]


def cross_entropy() -> list[Corner]:
    found: list[Corner] = []
    numbers = [(ids(), (0, 3)), (ids(0), (1, 1)), (ids(2, 0), (2, 3)), (ids(-100, -100), (2, 3)),
               (ids(-100, 1), (2, 3)), (np.array(1), (3,)), (ids([], []), (2, 0, 3)), (ids(-100), (1, 1))]  # fmt: skip
    for r in ("mean", "sum", "none"):
        for s in (0.0, 0.1):
            options = {"reduction": r, "label_smoothing": s}
            found += [(lambda f, x, n=n, o=options: f.cross_entropy(x, n, **o), [shape]) for n, shape in numbers]
            shapes: list[Shape] = [(0, 3), (1, 1), (2, 3), (3,)]
            found += [(lambda f, x, y, o=options: f.cross_entropy(x, y, **o), [shape, shape]) for shape in shapes]
            one_hot = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
            found += [(lambda f, x, o=options, t=one_hot: f.cross_entropy(x, _like(x, t), **o), [(2, 3)])]
    return found


def of_boxes(f: Any, x: Any, width: Any, y: Any, height: Any) -> Any:
    """The generalized IoU of boxes by their upper left corners and the logarithms of their sizes."""
    boxes = [f.concatenate([corner, f.add(corner, f.exp(size))], -1) for corner, size in ((x, width), (y, height))]
    return f.generalized_iou(*boxes)


def _like(x: Any, array: np.ndarray) -> np.ndarray:
    return array.astype(x.dtype)


CONV = {"x": [(1, 1, 3, 3), (0, 1, 3, 3), (2, 2, 1, 1)], "settings": [(1, 0), (2, 1), ((1, 3), (0, 2))]}
INDICES = [0, -1, slice(0, 0), slice(None, None, -1), None, ..., (..., None), ids(), ids(1, 1, -1), ids([0], [0]),
           np.zeros(2, bool), np.array([True, False]), np.ones((2, 3), bool), (slice(None), ids(2, 2)),
           (ids(0, 1), ids(1, 1)), (0, 1), (slice(1, 5), -1)]  # fmt: skip
ROWS: list[tuple[Any, Shape]] = [(np.zeros((1, 0), int), (1, 2, 3)), (ids([0, 0]), (1, 1, 1)),
                                 (np.zeros((0, 2), int), (0, 3, 1)), (ids([1, 0, 1]), (1, 2, 0))]  # fmt: skip
IDS = [ids(), ids(0), np.array(1), ids([1, 1], [0, 1]), np.zeros((2, 0), int), np.array([1], np.uint8)]
WEIGHTS: list[Shape] = [(2,), (2, 3), (2, 0), (2, 1, 2), (2, 0, 2), (2, 2, 1, 1)]

CORNERS: dict[str, list[Corner]] = {
    **{name: elementwise(name) for name in (
        *functions_of(1), "gelu", "ones_like", "sign", "stop_gradient", "zeros_like"
    )},
    **{name: of_two(name) for name in functions_of(2)},
    **{name: reduction(name) for name in ("sum", "mean", "logsumexp")},
    **{name: reduction(name, empty=False) for name in ("max", "min")},
    **{name: along(name) for name in ("softmax", "log_softmax")},
    **{name: pool(name) for name in ("max_pool2d", "avg_pool2d")},
    "add_layer_norm": [
        (lambda f, x, r, w, b: f.add_layer_norm(x, r, w, b), [(*lead, c), (*lead, c), (c,), (c,)])
        for lead in [(), (0,), (1,), (2,), (2, 0)] for c in (0, 1, 3)
    ],
    "add_rows": [(lambda f, x, r=r, n=n: f.add_rows(x, r, n), [(*r.shape, c)])
                 for r, _ in ROWS for c in (0, 1, 3) for n in (2, 3)],
    "bias_gelu": [(lambda f, x, b, a=a: f.bias_gelu(x, b, a), [(*lead, c), (c,)])
                  for lead in [(), (0,), (1,), (2, 0), (2, 1)] for c in (0, 1, 3) for a in ("none", "tanh")],
    "binary_cross_entropy_with_logits": loss(
        "binary_cross_entropy_with_logits", lambda shape: np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2
    ),
    "mse_loss": loss("mse_loss", lambda shape: np.ones(shape, int)),
    "broadcast_to": [(lambda f, x, s=s: f.broadcast_to(x, s), [shape]) for shape, s in [
        ((), ()), ((), (0,)), ((), (2, 3)), ((1,), (0,)), ((1,), (3,)), ((0,), (2, 0)), ((3, 1), (2, 3, 0))
    ]],
    "cast": [(lambda f, x: f.cast(x, x.dtype), [shape]) for shape in SHAPES],
    "clip": [(lambda f, x, lo=lo, hi=hi: f.clip(x, lo, hi), [shape]) for shape in SHAPES
             for lo, hi in [(None, 0.5), (-0.5, None), (0.1, 0.1), (1.0, -1.0), (-np.inf, np.inf)]],
    "col2im": [(lambda f, x, s=s, k=k, st=st, p=p: f.col2im(x, s, k, st, p), [shape]) for shape, s, k, st, p in [
        ((1, 4, 4), (1, 1, 3, 3), (2, 2), (1, 1), (0, 0)), ((0, 1, 1), (0, 1, 1, 1), (1, 1), (1, 1), (0, 0)),
        ((1, 0, 4), (1, 0, 3, 3), (2, 2), (1, 1), (0, 0)), ((1, 2, 2), (1, 1, 1, 1), (2, 1), (1, 1), (1, 0)),
    ]],
    "im2col": [(lambda f, x, k=k, st=st, p=p: f.im2col(x, k, st, p), [shape]) for shape in CONV["x"] for k, st, p in [
        ((1, 1), (1, 1), (0, 0)), ((2, 2), (2, 1), (1, 1)), ((1, 1), (2, 2), (1, 0))
    ]],
    "concatenate": [(lambda f, *xs, a=a: f.concatenate(xs, a), shapes) for shapes, a in [
        ([(0,), (3,)], 0), ([(0,), (0,)], 0), ([(1,)], -1), ([(2, 0), (2, 3)], 1), ([(0, 3), (2, 3)], 0),
        ([(2, 3), (1, 3), (0, 3)], -2)
    ]],
    "stack": [(lambda f, *xs, a=a: f.stack(xs, a), shapes) for shapes, a in [
        ([(), ()], 0), ([(), ()], -1), ([(0,), (0,)], 1), ([(3,)], 0), ([(2, 0)] * 3, -2)
    ]],
    "contrastive_loss": [(lambda f, x, y, s: f.contrastive_loss(x, y, s), [shape, shape, ()])
                         for shape in [(1, 1), (1, 3), (2, 3), (2, 0)]],
    "conv2d": [
        (lambda f, x, w, b=None, s=s: f.conv2d(x, w, b, *s), [shape, (o, shape[1], *k), *bias])
        for shape in CONV["x"] for s in CONV["settings"] for o in (0, 1, 2) for k in [(1, 1), (1, 2)]
        for bias in ([], [(o,)]) if shape[3] + 2 * _two(s[1])[1] >= k[1]
    ],
    "depthwise_conv": [
        (lambda f, x, w, b=None: f.depthwise_conv(x, w, b), [shape, (shape[3], 1, *k), *bias])
        for shape in [(1, 2, 2, 1), (0, 2, 2, 1), (2, 1, 1, 2), (1, 0, 2, 1), (1, 2, 1, 0)]
        for k in [(1, 1), (1, 3), (3, 5)] for bias in ([], [shape[3:]])
    ],
    "cross_entropy": cross_entropy(),
    "cumsum": along("cumsum") + [(lambda f, x: f.cumsum(x), [shape]) for shape in SHAPES],
    "dropout": [(lambda f, x, p=p: f.dropout(x, p, generator=tv.Generator(3)), [shape])
                for shape in SHAPES for p in (0.0, 0.5, 1.0)],
    "dropout_mask": [(lambda f, s=s, p=p: f.dropout_mask(s, p, 1, 2, np.float64), []) for s in SHAPES
                     for p in (0.0, 0.5)],
    "einsum": [(lambda f, *xs, s=s: f.einsum(s, *xs), shapes) for s, shapes in [
        ("i->", [(0,)]), ("i,i->", [(0,), (0,)]), ("ij,jk->ik", [(2, 0), (0, 3)]), ("ij,jk->ik", [(0, 2), (2, 0)]),
        ("i,j->ij", [(1,), (0,)]), (",->", [(), ()]), (",i->i", [(), (3,)]), ("ij->j", [(0, 3)]),
        ("...i,i->...", [(2, 3), (3,)])
    ]],
    "embedding": [(lambda f, w, i=i: f.embedding(i, w), [shape]) for i in IDS for shape in WEIGHTS],
    "flip": along("flip") + [(lambda f, x: f.flip(x), [shape]) for shape in SHAPES],
    "generalized_iou": [(of_boxes, [one, one, other, other]) for one, other in [
        ((2,), (2,)), ((0, 2), (2,)), ((2, 2), (2, 2)), ((2, 1, 2), (1, 3, 2)), ((1, 0, 2), (2, 1, 2))
    ]],
    "index": [(lambda f, x, k=k: f.index(x, k), [(2, 3)]) for k in INDICES]
    + [(lambda f, x, k=k: f.index(x, k), [()]) for k in (None, ..., ())]
    + [(lambda f, x, k=k: f.index(x, k), [(0, 3)]) for k in (ids(), slice(None), np.zeros((0, 3), bool))],
    "index_add": [(lambda f, x, i=i, s=s: f.index_add(x, i, s), [shape]) for shape, i, s in [
        ((0, 3), (ids(),), (2, 3)), ((2,), (ids(1, 1),), (3,)), ((), (0,), (2,)), ((0,), (slice(0, 0),), (3,)),
        ((2, 0), (ids(0, 0),), (1, 0))
    ]],
    "index_put": [(lambda f, x, v, k=k: f.index_put(x, v, k), [(2, 3), value]) for k, value in [
        (0, (3,)), (slice(0, 0), ()), (..., ()), (ids(1, 0), (2, 3)), (np.zeros(2, bool), (0, 3)), (ids(), ())
    ]],
    "interpolate": [(lambda f, x, s=s: f.interpolate(x, s), [shape]) for shape, s in [
        ((1, 1, 1, 1), 3), ((0, 1, 2, 2), 2), ((1, 0, 2, 2), (1, 2)), ((1, 2, 3, 2), (2, 5)), ((2, 1, 4, 1), 1)
    ]],
    "join_heads": [(lambda f, x, y: f.join_heads([x, y]), [shape, shape])
                   for shape in [(1, 1, 1, 1), (0, 2, 1, 2), (2, 1, 0, 2), (1, 2, 2, 0)]],
    "layer_norm": norm((), (0,), (1,), (2,), (2, 0), (0, 1)),
    "rms_norm": [(lambda f, x, w, e=eps: f.rms_norm(x, w, eps=e), [(*lead, c), (c,)])
                 for lead in [(), (0,), (1,), (2,), (2, 0), (0, 1)] for c in (0, 1, 3) for eps in (1e-5, 0.1)],
    "linear": [
        (lambda f, x, w, b=None: f.linear(x, w, b), [(*lead, c), (o, c), *bias])
        for lead in [(), (0,), (1,), (2, 0), (2, 1)] for c in (0, 1, 3) for o in (0, 1, 2) for bias in ([], [(o,)])
    ],
    "matmul": [(lambda f, x, y: f.matmul(x, y), shapes) for shapes in [
        [(0,), (0,)], [(1,), (1,)], [(2, 0), (0, 3)], [(2, 2, 0), (0, 3)], [(0, 2), (2, 3)], [(2, 3), (3, 0)],
        [(3,), (3, 2)], [(2, 3), (3,)], [(0, 2, 3), (3,)], [(2, 1, 0), (2, 0, 1)], [(1, 1), (1, 1)], [(0,), (2, 0, 3)]
    ]],
    "merge_heads": [(lambda f, x: f.merge_heads(x), [shape])
                    for shape in [(1, 1, 1, 1), (0, 2, 1, 2), (2, 1, 0, 2), (1, 2, 2, 0), (1, 0, 2, 2)]],
    "pad": [(lambda f, x, w=w: f.pad(x, w, 1.5), [shape]) for shape in SHAPES[1:] for w in (0, 2, (0, 1))]
    + [(lambda f, x: f.pad(x, 0), [()])],
    "patches": [(lambda f, x, s=s: f.patches(x, s), [shape]) for shape, s in [
        ((1, 1, 1, 1), 1), ((0, 1, 2, 2), 2), ((1, 0, 2, 2), (1, 2)), ((1, 2, 0, 2), 2), ((2, 2, 2, 3), (2, 1))
    ]],
    "pixel_shuffle": [(lambda f, x, r=r: f.pixel_shuffle(x, r), [shape]) for shape, r in [
        ((1, 1, 1, 1), 1), ((0, 4, 2, 2), 2), ((1, 0, 2, 2), 2), ((1, 8, 0, 2), 2), ((2, 9, 1, 2), 3)
    ]],
    "reshape": [(lambda f, x, s=s: f.reshape(x, s), [shape]) for shape, s in [
        ((), (1,)), ((1,), ()), ((0,), (0, 3)), ((0, 3), 0), ((2, 0), (-1,)), ((2, 3), -1), ((3, 0), (0, 5))
    ]],
    "scaled_dot_product_attention": attention(),
    "split": [(lambda f, x, i=i, a=a: f.split(x, i, a), [shape]) for shape, i, a in [
        ((0,), 1, 0), ((3,), [0, 3], 0), ((3,), [], 0), ((3, 0), [1, 1], 0), ((3, 0), 2, 1), ((2, 3), [-1, 9], -1)
    ]],
    "split_heads": [(lambda f, x, h=h, p=p: f.split_heads(x, heads=h, parts=p), [shape]) for shape, h, p in [
        ((1, 1, 1), 1, 1), ((0, 2, 6), 2, 3), ((2, 0, 4), 1, 2), ((1, 2, 0), 2, 3)
    ]],
    "sum_to_shape": [(lambda f, x, s=s: f.sum_to_shape(x, s), [shape]) for shape, s in [
        ((), ()), ((3,), ()), ((0,), ()), ((0,), (1,)), ((2, 3), (1,)), ((2, 0), (2, 1)), ((0, 3), (3,)), ((0,), (0,))
    ]],
    "swapaxes": [(lambda f, x, i=i, j=j: f.swapaxes(x, i, j), [shape])
                 for shape, i, j in [((3,), 0, -1), ((0, 3), 0, 1), ((2, 0, 3), -1, 0)]],
    "take": [(lambda f, x, i=i, a=a: f.take(x, i, a), [shape]) for i in (0, [], [1, -1, 1], [[0]])
             for shape, a in [((2,), None), ((2,), 0), ((2, 3), 1), ((2, 3), None), ((2, 0), 0)]
             if not (shape == (2, 0) and a is None)],
    "take_rows": [(lambda f, x, r=r: f.take_rows(x, r), [shape]) for r, shape in ROWS],
    "to_device": [(lambda f, x: f.to_device(x, "cpu"), [(2,)])],
    "transpose": [(lambda f, x: f.transpose(x), [shape]) for shape in SHAPES]
    + [(lambda f, x: f.transpose(x, (-1, 0)), [(0, 3)])],
    "unbind": [(lambda f, x, a=a: f.unbind(x, a), [shape])
               for shape, a in [((1,), 0), ((3,), -1), ((2, 0), 0), ((0, 2), 1), ((2, 3), 1)]],
    "var": variance(),
    "where": [(lambda f, x, y, c=c: f.where(c, x, y), shapes) for c, shapes in [
        (True, [(), ()]), (np.zeros(0, bool), [(0,), ()]), (np.array([True, False, True]), [(3,), (1,)]),
        (np.zeros((2, 1), bool), [(3,), ()]), (np.zeros((0, 3), bool), [(3,), (3,)])
    ]],
    "zeros": [(lambda f, s=s: f.zeros(s, np.float64), []) for s in SHAPES],
}  # fmt: skip
CORNERS |= {name: of_samples(name) for name in called_like_operations() if name not in CORNERS}

REFUSED: dict[str, list[Corner]] = {
    **{name: [(lambda f, x, n=name, a=a: getattr(f, n)(x, axis=a), [shape]) for shape, a in [
        ((0,), None), ((0, 3), 0), ((3, 0), -1), ((3, 0), None), ((), 1), ((3,), 1), ((3,), -2)
    ]] for name in ("max", "min")},
    **{name: [(lambda f, x, n=name, a=a: getattr(f, n)(x, axis=a), [shape]) for shape, a in [
        ((), 1), ((), -2), ((0,), 1), ((2, 3), 2), ((2, 3), -3)
    ]] for name in ("sum", "mean", "var", "logsumexp", "softmax", "log_softmax", "cumsum", "flip")},
    "concatenate": [(lambda f, x, y: f.concatenate([x, y]), s) for s in [[(), ()], [(0, 2), (3,)], [(1, 2), (1, 3)]]],
    "embedding": [(lambda f, w: f.embedding(ids(2), w), [(2, 3)]), (lambda f, w: f.embedding(ids(0), w), [(0, 3)]),
                  (lambda f, w: f.embedding(ids(0), w), [()])],
    "index": [(lambda f, x, k=k: f.index(x, k), [(2, 0)]) for k in (2, (0, 0), ids(2), np.zeros(3, bool))]
    + [(lambda f, x: f.index(x, 0), [()])],
    "matmul": [(lambda f, x, y: f.matmul(x, y), s) for s in [[(), ()], [(0,), (1,)], [(2, 0), (1, 2)], [(3,), ()]]],
    "reshape": [(lambda f, x: f.reshape(x, (-1, 0)), [(0, 3)]), (lambda f, x: f.reshape(x, ()), [(0,)])],
    "broadcast_to": [(lambda f, x: f.broadcast_to(x, (0,)), [(3,)]), (lambda f, x: f.broadcast_to(x, ()), [(1,)])],
    "stack": [(lambda f, x, y: f.stack([x, y]), [(0,), ()])],
    "take": [(lambda f, x: f.take(x, [0]), [(0,)])],
    "transpose": [(lambda f, x: f.transpose(x, (0, 0)), [(2, 3)])],
}  # fmt: skip
