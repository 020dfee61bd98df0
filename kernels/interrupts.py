"""Keep Ctrl-C from leaving a library half imported, or a kernel half compiled.

Numba registers its types and functions while it is imported and while it compiles for the first time. Where that is
interrupted, part of them is missing from then on, and every kernel fails until the process is started again.
"""

import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def uninterrupted(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `function` with a Ctrl-C that arrives while it runs taking effect when it has ended.

    Python handles signals in the main thread only, so other threads run it as it is.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            return function(*args, **kwargs)
        arrived: list[tuple[int, FrameType | None]] = []
        signal.signal(signal.SIGINT, lambda *given: arrived.append(given))
        try:
            return function(*args, **kwargs)
        finally:
            signal.signal(signal.SIGINT, handler)
            for given in arrived:
                handler(*given)

    return wrapped


def import_whole(name: str) -> ModuleType:
    """Import a module; a Ctrl-C in the meantime takes effect when it has been imported.

    Raises ValueError if NUMBA_NUM_THREADS is less than 1: Numba cannot be imported then.
    """
    return (importlib.import_module if name in sys.modules else _import)(name)


@uninterrupted
def _import(name: str) -> ModuleType:
    require_threads_of_numba()
    return importlib.import_module(name)


def require_threads_of_numba() -> None:
    """Raise ValueError if NUMBA_NUM_THREADS is less than 1: Numba cannot be imported then."""
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    try:
        is_refused = int(threads) < 1
    except ValueError:  # Numba warns, and uses the number of processors
        is_refused = False
    if is_refused:
        raise ValueError(f"NUMBA_NUM_THREADS is {threads!r}; set it to 1 or more, or unset it")
