"""The dtypes of an operation: what `autocast` makes of its inputs, and which floating dtype they have together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import context
from ..backend import BFLOAT16, copy_of, is_floating
from ..context import PRECISIONS
from .tensor import Tensor

FLOAT32 = PRECISIONS["float32"]
_CASTABLE = frozenset(PRECISIONS.values())


def autocast_inputs(
    op: Any, inputs: tuple[Any, ...], precision: Any, cast: Callable[[Tensor, Any], Tensor]
) -> tuple[Any, ...]:
    """Cast the inputs of an operation as `autocast` with this precision says. float64 is left alone."""
    left: tuple[str, ...] = ()
    if op.mixes and precision is BFLOAT16 and isinstance(inputs[0], Tensor):
        # The operation itself rounds, or widens, those of its inputs that may differ.
        dtype, left = precision if op.autocast == "narrow" else FLOAT32, op.mixes
    elif op.autocast == "narrow":
        dtype = precision
    elif op.autocast == "wide" or len({x.data.dtype for x in inputs if isinstance(x, Tensor)} & _CASTABLE) > 1:
        dtype = FLOAT32
    else:
        return inputs
    made = list(inputs)
    for i, x in enumerate(inputs):
        is_to_cast = isinstance(x, Tensor) and x.data.dtype is not dtype and x.data.dtype in _CASTABLE
        if is_to_cast and not (left and op.inputs[i] in left):
            made[i] = cast(x, dtype)
    return tuple(made)


def unwrapped(op: Any, inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """Unwrap `inputs` and find their common floating dtype. Integers are cast to it; Python scalars are left alone."""
    arrays: list[Any] = []
    dtype = None
    for x in inputs:  # the usual case, quickly: tensors of one dtype
        if isinstance(x, Tensor):
            x = x.data
            if x.dtype is not dtype:
                if dtype is None and x.dtype.kind in "fV":  # V: bfloat16
                    dtype = x.dtype
                elif not _may_differ(op, len(arrays), x, dtype):
                    return _unwrapped_with_care(op, inputs)
        elif x is not None:
            return _unwrapped_with_care(op, inputs)
        arrays.append(x)
    return (arrays, dtype) if dtype is not None else _unwrapped_with_care(op, inputs)


def _unwrapped_with_care(op: Any, inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """Do what `unwrapped` does where integers, numbers, bare arrays or several dtypes are among the inputs."""
    arrays = [x.data if isinstance(x, Tensor) else x.item() if isinstance(x, np.generic) else x for x in inputs]
    dtype = None
    for i, x in enumerate(arrays):
        if x is None or isinstance(x, (int, float)):
            continue
        if not hasattr(x, "dtype"):
            name = type(x).__name__
            raise TypeError(f"{op.name}: {op.input_name(i)} is a {name}; give a Tensor, an array or a real number")
        if x.dtype.kind in "iub":
            continue
        if not is_floating(x):
            raise TypeError(f"{op.name}: {op.input_name(i)} has dtype {x.dtype}; it must hold real numbers")
        if dtype is None:
            dtype = x.dtype
        elif dtype != x.dtype and not _may_differ(op, i, x, dtype):
            raise TypeError(
                f"{op.name}: {op.input_name(i)} is {x.dtype}, the inputs before it {dtype}; dtypes are never mixed: "
                f"convert one of them with .to({str(dtype)!r})"
            )
    if context.now().recording and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        saved = {place for place, _ in op.sources}
        arrays = [
            copy_of(array) if array is x and (op.kernel or i in saved) else array
            for i, (array, x) in enumerate(zip(arrays, inputs, strict=True))
        ]
    if dtype is not None:
        arrays = [x.astype(dtype) if hasattr(x, "dtype") and not is_floating(x) else x for x in arrays]
    if not hasattr(arrays[0], "dtype"):  # a number as first input: an array of the common dtype
        first = np.asarray(arrays[0], dtype)
        if first.dtype.kind not in "fiubV":
            raise TypeError(f"{op.name}: {op.input_name(0)} is {arrays[0]!r}; give a Tensor, an array or a real number")
        arrays[0] = first
    return arrays, dtype


def _may_differ(op: Any, i: int, x: Any, dtype: Any) -> bool:
    """Return whether `x`, whose dtype differs from `dtype`, is allowed as input `i`."""
    if not op.mixes:
        return False
    if dtype == BFLOAT16:
        return x.dtype == FLOAT32 and op.input_name(i) in op.masters
    return dtype == FLOAT32 and x.dtype == BFLOAT16 and op.input_name(i) in op.narrow
