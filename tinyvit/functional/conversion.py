"""Conversion to another dtype or device; and which inputs of an operation `autocast` converts, to which dtype."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import BFLOAT16, Namespace, check_device, device_of, is_floating
from ..backend import to_device as moved
from ..context import PRECISIONS
from ..engine import Op, Tensor
from .arguments import as_operand, real_dtype
from .samples import sample

_FLOAT32 = PRECISIONS["float32"]
_CASTABLE = frozenset(PRECISIONS.values())


class Cast(Op):
    """y = x in another dtype        dx = dy in x's dtype"""

    kernel = "cast"

    @staticmethod
    def forward(xp, x, *, dtype, source):
        return x.astype(dtype)

    def backward(ctx, xp, dy):
        return xp.cast(dy, ctx.source)

    @staticmethod
    def samples():
        yield sample((3, 4), dtype=np.dtype("float64"), source=np.dtype("float64"))


Namespace.extend("cast", lambda xp, x, dtype: x.astype(dtype))


class ToDevice(Op):
    """y = x on another device        dx = dy on x's device"""

    @staticmethod
    def forward(xp, x, *, device, source):
        return moved(x, device)

    def backward(ctx, xp, dy):
        return xp.to_device(dy, ctx.source)

    @staticmethod
    def samples():
        yield sample((3, 4), device="cpu", source="cpu")


Namespace.extend("to_device", lambda xp, x, device: moved(x, device))


# What users call ----------------------------------------------------------------------------------------------------


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype; a gradient flows between floating dtypes."""
    dtype = dtype if isinstance(dtype, np.dtype) else real_dtype("cast", dtype)
    if not isinstance(x, Tensor):
        x = as_operand("cast", "x", x)
    if is_floating(x) and is_floating(np.empty(0, dtype)):
        return Cast.apply(x, dtype=dtype, source=x.dtype)
    return Tensor(x.data.astype(dtype))


def to_device(x: Tensor, device: str) -> Tensor:
    """x on another device, "cpu" or "cuda:1"; x itself if it is there. The gradient goes the way back."""
    check_device(device)
    number = device.partition(":")[2]
    if not isinstance(x, Tensor):
        x = as_operand("to_device", "x", x)
    if x.device == ("cpu" if device == "cpu" else f"cuda:{number or 0}"):
        return x
    return ToDevice.apply(x, device=device, source=device_of(x.data))


# What `autocast` does -----------------------------------------------------------------------------------------------


def autocast_inputs(
    op: Any, inputs: tuple[Any, ...], precision: Any, cast: Callable[[Tensor, Any], Tensor] = cast
) -> tuple[Any, ...]:
    """Return the inputs of an operation as `autocast` with this precision casts them. float64 is left alone."""
    left: tuple[str, ...] = ()
    if op.mixes and precision is BFLOAT16 and isinstance(inputs[0], Tensor):
        # The operation itself rounds, or widens, those of its inputs that may differ.
        dtype, left = precision if op.autocast == "narrow" else _FLOAT32, op.mixes
    elif op.autocast == "narrow":
        dtype = precision
    elif op.autocast == "wide" or len({x.data.dtype for x in inputs if isinstance(x, Tensor)} & _CASTABLE) > 1:
        dtype = _FLOAT32
    else:
        return inputs
    made = list(inputs)
    for i, x in enumerate(inputs):
        is_to_cast = isinstance(x, Tensor) and x.data.dtype is not dtype and x.data.dtype in _CASTABLE
        if is_to_cast and not (left and op.inputs[i] in left):
            made[i] = cast(x, dtype)
    return tuple(made)
