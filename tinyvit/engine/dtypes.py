"""The dtypes of an operation: which floating dtype its inputs have together, and which of them may have another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import context
from ..backend import BFLOAT16, copy_of, is_floating
from ..context import PRECISIONS
from .tensor import Tensor

FLOAT32 = PRECISIONS["float32"]


def unwrapped(op: Any, inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """Unwrap `inputs` and find their common floating dtype. Integers are cast to it; Python scalars are left alone."""
    arrays: list[Any] = []
    dtype, is_usual = None, True  # usual: only tensors of floating dtypes, and None
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            x = x.data
        elif x is not None:
            is_usual, x = False, x.item() if isinstance(x, np.generic) else x
        arrays.append(x)
        own = getattr(x, "dtype", None)
        if own is None:
            if not (x is None or isinstance(x, int | float)):
                raise TypeError(f"{op.name}: {op.input_name(i)} is a {type(x).__name__}; {_ALLOWED}")
        elif own is dtype:
            continue
        elif own.kind in "iub":
            is_usual = False
        elif not is_floating(x):
            raise TypeError(f"{op.name}: {op.input_name(i)} has dtype {own}; it must hold real numbers")
        elif dtype is None:
            dtype = own
        elif own != dtype and not _may_differ(op, i, own, dtype):
            raise TypeError(
                f"{op.name}: {op.input_name(i)} is {own}, the inputs before it {dtype}; dtypes are never mixed: "
                f"convert one of them with .to({str(dtype)!r})"
            )
    return arrays if is_usual and dtype is not None else _converted(op, inputs, arrays, dtype), dtype


_ALLOWED = "give a Tensor, an array or a real number"


def _converted(op: Any, inputs: Sequence[Any], arrays: list[Any], dtype: Any) -> list[Any]:
    """Return the arrays of an operation with integers cast to the common dtype, and with copies of what is saved."""
    if context.now().recording and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        saved = range(len(inputs)) if op.kernel else {place for place, _ in op.sources}
        for i, x in enumerate(inputs):
            if i in saved and arrays[i] is x:  # a bare array: a later change of it would not be noticed
                arrays[i] = copy_of(x)
    if dtype is not None:
        arrays = [x.astype(dtype) if hasattr(x, "dtype") and not is_floating(x) else x for x in arrays]
    if arrays[0] is None:
        raise TypeError(f"{op.name}: {op.input_name(0)} is None; {_ALLOWED}")
    if not hasattr(arrays[0], "dtype"):  # a number as first input: an array of the common dtype
        arrays[0] = np.asarray(arrays[0], dtype)
    return arrays


def _may_differ(op: Any, i: int, own: Any, dtype: Any) -> bool:
    """Return whether input `i` may have the dtype `own` where the first one has another, `dtype`."""
    if dtype == BFLOAT16:
        return own == FLOAT32 and op.input_name(i) in op.masters
    return dtype == FLOAT32 and own == BFLOAT16 and op.input_name(i) in op.narrow
