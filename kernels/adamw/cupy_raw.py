"""One step of Adam or AdamW for all parameters, in CUDA C++, with clipping, loss scale and step counter on the device.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one block for each parameter                                                                           |
| v2      | one block for each 8192 elements, which may be several small parameters or a part of a large one       |

`State` and the number of updates of each parameter change from step to step. They are in the device's memory, so that a
captured graph can be replayed. `State` holds the number of steps, the norm that gradients are clipped to, and for
float16 the scale of losses and hence of gradients. If the norm is not finite, the step is skipped and the scale halved;
after `growth` steps with finite norms the scale is doubled. (Micikevicius et al., Mixed precision training, 2018,
section 3.2.)
"""

import ctypes
from collections.abc import Iterator

import numpy as np

from ..cuda.device import Kernel, device_of, library_of, pointer

_SOURCE = "adamw/adamw.cu"
_CHUNK, _THREADS = 8192, 256
STATE = np.dtype(
    [(n, "f8") for n in ("step", "max_norm", "norm", "scale", "growth", "good", "skipped", "factor")]
)  # `State` of adamw.cu
GROUP = ("lr", "b1", "b2", "eps", "decay")  # the columns of `groups`
_SETTING_WORDS = 9  # floats of `Setting`


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for name in ("adamw_squares", "adamw_settings", "adamw_step_1", "adamw_step_2"):
        yield Kernel(_SOURCE, f"{name}<float>"), 128


def _blocks_1(parameters: int, elements: int) -> int:
    return parameters


def _blocks_2(parameters: int, elements: int) -> int:
    return -(-elements // _CHUNK)


VERSIONS = {1: _blocks_1, 2: _blocks_2}  # the number of blocks


def step(table, updates, groups, state, m, v, *, decoupled, version):
    """Change the parameters, their moments and the state in place, all of it on the device.

    Parameters
    ----------
    table : (T, 5) int64 on the device, a row of `Parameter` (adamw.cu) for each parameter: the address of the parameter
        and of its gradient, or 0 without one; the element at which its moments begin; its size; its group.
    updates : (T,) int64, how often each parameter was updated.
    groups : (G, 5) float64, with the columns `GROUP`.
    state : (8,) float64, with the fields of `STATE`.
    m, v : (E,) float32, the moments.
    decoupled : weight decay does not pass through the moments (AdamW).
    """
    xp, device = library_of(m), device_of(m)
    chunks = -(-m.size // _CHUNK)
    parts, settings = xp.empty(chunks, "float64"), xp.empty((table.shape[0], _SETTING_WORDS), "float32")
    count = ctypes.c_int(table.shape[0])
    arguments = [pointer(table), count, pointer(parts)]
    device.launch(Kernel(_SOURCE, "adamw_squares<float>"), (chunks,), _THREADS, arguments, 8 * _THREADS)
    arguments = [*map(pointer, (table, updates, state, groups, settings, parts)), ctypes.c_int(chunks), count]
    device.launch(Kernel(_SOURCE, "adamw_settings<float>"), (1,), _THREADS, [*arguments, ctypes.c_int(decoupled)])
    arguments = [pointer(table), count, *map(pointer, (state, settings, m, v))]
    kernel = Kernel(_SOURCE, f"adamw_step_{version}<float>")
    device.launch(kernel, (VERSIONS[version](table.shape[0], m.size),), _THREADS, arguments)
    return ()
