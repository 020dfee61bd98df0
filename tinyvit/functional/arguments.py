"""Arguments that are integers or axes: NumPy's integers and arrays of them are taken wherever Python's are."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from ..engine import Tensor

Axis = int | tuple[int, ...] | None
Pair = tuple[int, int]


def integer(what: str, value: Any) -> int:
    """Return `value`, which must be an integer of Python or NumPy, or an array of one; `what` names it in the error."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {_shown(value)}; it must be an integer") from None


def number(what: str, value: Any) -> float:
    """Return `value`, which must be one number, as a float of Python."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{what} is {_shown(value)}; it must be a number") from None


def is_sequence(value: Any) -> bool:
    """Whether `value` holds several integers: a sequence, a range, or an array or tensor with an axis."""
    return type(value) is tuple or isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0


def integers(what: str, value: Any) -> tuple[int, ...]:
    """Return one or several integers as a tuple."""
    if not is_sequence(value):
        return (integer(what, value),)
    return tuple([v if type(v) is int else integer(what, v) for v in value])


def as_pair(name: str, argument: str, value: Any, least: int) -> Pair:
    """Return the sizes of a window along both axes of images, given as one integer or as two."""
    numbers = integers(f"{name}: {argument}", value)
    pair = numbers if is_sequence(value) else 2 * numbers
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name}: {argument} is {value!r}; it must be one or two integers of at least {least}")
    return pair[0], pair[1]


def axis_index(name: str, axis: Any, ndim: int, argument: str = "axis") -> int:
    """Return an axis of an array with `ndim` axes, counted from the first one."""
    i = integer(f"{name}: {argument}", axis)
    if not -ndim <= i < ndim:
        raise AxisError(f"{name}: axis {i} is out of bounds for the {ndim} axes of x")
    return i % ndim


def reduced_axes(name: str, x: Any, axis: Any) -> Axis:
    """Return the axis or axes of x to reduce, as integers; None for all of them.

    A scalar has no axes; it may be reduced along axis 0 or -1 nevertheless, as in NumPy.
    """
    if axis is None:
        return None
    ndim = x.ndim if isinstance(x, Tensor) else np.ndim(x)
    several = is_sequence(axis)
    axes = integers(f"{name}: axis", axis)
    if ndim == 0 and axes in ((0,), (-1,)):
        return None
    found = [axis_index(name, a, ndim) for a in axes]
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: axis is {axes}; an axis is named twice")
    return axes if several else axes[0]


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", ())
    return f"an array of shape {shape}" if shape else repr(value)
