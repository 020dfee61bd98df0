"""Constants: no gradient flows through what these functions give."""

from typing import Any

import numpy as np

from ..engine import Tensor
from .arguments import as_operand, is_array


def constant(x: Any, what: str = "the argument") -> Any:
    """The array behind a condition, ids or a mask, given as a tensor, an array or a list; `what` names it in errors."""
    if isinstance(x, Tensor):
        return x.data
    if type(x) is np.ndarray or is_array(x):
        return x
    try:
        array = np.asarray(x)
    except ValueError as error:  # lists of several lengths
        raise TypeError(f"{what} is {x!r}; it must be a tensor, an array or lists of equal lengths") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what} is {x!r}; it must hold numbers or booleans")
    return array


def as_floating(x: Any) -> Any:
    """x, as float32 where it holds integers or booleans: for operations whose result is floating."""
    array = x.data if isinstance(x, Tensor) else x
    if hasattr(array, "dtype") and array.dtype.kind in "iub":
        return Tensor(array.astype(np.float32))
    return x


def stop_gradient(x: Tensor) -> Tensor:
    """x as a constant."""
    return Tensor(_data("stop_gradient", x)) if not isinstance(x, Tensor) else x.detach()


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; a constant."""
    array = _data("sign", x)
    if array.dtype == bool:
        raise TypeError("sign: x holds booleans, which have no sign; convert it with .to('int64')")
    return Tensor(np.sign(array))


def ones_like(x: Tensor) -> Tensor:
    """Ones in the shape and dtype of x; a constant."""
    return Tensor(np.ones_like(_data("ones_like", x)))


def zeros_like(x: Tensor) -> Tensor:
    """Zeros in the shape and dtype of x; a constant."""
    return Tensor(np.zeros_like(_data("zeros_like", x)))


def _data(name: str, x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else as_operand(name, "x", x).data
