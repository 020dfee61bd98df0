"""Run every kernel on arrays next to a memory page without access rights: `python fenced.py before|after|beyond`.

If a kernel reads or writes outside an array, the system ends this process. The fence is before the first element of
each array, or after the last; "beyond" touches it on purpose. Inputs, gradients and what the launchers allocate are
fenced, but not the scratch memory of compiled code.
"""

import ctypes
import mmap
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from draws import Array, on_drawn
from hypothesis import settings
from hypothesis import strategies as st
from test_kernels import DTYPES, drawn_trial

from tinyvit.engine import Op

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # PROT_NONE of sys/mman.h


def fenced(array: Array, side: str) -> Array:
    """Return a copy of `array` that ends where a page without access begins, or begins where one ends."""
    pages = -(-array.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = PAGE if side == "before" else (pages + 1) * PAGE - array.nbytes
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    closed = raw.ctypes.data + (0 if side == "before" else (pages + 1) * PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(closed), ctypes.c_size_t(PAGE), NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    return copy


class FencedNumpy:
    """NumPy, except that fresh memory is fenced."""

    def __init__(self, side: str) -> None:
        self._side = side

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *args: Any, **kwargs: Any) -> Array:
        return fenced(np.empty(*args, **kwargs), self._side)

    def empty_like(self, *args: Any, **kwargs: Any) -> Array:
        return fenced(np.empty_like(*args, **kwargs), self._side)


@on_drawn(10)
def run(op: type[Op], choice: str, dtype: str, side: str, data: st.DataObject) -> None:
    """Run a kernel forward and backward on fenced arrays."""
    trial = drawn_trial(data, op, dtype)
    inputs = tuple(x if x is None else fenced(x, side) for x in trial.case.inputs)
    upstream = [x if x is None else fenced(x, side) for x in trial.upstream]
    trial = replace(trial, case=replace(trial.case, inputs=inputs), upstream=upstream)
    trial.run(choice)  # compiles everything, so that no compilation gets fenced memory below
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("tinyvit.kernels.") and hasattr(module, "np"):
                stack.enter_context(mock.patch.object(module, "np", FencedNumpy(side)))
        trial.run(choice)


if __name__ == "__main__":
    if sys.argv[1] == "beyond":
        array = fenced(np.ones(3), "after")
        print(np.lib.stride_tricks.as_strided(array, (4,))[3])
    else:
        settings.register_profile("fenced", deadline=None, database=None)
        settings.load_profile("fenced")
        for _, op, version, dtype in DTYPES:
            print(op.name, version, dtype, flush=True)
            run(op=op, choice=f"numba:v{version}", dtype=dtype.name, side=sys.argv[1])
