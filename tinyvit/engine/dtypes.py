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
    for x in inputs:
        if isinstance(x, Tensor):
            x = x.data
            own = x.dtype
        elif x is None:
            own = dtype
        else:
            is_usual, x = False, x.item() if isinstance(x, np.generic) else x
            own = dtype if isinstance(x, int | float) else _dtype_of(op, len(arrays), x)
        if own is not dtype:
            if own.kind in "iub":
                is_usual = False
            elif dtype is None:
                dtype = own
            elif own != dtype and not _may_differ(op, len(arrays), own, dtype):
                raise TypeError(
                    f"{op.name}: {op.input_name(len(arrays))} is {own}, the inputs before it {dtype}; dtypes are never "
                    f"mixed: convert one of them with .to({str(dtype)!r})"
                )
        arrays.append(x)
    return arrays if is_usual and dtype is not None else _converted(op, inputs, arrays, dtype), dtype


def _dtype_of(op: Any, i: int, x: Any) -> Any:
    """Return the dtype of input `i`, a bare array `x`; raise TypeError unless it holds real numbers."""
    if not hasattr(x, "dtype"):
        kind = type(x).__name__
        raise TypeError(f"{op.name}: {op.input_name(i)} is a {kind}; give a Tensor, an array or a real number")
    if x.dtype.kind not in "iub" and not is_floating(x):
        raise TypeError(f"{op.name}: {op.input_name(i)} has dtype {x.dtype}; it must hold real numbers")
    return x.dtype


def _converted(op: Any, inputs: Sequence[Any], arrays: list[Any], dtype: Any) -> list[Any]:
    """Return the arrays of an operation with integers cast to the common dtype, and with copies of what is saved."""
    if context.now().recording and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        saved = range(len(inputs)) if op.kernel else {place for place, _ in op.sources}
        for i, x in enumerate(inputs):
            if i in saved and arrays[i] is x:  # a bare array: a later change of it would not be noticed
                arrays[i] = copy_of(x)
    if dtype is not None:
        arrays = [x.astype(dtype) if hasattr(x, "dtype") and not is_floating(x) else x for x in arrays]
    if not hasattr(arrays[0], "dtype"):  # a number as first input: an array of the common dtype
        if arrays[0] is None:
            _dtype_of(op, 0, None)  # raises TypeError
        arrays[0] = np.asarray(arrays[0], dtype)
    return arrays


def _may_differ(op: Any, i: int, own: Any, dtype: Any) -> bool:
    """Return whether input `i` may have the dtype `own` where the first one has another, `dtype`."""
    if dtype == BFLOAT16:
        return own == FLOAT32 and op.input_name(i) in op.masters
    return dtype == FLOAT32 and own == BFLOAT16 and op.input_name(i) in op.narrow
