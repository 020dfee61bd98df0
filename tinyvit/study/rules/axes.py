"""Letters for the axes of arrays: of an operation's inputs and outputs, and of each step of its rules.

B batch, N tokens, S tokens of the keys, H heads, D head size, C channels, K classes or units, O filters, R rows; 1 for
an axis that a reduction kept, ? for one whose meaning is not known. An operation states those of its inputs and outputs
in `Op.letters`.
"""

import functools
import re
from typing import Any

import numpy as np

from ...engine import Op
from .steps import Operand, Step

Axes = tuple[str, ...] | None

UNKNOWN = "?"
_USUAL: dict[int, tuple[str, ...]] = {1: ("C",), 2: ("B", "C"), 3: ("B", "N", "C")}


def axes_of(op: type[Op], name: str, array: Any, is_usual: bool = True) -> Axes:
    """The letters of an input or output: those that `op.letters` has for it if they fit its rank, else the usual ones.

    In a list of inputs or outputs, "parts[1]" and "out_1" have the letters of "parts" and "out". Without `is_usual`, in
    code that uses no layer of this package, the letters are those that follow from the operation itself, and None or ?
    for any others.
    """
    rank = np.ndim(array)
    usual = _USUAL.get(rank) if is_usual else (UNKNOWN,) * rank
    stated = _stated(op.letters)
    letters = stated.get(name) or stated.get(re.sub(r"_\d+$|\[\d+\]$", "", name), "")
    if letters.split()[:1] == ["usually"]:
        letters = letters.replace("usually", "") if is_usual else ""
    for alternative in letters.split("|"):
        _, dots, last = alternative.rpartition("...")
        own = tuple(last.split())
        if dots and usual and rank >= len(own):
            return usual[: rank - len(own)] + own
        if own and not dots and rank == len(own):
            return own
    return usual if is_usual else None


@functools.cache
def _stated(letters: tuple[str, ...]) -> dict[str, str]:
    """The letters of an operation by name: "k v: B H S D" states those of k and of v."""
    rows = [row.partition(":") for row in letters]
    return {name: axes for names, _, axes in rows for name in names.split()}


# Steps of a rule ----------------------------------------------------------------------------------------------------


def unknown_axes(step: Step) -> Axes:
    """No letters: the function rearranges elements in a way that letters cannot follow."""
    return None


def same_axes(step: Step) -> Axes:
    """The letters of the operand that has the result's shape, or else its number of axes."""
    shape = np.shape(step.value)
    lettered = [x for x in direct_arrays(step) if x.axes]
    same_shape = (x.axes for x in lettered if np.shape(x.value) == shape)
    return next(same_shape, None) or next((x.axes for x in lettered if len(x.axes or ()) == len(shape)), None)


def product_axes(step: Step) -> Axes:
    arrays = direct_arrays(step)
    if len(arrays) != 2:
        return same_axes(step)
    x, y = (a.axes for a in arrays)
    return (*x[:-1], y[-1]) if x and y and len(x) >= len(y) else None


def swapped_axes(step: Step) -> Axes:
    if not (x := _first_axes(step)):
        return None
    axes, (i, j) = list(x), step.operands[1:3]
    axes[i], axes[j] = axes[j], axes[i]
    return tuple(axes)


def permuted_axes(step: Step) -> Axes:
    if not (x := _first_axes(step)):
        return None
    order = step.operands[1] if len(step.operands) > 1 else step.params.get("axes")
    return tuple(x[i] for i in order) if order else x[::-1]


def reduced_axes(step: Step) -> Axes:
    if not (x := _first_axes(step)):
        return None
    reduced = reduced_by(step)
    if step.params.get("keepdims"):
        return tuple("1" if i in reduced else letter for i, letter in enumerate(x))
    return tuple(letter for i, letter in enumerate(x) if i not in reduced)


def trailing_axes(step: Step) -> Axes:
    if not (x := _first_axes(step)):
        return None
    return x[len(x) - np.ndim(step.value) :]


def reshaped_axes(step: Step) -> Axes:
    """Leading axes that are merged become rows, R; apart from that, only an unchanged shape keeps its letters."""
    if not (x := _first_axes(step)):
        return None
    before, after = np.shape(direct_arrays(step)[0].value), np.shape(step.value)
    if before == after:
        return x
    if len(after) == 2 and before[-1:] == after[-1:]:
        return "R", x[-1]
    return (*x, "1") if after == (*before, 1) else None


def reduced_by(step: Step) -> set[int]:
    """The axes of the operand that a reduction removes."""
    rank = np.ndim(step.arrays[0].value)
    axis = step.params.get("axis", step.operands[1] if len(step.operands) > 1 else None)
    axes = range(rank) if axis is None else (axis,) if isinstance(axis, int) else axis
    return {a % rank for a in axes}


def direct_arrays(step: Step) -> list[Operand]:
    """The arrays among the operands, without those in tuples."""
    return [x for x in step.operands if isinstance(x, Operand)]


def _first_axes(step: Step) -> Axes:
    arrays = direct_arrays(step)
    return arrays[0].axes if arrays else None
