"""Constants: no gradient flows through what these functions give."""

from typing import Any

import numpy as np

from ..engine import Tensor
from .arguments import as_operand, is_array

FLOAT32 = np.dtype("float32")


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


def as_floating(*inputs: Any) -> Any:
    """The inputs, those of integers or booleans in the dtype of the first floating one, or float32 if there is none.

    For functions whose result is floating: sums and products of small integers would wrap around. Numbers and None are
    left alone. One input is returned by itself, several as a tuple.
    """
    dtype, has_integers = None, False
    for x in inputs:
        if isinstance(x, Tensor):
            x = x.data
        elif not hasattr(x, "dtype"):
            continue
        if x.dtype.kind in "iub":
            has_integers = True
        elif dtype is None and not isinstance(x, np.generic):  # a scalar never promotes
            dtype = x.dtype
    if has_integers:
        inputs = tuple([_in_dtype(x, FLOAT32 if dtype is None else dtype) for x in inputs])
    return inputs[0] if len(inputs) == 1 else inputs


def _in_dtype(x: Any, dtype: Any) -> Any:
    """A tensor, array or scalar of integers or booleans as a tensor of a floating dtype; anything else as it is."""
    array = x.data if isinstance(x, Tensor) else x
    return Tensor(array.astype(dtype)) if hasattr(array, "dtype") and array.dtype.kind in "iub" else x


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
