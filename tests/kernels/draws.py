"""What kernels are tried on: for each operation a hypothesis strategy of its inputs and parameters.

Sizes lie on and around the edges at which kernels change their ways: tiles, panels, blocks, chunks, vectors. An
operation that has no strategy here is tried on its own samples.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blocks import (
    ADD,
    BLOCK,
    CAST,
    COLUMNS,
    DEPTH,
    GELU,
    HEIGHT,
    IMAGES,
    KEYS,
    PANEL_BYTES,
    PART,
    PARTS,
    PIXELS,
    QUERIES,
    ROWS,
    TILE,
    WIDTH,
)
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from numba.core import config

from tinyvit.engine import Op

Array = np.ndarray
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Arguments of one `Op.apply`, and what its kernel may ask.

    Whether the gradients that come back to it must be finite; and how large a logarithm of probabilities is from which
    it computes them again, for rounding this logarithm puts an error of as many roundings on all of them.
    """

    inputs: tuple[Array | None, ...]
    params: dict[str, Any]
    only_finite: bool = False
    logarithm: float = 0.0


# How much an example may cost: multiply-adds, and elements. Enough for threads; less where kernels run uncompiled.
PRODUCTS, ELEMENTS = (6_000, 1_500) if config.DISABLE_JIT else (1_500_000, 60_000)


def on_drawn(examples: int, quickly: int | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on examples drawn from its argument `data`: a quick test on the first few, a slow one on all of them.

    After ten examples hypothesis mostly repeats those it has, with some part copied over another; shapes then hardly
    change any more. So it draws ten, then ten with another seed, and so on.

    Parameters
    ----------
    examples : how many examples are drawn.
    quickly : how many of them the quick test draws; None if the test shall not be run twice.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def on_each(*args: Any, drawn: int = examples, **kwargs: Any) -> None:
            for start in range(0, drawn, 10):
                ten = settings(max_examples=min(10, drawn - start))(given(data=st.data())(test))
                seed(f"{kwargs} {start}")(ten)(*args, **kwargs)

        signature = inspect.signature(test)
        parameters = [p for name, p in signature.parameters.items() if name != "data"]
        if quickly is not None:
            parameters.append(inspect.Parameter("drawn", inspect.Parameter.KEYWORD_ONLY))
        on_each.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        few_or_all = [quickly, pytest.param(examples, marks=pytest.mark.slow)]
        return on_each if quickly is None else pytest.mark.parametrize("drawn", few_or_all)(on_each)

    return decorate


def around(*edges: int) -> list[int]:
    """The edges, and what lies beside them."""
    return sorted({n + step for n in edges for step in (-1, 0, 1)})


def size(draw: Any, edges: Sequence[int], at_most: float) -> int:
    """One of the edges."""
    return draw(st.sampled_from([n for n in edges if n <= max(at_most, edges[0])]))


# Arrays --------------------------------------------------------------------------------------------------------------


def _spaced(x: Array) -> Array:
    """Every other element of memory that is NaN in between."""
    wide = np.full((*x.shape, 2), np.nan, x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def _part(x: Array) -> Array:
    """The middle of a larger array that is NaN around it."""
    large = np.full([n + 2 for n in x.shape], np.nan, x.dtype)
    middle = large[(slice(1, -1),) * x.ndim]
    middle[...] = x
    return middle


def _unaligned(x: Array) -> Array:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "dense": lambda x: x,
    "spaced": _spaced,
    "part": _part,
    "transposed": lambda x: np.array(x.T, order="C").T,
    "reversed": lambda x: np.flip(np.array(np.flip(x))),
    "broadcast": lambda x: np.broadcast_to(np.round(8 * x[:1]) / 8, x.shape),  # few digits: equal errors would add up
    "read-only": _read_only,
    "unaligned": _unaligned,
}
VALUES = {"large": (1e4, -1e4), "hidden": (-math.inf,), "nan": (math.nan,), "inf": (math.inf, -math.inf)}
FINITE = ("none", "none", "none", "none", "wide", "large")
SPECIALS = (*FINITE, "hidden", "nan", "inf")


@st.composite
def arrays(draw: Any, shape: Shape, dtype: Any, layout: str | None = None, specials: Sequence[str] = SPECIALS) -> Array:
    """Normal numbers, perhaps wider or with a few that are extreme, infinite or no number, in some layout."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.asarray(rng.standard_normal(shape), dtype)
    special = draw(st.sampled_from(specials))
    if special == "wide":
        x *= 4
    elif special != "none" and x.size:
        values = {"large": (1e4, -1e4), "hidden": (-math.inf,), "nan": (math.nan,), "inf": (math.inf, -math.inf)}[
            special
        ]
        places = rng.integers(x.size, size=3)
        x.reshape(-1)[places] = rng.choice(values, 3)
    return LAYOUTS[layout or draw(st.sampled_from(list(LAYOUTS)))](x) if x.ndim else x


@st.composite
def leading(draw: Any, rows: int) -> Shape:
    """Leading axes that hold `rows` rows together."""
    divisor = draw(st.sampled_from([d for d in (1, 2, 3) if rows % d == 0]))
    return draw(st.sampled_from([(rows,), (divisor, rows // divisor), (divisor, 1, rows // divisor)]))


CHUNKS = [0, *around(1, 4, 16, 32, 64, 128, 1024)[1:]]  # rows that chunks are made of
LANES = around(2, 8, 16, 32, 64, 192)  # columns that vectors are made of


@st.composite
def rows_and_columns(draw: Any) -> Shape:
    columns = size(draw, LANES, ELEMENTS)
    return (*draw(leading(size(draw, CHUNKS, ELEMENTS // columns))), columns)


# Operations ----------------------------------------------------------------------------------------------------------


@st.composite
def linear(draw: Any, dtype: Any) -> Case:
    panel = PANEL_BYTES // np.dtype(dtype).itemsize
    width = WIDTH // np.dtype(dtype).itemsize
    rows = size(draw, [0, *around(2, *ROWS[:2], BLOCK, DEPTH, 2 * PART)], PRODUCTS)
    depth = size(draw, [1, 2, 5, *around(panel, BLOCK, width)], PRODUCTS // max(rows, 1))
    columns = size(draw, [1, 2, *around(panel, 2 * panel, HEIGHT)], PRODUCTS // max(rows * depth, 1))
    x = draw(arrays((*draw(leading(rows)), depth), dtype) if rows != 1 else arrays((depth,), dtype))
    bias = draw(arrays((columns,), dtype)) if draw(st.booleans()) else None
    return Case((x, draw(arrays((columns, depth), dtype)), bias), {})


@st.composite
def layer_norm(draw: Any, dtype: Any, summands: int = 1) -> Case:
    shape = draw(rows_and_columns())
    strategies = [arrays(shape, dtype)] * summands + [arrays(shape[-1:], dtype)] * 2
    inputs, params = [draw(x) for x in strategies], {"eps": draw(st.sampled_from([1e-5, 1e-6, 0.1]))}
    if dtype == "float32" and draw(st.booleans()):
        params["y_dtype"] = np.dtype(ml_dtypes.bfloat16)
        if summands > 1 and draw(st.booleans()):
            inputs[1] = inputs[1].astype(ml_dtypes.bfloat16)
    return Case(tuple(inputs), params)


@st.composite
def gelu(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns() | st.sampled_from([(n,) for n in around(1, GELU, 2 * GELU)]))
    return Case((draw(arrays(shape, dtype)),), {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@st.composite
def add_narrow(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns() | st.sampled_from([(n,) for n in around(1, ADD, 2 * ADD)]))
    x, y = draw(arrays(shape, dtype)), draw(arrays(shape, dtype))
    return Case((x, y.astype(ml_dtypes.bfloat16) if dtype == "float32" and draw(st.booleans()) else y), {})


@st.composite
def bias_gelu(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns())
    inputs = draw(arrays(shape, dtype)), draw(arrays(shape[-1:], dtype))
    return Case(inputs, {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@st.composite
def softmax(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns())
    axis = draw(st.sampled_from([a for a in range(-1, len(shape)) if shape[a]]))
    return Case((draw(arrays(shape, dtype)),), {"axis": axis})


@st.composite
def cross_entropy(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns())
    params: dict[str, Any] = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    x = draw(arrays(shape, dtype))
    rng, target = np.random.default_rng(draw(st.integers(0, 99))), None
    if draw(st.booleans()):
        params["ignore_index"] = draw(st.sampled_from([-100, 0]))
        ids = rng.integers(shape[-1], size=shape[:-1])
        ids[rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = params["ignore_index"]
        params["ids"] = draw(st.sampled_from([ids, ids.astype(np.int32), LAYOUTS["reversed"](ids)]))
    else:
        weights = rng.random(shape)
        weights[rng.random(shape) < 0.2] = 0
        if draw(st.booleans()):
            weights[np.isneginf(x)] = 0  # what cannot be is not wanted: 0 log 0 = 0
        target = (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-3)).astype(dtype)
    return Case((x, target), params)


streams = st.fixed_dictionaries(
    {"seed": st.sampled_from([0, 7, 2**32 - 1, 2**62 + 5]), "offset": st.sampled_from([0, 1, 2**32, 2**40 + 3])}
)


@st.composite
def dropout(draw: Any, dtype: Any) -> Case:
    p = draw(st.sampled_from([0.1, 0.123, 0.5, 0.9, 1e-9, 1.0]))
    shape = draw(rows_and_columns() | st.sampled_from([(n,) for n in around(1, TILE, 2 * TILE)]))
    return Case((draw(arrays(shape, dtype)),), {"p": p, **draw(streams)})


@st.composite
def cast(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns() | st.sampled_from([(n,) for n in around(1, CAST, 2 * CAST)]))
    target = draw(st.sampled_from([np.dtype(n) for n in ("float32", "bfloat16", "float64")]))
    x = draw(arrays(shape, dtype, specials=("none", "wide", "nan", "inf")))  # float16 has none that are much larger
    return Case((x,), {"dtype": target, "source": np.dtype(dtype)})


@st.composite
def patches(draw: Any, dtype: Any) -> Case:
    batch, channels, down, across = (draw(st.sampled_from(n)) for n in ([0, 1, 3], [1, 3], [1, 2, 33], [1, 2, 7]))
    size = draw(st.sampled_from([(1, 1), (2, 3), (4, 4), (7, 1)]))
    shape = (batch, channels, down * size[0], across * size[1])
    return Case((draw(arrays(shape, dtype)),), {"size": size})


@st.composite
def embedding(draw: Any, dtype: Any) -> Case:
    shape = draw(st.sampled_from([(n,) for n in around(COLUMNS, 2 * COLUMNS)] + [(1,), (3, 5), (), (0,)]))
    rows = size(draw, [1, 2, 7, 33], ELEMENTS // max(math.prod(shape), 1))
    ids = draw(leading(size(draw, CHUNKS, ELEMENTS // max(math.prod(shape), 1))))
    rng, kind = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    picked = rng.integers(draw(st.sampled_from([1, rows])), size=ids).astype(kind)
    layout = LAYOUTS[draw(st.sampled_from(["dense", "reversed", "transposed", "read-only"]))]
    return Case((draw(arrays((rows, *shape), dtype)),), {"ids": layout(picked)})


@st.composite
def conv2d(draw: Any, dtype: Any) -> Case:
    kernel, stride = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2))
    channels, filters = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 5]))
    across = draw(st.sampled_from([1, 2, 5, *around(PIXELS)]))
    left = PRODUCTS // (4 * math.prod(kernel) * channels * filters * across)
    down = size(draw, [1, 2, 3, *around(PIXELS // across + 2)], left)
    batch = size(draw, [1, 0, 2, 3, PARTS + 1], left // down)
    # The least padding that is needed for so few pixels, or more; then pixels that no window reaches.
    shape, padding = [], []
    for k, s, n in zip(kernel, stride, (down, across), strict=True):
        covered = (n - 1) * s + k
        padding.append(draw(st.integers(0, min(4, (covered - 1) // 2))))
        shape.append(covered - 2 * padding[-1] + draw(st.integers(0, s - 1)))
    x, weight = draw(arrays((batch, channels, *shape), dtype)), draw(arrays((filters, channels, *kernel), dtype))
    bias = draw(st.none() | arrays((filters,), dtype))
    return Case((x, weight, bias), {"stride": stride, "padding": tuple(padding)})


@st.composite
def max_pool2d(draw: Any, dtype: Any) -> Case:
    window, stride = ((draw(st.integers(1, 4)), draw(st.integers(1, 4))) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in window)
    batch, channels = draw(st.sampled_from([(0, 2), (1, 1), (1, IMAGES), (2, 3), (IMAGES + 1, 1), (3, IMAGES)]))
    shape, left = [], PRODUCTS // (math.prod(window) * max(batch * channels, 1))
    for k, p in zip(window, padding, strict=True):
        shape.append(size(draw, [*around(max(2, k + 1 - 2 * p)), 9, 18], left))
        left //= shape[-1]
    x = draw(arrays((batch, channels, *shape), dtype))
    how = draw(st.sampled_from(["distinct", "ties", "hidden"]))
    if how == "ties":
        x = np.round(x)
    elif how == "hidden":  # so much that there is nothing else in some windows
        x = np.where(x > 0.5, x, np.asarray(-math.inf, dtype))
    return Case((x,), {"window": window, "stride": stride, "padding": padding})


@st.composite
def attention_shape(draw: Any) -> tuple[Shape, int, int, int]:
    """Leading axes, queries, keys and head size; long ones have more than one block of queries or keys."""
    few, long_queries, long_keys = around(2, ROWS[0], 16), around(QUERIES, 2 * QUERIES), [*around(KEYS), 2 * KEYS + 1]
    long = draw(st.sampled_from(["neither", "queries", "keys", "both"]))
    lead = draw(st.sampled_from([(1, 1), (1, 2), (2,), ()]))
    if long == "neither":
        lead = draw(st.sampled_from([(1, 1), (2, 3), (2, 1), (1, 9), (0, 2), (), (3,), (2, 1, 2)]))
    elif long == "both":
        lead = (1, 1)
    elif long == "queries" and draw(st.booleans()):
        lead = (2, 9)  # heads enough that none is shared by two threads
    queries = draw(st.sampled_from(long_queries if long in ("queries", "both") else [0, *few]))
    if long in ("keys", "both"):
        keys = draw(st.sampled_from(long_keys))
    else:
        keys = queries if queries and draw(st.booleans()) else draw(st.sampled_from(few))
    if long == "both" and draw(st.booleans()):
        queries = keys
    heads = max(math.prod(lead), 1)
    return lead, queries, keys, size(draw, [1, 3, 8, *around(16, 64)], PRODUCTS / heads / max(queries * keys, 1))


@st.composite
def attention(draw: Any, dtype: Any) -> Case:
    lead, queries, keys, depth = draw(attention_shape())
    params: dict[str, Any] = {"scale": draw(st.sampled_from([depth**-0.5, 0.3, 0.0])), "is_causal": draw(st.booleans())}
    if draw(st.booleans()):
        params["mask"] = draw(masks(lead, queries, keys))
    if draw(st.integers(0, 3)) == 0:
        params |= {"dropout_p": draw(st.sampled_from([0.1, 0.5, 1.0])), **draw(streams)}
    bias = None
    if draw(st.booleans()):
        bias = draw(arrays(draw(score_shapes(lead, queries, keys)), dtype, specials=(*FINITE, "hidden")))
    # A hidden key has probability 0: whether that times NaN is computed is left to the kernel, so where keys may be
    # hidden all else is finite.
    all_seen = bias is None and params.keys() == {"scale", "is_causal"} and not params["is_causal"]
    if queries == keys and len(lead) == 2 and draw(st.booleans()):
        packed = draw(arrays((lead[0], queries, 3, lead[1], depth), dtype, specials=(*FINITE, *["nan"] * all_seen)))
        q, k, v = packed.transpose(2, 0, 3, 1, 4)
    else:
        special = draw(st.integers(0, 2))
        shapes = [(*lead, queries, depth)] + [(*lead, keys, depth)] * 2
        specials = [(*FINITE, *["nan", "inf"] * (all_seen and i == special)) for i in range(3)]
        q, k, v = (draw(arrays(shape, dtype, specials=s)) for shape, s in zip(shapes, specials, strict=True))
    return Case((q, k, v, bias), params, not all_seen, largest_score(q, k, bias, params["scale"]))


def largest_score(q: Array, k: Array, bias: Array | None, scale: float) -> float:
    """A bound on the scores of attention."""
    with np.errstate(invalid="ignore"):
        products = scale * (np.abs(q).astype(float) @ np.swapaxes(np.abs(k).astype(float), -1, -2))
    largest = [float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) for x in (products, bias) if x is not None]
    return sum(largest)


@st.composite
def score_shapes(draw: Any, lead: Shape, queries: int, keys: int) -> Shape:
    """A shape that broadcasts to the one of the scores."""
    shape = [n if draw(st.booleans()) else 1 for n in (*lead, queries)] + [keys]
    return tuple(shape[draw(st.integers(0, len(lead))) :])


@st.composite
def masks(draw: Any, lead: Shape, queries: int, keys: int) -> Array:
    """True where a query may look; some look at nothing."""
    shape = draw(score_shapes(lead, queries, keys))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    visible = rng.random(shape) < draw(st.sampled_from([0.1, 0.7]))
    return visible & (rng.random((*shape[:-1], 1)) < 0.8)


STRATEGIES: dict[str, Callable[[Any], st.SearchStrategy[Case]]] = {
    "linear": linear,
    "layer_norm": layer_norm,
    "add_layer_norm": lambda dtype: layer_norm(dtype, summands=2),
    "gelu": gelu,
    "bias_gelu": bias_gelu,
    "softmax": softmax,
    "cross_entropy": cross_entropy,
    "dropout": dropout,
    "patches": patches,
    "embedding": embedding,
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "cast": cast,
    "add_narrow": add_narrow,
    "attention": attention,
}


def cases(op: type[Op], dtype: Any) -> st.SearchStrategy[Case]:
    """The strategy of an operation's inputs."""
    if op.name in STRATEGIES:
        return STRATEGIES[op.name](dtype)
    samples = [Case(tuple(x if x is None else x.astype(dtype) for x in s.inputs), dict(s.params)) for s in op.samples()]
    return st.sampled_from(samples)
