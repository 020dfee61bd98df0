"""Constants: no gradient flows through what these functions give."""

from typing import Any

import numpy as np

from ..backend import default_device, namespace_of, to_device
from ..engine import Tensor
from .arguments import as_operand, integers, is_array, real_dtype

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
    """The inputs in one floating dtype: that of the first floating tensor or array, or float32 if there is none.

    For functions whose result is floating. Integers and booleans are converted, because sums and products of small ones
    would wrap around; so are numbers beside a tensor or array, so that a gradient rule finds arrays only. What is
    floating, None, and numbers among themselves are left alone: dtypes are never mixed, which the operation checks.
    One input is returned by itself, several as a tuple.
    """
    like, dtype, is_complete = None, None, True
    for x in inputs:
        if isinstance(x, Tensor):
            x = x.data
        elif not hasattr(x, "dtype") or isinstance(x, np.generic):  # a scalar never promotes
            is_complete = is_complete and x is None
            continue
        like = x
        if x.dtype.kind in "iub":
            is_complete = False
        elif dtype is None:
            dtype = x.dtype
    if not is_complete:
        inputs = tuple([_converted(x, like, FLOAT32 if dtype is None else dtype) for x in inputs])
    return inputs[0] if len(inputs) == 1 else inputs


def _converted(x: Any, like: Any, dtype: Any) -> Any:
    """Integers, and numbers if there is an array `like`, as a tensor of a floating dtype; anything else as it is."""
    array = x.data if isinstance(x, Tensor) else x
    if hasattr(array, "dtype") and array.dtype.kind in "iub":
        return Tensor(array.astype(dtype))
    is_number = isinstance(x, int | float | np.floating)
    return Tensor(namespace_of(like).asarray(float(x), dtype)) if is_number and like is not None else x


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


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """Zeros on the default device; a constant."""
    lengths, dtype = integers("zeros: shape", shape), real_dtype("zeros", dtype)
    try:
        return Tensor(to_device(np.zeros(lengths, dtype), default_device()))
    except ValueError as error:
        raise ValueError(f"zeros: shape is {lengths}: {error}") from error
