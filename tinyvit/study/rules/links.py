"""Which elements each element of a step's result is made of, so that any number can be unfolded into its terms.

Elementwise functions, matrix products and reductions follow from shapes. What only moves elements about (reshape,
slices, windows) is asked itself: the function runs on an array of element numbers, and what comes out says where each
element came from.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...backend import NUMPY
from .narrate import Step, Told

_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "true_divide": "/", "negative": "neg"}
_ELEMENTWISE = {
    *("power", "exp", "log", "sqrt", "tanh", "erf", "abs", "sign", "maximum", "minimum", "where", "clip", "not"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "and", "or", "sigmoid"),
}
_REDUCTIONS = {"sum", "mean", "max", "min"}
_MOVES = {
    *("reshape", "transpose", "swapaxes", "broadcast_to", "index", "flip", "pad", "im2col", "concatenate", "stack"),
    *("join_heads", "astype", "cast", "copy", "stop_gradient", "asarray", "put"),
}


@dataclass(frozen=True)
class Link:
    """How the elements of a result depend on those of the operands (the arrays among them, in order).

    kind : "each" (elementwise, broadcast; `sign` is + - * / neg, or the name of a function), "matmul", "reduce" (over
        `axes`, by `sign`), "move" (`source` is for each element of the result the number of an element of all operands
        counted through, -1 for a constant), "view" (the same as a `start` and a step for each axis), "scatter"
        (`source` is for each element of the operand the number of the element of the result it is added to, -1 for
        none), or "none".
    """

    kind: str
    sign: str = ""
    axes: tuple[int, ...] = ()
    start: int = 0
    source: np.ndarray | None = field(default=None, compare=False)


def link_of(step: Step) -> Link:
    """The link of a narrated step."""
    name = step.function.partition("[")[0]
    arrays = _arrays(step.operands)
    if name in _SIGNS:
        return Link("each", _SIGNS[name])
    if name in _ELEMENTWISE:
        return Link("each", name)
    if name == "matmul":
        return Link("matmul")
    if name in _REDUCTIONS:
        return Link("reduce", name, _axes(step, arrays[0].value.ndim))
    if name == "sum_to_shape":
        return Link("reduce", "sum", _summed(arrays[0].value.shape, np.shape(step.value)))
    if name in _MOVES or name == "split":
        return _move(step, arrays)
    if name in ("col2im", "index_add", "cumsum"):
        return _scatter(step, name, arrays)
    return Link("none")


def _arrays(operands: Any) -> list[Told]:
    found: list[Told] = []
    for x in operands:
        if isinstance(x, Told):
            found.append(x)
        elif isinstance(x, tuple):
            found += _arrays(x)
    return found


def arrays_of(step: Step) -> list[Told]:
    """The arrays among a step's operands, in order."""
    return _arrays(step.operands)


def _axes(step: Step, rank: int) -> tuple[int, ...]:
    axis = step.params.get("axis", step.operands[1] if len(step.operands) > 1 else None)
    axes = range(rank) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tuple(sorted(a % rank for a in axes))


def _summed(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    extra = len(before) - len(after)
    ones = (i + extra for i, n in enumerate(after) if n == 1 and before[i + extra] != 1)
    return (*range(extra), *ones)


def _numbered(operands: Any, start: int = 0) -> tuple[Any, int]:
    """The operands with arrays of element numbers, counted through, in place of arrays."""
    out: list[Any] = []
    for x in operands:
        if isinstance(x, Told):
            size = int(np.size(x.value))
            out.append(np.arange(start, start + size, dtype=np.int64).reshape(np.shape(x.value)))
            start += size
        elif isinstance(x, tuple):
            inner, start = _numbered(x, start)
            out.append(tuple(inner))
        else:
            out.append(x)
    return out, start


def _move(step: Step, arrays: list[Told]) -> Link:
    operands, _ = _numbered(step.operands)
    params = dict(step.params)
    name, _, which = step.function.partition("[")
    if name == "pad":
        params["constant_values"] = -1
    if name in ("astype", "cast", "copy", "stop_gradient", "asarray"):
        moved = operands[0]
    elif name == "index":
        moved = operands[0][_plain(params["index"])]
    elif name == "put":
        moved = operands[0].copy()
        moved[_plain(params["index"])] = operands[1] if isinstance(operands[1], np.ndarray) else -1
    elif name == "reshape":
        moved = operands[0].reshape(np.shape(step.value))
    elif name == "im2col":
        moved = NUMPY.im2col(*operands[:4], -1)
    elif name == "split":
        moved = NUMPY.split(*operands, **params)[int(which[:-1])]
    else:
        moved = np.asarray(getattr(NUMPY, name)(*operands, **params))
    return _as_view(np.asarray(moved)) or Link("move", source=np.ascontiguousarray(moved, np.int32))


def _plain(index: Any) -> tuple[Any, ...]:
    """An index with arrays in place of what is told of them."""
    return tuple(i.value if isinstance(i, Told) else i for i in (index if isinstance(index, tuple) else (index,)))


def _as_view(source: np.ndarray) -> Link | None:
    """The element numbers as start + step . index, if they are that."""
    if source.size == 0:
        return None
    start = int(source.flat[0])
    steps = []
    for axis, n in enumerate(source.shape):
        one = [0] * source.ndim
        one[axis] = 1 if n > 1 else 0
        steps.append(int(source[tuple(one)]) - start)
    told = start + sum(
        (
            np.arange(n).reshape([-1 if a == i else 1 for a in range(source.ndim)]) * s
            for i, (n, s) in enumerate(zip(source.shape, steps, strict=True))
        ),
        np.zeros(source.shape, np.int64),
    )
    return Link("view", axes=tuple(steps), start=start) if np.array_equal(told, source) else None


def _scatter(step: Step, name: str, arrays: list[Told]) -> Link:
    numbers = np.arange(np.size(step.value), dtype=np.int64).reshape(np.shape(step.value))
    if name == "col2im":  # the adjoint reads where this adds
        _, _, kernel, stride, padding = step.operands
        target = NUMPY.im2col(numbers, kernel, stride, padding, -1)
    elif name == "index_add":
        target = numbers[step.operands[1]]
    else:
        return Link("none")
    return Link("scatter", source=np.ascontiguousarray(np.broadcast_to(target, arrays[0].value.shape), np.int32))
