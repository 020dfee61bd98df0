"""The moving average of all parameters in CUDA C++: its number of updates and its decay are on the device.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one block for each 8192 elements, which may be several small parameters or a part of a large one       |
"""

import ctypes
from collections.abc import Iterator

from ..cuda.device import Kernel, device_of, pointer

_SOURCE = "average/average.cu"
_CHUNK, _THREADS = 8192, 256
_SETTINGS = Kernel(_SOURCE, "average_settings<float>")
VERSIONS = {1: Kernel(_SOURCE, "average_1<float>")}


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for kernel in (_SETTINGS, *VERSIONS.values()):
        yield kernel, 64


def step(table, state, averages, *, version):
    """Update the averages and the state in place, all of it on the device.

    Parameters
    ----------
    table : (T, 3) int64, a row of `Averaged` (average.cu) for each parameter: its address, the element at which its
        average begins, its size.
    state : (3,) float64: the number of updates, the largest decay, and the decay of this update, which is written.
    averages : (E,) float32, one after the other.
    """
    device = device_of(averages)
    device.launch(_SETTINGS, (1,), 1, [pointer(state)])
    arguments = [pointer(table), ctypes.c_int(table.shape[0]), pointer(state), pointer(averages)]
    device.launch(VERSIONS[version], (-(-averages.size // _CHUNK),), _THREADS, arguments)
    return ()
