"""Checks of arguments (axes, windows, choices, dtypes, tensors), whose errors name the argument and its value.

NumPy's integers and arrays of them are taken wherever Python's are. Functions read the shapes of their tensors under
`try`, which costs nothing unless it fails; `refuse_arguments` then raises the error that names the wrong argument.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.exceptions import AxisError

from ..backend.checks import integer, shown
from ..engine import Tensor

Axis = int | tuple[int, ...] | None
Pair = tuple[int, int]


def one_of(what: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return `value`, which must be one of these texts."""
    if isinstance(value, str) and value in allowed:
        return value
    *most, last = map(repr, allowed)
    raise ValueError(f"{what} is {shown(value)}; it must be {', '.join(most)} or {last}")


def real_dtype(name: str, dtype: Any) -> np.dtype:
    """Return the dtype of real numbers, integers or booleans that is named."""
    is_name = isinstance(dtype, str | type | np.dtype) or hasattr(dtype, "dtype")
    try:
        found = np.dtype(dtype) if is_name else None
    except TypeError:
        found = None
    if found is None or not (found.kind in "fiub" or found.name == "bfloat16"):
        raise TypeError(f"{name}: dtype is {shown(dtype)}; it must be a dtype of numbers, such as 'float32'")
    return found


def dtype_or_device(value: Any) -> np.dtype | None:
    """Return the dtype that an argument of `to` means, or None if it means a device."""
    if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"):
        return None
    try:
        if value is not None:  # which NumPy takes for float64
            return np.dtype(value)
    except TypeError:
        pass
    raise TypeError(f"to: {value!r} is neither a device, such as 'cpu', nor a dtype, such as 'float32'")


def is_sequence(value: Any) -> bool:
    """Whether `value` holds several integers: a sequence, a range, or an array or tensor with an axis."""
    if type(value) is tuple or (isinstance(value, Sequence) and not isinstance(value, bytes)):
        return True
    ndim = getattr(value, "ndim", 0)
    return isinstance(ndim, int) and ndim > 0


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
        raise AxisError(f"{name}: {argument} {i} is out of bounds for the {ndim} axes of x")
    return i % ndim


def reduced_axes(name: str, x: Any, axis: Any) -> Axis:
    """Return the axis or axes of x to reduce, as integers; None for all of them.

    A scalar has no axes; it may be reduced along axis 0 or -1 nevertheless, as in NumPy.
    """
    if axis is None:
        return None
    ndim = x.ndim if isinstance(x, Tensor) or is_array(x) else as_operand(name, "x", x).ndim
    several = is_sequence(axis)
    axes = integers(f"{name}: axis", axis)
    if ndim == 0 and axes in ((0,), (-1,)):
        return None
    found = [axis_index(name, a, ndim) for a in axes]
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: axis is {axes}; an axis is named twice")
    return axes if several else axes[0]


def refuse_arguments(
    name: str, error: Exception, tensors: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> NoReturn:
    """Raise TypeError for the first of `tensors` that is not a tensor; raise `error` again if all of them are.

    Parameters
    ----------
    tensors, optional : arguments that must be tensors, by name; those of `optional` may be None.
    """
    given = {**tensors, **{k: v for k, v in (optional or {}).items() if v is not None}}
    for kinds in ((Tensor, np.ndarray), (Tensor,)):
        for argument, value in given.items():
            if not isinstance(value, kinds) and (kinds == (Tensor,) or not is_array(value)):
                raise TypeError(
                    f"{name}: {argument} is {shown(value)}; it must be a Tensor: tinyvit.tensor makes one"
                ) from error
    raise error


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy or CuPy."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, type)


def as_operand(name: str, argument: str, value: Any) -> Tensor:
    """Return a tensor, or a tensor without history of an array or a number."""
    if isinstance(value, Tensor):
        return value
    try:
        return Tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: {argument} is {shown(value)}; it must be a Tensor or an array of real numbers"
        ) from error
