"""Arrays that stand for the values of a trace: what is done with them is recorded, and their values cannot be read."""

import operator
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .graph import ArrayFunction


class TraceError(TypeError):
    """A model cannot be frozen: what it does depends on the values of its inputs, or cannot be recorded."""


def _astype(x: Any, dtype: Any) -> Any:
    return x.astype(dtype)


_GETITEM = ArrayFunction("numpy.getitem", operator.getitem)
_ASTYPE = ArrayFunction("numpy.astype", _astype)
# Functions whose results have shapes that the values decide, so that no program with fixed shapes could compute them.
_SHAPED_BY_VALUES = ("nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract", "trim_zeros")
_METHODS = (
    *("all", "any", "argmax", "argmin", "argsort", "clip", "cumsum", "max", "mean", "min", "prod", "ravel", "repeat"),
    *("round", "squeeze", "std", "sum", "swapaxes", "take", "var"),
)


class StandIn(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array of a trace that depends on the inputs.

    It has a shape and a dtype. Functions of NumPy can be called on it, which the trace records; whatever would read its
    values or change them in place raises TraceError.
    """

    __slots__ = ("_trace", "dtype", "number", "shape")
    __hash__ = object.__hash__

    def __init__(self, trace: Any, number: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._trace, self.number, self.shape, self.dtype = trace, number, shape, dtype

    def __del__(self) -> None:
        self._trace.release(self.number)

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape, dtype=np.int64)))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.itemsize)
    T = property(lambda self: self.transpose())

    def __repr__(self) -> str:
        return f"<a value of the model that is being frozen, {self.dtype}{list(self.shape)}>"

    # What is recorded

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if options.get("out") is not None or method == "at":
            _refuse(f"numpy.{ufunc.__name__} writes into an array", "write x = x + y instead of x += y")
        name = f"numpy.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
        return self._trace.call(ArrayFunction(name, getattr(ufunc, method)), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = function.__name__
        if name in _SHAPED_BY_VALUES or (function is np.where and len(args) == 1):
            _refuse(f"the shape of what numpy.{name} returns depends on values")
        if kwargs.get("out") is not None or name in ("copyto", "put", "place", "putmask", "fill_diagonal"):
            _refuse(f"numpy.{name} writes into an array", "compute a new array instead")
        return self._trace.call(ArrayFunction(f"numpy.{name}", function), args, kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self._trace.call(_GETITEM, (self, index), {})

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array with no axes has no length")
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(f"arrays of a model that is being frozen have no {name!r}; call a function of NumPy")
        return lambda *args, **kwargs: getattr(np, name)(self, *args, **kwargs)

    def astype(self, dtype: Any, **options: Any) -> Any:
        return self._trace.call(_ASTYPE, (self, np.dtype(dtype)), {})

    def copy(self, *_: Any) -> "StandIn":
        return self  # it cannot be written to

    def reshape(self, *shape: Any) -> Any:
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Any:
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None
        return np.transpose(self, order)

    def check_later(self, check: Any, *args: Any) -> None:
        """Have the program call `check(*args)`, which raises an error if values among `args` are not allowed."""
        self._trace.call(ArrayFunction(f"check.{check.__name__}", check), args, {})

    # What is refused

    def _read(self, *_: Any, **__: Any) -> NoReturn:
        _refuse("the model reads the values of an array that depends on its inputs")

    def _written(self, *_: Any) -> NoReturn:
        _refuse("the model changes an array in place", "write x = x + y instead of x += y")

    __array__ = __bool__ = __int__ = __float__ = __index__ = __complex__ = __contains__ = _read
    item = tolist = tobytes = _read
    __setitem__ = __iadd__ = __isub__ = __imul__ = __itruediv__ = fill = sort = _written


def _refuse(what: str, way_out: str = "") -> NoReturn:
    way_out = way_out or (
        "a program has the same steps for all inputs, so compute with the arrays (where, maximum, masks) instead of "
        "deciding in Python, or freeze the part of the model that does not do this"
    )
    raise TraceError(f"freeze: {what}; {way_out}")
