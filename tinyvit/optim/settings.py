"""Checks of numbers that users give, whose errors name the argument and its value."""

import math
from numbers import Integral
from typing import Any

import numpy as np


def number(what: str, value: Any) -> float:
    """Return `value`, which must be one number, as a float of Python."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{what} is {value!r}; it must be a number")


def amount(what: str, value: Any) -> float:
    """Return `value`, which must be one finite number of at least 0, as a float of Python."""
    found = number(what, value)
    if not 0 <= found < math.inf:
        raise ValueError(f"{what} is {value}; it must be finite and at least 0")
    return found


def count(what: str, value: Any) -> int:
    """Return `value`, which must be an integer, as one of Python."""
    if not isinstance(value, Integral):
        raise TypeError(f"{what} is {value!r}; it must be an integer")
    return int(value)


def flag(what: str, value: Any) -> bool:
    """Return `value`, which must be True or False, of Python or NumPy, or 1 or 0."""
    if not isinstance(value, Integral | np.bool_) or value not in (0, 1):
        raise TypeError(f"{what} is {value!r}; it must be True or False")
    return bool(value)
