"""A stand-in for CuPy in ordinary memory: the same arrays, functions and errors, as far as this project uses them.

As in CuPy, its arrays cannot be mixed with those of NumPy: an operation on both, or an implicit conversion, raises
TypeError.
"""

import functools
import math
import operator
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from unittest import mock

import fake_cublaslt
import numpy as np
from emulator import EmulatedDevice
from fake_streams import MEMORY, NOW, Stream, do, refuse_transfer, using_allocator, wait
from tinyvit.kernels.linear import cublaslt, lt

from tinyvit import backend


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class _DeviceNumber:
    id = 0
    compute_capability = "90"
    attributes = MappingProxyType({"MaxSharedMemoryPerBlockOptin": 232_448})  # as in CuPy, without the capability

    def __init__(self, number: int | None = None) -> None:
        self.id = _current if number is None else number

    def __enter__(self) -> "_DeviceNumber":
        self._before = _current
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        _DeviceNumber(self._before).use()

    def use(self) -> None:
        """Make new arrays on this device."""
        global _current
        _current = self.id


_current = 0  # the number of the device on which arrays are made


class ndarray:
    """An array on the device, whose elements are really in the NumPy array `_host`."""

    __slots__ = ("__weakref__", "_base", "_host", "_number")
    __array_priority__ = 100

    def __init__(self, host: np.ndarray, base: "ndarray | None" = None) -> None:
        self._host, self._number = host, _current if base is None else base._number
        self._base = base
        if NOW.recording is not None:
            NOW.recording.append((MEMORY, functools.partial(id, host)))  # a graph keeps its memory alive
        elif NOW.in_pool and base is None:
            raise AssertionError("an array outside the graph has memory of the graph, which the next launch overwrites")

    @property
    def base(self) -> "ndarray | None":
        return self._base

    @property
    def data(self) -> _Pointer:
        return _Pointer(self._host.ctypes.data)

    @property
    def device(self) -> _DeviceNumber:
        return _DeviceNumber(self._number)

    @property
    def T(self) -> "ndarray":
        return _wrapped(self._host.T, self)

    def get(self) -> np.ndarray:
        refuse_transfer("D2H")
        return self._host.copy()

    def item(self) -> Any:
        return self.get().item()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _call(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return _call(function, args, kwargs)

    def __getitem__(self, key: Any) -> "ndarray":
        if any(isinstance(k, ndarray) and k.dtype == bool for k in (key if isinstance(key, tuple) else (key,))):
            wait()  # for the number of selected elements
        return _call(lambda x, k: np.asarray(x[k]), (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        target, key = self._host, _host(key)
        do(lambda: target.__setitem__(key, _host(value)), "copy")

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __hash__ = None  # type: ignore[assignment]


def _host(x: Any) -> Any:
    """Return the arrays that NumPy computes with; raise TypeError for a NumPy array, as CuPy does."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (tuple, list)):
        return type(x)(_host(item) for item in x)
    return x


def _wrapped(result: Any, source: Any = None) -> Any:
    if isinstance(result, (np.ndarray, np.generic)):
        return ndarray(np.asarray(result), source if isinstance(source, ndarray) else None)
    if isinstance(result, tuple):
        return tuple(_wrapped(x) for x in result)
    return [_wrapped(x) for x in result] if isinstance(result, list) else result


# Calls -------------------------------------------------------------------------------------------------------------


class CapturableDevice(EmulatedDevice):
    """A device whose launches are added to the graph while a stream captures."""

    def _start(self, kernel: Any, grid: Any, threads: int, arguments: Any, shared: int) -> None:
        given = [type(argument).from_buffer_copy(argument) for argument in arguments]
        do(lambda: super(CapturableDevice, self)._start(kernel, grid, threads, given, shared), kernel.expression)


_NEED_CUBLAS = (np.vdot, np.dot, np.inner, np.tensordot, np.linalg.norm)
_UNKNOWN_IN_GRAPHS = (operator.matmul, np.argsort, np.sort, np.nonzero, np.unique)  # they use cuBLAS or Thrust, or wait


def _check(function: Any, args: Any) -> None:
    """Refuse what CuPy cannot do while a stream captures, and what needs cuBLAS, which this project avoids."""
    if function in _NEED_CUBLAS:
        raise RuntimeError(f"{function.__name__} needs cuBLAS")
    joins_by_addresses = function in (np.concatenate, np.stack) and len(args[0]) > 8  # CuPy copies them from the host
    if function in _UNKNOWN_IN_GRAPHS or joins_by_addresses:
        wait()


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    _check(function, args)
    out = kwargs.get("out")

    def compute() -> Any:
        with np.errstate(all="ignore"):
            return function(*(_host(a) for a in args), **{k: _host(v) for k, v in kwargs.items()})

    result = compute()
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    source = next((a for a in args if isinstance(a, ndarray)), None)
    shares = isinstance(result, np.ndarray) and source is not None and np.shares_memory(result, source._host)
    if NOW.recording is not None and not shares and isinstance(result, (np.ndarray, np.generic)):
        result = np.asarray(result)
        target = result
        kind = getattr(function, "__name__", "function")
        kind += f" {source.dtype} {target.dtype}" if kind == "astype" and source is not None else ""
        NOW.recording.append((kind, lambda: target.__setitem__(..., compute())))
    owner = source if source is None or source.base is None else source.base
    return _wrapped(result, owner if shares else None)


_VALUES = ("shape", "strides", "dtype", "itemsize", "size", "ndim", "flags", "nbytes")
_METHODS = ("astype", "reshape", "transpose", "swapaxes", "copy", "sum", "mean", "max", "min", "ravel", "fill", "view")
_METHODS += ("any", "all", "argmax", "squeeze", "cumsum", "var", "clip", "repeat", "take")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return _call(getattr(np.ndarray, name), (self, *args), kwargs)

    return method


def _binary(name: str) -> None:
    function = getattr(operator, f"__{name}__")
    setattr(ndarray, f"__{name}__", lambda self, other: _call(function, (self, other), {}))
    if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{name}__", lambda self, other: _call(function, (other, self), {}))
        in_place = getattr(operator, f"__i{name}__")

        def inplace(self: ndarray, other: Any) -> ndarray:
            do(lambda: in_place(self._host, _host(other)), in_place.__name__)
            return self

        setattr(ndarray, f"__i{name}__", inplace)


for _name in _VALUES:
    setattr(ndarray, _name, property(operator.attrgetter(f"_host.{_name}")))
for _name in _METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in (*_BINARY, "lt", "le", "gt", "ge", "eq", "ne"):
    _binary(_name)
ndarray.__neg__ = lambda self: _call(operator.neg, (self,), {})  # type: ignore[attr-defined]
ndarray.__abs__ = lambda self: _call(operator.abs, (self,), {})  # type: ignore[attr-defined]
ndarray.__invert__ = lambda self: _call(operator.invert, (self,), {})  # type: ignore[attr-defined]
ndarray.__module__ = "cupy"


def asarray(data: Any, dtype: Any = None, **_: Any) -> ndarray:
    """Return `data` as an array on the device."""
    if not isinstance(data, ndarray) and np.ndim(data):
        refuse_transfer("H2D")
    if isinstance(data, ndarray):
        return data if dtype is None or data.dtype == dtype else data.astype(dtype)
    return ndarray(np.array(data, dtype=dtype))


def array(data: Any, dtype: Any = None, copy: bool = True, **_: Any) -> ndarray:
    host = data._host if isinstance(data, ndarray) else data
    return ndarray(np.array(host, dtype=dtype))


def empty(shape: Any, dtype: Any = float, **_: Any) -> ndarray:
    """Return memory full of NaN, or of large numbers if the dtype has no NaN, so that unwritten elements show."""
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8).fill(0xFF)
    return ndarray(host)


def empty_like(x: ndarray, dtype: Any = None, **_: Any) -> ndarray:
    return empty(x.shape, dtype or x.dtype)


def as_strided(x: ndarray, shape: Any, strides: Any) -> ndarray:
    """Return a view from the first element of x on. As in CuPy, nothing is checked."""
    return ndarray(np.lib.stride_tricks.as_strided(x._host, shape, strides), x if x.base is None else x.base)


def module() -> types.ModuleType:
    """Return the module `cupy`."""
    fake = types.ModuleType("cupy")
    own = {"ndarray": ndarray, "asarray": asarray, "array": array, "empty": empty, "empty_like": empty_like}
    own["lib"] = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))
    fake.__dict__.update(own, asnumpy=lambda x: x.get(), __version__="0", __path__=[])

    def missing(name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, (types.FunctionType, np.ufunc, types.BuiltinFunctionType)) or name in ("vdot", "where"):
            return functools.wraps(found)(lambda *args, **kwargs: _call(found, args, kwargs))
        return found

    fake.__getattr__ = missing  # type: ignore[method-assign]
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 2, getDevice=lambda: _current)
    stream = Stream()
    cuda = types.ModuleType("cupy.cuda")
    cuda.__dict__.update(
        is_available=lambda: True,
        Device=_DeviceNumber,
        runtime=runtime,
        get_current_stream=lambda: stream,
        Stream=Stream,
        MemoryPool=lambda: types.SimpleNamespace(malloc=None),
        using_allocator=using_allocator,
    )
    fake.cuda = cuda  # type: ignore[attr-defined]
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    fake.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    return fake


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, [float])(x).astype(x.dtype)


def _special() -> types.ModuleType:
    """Return the module `cupyx.scipy.special`."""
    special = types.ModuleType("cupyx.scipy.special")
    special.erf = lambda x: _call(_erf, (x,), {})  # type: ignore[attr-defined]
    return special


def _forget() -> None:
    """Forget what was found out about another GPU."""
    backend.gpu.cache_clear()
    cublaslt.forget()


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Within this block `import cupy` returns the stand-in."""
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in ("cupy", "cupyx"):
            del sys.modules[name]
    fake = module()
    packages = {name: types.ModuleType(name) for name in ("cupyx", "cupyx.scipy")}
    own = {"cupy": fake, "cupy.cuda": fake.cuda, **packages, "cupyx.scipy.special": _special()}
    sys.modules |= own
    _forget()
    library = functools.cache(lambda: fake_cublaslt.Recorded(do))
    try:
        with mock.patch.object(lt, "library", library), mock.patch.object(lt, "why_not", return_value=None):
            yield fake
    finally:
        for name in own:
            del sys.modules[name]
        sys.modules |= {name: m for name, m in before.items() if name.partition(".")[0] in ("cupy", "cupyx")}
        _forget()
        _DeviceNumber(0).use()
        backend.devices.gpu_in_use = False
