"""The cases on which kernels are tested: for each operation a hypothesis strategy of its inputs and parameters.

Sizes lie on and around the edges of a kernel's tiles, panels, blocks, chunks and vectors. An operation that has no
strategy here is tested on its own samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from blocks import (
    ADD,
    BLOCK,
    CAST,
    COLUMNS,
    CROWDED,
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
from draws import FINITE, LAYOUTS, Array, Shape, around, arrays, leading, size
from hypothesis import strategies as st
from numba.core import config

from tinyvit.engine import Op


@dataclass(frozen=True)
class Case:
    """The arguments of one `Op.apply`, and how its results may be compared.

    Attributes
    ----------
    only_finite : whether the gradients of its outputs must be finite.
    logarithm : the largest logarithm from which its kernel computes probabilities again. Its rounding error appears in
        them as that many roundings.
    """

    inputs: tuple[Array | None, ...]
    params: dict[str, Any]
    only_finite: bool = False
    logarithm: float = 0.0


# The most multiply-adds and elements of an example: enough for threads, and fewer where kernels run uncompiled.
PRODUCTS, ELEMENTS = (6_000, 1_500) if config.DISABLE_JIT else (1_500_000, 60_000)


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
    crowded = CROWDED // np.dtype(dtype).itemsize
    columns = size(draw, [1, 2, crowded, *around(panel, 2 * panel, HEIGHT)], PRODUCTS // max(rows * depth, 1))
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
def add(draw: Any, dtype: Any) -> Case:
    shape = draw(rows_and_columns() | st.sampled_from([(n,) for n in around(1, ADD, 2 * ADD)]))
    others = st.sampled_from([shape, shape, shape[-1:], (1, *shape)])
    x, y = draw(arrays(shape, dtype)), draw(arrays(draw(others), dtype))
    return Case(draw(st.permutations((x, y))), {})


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
            weights[np.isneginf(x)] = 0  # impossible classes have target 0: 0 log 0 = 0
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
    x = draw(arrays(shape, dtype, specials=("none", "wide", "nan", "inf")))  # float16 has no much larger numbers
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
    # The least padding for so few pixels, or more; then some pixels that no window reaches.
    shape, padding = [], []
    for k, s, n in zip(kernel, stride, (down, across), strict=True):
        covered = (n - 1) * s + k
        padding.append(draw(st.integers(0, min(4, (covered - 1) // 2))))
        shape.append(covered - 2 * padding[-1] + draw(st.integers(0, s - 1)))
    x, weight = draw(arrays((batch, channels, *shape), dtype)), draw(arrays((filters, channels, *kernel), dtype))
    bias = draw(st.none() | arrays((filters,), dtype))
    return Case((x, weight, bias), {"stride": stride, "padding": tuple(padding)})


@st.composite
def depthwise_conv(draw: Any, dtype: Any) -> Case:
    kernel = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))
    channels = size(draw, [1, 2, 3, *around(8, 16)], 40)
    down, across = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batch = size(draw, [1, 0, 2, PARTS + 1], max(1, ELEMENTS // (channels * down * across * math.prod(kernel))))
    x = draw(arrays((batch, down, across, channels), dtype))
    weight, bias = draw(arrays((channels, 1, *kernel), dtype)), draw(st.none() | arrays((channels,), dtype))
    return Case((x, weight, bias), {})


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
    elif how == "hidden":  # so many that some windows have no other pixel
        x = np.where(x > 0.5, x, np.asarray(-math.inf, dtype))
    return Case((x,), {"window": window, "stride": stride, "padding": padding})


@st.composite
def attention_shape(draw: Any) -> tuple[Shape, int, int, int]:
    """Draw leading axes, queries, keys and head size; long ones have more than one block of queries or keys."""
    few, long_queries, long_keys = around(2, ROWS[0], 16), around(QUERIES, 2 * QUERIES), [*around(KEYS), 2 * KEYS + 1]
    long = draw(st.sampled_from(["neither", "queries", "keys", "both"]))
    lead = draw(st.sampled_from([(1, 1), (1, 2), (2,), ()]))
    if long == "neither":
        lead = draw(st.sampled_from([(1, 1), (2, 3), (2, 1), (1, 9), (0, 2), (), (3,), (2, 1, 2)]))
    elif long == "both":
        lead = (1, 1)
    elif long == "queries" and draw(st.booleans()):
        lead = (2, 9)  # so many heads that threads need not share one
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
    # A hidden key has probability 0. Whether a kernel multiplies that with the key's values is left open, so NaN and
    # infinity are drawn only if no key is hidden; `hidden.py` draws them for hidden keys.
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
    """Return a bound on the scores of attention."""
    with np.errstate(invalid="ignore"):
        products = scale * (np.abs(q).astype(float) @ np.swapaxes(np.abs(k).astype(float), -1, -2))
    largest = [float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) for x in (products, bias) if x is not None]
    return sum(largest)


@st.composite
def score_shapes(draw: Any, lead: Shape, queries: int, keys: int) -> Shape:
    """Draw a shape that broadcasts to that of the scores."""
    shape = [n if draw(st.booleans()) else 1 for n in (*lead, queries)] + [keys]
    return tuple(shape[draw(st.integers(0, len(lead))) :])


@st.composite
def masks(draw: Any, lead: Shape, queries: int, keys: int) -> Array:
    """Draw a mask, True where a query may see a key; some queries see no key."""
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
    "depthwise_conv": depthwise_conv,
    "max_pool2d": max_pool2d,
    "cast": cast,
    "add": add,
    "add_narrow": add_narrow,
    "attention": attention,
}


def cases_of(op: type[Op], dtype: Any) -> st.SearchStrategy[Case]:
    """Return the strategy of an operation's cases."""
    if op.name in STRATEGIES:
        return STRATEGIES[op.name](dtype)
    samples = [Case(tuple(x if x is None else x.astype(dtype) for x in s.inputs), dict(s.params)) for s in op.samples()]
    return st.sampled_from(samples)
