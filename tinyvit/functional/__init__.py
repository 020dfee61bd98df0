"""Every differentiable operation, as functions of tensors: `import tinyvit.functional as F`.

One file for each family; one class for each operation, with its formula, forward, backward and samples. This module is
itself the namespace in which gradient rules run when their result must be differentiable too.
"""

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engine import autograd
from ..engine.autograd import Tensor
from . import plain, special  # noqa: F401  (plain rules for direct calls; erf for the array namespaces)
from .activation import bias_gelu, gelu, log_softmax, relu, silu, softmax
from .attention import join_heads, merge_heads, scaled_dot_product_attention, split_heads
from .convolution import avg_pool2d, col2im, conv2d, im2col, max_pool2d
from .elementwise import (
    abs,
    add,
    clip,
    divide,
    erf,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    ones_like,
    power,
    sigmoid,
    sign,
    sqrt,
    stop_gradient,
    subtract,
    tanh,
    where,
    zeros_like,
)
from .indexing import add_rows, embedding, index, index_add, index_put, take, take_rows
from .linalg import einsum, linear, matmul
from .loss import binary_cross_entropy_with_logits, contrastive_loss, cross_entropy, mse_loss
from .normalization import add_layer_norm, layer_norm
from .patches import patches
from .random import dropout, dropout_mask
from .reduction import broadcast_to, cumsum, logsumexp, max, mean, min, sum, sum_to_shape, var
from .shape import cast, concatenate, flip, pad, reshape, split, stack, swapaxes, to_device, transpose, unbind, zeros

__all__ = [
    "abs", "add", "add_layer_norm", "add_rows", "avg_pool2d", "bias_gelu", "binary_cross_entropy_with_logits",
    "broadcast_to", "cast", "clip", "col2im", "concatenate", "contrastive_loss", "conv2d", "cross_entropy",
    "cumsum", "divide", "dropout", "dropout_mask", "einsum", "embedding", "erf", "exp", "flip", "gelu",
    "im2col", "index", "index_add", "index_put", "join_heads", "layer_norm", "linear", "log",
    "log_softmax", "logsumexp", "matmul", "max", "max_pool2d", "maximum", "mean",
    "merge_heads", "min", "minimum", "mse_loss", "multiply", "negative", "ones_like", "pad", "patches", "power",
    "relu", "reshape", "scaled_dot_product_attention", "sigmoid", "sign", "silu", "softmax", "split",
    "split_heads", "sqrt", "stack", "stop_gradient", "subtract", "sum", "sum_to_shape", "swapaxes", "take",
    "take_rows", "tanh", "transpose", "unbind", "var", "where", "zeros", "zeros_like",
]  # fmt: skip

autograd.graph_namespace = sys.modules[__name__]


# Tensor's operators and methods, from one table ---------------------------------------------------------------------


def _reversed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: self._in_place(function, other)


def _compared(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def compare(self: Tensor, other: Any) -> Tensor:
        return Tensor(function(self.data, other.data if isinstance(other, Tensor) else other))

    return compare


def _shaped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """x.reshape(2, 3) as well as x.reshape((2, 3))."""
    return lambda self, *shape: function(self, shape[0] if _is_one_sequence(shape) else shape)


def _is_one_sequence(arguments: tuple[Any, ...]) -> bool:
    return len(arguments) == 1 and isinstance(arguments[0], Sequence)


def _transposed(self: Tensor, *axes: Any) -> Tensor:
    return transpose(self, axes[0] if _is_one_sequence(axes) else axes or None)


def _set_item(self: Tensor, key: Any, value: Any) -> None:
    self._in_place(lambda x, v: index_put(x, v, key), value)


def _to(self: Tensor, device_or_dtype: Any) -> Tensor:
    """This tensor on another device ("cpu", "cuda:0") or in another dtype ("float64", numpy.float32)."""
    if isinstance(device_or_dtype, str) and device_or_dtype.split(":")[0] in ("cpu", "cuda"):
        return to_device(self, device_or_dtype)
    try:
        dtype = np.dtype(device_or_dtype)
    except TypeError as error:
        raise TypeError(
            f"to: {device_or_dtype!r} is neither a device, such as 'cpu', nor a dtype, such as 'float32'"
        ) from error
    return self if dtype == self.dtype else cast(self, dtype)


def _argmax(self: Tensor, axis: int | None = None) -> Tensor:
    """The index of the largest element along `axis`; a constant."""
    return Tensor(autograd.backend.namespace_of(self.data).asarray(self.data.argmax(axis=axis)))


_METHODS: dict[str, Any] = {
    "__add__": add, "__radd__": _reversed(add), "__iadd__": _in_place(add),
    "__sub__": subtract, "__rsub__": _reversed(subtract), "__isub__": _in_place(subtract),
    "__mul__": multiply, "__rmul__": _reversed(multiply), "__imul__": _in_place(multiply),
    "__truediv__": divide, "__rtruediv__": _reversed(divide), "__itruediv__": _in_place(divide),
    "__pow__": power, "__rpow__": _reversed(power),
    "__matmul__": matmul, "__rmatmul__": _reversed(matmul),
    "__neg__": negative, "__abs__": abs,
    "__getitem__": index, "__setitem__": _set_item, "__iter__": lambda self: iter(unbind(self)),
    "__eq__": _compared(operator.eq), "__ne__": _compared(operator.ne),
    "__lt__": _compared(operator.lt), "__le__": _compared(operator.le),
    "__gt__": _compared(operator.gt), "__ge__": _compared(operator.ge),
    "__and__": _compared(operator.and_), "__or__": _compared(operator.or_),
    "__invert__": lambda self: Tensor(~self.data),
    "__hash__": object.__hash__,
    "sum": sum, "mean": mean, "var": var, "max": max, "min": min, "cumsum": cumsum, "logsumexp": logsumexp,
    "argmax": _argmax,
    "reshape": _shaped(reshape), "transpose": _transposed, "swapaxes": swapaxes, "T": property(transpose),
    "broadcast_to": _shaped(broadcast_to), "take": take, "clip": clip, "unbind": unbind, "split": split, "flip": flip,
    "exp": exp, "log": log, "sqrt": sqrt, "tanh": tanh, "sigmoid": sigmoid, "abs": abs, "relu": relu,
    "softmax": softmax, "log_softmax": log_softmax,
    "to": _to,
}  # fmt: skip

for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)
