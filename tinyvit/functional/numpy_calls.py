"""NumPy's functions called on tensors: they are recorded like the operations of this package, or refused.

A function that returned an array would end the gradient without a word. NumPy asks `Tensor.__array_function__` and
`Tensor.__array_ufunc__` what to do (NEP 18 and NEP 13). About tensors in a list it does not ask, but converts them.
Where one of its functions does so, as in `np.linalg.inv([x, y])`, that is refused too. Where the caller does it, as in
`np.array([x, y])`, that gives the values, like `x.numpy()`. Functions of NumPy that are written in C, such as
`np.exp([x, y])`, cannot be told apart from `np.array` and give values, too.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np

from .. import context
from ..engine import Tensor
from . import constants, elementwise, indexing, linalg, reduction, selection, shape, smooth

# Ufuncs ---------------------------------------------------------------------------------------------------------------

_UFUNCS: dict[str, Callable[..., Tensor]] = {
    "absolute": elementwise.abs,
    "add": elementwise.add,
    "divide": elementwise.divide,
    "exp": smooth.exp,
    "fabs": elementwise.abs,
    "log": smooth.log,
    "matmul": linalg.matmul,
    "maximum": selection.maximum,
    "minimum": selection.minimum,
    "multiply": elementwise.multiply,
    "negative": elementwise.negative,
    "positive": lambda x: x,
    "power": elementwise.power,
    "reciprocal": lambda x: elementwise.divide(1.0, x),
    "sign": constants.sign,
    "sqrt": smooth.sqrt,
    "square": lambda x: elementwise.multiply(x, x),
    "subtract": elementwise.subtract,
    "tanh": smooth.tanh,
}
# Those whose results are no real numbers, so that no gradient could flow through them.
_LOGICAL = frozenset({
    "less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "logical_and", "logical_or",
    "logical_xor", "logical_not", "isnan", "isinf", "isfinite", "signbit", "bitwise_and", "bitwise_or",
    "bitwise_xor", "invert"
})  # fmt: skip


class ArrayUfunc:
    """`Tensor.__array_ufunc__`: NumPy looks it up on the class and finds a function.

    CuPy looks it up on a tensor and finds None, so that it leaves `array + tensor` to `Tensor.__radd__`.
    """

    def __get__(self, instance: Any, owner: Any) -> Any:
        return None if instance is not None else _call_ufunc


def _call_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    name = ufunc.__name__
    if method == "__call__" and not options and name in _UFUNCS:
        return _UFUNCS[name](*inputs)
    if method == "__call__" and not options and name in _LOGICAL:
        return Tensor(np.asarray(ufunc(*_values(inputs))))
    if not _losing(inputs):
        return getattr(ufunc, method)(*_values(inputs), **_values(options))
    if method != "__call__":
        return _refuse(f"np.{name}.{method}", "F.sum" if (name, method) == ("add", "reduce") else None)
    if options:
        ours = _UFUNCS[name].__name__ if name in _UFUNCS else ""
        there = f"F.{ours}" if ours.isidentifier() else None  # that of a lambda is none
        return _refuse(f"np.{name} with {', '.join(options)}", there)
    return _refuse(f"np.{name}", _HINTS.get(name))


# Functions ------------------------------------------------------------------------------------------------------------


def _concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Tensor:
    if axis is None:
        arrays, axis = [shape.reshape(x, -1) for x in arrays], 0
    return shape.concatenate(arrays, axis)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    return selection.clip(a, a_min if min is None else min, a_max if max is None else max)


def _var(a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False, correction: int | None = None) -> Tensor:
    return reduction.var(a, axis, ddof if correction is None else correction, keepdims)


def _std(a: Any, axis: Any = None, **options: Any) -> Tensor:
    return smooth.sqrt(_var(a, axis, **options))


def _dot(a: Any, b: Any) -> Tensor:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return elementwise.multiply(a, b)
    if np.ndim(b) > 2:
        _refuse("np.dot of more than two axes", "F.einsum")
    return linalg.matmul(a, b)


def _squeeze(a: Tensor, axis: Any = None) -> Tensor:
    return a.reshape(np.squeeze(_shaped_like(a), axis).shape)


def _moveaxis(a: Tensor, source: Any, destination: Any) -> Tensor:
    numbered = np.lib.stride_tricks.as_strided(np.int8(0), a.shape, range(a.ndim))  # never read: strides name the axes
    return a.transpose(np.moveaxis(numbered, source, destination).strides)


def _reshape(a: Any, /, shape: Any) -> Tensor:
    return a.reshape(shape)


def _split(ary: Tensor, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    return list(shape.split(ary, indices_or_sections, axis))


def _einsum(subscripts: str, *operands: Any, optimize: Any = False) -> Tensor:
    return linalg.einsum(subscripts, *operands)


def _pad(array: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Tensor:
    if mode != "constant":
        _refuse(f"np.pad with mode={mode!r}", "F.pad")
    return shape.pad(array, pad_width, constant_values)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "amax": lambda a, axis=None, *, keepdims=False: reduction.max(a, axis, keepdims),
    "amin": lambda a, axis=None, *, keepdims=False: reduction.min(a, axis, keepdims),
    "broadcast_to": lambda array, shape: reduction.broadcast_to(array, shape),
    "clip": _clip,
    "concatenate": _concatenate,
    "cumsum": lambda a, axis=None: reduction.cumsum(a, axis),
    "dot": _dot,
    "einsum": _einsum,
    "expand_dims": lambda a, axis: a.reshape(np.expand_dims(_shaped_like(a), axis).shape),
    "flip": lambda m, axis=None: shape.flip(m, axis),
    "matrix_transpose": lambda x: shape.swapaxes(x, -1, -2),
    "max": lambda a, axis=None, *, keepdims=False: reduction.max(a, axis, keepdims),
    "mean": lambda a, axis=None, *, keepdims=False: reduction.mean(a, axis, keepdims),
    "min": lambda a, axis=None, *, keepdims=False: reduction.min(a, axis, keepdims),
    "moveaxis": _moveaxis,
    "pad": _pad,
    "ravel": lambda a: shape.reshape(a, -1),
    "reshape": _reshape,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda arrays, axis=0: shape.stack(arrays, axis),
    "std": _std,
    "sum": lambda a, axis=None, *, keepdims=False: reduction.sum(a, axis, keepdims),
    "swapaxes": lambda a, axis1, axis2: shape.swapaxes(a, axis1, axis2),
    "take": lambda a, indices, axis=None: indexing.take(a, indices, axis),
    "transpose": lambda a, axes=None: shape.transpose(a, axes),
    "unstack": lambda x, *, axis=0: shape.unbind(x, axis),
    "var": _var,
    "where": lambda condition, x, y: selection.where(condition, x, y),
}
_NAMES_IN_F = {
    "amax": "max", "amin": "min", "dot": "matmul", "expand_dims": "reshape", "matrix_transpose": "swapaxes",
    "moveaxis": "transpose", "ravel": "reshape", "squeeze": "reshape", "std": "sqrt(F.var(x))", "unstack": "unbind",
}  # fmt: skip
# Functions whose results carry no gradient: counts, comparisons, texts, and arrays that only have the same shape.
_OF_VALUES = frozenset({
    "all", "allclose", "any", "argmax", "argmin", "argpartition", "argsort", "argwhere", "array2string",
    "array_equal", "array_equiv", "array_repr", "array_str", "bincount", "can_cast", "count_nonzero", "digitize",
    "empty_like", "flatnonzero", "full_like", "isclose", "iscomplexobj", "isrealobj", "lexsort", "may_share_memory",
    "min_scalar_type", "ndim", "nonzero", "ones_like", "result_type", "save", "savetxt", "savez",
    "savez_compressed", "searchsorted", "shape", "shares_memory", "size", "zeros_like"
})  # fmt: skip
_HINTS = {
    "array_split": "F.split",
    "average": "F.mean",
    "column_stack": "F.stack",
    "copy": "x.copy()",
    "cumprod": "F.exp of F.cumsum of F.log",
    "diff": "x[1:] - x[:-1]",
    "dstack": "F.concatenate",
    "expm1": "F.exp",
    "hstack": "F.concatenate",
    "inner": "F.matmul",
    "linalg.norm": "F.sqrt(F.sum(x * x))",
    "log10": "F.log",
    "log1p": "F.log",
    "log2": "F.log",
    "nanmax": "F.max",
    "nanmean": "F.mean",
    "nansum": "F.sum",
    "outer": "F.einsum",
    "prod": "F.exp of F.sum of F.log",
    "ptp": "F.max and F.min",
    "repeat": "F.take",
    "roll": "F.concatenate",
    "rot90": "F.flip",
    "tensordot": "F.einsum",
    "tile": "F.concatenate",
    "trace": "F.sum",
    "vdot": "F.sum(x * y)",
    "vstack": "F.concatenate",
}


_CONVERSIONS = frozenset({"array", "asarray", "asarray_chkfinite", "ascontiguousarray", "asfortranarray", "require"})


def refuse_inside_numpy(frame: FrameType | None) -> None:
    """Raise TypeError if a function of NumPy, running in `frame`, converts a tensor and would lose its gradient."""
    name, module = "", ""
    while frame is not None and (inner := frame.f_globals.get("__name__", "")).startswith("numpy."):
        name, module, frame = frame.f_code.co_name, inner, frame.f_back
    if not name or module.startswith("numpy.testing") or name in _OF_VALUES or name in _CONVERSIONS:
        return
    there, part = _NAMES_IN_F.get(name, name), module.split(".")[1]
    full_name = f"{part}.{name}" if part in ("fft", "linalg", "polynomial") else name
    _refuse(f"np.{full_name} of a list", f"F.{there} of F.stack" if name in _FUNCTIONS else None)


def call_function(self: Tensor, function: Any, types: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Do what a function of NumPy does, on the tape if F has it; `Tensor.__array_function__`."""
    module = function.__module__.removeprefix("numpy").lstrip(".")
    name = f"{module}.{function.__name__}" if module else function.__name__
    if name == "where" and len(args) == 1:
        name = "nonzero"
    if name in _FUNCTIONS:
        options = {k: v for k, v in options.items() if v is not None or k in ("axis", "a_min", "a_max")}
        try:
            inspect.signature(_FUNCTIONS[name]).bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"np.{name} of tensors: {error}; use F.{_NAMES_IN_F.get(name, name)}") from error
        return _FUNCTIONS[name](*args, **options)
    if name in _OF_VALUES or not _losing((args, options)):
        return function(*_values(args), **_values(options))
    return _refuse(f"np.{name}", _HINTS.get(name))


# ----------------------------------------------------------------------------------------------------------------------


def _refuse(what: str, instead: str | None) -> Any:
    way = f"use {instead}" if instead else "tinyvit.functional has no such operation"
    raise TypeError(
        f"{what} would end the gradient of a tensor: {way}, or take x.detach().numpy() for the values alone"
    )


def _losing(value: Any) -> bool:
    """Whether a gradient that is wanted would be lost if arrays took the place of the tensors in `value`."""
    return context.now().recording and any(x.requires_grad for x in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _values(value: Any) -> Any:
    """Return arrays in place of the tensors in `value`."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, (list, tuple)):
        return type(value)([_values(part) for part in value])
    return {k: _values(v) for k, v in value.items()} if isinstance(value, dict) else value


def _shaped_like(a: Tensor) -> np.ndarray:
    """Return an array of that shape that takes no memory."""
    return np.broadcast_to(np.int8(0), a.shape)
