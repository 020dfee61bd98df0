"""Checks of numbers, integers and flags that users give, whose errors name the argument and its value.

Where NumPy finds the mistake, `refuse` adds the arguments to its message.

NumPy's numbers, and arrays of one, are taken wherever Python's are.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.exceptions import AxisError

_KINDS = (AxisError, IndexError, ValueError, TypeError)


def integer(what: str, value: Any) -> int:
    """Return `value`, which must be an integer of Python or NumPy, or an array of one; `what` names it in the error.

    Booleans are refused, as NumPy refuses them for shapes and axes.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{what} is {shown(value)}; it must be an integer")


def number(what: str, value: Any) -> float:
    """Return `value`, which must be one number, as a float of Python."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{what} is {shown(value)}; it must be a number")


def finite_number(what: str, value: Any, least: float = -math.inf) -> float:
    """Return `value`, which must be one finite number of at least `least`, as a float of Python."""
    found = number(what, value)
    if not (math.isfinite(found) and found >= least):
        bound = f" and at least {least:g}" if least > -math.inf else ""
        raise ValueError(f"{what} is {shown(value)}; it must be finite{bound}")
    return found


def flag(what: str, value: Any) -> bool:
    """Return `value`, which must be True or False, of Python or NumPy, or 1 or 0."""
    if type(value) is bool:
        return value
    if isinstance(value, np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{what} is {shown(value)}; it must be True or False")


def check_flags(what: str, **flags: Any) -> None:
    """Raise TypeError, naming the argument, unless `flag` takes each of `flags`."""
    for name, value in flags.items():
        if value is not True and value is not False:
            flag(f"{what}: {name}", value)


def listed(what: str, given: Any, kind: type = object) -> list[Any]:
    """Return one thing, or several in a sequence, as a list; raise TypeError unless each is of this kind."""
    is_one = hasattr(given, "dtype") or not hasattr(given, "__iter__") or isinstance(given, str | bytes | dict)
    found = [given] if is_one else list(given)
    for x in found:
        if not isinstance(x, kind):
            name = kind.__name__
            raise TypeError(f"{what} is or holds {shown(x)}; give a {name} or a sequence of {name}s")
    return found


def shown(value: Any) -> str:
    """Return a wrong argument as messages show it: an array by its shape."""
    shape = () if isinstance(value, type) else getattr(value, "shape", ())
    return f"an array of shape {shape}" if shape else repr(value)


def refuse(name: str, inputs: Sequence[tuple[str, Any]], params: Mapping[str, Any], error: Exception) -> NoReturn:
    """Raise `error` again, of the same kind, with the name of an operation, its inputs and its parameters.

    An error that names the operation already is raised as it is.
    """
    text = str(error)
    is_ours = isinstance(error, AttributeError) and all(x is not None for _, x in inputs)  # a mistake in a rule
    if is_ours or text.startswith(f"{name}:"):
        raise error
    given = ", ".join(f"{argument} {_given(value)}" for argument, value in (*inputs, *params.items()))
    kind = next((kind for kind in _KINDS if isinstance(error, kind)), ValueError)
    raise kind(f"{name}: {text.rstrip('.')}; given {given}") from error


def _given(value: Any) -> str:
    """Return an argument, right or wrong, as `refuse` shows it: arrays by shape and dtype."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple) and any(hasattr(part, "dtype") for part in value):
        return f"({', '.join(_given(part) for part in value)})"
    return repr(value)
