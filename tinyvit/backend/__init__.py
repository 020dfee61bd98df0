"""Arrays and where they live: devices, the array namespaces that gradient rules are written over, random streams.

Everything above this file asks for arrays in terms of a device name ("cpu") and a `Namespace`; nothing above it imports
an array library other than NumPy.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

Array = Any  # np.ndarray, or cupy.ndarray

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


# Devices ------------------------------------------------------------------------------------------------------------

_default_device = "cpu"
gpu_in_use = False  # whether any array was ever brought to a GPU


@functools.cache
def gpu() -> tuple[Any, str | None]:
    """CuPy and None where there is a GPU that works, else None and the reason; asked once, and never raises."""
    try:
        import cupy
    except Exception as error:  # ImportError, but a broken installation raises others
        return None, f"CuPy cannot be imported ({error}); install tinyvit with its extra cuda12 or cuda13"
    try:
        if not cupy.cuda.is_available():
            return None, "CuPy finds no device that it can use (no NVIDIA GPU is visible, or its driver is too old)"
        if int((cupy.arange(3) + 1).sum()) != 6:
            return None, "the GPU computes a wrong result"
    except Exception as error:  # no compiler or headers: errors of several libraries
        return None, f"there is a GPU, but it does not compute ({type(error).__name__}: {error})"
    return cupy, None


def check_device(name: str) -> str:
    """Return `name` ("cpu", "cuda", "cuda:1") if arrays can live there; raise ValueError or RuntimeError otherwise."""
    if name == "cpu":
        return name
    kind, colon, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device is {name!r}; it must be 'cpu', 'cuda', or a GPU by its number, as in 'cuda:1'")
    cupy, reason = gpu()
    if reason:
        raise RuntimeError(f"device {name!r} is not usable: {reason}")
    count = cupy.cuda.runtime.getDeviceCount()
    if int(number or 0) >= count:
        raise RuntimeError(f"device {name!r} is not usable: there are {count}, numbered from 0")
    return name


def set_default_device(name: str) -> None:
    """Make `name` the device of tensors created without one."""
    global _default_device
    _default_device = check_device(name)
    if name != "cpu":
        _make_current(_number_of(name))


def default_device() -> str:
    """The device of tensors created without one."""
    return _default_device


def device_of(array: Array) -> str:
    """Where an array lives: "cpu", "cuda:0", "cuda:1"."""
    return f"cuda:{array.device.id}" if is_on_gpu(array) else "cpu"


def is_on_gpu(array: Array) -> bool:
    """Whether an array is one of CuPy."""
    return type(array) is not np.ndarray and type(array).__module__.partition(".")[0] == "cupy"


def as_array(data: Any, dtype: Any = None, device: str | None = None) -> Array:
    """Copy `data` into a new array on `device`; Python floats become float32, arrays keep their dtype."""
    device = check_device(device or _default_device)
    array = np.array(to_host(data), dtype=dtype)
    if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype"):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" and array.dtype.name not in FLOATING:
        raise TypeError(f"data has dtype {array.dtype}; a tensor holds real numbers, integers or booleans")
    return to_device(array, device)


def to_device(array: Array, device: str) -> Array:
    """`array` on `device`; itself if it is there."""
    if device == "cpu":
        return to_host(array)
    global gpu_in_use
    gpu_in_use = True
    number = _number_of(device)
    if is_on_gpu(array) and array.device.id == number:
        return array
    cupy, _ = gpu()
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def _number_of(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2] or 0)


def _make_current(number: int) -> None:
    """Have results, and what is made without an example, be on this GPU."""
    cuda = gpu()[0].cuda
    if cuda.runtime.getDevice() != number:
        cuda.Device(number).use()


def work_beside(arrays: Iterable[Any]) -> None:
    """Make the GPU current on which the first of these arrays is that is on one."""
    neighbour = next((x for x in arrays if is_on_gpu(x)), None) if gpu_in_use else None
    if neighbour is not None:
        _make_current(neighbour.device.id)


def is_capturing() -> bool:
    """Whether the current stream of the GPU records a graph instead of computing."""
    if not gpu_in_use:
        return False
    return bool(gpu()[0].cuda.get_current_stream().is_capturing())


def to_host(array: Array) -> np.ndarray:
    """`array` in the host's memory; itself if it is there."""
    return array.get() if is_on_gpu(array) else array


def like(array: Array, neighbour: Array) -> Array:
    """A constant, such as a mask, where `neighbour` lives."""
    return to_device(array, device_of(neighbour)) if is_on_gpu(neighbour) else array


def on_one_device(name: str, arrays: list[Any], params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of an operation where its inputs live: numbers, masks, ids and indices go there.

    Raises ValueError where the inputs live on different devices.
    """
    inputs = [x for x in arrays if getattr(x, "ndim", 0) or is_on_gpu(x)]
    neighbour = next((x for x in inputs if is_on_gpu(x)), None)
    if neighbour is None:
        return arrays, params
    devices = [device_of(x) for x in inputs]
    if len(set(devices)) > 1:
        raise ValueError(
            f"{name}: its inputs are on {', '.join(devices)}; bring them to one device, as with .to({devices[0]!r})"
        )
    _make_current(neighbour.device.id)
    moved = [like(x, neighbour) if isinstance(x, np.ndarray) else x for x in arrays]
    return moved, {key: _constants_like(value, neighbour) for key, value in params.items()}


def _constants_like(value: Any, neighbour: Array) -> Any:
    if isinstance(value, tuple):
        return tuple(_constants_like(v, neighbour) for v in value)
    return like(value, neighbour) if isinstance(value, np.ndarray) else value


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed arrays for the next ones, in this process.

    Otherwise every large array comes as fresh pages from the system, and a training step of a small model spends a
    third of its time on them. Called with the first fused kernel that is loaded. Only glibc is told; elsewhere nothing
    happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(mmap_max, 0)  # large arrays too come from the heap
        mallopt(trim_threshold, 2**31 - 1)


def limit_threads() -> None:
    """Hold the libraries under NumPy to as many threads as TINYVIT_THREADS allows the kernels, where it is set."""
    wanted = os.environ.get("TINYVIT_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(int(wanted))


def is_floating(array: Array) -> bool:
    kind = array.dtype.kind
    return kind == "f" or (kind == "V" and array.dtype.name == "bfloat16")


# Namespaces ---------------------------------------------------------------------------------------------------------


class Namespace:
    """The array functions that forward and backward rules may call, under NumPy's names and arguments.

    A name is looked up among the extras first (softmax, index_add, im2col: what NumPy lacks, added by
    `tinyvit.functional` with `extend`), then in the array library. A rule that only uses such names and operators runs
    on any array library, on tensors (the namespace is then `tinyvit.functional` itself), or under a narrator.
    """

    _extras: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        extra = self._extras.get(name)
        function = partial(extra, self) if extra else getattr(self._module, name)
        setattr(self, name, function)  # found once, kept
        return function

    @classmethod
    def extend(cls, name: str, function: Callable[..., Any]) -> None:
        """Add `function(xp, *arrays, **params)` to every namespace as `xp.name(*arrays, **params)`."""
        cls._extras[name] = function


NUMPY = Namespace(np)


@functools.cache
def _namespace_of_module(module: Any) -> Namespace:
    return Namespace(module)


def namespace_of(array: Array) -> Namespace:
    """The namespace that computes where `array` lives."""
    return _namespace_of_module(gpu()[0]) if is_on_gpu(array) else NUMPY


def erf_on_gpu(x: Array) -> Array:
    """The error function of a CuPy array."""
    from cupyx.scipy.special import erf

    return erf(x)


def matmul(xp: Namespace, x: Array, y: Array) -> Array:
    """Matrix product; a stack of matrices times one matrix becomes a single GEMM instead of one for each."""
    if is_on_gpu(x):
        return _matmul_on_gpu(x, y)
    if y.ndim == 2 and x.ndim > 2 and x.flags.c_contiguous:
        return (x.reshape(-1, x.shape[-1]) @ y).reshape(*x.shape[:-1], y.shape[-1])
    return x @ y


def allow_tf32(allowed: bool = True) -> None:
    """Let matrix products in float32 on a GPU round what they multiply to TF32, of 10 bits instead of 23.

    It is off at first. Tensor cores then serve float32 as well; sums stay float32.
    """
    from ..kernels.linear import cublaslt

    cublaslt.tf32_allowed = bool(allowed)


def _matmul_on_gpu(x: Array, y: Array) -> Array:
    from ..kernels.linear import cublaslt

    if x.ndim == 1:  # a row
        return _matmul_on_gpu(x[None], y)[..., 0, :]
    return cublaslt.matmul(x, y) if cublaslt.is_available() and is_floating(x) else x @ y


Namespace.extend("matmul", matmul)
Namespace.extend("stop_gradient", lambda xp, x: x)


# Random streams -----------------------------------------------------------------------------------------------------


class Generator:
    """A counter-based random stream: all of its state is a seed and the number of draws made so far.

    A draw's values depend on (seed, offset) only, never on what ran before, so a run that was interrupted and resumed
    with the same state goes on exactly as if nothing had happened.
    """

    def __init__(self, seed: int = 0, offset: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}; it must be in [0, 2**63)")
        self.seed, self.offset = int(seed), int(offset)
        self._on_device: tuple[Array, int] | None = None

    def draw(self) -> tuple[int, int]:
        """Use up one draw: the (seed, offset) that identifies it.

        Within `on_device`, the seed is an array that holds both seed and offset, and offset what to add to that.
        """
        offset = self.offset
        self.offset += 1
        if self._on_device is not None:
            array, start = self._on_device
            return array, offset - start
        return self.seed, offset

    @contextmanager
    def on_device(self, array: Array) -> Iterator[None]:
        """Within this block, have kernels read the stream from `array` (2,) on a GPU when they run."""
        self._on_device = array, self.offset
        try:
            yield
        finally:
            self._on_device = None

    def numpy(self) -> np.random.Generator:
        """A NumPy generator that serves one draw (initial weights, sampling)."""
        seed, offset = self.draw()
        return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, offset]))

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.offset = int(state["seed"]), int(state["offset"])


default_generator = Generator()


def manual_seed(seed: int) -> None:
    """Restart the default random stream (initial weights, dropout) from `seed`."""
    default_generator.load_state_dict(Generator(seed).state_dict())
