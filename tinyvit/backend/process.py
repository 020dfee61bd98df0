"""Settings of the process as a whole: how the C library keeps memory, how many threads NumPy's libraries use, and
variables of the environment that are wrong.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..kernels.cpu import quota
from ..kernels.interrupts import import_whole, require_threads_of_numba
from .terminal import note


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed arrays for the next ones, in this process.

    Otherwise every large array comes as fresh pages from the system, and a training step of a small model spends a
    third of its time on them. Dispatch calls this with the first fused kernel that it loads. Only glibc has these
    settings; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(mmap_max, 0)  # large arrays too come from the heap
        mallopt(trim_threshold, 2**31 - 1)


def limit_threads(processors: int, wanted: int | None = None) -> None:
    """Limit the libraries under NumPy to as many threads as the kernels have: those wanted, else `processors`.

    The libraries themselves know which processors this process may run on, but not how many it may keep busy.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors
    if wanted or processors < allowed:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(wanted or processors)


def product_threads() -> int:
    """Return how many threads NumPy's matrix products use, on which their last bits depend."""
    counts = [library["num_threads"] for library in _libraries().select(user_api="blas").info()]
    return max(counts, default=1)


def product_libraries() -> str:
    """Return the libraries that multiply matrices for NumPy: names, versions, and the processor each is made for."""
    found = _libraries().select(user_api="blas").info()
    parts = ("internal_api", "version", "architecture")
    return ", ".join(sorted({" ".join(str(library.get(part) or "") for part in parts) for library in found}))


@contextmanager
def products_in_one_thread() -> Iterator[None]:
    """Within this block, have NumPy's matrix products use one thread, so that their bits are the same everywhere."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


def end_if_environment_is_wrong(command: str) -> None:
    """End this process with one line and status 2 if a variable is wrong without which kernels cannot be imported.

    For the package of a command of `python -m`, whose modules import kernels, and would end in a traceback.
    """
    try:
        quota.wanted_threads()
        require_threads_of_numba()
        if os.environ.get("TINYVIT_CPU"):  # this alone needs Numba
            import_whole("tinyvit.kernels.cpu.processor").level()
    except ValueError as error:
        note(f"{command}: error: {error}")
        sys.exit(2)


@functools.cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController  # finds the libraries that are loaded, which takes milliseconds

    return ThreadpoolController()
