"""Which linear maps are left to OpenBLAS: those for which it was measured to be faster than the tiles on this machine.

`tinyvit info --tune` measures the shapes of a recipe (`tinyvit/run/tune.py`) and keeps the result here, in a file
beside the compiled kernels. Nothing is measured otherwise, because two measurements on a busy machine can end
differently, and tiles and OpenBLAS round differently: a choice made at first use would make the bits of a run depend on
what else the machine was doing. Without a file all products are made by tiles.

A file holds for one processor, one level of its instructions, one number of threads, and one version of NumPy and of
its BLAS; its checksum is verified. A process reads it once. A run writes the shapes into its checkpoint, and a resumed
run takes those (`products_as` of `tinyvit.dispatch`), so its implementation never changes.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..cache import cache_folder as _folder
from ..cache import can_keep, read, write

Shape = tuple[int, int, int]  # R rows of x, K columns of x, N columns of y
MARGIN = 1.05  # how many times as fast OpenBLAS must be before it is chosen: less is within the noise


class Timing(NamedTuple):
    """The median seconds of a linear map, forward and backward, and the median ratio of both in the same round."""

    shape: Shape
    tiles: float
    blas: float
    ratio: float  # above 1: OpenBLAS is faster

    @property
    def prefers_blas(self) -> bool:
        return self.ratio >= MARGIN


_replacement: Collection[Shape] | None = None  # what `replace` was given


def chosen() -> Collection[Shape]:
    """Return the shapes (R, K, N) whose products are left to OpenBLAS."""
    if _replacement is not None:
        return _replacement
    return chosen_in_file()


@cache
def chosen_in_file() -> frozenset[Shape]:
    return frozenset(timing.shape for timing in kept() if timing.prefers_blas)


def replace(shapes: Collection[Shape] | None) -> Collection[Shape] | None:
    """Take these shapes instead of those in the file, or with None the file's; return what was taken before."""
    global _replacement
    before, _replacement = _replacement, shapes
    return before


def loses(inputs: Mapping[str, Any]) -> str | None:
    """Return the reason why OpenBLAS is to make the products of these inputs of a linear map, or None."""
    shapes, x = chosen(), inputs.get("x")
    if not shapes or x is None or x.dtype != np.float32:
        return None
    n, k = inputs["weight"].shape
    is_chosen = (x.size // max(k, 1), k, n) in shapes
    return "OpenBLAS was measured to be faster for this shape" if is_chosen else None


# The file -----------------------------------------------------------------------------------------------------------


def about() -> dict[str, str]:
    """Return what a measurement holds for."""
    from ..cpu import processor, threads  # they need Numba

    cpu, features = processor.target()
    blas: Any = {}
    with contextlib.suppress(Exception):  # how NumPy says it is no part of its public interface
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": cpu,
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
        "level": processor.level(),
        "threads": str(threads.thread_count()),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
    }


def _file() -> Path:
    key = json.dumps(about(), sort_keys=True)
    return _folder() / f"products-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


@cache
def kept() -> tuple[Timing, ...]:
    """Return the timings in the file: none if it is missing, damaged, or could have been written by another user."""
    try:
        content = read(_file())
    except ImportError:  # without Numba there are no tiles to choose
        return ()
    if content is None:
        return ()
    try:
        found = json.loads(content)
        return tuple(Timing((int(r), int(k), int(n)), *map(float, times)) for (r, k, n), *times in found)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return ()


def check_folder() -> None:
    """Raise OSError if nothing can be kept."""
    if not can_keep():
        raise OSError(f"{str(_folder())!r} cannot be written; NUMBA_CACHE_DIR can name another folder")


def keep(timings: Iterable[Timing]) -> Path:
    """Write timings to the file, beside those of other shapes; raises OSError if that fails."""
    check_folder()
    kept.cache_clear()  # another process may have written since
    every = {timing.shape: timing for timing in (*kept(), *timings)}
    try:
        write(_file(), json.dumps([every[shape] for shape in sorted(every)]).encode())
    except OSError as error:
        raise OSError(f"{str(_file())!r} cannot be written ({error.strerror or error})") from error
    kept.cache_clear()
    chosen_in_file.cache_clear()
    return _file()
