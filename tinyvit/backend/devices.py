"""Devices: which there are, where an array lives, and how it is moved."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import context

Array = Any  # np.ndarray, or cupy.ndarray

gpu_in_use = False  # whether any array was ever moved to a GPU: until then no operation has to ask where its inputs are


@functools.cache
def gpu() -> tuple[Any, str | None]:
    """Return CuPy and None where a GPU works, else None and the reason. The answer is kept; this never raises."""
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


def can_capture_products() -> bool:
    """Whether matrix products can be part of a CUDA graph: those of cuBLASLt can, CuPy's own cannot."""
    from ..kernels.linear import lt

    return lt.why_not() is None


def shortcomings(precision: str = "float32") -> list[str]:
    """Return what is lost on the current GPU, for runs in this precision, with the reasons and how to get it."""
    from ..kernels.cuda.compiler import ARCHITECTURES
    from ..kernels.cuda.device import current_device
    from ..kernels.linear import lt

    install, device, found = "install tinyvit with its extra cuda12 or cuda13", current_device(), []
    if reason := lt.why_not():
        found.append(f"matrix products in float32 only, and no CUDA graphs of steps, because {reason}; {install}")
    if reason := device.why_not():
        found.append(f"none of the CUDA kernels, because {reason}")
        found[-1] += f"; {install}" if device.arch >= ARCHITECTURES[0] else ""
    elif precision == "bfloat16" and device.arch < 80:
        has = device.arch / 10
        found.append(f"bfloat16 computed in float32, because the device has compute capability {has}; use float16")
    return found


def check_device(name: str) -> str:
    """Return `name` ("cpu", "cuda", "cuda:1") if arrays can live there; raise ValueError or RuntimeError otherwise."""
    if isinstance(name, str) and name == "cpu":
        return name
    kind, colon, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device is {name!r}; it must be 'cpu', 'cuda', or a GPU by its number, as in 'cuda:1'")
    cupy, reason = gpu()
    if reason:
        raise RuntimeError(f"device {name!r} is not usable: {reason}")
    count = cupy.cuda.runtime.getDeviceCount()
    if int(number or 0) >= count:
        raise RuntimeError(f"device {name!r} is not usable: the GPUs here have the numbers 0 to {count - 1}")
    return name


def set_default_device(name: str) -> None:
    """Make `name` the device of tensors created without one, in this thread and in threads that start later."""
    context.set_default(device=check_device(name))
    if name != "cpu":
        _select_gpu(_number_of(name))


def default_device() -> str:
    """Return the device of tensors created without one."""
    return context.now().device


def device_of(array: Array) -> str:
    """Return where an array lives: "cpu", "cuda:0", "cuda:1"."""
    return f"cuda:{array.device.id}" if is_on_gpu(array) else "cpu"


def is_on_gpu(array: Array) -> bool:
    """Return whether an array is one of CuPy."""
    return type(array) is not np.ndarray and type(array).__module__.partition(".")[0] == "cupy"


def is_stand_in(array: Array) -> bool:
    """Return whether this stands for an array of a model that is being frozen (`tinyvit.program`): it has no values."""
    return hasattr(type(array), "check_later")


def to_device(array: Array, device: str) -> Array:
    """Return `array` on `device`; the same array if it is there."""
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


def to_host(array: Array) -> np.ndarray:
    """Return `array` in the host's memory; the same array if it is there."""
    return array.get() if is_on_gpu(array) else array


def to_device_of(array: Array, other: Array) -> Array:
    """Return `array`, a constant such as a mask, on the device of `other`."""
    return to_device(array, device_of(other)) if is_on_gpu(other) else array


def address_of(array: Array | None) -> int:
    """Return the address of the first element of an array on a GPU; 0 for None."""
    return 0 if array is None else int(array.data.ptr)


def _number_of(device: str) -> int:
    """Return 1 for "cuda:1", 0 for "cuda"."""
    return int(device.partition(":")[2] or 0)


def _select_gpu(number: int) -> None:
    """Select this GPU for new arrays."""
    cuda = gpu()[0].cuda
    if cuda.runtime.getDevice() != number:
        cuda.Device(number).use()


def select_gpu_of(arrays: Iterable[Any]) -> None:
    """Select the GPU that holds the first GPU array among these, if any, for new arrays."""
    first = next((x for x in arrays if is_on_gpu(x)), None) if gpu_in_use else None
    if first is not None:
        _select_gpu(first.device.id)


def is_capturing() -> bool:
    """Return whether the current stream of the GPU records a graph instead of computing."""
    if not gpu_in_use:
        return False
    return bool(gpu()[0].cuda.get_current_stream().is_capturing())


def on_one_device(name: str, arrays: list[Any], params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Move the constants among an operation's arguments (numbers, masks, ids, indices) to the GPU of its inputs.

    Raises ValueError where the inputs live on different devices.
    """
    inputs = [x for x in arrays if getattr(x, "ndim", 0) or is_on_gpu(x)]
    first = next((x for x in inputs if is_on_gpu(x)), None)
    if first is None:
        return arrays, params
    devices = [device_of(x) for x in inputs]
    if len(set(devices)) > 1:
        raise ValueError(
            f"{name}: its inputs are on {', '.join(devices)}; move them to one device, as with .to({devices[0]!r})"
        )
    _select_gpu(first.device.id)
    moved = [to_device_of(x, first) if isinstance(x, np.ndarray) else x for x in arrays]
    return moved, {key: _constants_on_device_of(value, first) for key, value in params.items()}


def _constants_on_device_of(value: Any, other: Array) -> Any:
    if isinstance(value, tuple):
        return tuple(_constants_on_device_of(v, other) for v in value)
    return to_device_of(value, other) if isinstance(value, np.ndarray) else value
