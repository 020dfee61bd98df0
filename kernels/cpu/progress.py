"""How far the compilation of kernels has come: how many of those of a training step are compiled, and the time left.

A display of a training run follows the compilation with `followed`. The kernels that a run needs are known only when
it calls them, so the table below says which ones most runs call; those that are in the cache already do not count.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from .. import cache

# The kernels of the first training step of a ViT, "FOLDER: ENTRY", and the seconds of processor time that each took to
# compile on an AMD EPYC (Zen 4). Only their shares matter: the speed of this machine is measured as it compiles.
SECONDS = {
    "conv2d: _forward_2": 1.4,
    "patches: _move_2": 0.6,
    "linear: _forward_2": 1.6,
    "layer_norm: _forward_2": 0.7,
    "attention: _forward_2": 4.0,
    "gelu: _forward_1": 0.6,
    "cross_entropy: _forward_2": 0.7,
    "cross_entropy: _backward_2": 0.9,
    "linear: _backward_2": 3.6,
    "layer_norm: _backward_2": 1.4,
    "gelu: _backward_1": 0.5,
    "attention: _backward_2": 4.8,
    "conv2d: _backward_2": 1.9,
    "clip: _clip_1": 0.7,
    "adamw: _step_2": 0.8,
}
# Folders whose kernels only some models or optimizers call. They count from their first call on: that of conv2d comes
# at the start of a step, and adamw is the last of all, so that a count without it is wrong by one kernel.
_ONLY_IF_MET = ("conv2d", "adamw")
_FIRST = 2.0  # seconds after which the speed that was measured counts as much as that of the table

_show: Callable[[str], None] | None = None
_began: float | None = None  # when the first kernel of this block began to be compiled
_finished: dict[str, bool] = {}  # the kernels that this process has begun to compile
_known: frozenset[str] = frozenset()  # those that were in the cache before


@contextlib.contextmanager
def followed(show: Callable[[str], None]) -> Iterator[None]:
    """Within this block, call `show(state())` whenever this process begins to compile a kernel."""
    global _show, _began, _known
    before, _show, _began = _show, show, None
    _finished.clear()
    try:
        yield
    finally:
        _show = before


def how_often() -> str:
    """Return how often a kernel is compiled, as the end of a sentence."""
    lost = f"in each process, because {cache.cache_folder()} cannot be written"
    return "once on this machine" if cache.can_keep() else lost


def begin(kernel: str) -> bool:
    """Note that this process begins to compile a kernel; return whether a display follows and was shown it."""
    global _began, _known
    if _show is None:
        return False
    if _began is None:
        _began, _known = time.monotonic(), frozenset(filter(_is_kept, SECONDS))
    _finished[kernel] = False
    _show(state())
    return True


def end(kernel: str) -> None:
    """Note that a kernel has been compiled."""
    if kernel in _finished:
        _finished[kernel] = True


def state() -> str:
    """Return in words how far the compilation has come; empty if nothing has been compiled since it is followed."""
    if _began is None:
        return ""
    met = dict(_finished)
    wanted = [name for name in SECONDS if name not in _known and (_is_needed(name, met) or name in met)]
    done = [name for name in wanted if met.get(name) or _is_kept(name)]
    others = [name for name in met if name not in wanted]
    number = len(done) + len(others)
    if not all(met.values()):
        number += sum(name in met for name in wanted if name not in done)
    total = len(wanted) + len(others)
    what = "compiling kernels"
    if len(done) == len(wanted):
        return f"{what}: {max(1, number)} so far"
    spent, rest = (sum(SECONDS[name] for name in names) for names in (done, set(wanted) - set(done)))
    speed = (spent + _FIRST) / (time.monotonic() - _began + _FIRST)
    return f"{what}: {number} of about {total}, about {_rounded(rest / speed)} s left"


def _is_needed(name: str, met: dict[str, bool]) -> bool:
    folder = name.partition(":")[0]
    return folder not in _ONLY_IF_MET or any(other.startswith(f"{folder}:") for other in met)


def _is_kept(kernel: str) -> bool:
    """Return whether the cache has code of a kernel, which this process or its helper has compiled."""
    folder, _, entry = kernel.partition(": ")
    return cache.can_read() and any(cache.cache_folder().glob(f"{folder}_*/*.{entry}-*.nbc"))


def _rounded(seconds: float) -> int:
    """Return whole seconds, at least 1; from 15 on, a multiple of 5."""
    return max(1, round(seconds)) if seconds < 15 else 5 * round(seconds / 5)
