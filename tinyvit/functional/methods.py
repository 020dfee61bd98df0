"""Tensor's operators and methods: each is a function of this package, or follows a protocol of Python or NumPy."""

import operator
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import context
from ..backend import as_array, to_device_of
from ..engine import Tensor
from ..engine.tensor import add_to_grad, on_tape
from . import activation, conversion, elementwise, indexing, linalg, numpy_calls, reduction, selection, shape, smooth
from .arguments import dtype_or_device, is_sequence

# In-place changes -----------------------------------------------------------------------------------------------------


def update_in_place(x: Tensor, function: Callable[[Tensor, Any], Tensor], other: Any) -> Tensor:
    """x <- function(x, other), in x's own memory; on the tape like any other operation.

    Raises RuntimeError where a gradient would be lost, ValueError where the result has another shape or dtype.
    """
    recording = context.now().recording and (x.requires_grad or getattr(other, "requires_grad", False))
    if recording and x.node is None and x.requires_grad:
        raise RuntimeError("a leaf that requires a gradient cannot be modified in place; do it under tv.no_grad()")
    if recording and x.memory.is_seen_by_others(x):
        raise RuntimeError(
            "this tensor shares its memory with a view of it, so it cannot be modified in place on the tape; "
            "write x = x + y instead of x += y"
        )
    # Where `function` saves x, it must not save the memory that is about to be written.
    before = x if not recording else _with_own_memory(x)
    result = function(before, other)
    if result.shape != x.shape or result.dtype != x.dtype:
        raise ValueError(
            f"in-place result has shape {result.shape} and dtype {result.dtype}, the tensor {x.shape} and {x.dtype}"
        )
    x.data[...] = result.data
    x.mark_modified()
    if recording:
        x.source, x.requires_grad = result.source, result.requires_grad
        if x.retained:
            x.retain_grad()
    return x


def _assign(self: Tensor, array: Any) -> None:
    """Copy values of the same shape into this tensor's memory, off the tape, as when weights are loaded."""
    self.data[...] = to_device_of(array, self.data)
    self.mark_modified()


def _retain_grad(self: Tensor) -> None:
    """Make the way back add the gradient of this tensor to its `.grad` too, although it is not a leaf."""
    place = self.place
    if place == self.retained:  # of a leaf, or called before
        return
    self.retained, reference = place, weakref.ref(self)  # a hook that held the tensor would keep it alive

    def keep(gradient: Tensor) -> None:
        tensor = reference()
        if tensor is not None and tensor.retained == place:  # not after it was modified in place
            add_to_grad(tensor, gradient, False, context.now().recording)

    self.register_hook(keep)


def _with_own_memory(x: Tensor) -> Tensor:
    """Return a copy of a tensor that no leaf is, at the same place of the tape."""
    return on_tape(x.data.copy(), x.source) if x.source else Tensor(x.data.copy())


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: update_in_place(self, function, other)


def _set_item(self: Tensor, key: Any, value: Any) -> None:
    update_in_place(self, lambda x, v: indexing.index_put(x, v, key), value)


# Forms of methods -----------------------------------------------------------------------------------------------------


def _reversed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _compared(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def compare(self: Tensor, other: Any) -> Any:
        result = function(self.data, other.data if isinstance(other, Tensor) else other)
        return Tensor(result) if hasattr(result, "dtype") else NotImplemented

    return compare


def _shaped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Accept x.reshape(2, 3) as well as x.reshape((2, 3))."""

    def method(self: Tensor, *shape: Any) -> Tensor:
        return function(self, shape[0] if _is_one_sequence(shape) else shape)

    method.__doc__ = function.__doc__
    return method


def _is_one_sequence(arguments: tuple[Any, ...]) -> bool:
    return len(arguments) == 1 and is_sequence(arguments[0])


def _transposed(self: Tensor, *axes: Any) -> Tensor:
    """The same elements with the axes in this order, in the opposite order by default. A view."""
    return shape.transpose(self, axes[0] if _is_one_sequence(axes) else axes or None)


def _to(self: Tensor, device_or_dtype: Any) -> Tensor:
    """Return this tensor on another device ("cpu", "cuda:0") or in another dtype ("float64", numpy.float32)."""
    dtype = dtype_or_device(device_or_dtype)
    if dtype is None:
        return conversion.to_device(self, device_or_dtype)
    return self if dtype == self.dtype else conversion.cast(self, dtype)


def _argmax(self: Tensor, axis: int | None = None) -> Tensor:
    """Return the index of the largest element along `axis`; a constant."""
    return Tensor(self.data.argmax(axis=axis))


def _item(self: Tensor) -> float | int | bool:
    """Return the value of a tensor with one element as a Python number."""
    if self.data.size != 1:
        raise ValueError(f"item: the tensor has shape {self.shape}, not one element")
    return self.numpy().item()


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if self.requires_grad and context.now().recording:
        numpy_calls.refuse_inside_numpy(sys._getframe(1))
    return np.array(self.numpy(), dtype=dtype, copy=copy)


def _formatted(self: Tensor, form: str) -> str:
    """Return `format(x, ".3f")` of a tensor with one element, and its text without a format."""
    if not form:
        return str(self)
    if self.size != 1:
        raise TypeError(f"a tensor of shape {self.shape} cannot be formatted as {form!r}; it has {self.size} elements")
    return format(self.item(), form)


def _as_index(self: Tensor) -> int:
    """Return the value of a tensor with one integer, where Python needs an integer."""
    if self.dtype.kind not in "iub" or self.ndim:
        raise TypeError(f"a tensor of shape {self.shape} and dtype {self.dtype} is no integer")
    return int(self.item())


def _length(self: Tensor) -> int:
    if not self.shape:
        raise TypeError("a tensor with no axes has no length")
    return self.shape[0]


def _represented(self: Tensor) -> str:
    values = np.array2string(self.numpy(), separator=", ", prefix="tensor(", precision=4, threshold=200)
    origin = f", op={self.node.op.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
    dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
    return f"tensor({values}{dtype}{origin})"


# Copies ---------------------------------------------------------------------------------------------------------------


def _copy(self: Tensor) -> Tensor:
    """Return the same values in memory of their own; on the tape, so that a gradient comes back to this tensor."""
    is_on_tape = self.requires_grad and context.now().recording
    return conversion.cast(self, self.dtype) if is_on_tape else Tensor(self.data.copy())


def _copied(self: Tensor) -> Tensor:
    """Return a tensor at the same place of the tape that shares this one's memory (`copy.copy`)."""
    out = _with_data(type(self), self.data, self.requires_grad)
    out.source = self.source
    self.share_memory([out])
    return out


def _deep_copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """Return a leaf with memory of its own, and a copy of its gradient (`copy.deepcopy`); hooks stay behind."""
    _refuse_on_tape(self, "copied deeply")
    out = memo[id(self)] = _with_data(type(self), self.data.copy(), self.requires_grad)
    out.grad = None if self.grad is None else Tensor(self.grad.data.copy())
    return out


def _reduced(self: Tensor, protocol: Any) -> tuple[Any, ...]:
    """Return how another process makes this leaf again (`pickle`): its values and device; its gradient stays behind."""
    _refuse_on_tape(self, "pickled")
    return unpickled, (type(self), self.numpy(), self.device, self.requires_grad)


def unpickled(kind: type[Tensor], array: np.ndarray, device: str, requires_grad: bool) -> Tensor:
    """Return the leaf that `pickle` wrote."""
    return _with_data(kind, as_array(array, device=device), requires_grad)


def _with_data(kind: type[Tensor], array: Any, requires_grad: bool) -> Tensor:
    out = kind.__new__(kind)
    Tensor.__init__(out, array, requires_grad)
    return out


def _refuse_on_tape(x: Tensor, done: str) -> None:
    if x.node is not None:
        raise RuntimeError(
            f"a result of {x.node.op.name} that is on the tape cannot be {done}, because the operations before it "
            "would have to come along; take x.detach(), or compute it under tv.no_grad()"
        )


# The table ------------------------------------------------------------------------------------------------------------

_METHODS: dict[str, Any] = {
    "__abs__": elementwise.abs,
    "__add__": elementwise.add,
    "__and__": _compared(operator.and_),
    "__array__": _array,
    "__array_function__": numpy_calls.call_function,
    "__array_ufunc__": numpy_calls.ArrayUfunc(),
    "__copy__": _copied,
    "__deepcopy__": _deep_copied,
    "__reduce_ex__": _reduced,
    "__bool__": lambda self: bool(self.numpy()),
    "__eq__": _compared(operator.eq),
    "__float__": lambda self: float(self.item()),
    "__format__": _formatted,
    "__ge__": _compared(operator.ge),
    "__getitem__": indexing.index,
    "__gt__": _compared(operator.gt),
    "__hash__": object.__hash__,
    "__iadd__": _in_place(elementwise.add),
    "__imul__": _in_place(elementwise.multiply),
    "__index__": _as_index,
    "__int__": lambda self: int(self.item()),
    "__invert__": lambda self: Tensor(~self.data),
    "__isub__": _in_place(elementwise.subtract),
    "__iter__": lambda self: iter(shape.unbind(self)),
    "__itruediv__": _in_place(elementwise.divide),
    "__le__": _compared(operator.le),
    "__len__": _length,
    "__lt__": _compared(operator.lt),
    "__matmul__": linalg.matmul,
    "__mul__": elementwise.multiply,
    "__ne__": _compared(operator.ne),
    "__neg__": elementwise.negative,
    "__or__": _compared(operator.or_),
    "__pow__": elementwise.power,
    "__radd__": _reversed(elementwise.add),
    "__repr__": _represented,
    "__rmatmul__": _reversed(linalg.matmul),
    "__rmul__": _reversed(elementwise.multiply),
    "__rpow__": _reversed(elementwise.power),
    "__rsub__": _reversed(elementwise.subtract),
    "__rtruediv__": _reversed(elementwise.divide),
    "__setitem__": _set_item,
    "__sub__": elementwise.subtract,
    "__truediv__": elementwise.divide,
    "T": property(shape.transpose),
    "abs": elementwise.abs,
    "argmax": _argmax,
    "assign": _assign,
    "broadcast_to": _shaped(reduction.broadcast_to),
    "clip": selection.clip,
    "copy": _copy,
    "cumsum": reduction.cumsum,
    "exp": smooth.exp,
    "flip": shape.flip,
    "item": _item,
    "log": smooth.log,
    "log_softmax": activation.log_softmax,
    "logsumexp": reduction.logsumexp,
    "max": reduction.max,
    "mean": reduction.mean,
    "min": reduction.min,
    "relu": activation.relu,
    "reshape": _shaped(shape.reshape),
    "retain_grad": _retain_grad,
    "sigmoid": smooth.sigmoid,
    "softmax": activation.softmax,
    "split": shape.split,
    "sqrt": smooth.sqrt,
    "sum": reduction.sum,
    "swapaxes": shape.swapaxes,
    "take": indexing.take,
    "tanh": smooth.tanh,
    "to": _to,
    "transpose": _transposed,
    "unbind": shape.unbind,
    "var": reduction.var,
}

for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)
