"""Arrays: their floating dtypes, and the array namespaces that forward and backward rules are written over."""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..context import PRECISIONS
from ..kernels import sums
from .checks import flag
from .devices import Array, check_device, default_device, gpu, is_on_gpu, to_device, to_host

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
BFLOAT16 = PRECISIONS["bfloat16"]


def is_floating(array: Array) -> bool:
    """Return whether an array holds floating-point numbers, bfloat16 among them."""
    kind = array.dtype.kind
    return kind == "f" or (kind == "V" and array.dtype.name == "bfloat16")


def as_array(data: Any, dtype: Any = None, device: str | None = None, what: str = "data") -> Array:
    """Copy `data` into a new array on `device`; Python floats become float32, arrays keep their dtype.

    Raises TypeError, which calls the data `what`, unless they are real numbers, integers or booleans.
    """
    device = check_device(device or default_device())
    try:
        array = np.array(to_host(data))
    except ValueError as error:
        raise TypeError(f"{what} is {data!r}, whose rows differ in length; give an array of numbers") from error
    if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype"):
        dtype = np.float32
    wanted = array.dtype if dtype is None else np.dtype(dtype)
    for each in (array.dtype, wanted):
        _check_dtype(what, each, "" if hasattr(data, "dtype") else f", not {repr(data)[:60]}")
    return to_device(array.astype(wanted, copy=False), device)


def checked_array(data: Any, requires_grad: bool) -> Array:
    """Return what a tensor is made of, a number of NumPy as an array; raise TypeError unless it is an array of numbers.

    `requires_grad` says that the tensor will require a gradient, for which they must be floating.
    """
    if not hasattr(data, "dtype"):
        raise TypeError(f"Tensor takes an array, not a {type(data).__name__}; tinyvit.tensor(data) makes one")
    _check_dtype("data", data.dtype)
    if requires_grad and not is_floating(data):
        raise TypeError(f"requires_grad=True needs a floating dtype, not {data.dtype}")
    return np.asarray(data) if isinstance(data, np.generic) else data


def _check_dtype(what: str, dtype: Any, given: str = "") -> None:
    if dtype.kind not in "fiub" and dtype.name not in FLOATING:
        raise TypeError(f"{what} has dtype {dtype}; a tensor holds real numbers, integers or booleans{given}")


def narrowed(array: Array, dtype: Any) -> Array:
    """Round `array`, computed in float32, back to a 16-bit `dtype`."""
    return array.astype(dtype) if dtype.itemsize == 2 and array.dtype.kind == "f" and array.dtype != dtype else array


def widened(array: Any) -> Any:
    """Return a floating `array` of 16 bits in float32, and anything else as it is."""
    dtype = getattr(array, "dtype", None)
    is_narrow = dtype is not None and dtype.itemsize == 2 and is_floating(array)
    return array.astype(np.float32) if is_narrow else array


def copy_of(x: Any) -> Any:
    """Return a copy of an array, or of a tuple with the arrays in it copied; anything else as it is.

    An array that repeats its elements by strides of 0, as a broadcast mask, still does so.
    """
    if type(x) is tuple:
        return tuple(copy_of(part) for part in x)
    if not hasattr(x, "dtype") or not hasattr(x, "strides"):
        return x
    if 0 in x.strides:
        once = x[tuple(slice(None if step else 1) for step in x.strides)].copy()
        return namespace_of(x).broadcast_to(once, x.shape)
    return x.copy()


class Namespace:
    """The array functions that forward and backward rules may call, under NumPy's names and arguments.

    A name is looked up among the extras first (softmax, index_add, im2col: what NumPy lacks, added by
    `tinyvit.functional` with `extend`), then in the array library. A rule that only uses such names and operators runs
    on any array library, on tensors (the namespace is then `tinyvit.functional` itself), or under a narrator.
    """

    extras: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        extra = self.extras.get(name)
        function = partial(extra, self) if extra else getattr(self._module, name)
        setattr(self, name, function)  # the next access finds it without a call
        return function

    @classmethod
    def extend(cls, name: str, function: Callable[..., Any]) -> None:
        """Add `function(xp, *arrays, **params)` to every namespace as `xp.name(*arrays, **params)`."""
        cls.extras[name] = function


class _Add:
    """`numpy.add`; but its `at` sums float32 in float64."""

    at = staticmethod(sums.add_at)

    def __call__(self, x: Any, y: Any) -> Any:
        return np.add(x, y)


def where(condition: Any, x: Any, y: Any) -> Any:
    """Return `numpy.where(condition, x, y)`, with the same bits.

    Where y is the number 0, the bits of x are masked. NumPy branches for every element, which takes ten times as long
    if the condition is as irregular as the signs of activations.
    """
    if (
        type(y) is float
        and y == 0.0
        and math.copysign(1.0, y) > 0
        and type(x) is type(condition) is np.ndarray
        and x.dtype.char in "fd"
        and condition.dtype.char == "?"
        and x.shape == condition.shape
        and x.flags.c_contiguous
    ):
        mask = condition.astype(np.int32 if x.itemsize == 4 else np.int64, order="C")
        np.negative(mask, out=mask)  # all bits, or none
        np.bitwise_and(mask, x.view(mask.dtype), out=mask)
        return mask.view(x.dtype)
    return np.where(condition, x, y)


NUMPY = Namespace(np)
vars(NUMPY).update(add=_Add(), where=where)


@functools.cache
def _namespace_of_module(module: Any) -> Namespace:
    return Namespace(module)


def namespace_of(array: Array) -> Namespace:
    """Return the namespace that computes where `array` lives."""
    if type(array) is np.ndarray or not is_on_gpu(array):
        return NUMPY
    return _namespace_of_module(gpu()[0])


def erf_on_gpu(x: Array) -> Array:
    """Return the error function of a CuPy array."""
    from cupyx.scipy.special import erf

    return erf(x)


def matmul(xp: Namespace, x: Array, y: Array) -> Array:
    """Return the matrix product; a stack of matrices times one matrix becomes a single GEMM instead of one for each."""
    if is_on_gpu(x):
        return _matmul_on_gpu(x, y)
    if y.ndim == 2 and x.ndim > 2 and x.flags.c_contiguous:
        return (x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ y).reshape(*x.shape[:-1], y.shape[-1])
    return x @ y


def allow_tf32(allowed: bool = True) -> None:
    """Let matrix products in float32 on a GPU round their factors to TF32, which has 10 bits instead of 23.

    The default is False. Tensor cores then serve float32 as well; sums stay float32.
    """
    from ..kernels.linear import cublaslt

    cublaslt.tf32_allowed = flag("allow_tf32: allowed", allowed)


def _matmul_on_gpu(x: Array, y: Array) -> Array:
    from ..kernels.linear import cublaslt, lt

    if x.ndim == 1:  # a row
        return _matmul_on_gpu(x[None], y)[..., 0, :]
    return cublaslt.matmul(x, y) if is_floating(x) and lt.why_not() is None else x @ y


Namespace.extend("matmul", matmul)
Namespace.extend("stop_gradient", lambda xp, x: x)
Namespace.extend("sum", lambda xp, x, axis=None, keepdims=False: sums.total(x, axis, keepdims))
Namespace.extend("mean", lambda xp, x, axis=None, keepdims=False: sums.mean(x, axis, keepdims))
Namespace.extend("cumsum", lambda xp, x, axis: sums.running(x, axis))
