"""A letter for each axis: B batch, N tokens, S tokens of the keys, H heads, D head size, C channels, R rows.

Inputs of an operation have the letters of its documentation; each step of a rule hands them on.
"""

from typing import Any

import numpy as np

Axes = tuple[str, ...] | None

_IMAGE = ("B", "C", "y", "x")
# (operation, name of an input or output) -> its letters; "" stands for any operation.
_KNOWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("attention", "q"): ("B", "H", "N", "D"),
    ("attention", "k"): ("B", "H", "S", "D"),
    ("attention", "v"): ("B", "H", "S", "D"),
    ("attention", "bias"): ("B", "H", "N", "S"),
    ("attention", "out"): ("B", "H", "N", "D"),
    ("merge_heads", "x"): ("B", "H", "N", "D"),
    ("linear", "weight"): ("K", "C"),
    ("linear", "bias"): ("K",),
    ("cross_entropy", "logits"): ("B", "K"),
    ("cross_entropy", "target"): ("B", "K"),
    ("conv2d", "x"): _IMAGE,
    ("conv2d", "out"): ("B", "O", "y", "x"),
    ("conv2d", "weight"): ("O", "C", "i", "j"),
    ("conv2d", "bias"): ("O",),
    ("max_pool2d", "x"): _IMAGE,
    ("avg_pool2d", "x"): _IMAGE,
    ("patches", "x"): _IMAGE,
}
_BY_RANK: dict[int, tuple[str, ...]] = {1: ("C",), 2: ("B", "C"), 3: ("B", "N", "C")}
_LAST = {"linear": "K"}  # the letter of the last axis of the output


def axes_of(operation: str, name: str, array: Any) -> Axes:
    """The letters of an input or output called `name` of an operation; None where nothing is known."""
    rank = np.ndim(array)
    if operation == "split_heads" and name.startswith("out"):
        return ("B", "H", "N", "D") if rank == 4 else None
    letters = _KNOWN.get((operation, name))
    if letters is not None:
        return letters[-rank:] if rank and rank <= len(letters) else None
    letters = _BY_RANK.get(rank)
    if letters and operation in _LAST and name == "out":
        return (*letters[:-1], _LAST[operation])
    if rank == 4 and operation in ("relu", "add", "multiply"):
        return _IMAGE
    return letters


def axes_after(function: str, operands: tuple[Any, ...], params: dict[str, Any], shape: tuple[int, ...]) -> Axes:
    """The letters of a step's result, from those of its operands."""
    told = [x for x in operands if hasattr(x, "axes")]
    axes = _after(function, operands, told, params, shape)
    return axes if axes is not None and len(axes) == len(shape) else None


def _after(function: str, operands: tuple[Any, ...], told: list[Any], params: dict[str, Any], shape: Any) -> Axes:
    if not told:
        return None
    x = told[0]
    if function == "matmul" and len(told) == 2:
        y = told[1]
        return (*x.axes[:-1], y.axes[-1]) if x.axes and y.axes and len(x.axes) >= len(y.axes) else None
    if function == "swapaxes" and x.axes:
        axes = list(x.axes)
        i, j = operands[1:3]
        axes[i], axes[j] = axes[j], axes[i]
        return tuple(axes)
    if function == "transpose" and x.axes:
        order = operands[1] if len(operands) > 1 else params.get("axes")
        return tuple(x.axes[i] for i in order) if order else x.axes[::-1]
    if function in ("sum", "mean", "max", "min") and x.axes:
        return _reduced(x.axes, params.get("axis"), bool(params.get("keepdims")))
    if function == "reshape" and x.axes:
        return _reshaped(x.axes, np.shape(x.value), shape)
    if function == "sum_to_shape" and x.axes:
        return x.axes[len(x.axes) - len(shape) :] if shape else ()
    if function in ("index", "put", "stack", "concatenate", "im2col", "col2im", "index_add", "add_rows", "pad"):
        return None
    return next((t.axes for t in told if t.axes and np.shape(t.value) == tuple(shape)), None) or next(
        (t.axes for t in told if t.axes and len(t.axes) == len(shape)), None
    )


def _reduced(axes: tuple[str, ...], axis: Any, keepdims: bool) -> Axes:
    gone = {a % len(axes) for a in ((axis,) if isinstance(axis, int) else range(len(axes)) if axis is None else axis)}
    if keepdims:
        return tuple("1" if i in gone else a for i, a in enumerate(axes))
    return tuple(a for i, a in enumerate(axes) if i not in gone)


def _reshaped(axes: tuple[str, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Leading axes made one are rows, R; otherwise only a shape that did not change keeps its letters."""
    if before == after:
        return axes
    if len(after) == 2 and before[-1:] == after[-1:]:
        return "R", axes[-1]
    if len(after) == len(before) + 1 and after[:-1] == before and after[-1] == 1:
        return (*axes, "1")
    return None
