"""Descriptors of operations: which kernel computes one, on which places, with which sizes.

`describe(operation, inputs, params, outputs)` gives the rows of the table of `numba_cpu`, or None where no kernel
computes this; the operation then runs by its plain rule. Inputs and outputs are `Place`s. Shapes, strides and the
number of chunks are decided here, once for each batch size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..attention.by_block import QUERIES
from ..cpu.chunks import COPIES, ELEMENTS, PRODUCTS, SCORES
from ..linear.numba_cpu import BLOCK, groups_of, pack
from . import numba_cpu as table

FLOAT = np.dtype(np.float32)
SINGLE = 4  # the most axes of an array that the kernels for elements take


@dataclass(frozen=True)
class Place:
    """Where an array is: a base (0 for an address, else what a call fills in), an offset in bytes, shape and strides.

    `array` holds the values of a constant.
    """

    base: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    array: Any = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one after the other."""
        return self.strides == dense_strides(self.shape, self.dtype.itemsize) or self.size == 0

    def as_rows(self) -> "Place | None":
        """Return the array as a matrix (R, C) with a contiguous last axis, None if that would need a copy."""
        if not self.shape:
            return None
        merged = _merged([self.shape[:-1]], [self.strides[:-1]])
        ends = self.strides[-1] == self.dtype.itemsize or self.shape[-1] == 1
        if not ends or len(merged[0][0]) > 1:
            return None
        (rows,), (step,) = (merged[0][0] or (1,)), (merged[1][0] or (0,))
        return replace(self, shape=(rows, self.shape[-1]), strides=(step, self.dtype.itemsize))


@dataclass(frozen=True)
class Row:
    """One row of the table: the kernel, its places, sizes and numbers, and chunks alone and for several threads."""

    kernel: int
    places: tuple[Place | None, ...]
    sizes: tuple[int, ...]
    reals: tuple[float, ...] = ()
    chunks: int = 1
    is_shared: bool = False
    keeps: tuple[Any, ...] = ()  # arrays that must stay alive


def dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the strides of a contiguous array."""
    steps, step = [], itemsize
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


def _merged(
    shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Merge neighbouring axes of arrays of one shape wherever all of them allow it; axes of length 1 go."""
    axes: list[list[Any]] = []
    for i, n in enumerate(shapes[0]):
        steps = [s[i] for s in strides]
        if n == 1:
            continue
        if axes and all(before == step * n for before, step in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = [axes[-1][0] * n, steps]
        else:
            axes.append([n, steps])
    lengths = tuple(n for n, _ in axes)
    return [lengths] * len(strides), [tuple(steps[k] for _, steps in axes) for k in range(len(strides))]


def _four(shape: Sequence[int], places: Sequence[Place]) -> tuple[list[int], list[list[int]]] | None:
    """Return the shape and the strides of arrays with four axes, merged; None if they have more. The last is filled."""
    strides = []
    for place in places:
        missing = len(shape) - len(place.shape)
        own = [0 if n == 1 else step for n, step in zip(place.shape, place.strides, strict=True)]
        strides.append([0] * missing + own)
    shapes, merged = _merged([shape], strides)
    if len(shapes[0]) > SINGLE:
        return None
    pad = SINGLE - len(shapes[0])
    if shapes[0]:
        return [1] * pad + list(shapes[0]), [[0] * pad + list(steps) for steps in merged]
    return [1] * SINGLE, [[0, 0, 0, table.ITEM] for _ in merged]


# Operations -----------------------------------------------------------------------------------------------------------


def _linear(inputs: Any, params: Any, outputs: Any, packed: Any, gelu: int = 0) -> list[Row] | None:
    x, weight, bias = inputs
    rows, y = x.as_rows(), outputs[0].as_rows()
    if rows is None or y is None or weight.array is None or (bias is not None and bias.array is None):
        return None
    panels = packed(weight.array)
    count, depth, width = panels.shape
    is_shared = rows.shape[0] * weight.size > PRODUCTS
    blocks = -(-rows.shape[0] // BLOCK)
    groups = groups_of(rows.shape[0], weight.size, count) if is_shared else 1
    constant = np.zeros(0, FLOAT) if bias is None else np.ascontiguousarray(bias.array)
    places = (rows, of_array(panels), of_array(constant), y)
    steps = (rows.strides[0], y.strides[0], constant.size)
    sizes = (rows.shape[0], depth, y.shape[1], count, groups, width, gelu, *steps)
    return [Row(table.LINEAR, places, sizes, (), blocks * groups, is_shared, (panels, constant))]


def _linear_gelu(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    return _linear(inputs, params, outputs, packed, 2 if params["approximate"] == "tanh" else 1)


def _layer_norm(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    x, *rest = inputs
    residual, weight, bias = rest if len(rest) == 3 else (None, *rest)
    total, y = outputs if len(outputs) == 2 else (None, *outputs)
    if params.get("y_dtype") is not None or weight.array is None or bias.array is None:
        return None
    if residual is not None and residual.shape not in (x.shape, (1, *x.shape[1:]), *_ends(x.shape)):
        return None
    places: list[Any] = [None if p is None else p.as_rows() for p in (x, residual, total, y)]
    if any(matrix is None for matrix, p in zip(places, (x, residual, total, y), strict=True) if p is not None):
        return None
    x, residual, total, y = places
    rows, columns = x.shape
    if columns == 0:
        return None
    repeats = 1 if residual is None else max(1, residual.shape[0])
    steps = [0 if p is None else p.strides[0] for p in (x, residual, total, y)]
    sizes = (rows, columns, repeats, residual is not None, *steps)
    constants = [np.ascontiguousarray(weight.array), np.ascontiguousarray(bias.array)]
    given = (x, residual, of_array(constants[0]), of_array(constants[1]), total, y)
    is_shared = x.size > ELEMENTS
    chunks = min(64, max(1, rows // 16)) if is_shared else 1
    return [Row(table.LAYER_NORM, given, sizes, (params["eps"],), chunks, is_shared, tuple(constants))]


def _ends(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of arrays that are repeated along the first axes only."""
    return [shape[i:] for i in range(len(shape))]


def _attention(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    q, k, v, bias = inputs
    (out, lse), mask = outputs, params.get("mask")
    if any(len(p.shape) != 4 or p.strides[3] != table.ITEM for p in (q, k, v, out)) or 0 in (*q.shape, *k.shape):
        return None
    scores = (*q.shape[:3], k.shape[2])
    views = [_scores_view(p, scores) for p in (bias, mask)]
    if any(view is None for view, p in zip(views, (bias, mask), strict=True) if p is not None):
        return None
    heads = q.shape[0] * q.shape[1]
    groups = min(-(-q.shape[2] // QUERIES), -(-16 // heads))  # as `groups_of` says, which is compiled code
    is_shared = q.size * k.shape[2] > SCORES
    sizes = [*scores, q.shape[3], v.shape[3], *(step for p in (q, k, v, out) for step in p.strides[:3])]
    sizes += [step for view in views for step in (view.strides if view is not None else (0, 0, 0, 0))]
    sizes += [bias is not None, mask is not None, params.get("is_causal", False), groups]
    chunks = min(heads * groups, 64) if is_shared else 1
    return [Row(table.ATTENTION, (q, k, v, out, *views, lse), tuple(sizes), (params["scale"],), chunks, is_shared)]


def _scores_view(place: Place | None, scores: tuple[int, ...]) -> Place | None:
    """Return a bias or a mask as a view (B, H, N, S); None without one, or where it cannot be read as it is."""
    if place is None or len(place.shape) > len(scores):
        return None
    missing = len(scores) - len(place.shape)
    steps = tuple(0 if n == 1 else step for n, step in zip(place.shape, place.strides, strict=True))
    return replace(place, shape=scores, strides=(0,) * missing + steps)


def _patches(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    (x,), (y,) = inputs, outputs
    if not (x.is_dense and y.is_dense) or len(x.shape) != 4 or x.size == 0:
        return None
    is_shared = x.size > ELEMENTS
    chunks = min(64, max(1, x.shape[0] * (x.shape[2] // params["size"][0]))) if is_shared else 1
    return [Row(table.PATCHES, (x, y), (*x.shape, *params["size"]), (), chunks, is_shared)]


def _embedding(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    (weight,), (y,), ids = inputs, outputs, params["ids"]
    rows = weight.as_rows() if len(weight.shape) == 2 else None
    if rows is None or weight.array is None or not y.is_dense or not ids.is_dense or ids.dtype != np.int64:
        return None
    is_shared = y.size > ELEMENTS
    chunks = max(1, min(ids.size, 64)) if is_shared else 1
    return [Row(table.EMBEDDING, (rows, ids, y), (ids.size, rows.shape[1], rows.strides[0]), (), chunks, is_shared)]


def _elements(what: int) -> Callable[..., list[Row] | None]:
    def one(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
        if params.get("approximate") == "tanh":
            return copy(inputs[0], outputs[0], table.GELU_TANH)
        return copy(inputs[0], outputs[0], what)

    return one


def copy(x: Place, y: Place, what: int = table.COPY) -> list[Row] | None:
    """Return the row that copies x to y, to whose shape it broadcasts, perhaps through a function of each element."""
    found = _four(y.shape, (x, y))
    if found is None or x.dtype != FLOAT or y.dtype != FLOAT:
        return None
    shape, (given, made) = found
    is_usual = made[3] == table.ITEM and (given[3] == table.ITEM or what == table.COPY)
    if not is_usual:
        return None
    rows, is_shared = int(np.prod(shape[:3])), y.size > (COPIES if what == table.COPY else ELEMENTS)
    return [
        Row(table.ONE, (x, y), (*shape, *given, *made, what), (), min(64, max(rows, 1)) if is_shared else 1, is_shared)
    ]


def _pair(what: int, is_symmetric: bool) -> Callable[..., list[Row] | None]:
    def two(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
        x, y = inputs
        (z,) = outputs
        if x.dtype != FLOAT or y.dtype != FLOAT:
            return None
        if is_symmetric and x.size < y.size:
            x, y = y, x
        found = _four(z.shape, (x, y, z))
        if found is None:
            return None
        shape, (left, right, made) = found
        if left[3] != table.ITEM or made[3] != table.ITEM or right[3] not in (0, table.ITEM):
            return None
        is_shared = z.size > COPIES
        chunks = min(64, max(1, int(np.prod(shape[:3])))) if is_shared else 1
        return [Row(table.TWO, (x, y, z), (*shape, *left, *right, *made, what), (), chunks, is_shared)]

    return two


def _concatenate(inputs: Any, params: Any, outputs: Any, packed: Any) -> list[Row] | None:
    (y,), rows, offset = outputs, [], 0
    axis = params["axis"] % len(y.shape)
    for part in inputs:
        place = replace(y, offset=y.offset + offset, shape=part.shape)
        copied = copy(part, place)
        if copied is None:
            return None
        rows += copied
        offset += part.shape[axis] * y.strides[axis]
    return rows


_BY_OPERATION: Mapping[str, Callable[..., list[Row] | None]] = {
    "add": _pair(table.ADD, True),
    "add_layer_norm": _layer_norm,
    "attention": _attention,
    "concatenate": _concatenate,
    "divide": _pair(table.DIVIDE, False),
    "embedding": _embedding,
    "gelu": _elements(table.GELU),
    "layer_norm": _layer_norm,
    "linear": _linear,
    "linear_gelu": _linear_gelu,
    "multiply": _pair(table.MULTIPLY, True),
    "patches": _patches,
    "relu": _elements(table.RELU),
    "subtract": _pair(table.SUBTRACT, False),
}


def computes(operation: str) -> bool:
    """Return whether there is a kernel for an operation, for some of its inputs."""
    return operation in _BY_OPERATION


def describe(
    operation: str, inputs: Sequence[Any], params: Mapping[str, Any], outputs: Sequence[Place], packed: Any
) -> list[Row] | None:
    """Return the rows of the table for an operation; None where no kernel computes it.

    Parameters
    ----------
    inputs, params, outputs : of the operation, with a `Place` for each array; those of attention have `lse` at the end.
    packed : weight (N, K) -> its panels.
    """
    function = _BY_OPERATION.get(operation)
    arrays = [x for x in (*inputs, *outputs) if isinstance(x, Place)]
    floats = [x for x in inputs if not (x is None or isinstance(x, Place))]
    if function is None or floats or any(x.dtype != FLOAT for x in arrays):
        return None
    return function(inputs, params, outputs, packed)


def of_array(array: Any) -> Place:
    """Return the place of a constant, which must stay alive."""
    return Place(0, array.__array_interface__["data"][0], array.shape, array.strides, array.dtype, array)


def packed(weight: Any) -> Any:
    """Return a weight (N, K) in panels, as the kernel of the linear map takes it."""
    return pack(weight)


def assembled(rows: Sequence[Row]) -> tuple[Any, Any]:
    """Return the table and the reals for rows."""
    made, reals = np.zeros((len(rows), table.WIDTH), np.int64), np.zeros((len(rows), 2))
    for i, row in enumerate(rows):
        made[i, :3] = row.kernel, row.chunks, row.is_shared
        for k, place in enumerate(row.places):
            if place is not None:
                made[i, 3 + 2 * k : 5 + 2 * k] = place.base, place.offset
        made[i, table.SIZES : table.SIZES + len(row.sizes)] = row.sizes
        reals[i, : len(row.reals)] = row.reals
    return made, reals


__all__ = ["Place", "Row", "assembled", "computes", "copy", "describe", "of_array", "packed"]
