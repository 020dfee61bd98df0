"""The GPU that holds an array: its limits, and how a kernel is launched on it.

Launchers describe a launch with plain numbers and `ctypes` values, so that tests can emulate it: they put a device of
their own into `DEVICES`.
"""

import ctypes
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .compiler import ARCHITECTURES, CompilerMissing, compile_cubin, nvrtc_version

CTYPES = {"float32": "float", "float16": "half_t", "bfloat16": "bfloat_t"}  # names of the dtypes in our CUDA C++
FREE_SHARED = 48 * 1024  # bytes a block may have without setting an attribute of the kernel
GRID = (2**31 - 1, 65535, 65535)  # the most blocks of a grid in each of its dimensions, on every device
# The most rows, columns or heads: kernels count them by `int`, and a count may go past the end by as many as the warps
# of a grid that walks down the rows, which are fewer than 4096.
LARGEST = 2**31 - 4096


@dataclass(frozen=True)
class Kernel:
    """One kernel of a .cu file: a template with its arguments."""

    source: str
    expression: str


@dataclass
class Device:
    """A GPU.

    Attributes
    ----------
    number : as in "cuda:1".
    arch : compute capability times 10, like 90.
    shared : the most bytes of shared memory that a block may have.
    """

    number: int
    arch: int
    shared: int

    def launch(
        self, kernel: Kernel, grid: Sequence[int], threads: int, arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """Launch a kernel on the current stream.

        Parameters
        ----------
        grid : the number of blocks in up to three dimensions.
        threads : the number of threads of a block.
        arguments : `ctypes` values, in the order of the kernel's parameters.
        shared : bytes of dynamic shared memory.
        """
        self.check(kernel, shared)
        x, y, z = (*grid, 1, 1)[:3]
        if x * y * z == 0:
            return
        if x > GRID[0] or y > GRID[1] or z > GRID[2]:
            raise RuntimeError(
                f"{kernel.expression} needs a grid of {(x, y, z)} blocks, and CUDA allows {GRID} at most; "
                "split the batch, or use 'numpy'"
            )
        self._start(kernel, (x, y, z), threads, arguments, shared)

    def check(self, kernel: Kernel, shared: int) -> None:
        """Raise RuntimeError if the kernel needs more shared memory than a block may have."""
        if shared > self.shared:
            raise RuntimeError(
                f"{kernel.expression} needs {shared} bytes of shared memory, and device cuda:{self.number} "
                f"(sm_{self.arch}) has {self.shared} for a block; choose another version, or use 'numpy'"
            )

    def why_not(self) -> str | None:
        """Return the reason why none of our kernels can be made for this device, None if they can."""
        if self.arch < ARCHITECTURES[0]:
            lowest, own = ARCHITECTURES[0] / 10, self.arch / 10
            return f"the kernels need compute capability {lowest}, and the device has {own}"
        return _why_no_compiler()

    def _start(self, kernel: Kernel, grid: Any, threads: int, arguments: Sequence[Any], shared: int) -> None:
        from cupy.cuda import driver, get_current_stream

        function = _function(kernel, self.number, self.arch)
        if shared > _allowed.get(function, FREE_SHARED):
            _allow_shared(function, shared)
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = get_current_stream().ptr
        driver.launchKernel(function, *grid, threads, 1, 1, shared, stream, ctypes.addressof(pointers), 0)


DEVICES: dict[int, Device] = {}


def device_of(array: Any) -> Device:
    """Return the device that holds a CuPy array."""
    return _device(array.device.id)


def current_device() -> Device:
    """Return the device on which CuPy makes new arrays."""
    import cupy

    return _device(cupy.cuda.runtime.getDevice())


@contextmanager
def beside(array: Any) -> Iterator[None]:
    """Within this block, make new arrays and launch kernels on the GPU that holds a CuPy array."""
    import cupy

    with cupy.cuda.Device(array.device.id):
        yield


def _device(number: int) -> Device:
    if number not in DEVICES:
        import cupy

        device = cupy.cuda.Device(number)
        arch, shared = int(device.compute_capability), device.attributes["MaxSharedMemoryPerBlockOptin"]
        DEVICES[number] = Device(number, arch, shared)
    return DEVICES[number]


@functools.cache
def _why_no_compiler() -> str | None:
    try:
        nvrtc_version()
    except CompilerMissing as reason:
        return str(reason)
    return None


@functools.cache
def _function(kernel: Kernel, number: int, arch: int) -> int:
    """Compile and load a kernel on the current device, and return the driver's handle of it."""
    from cupy.cuda import driver

    cubin = compile_cubin(kernel.source, (kernel.expression,), arch)
    module = driver.moduleLoadData(cubin.code)  # it is never unloaded
    return driver.moduleGetFunction(module, cubin.names[kernel.expression])


_allowed: dict[int, int] = {}  # bytes of shared memory that blocks may have, by function


def _allow_shared(function: int, size: int) -> None:
    """Let blocks of a function have `size` bytes of shared memory, and no more: the limit counts all their memory."""
    from cupy.cuda import driver

    maximal_dynamic_shared_size = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.funcSetAttribute(function, maximal_dynamic_shared_size, size)
    _allowed[function] = size


# Arguments -----------------------------------------------------------------------------------------------------------


def library_of(array: Any) -> Any:
    """Return the module that makes arrays like this one, which is cupy except in tests."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def address(array: Any) -> int:
    """Return where an array begins; 0 for None."""
    return 0 if array is None else array.data.ptr


def pointer(array: Any) -> ctypes.c_void_p:
    """Return an array as an argument of a kernel; None becomes a null pointer."""
    return ctypes.c_void_p(address(array))


def dense(array: Any) -> Any:
    """Return `array` itself if it is contiguous, else a copy."""
    return array if array.flags.c_contiguous else library_of(array).ascontiguousarray(array)


def as_matrix(array: Any) -> Any:
    """Reshape `array` (..., C) to a matrix (R, C), if possible without a copy; R and C may be 0."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def rows_of(array: Any) -> Any:
    """Reshape `array` (..., C) to a dense matrix (R, C); raise RuntimeError if kernels cannot count R or C."""
    matrix = as_matrix(array)
    if max(matrix.shape) > LARGEST:
        raise RuntimeError(
            f"an array of shape {array.shape} has {matrix.shape[0]} rows of {matrix.shape[1]} columns, and kernels on "
            f"a GPU take at most {LARGEST} of each; split the batch, or use 'numpy'"
        )
    return dense(matrix)


def is_aligned(*arrays: Any, to: int = 16) -> bool:
    """Whether every row (along the last axis) of all these arrays begins and ends at a multiple of `to` bytes."""
    for array in arrays:
        if address(array) % to or any(s % to for s in array.strides[:-1]) or array.shape[-1] * array.itemsize % to:
            return False
    return True
