"""How the Numba kernels are compiled: the flags, the cache, and the line that says what is being compiled.

Sums may be reordered and products fused into them, for that is what vector units do; but NaN, infinities and signs
keep their meaning. What was compiled is kept in the user's cache folder, under a name that holds a hash of all kernel
sources: an upgrade or an edit never meets old code. Where that folder cannot be written, compiling is done anew in
each process.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event

_FLAGS = {"error_model": "numpy", "nogil": True}
_REORDERED = {"reassoc", "nsz", "contract", "arcp"}


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else tinyvit/kernels in the user's cache folder."""
    folder = Path(__file__).parent
    sources = sorted(p for p in folder.rglob("*.py"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given) / f"tinyvit-{digest}"
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "tinyvit" / "kernels" / digest


def body(function: Callable[..., Any]) -> Any:
    """Compile a function that other compiled code calls: a chunk of a kernel, or a part of one."""
    return numba.njit(fastmath=_REORDERED, **_FLAGS)(function)


def exact(function: Callable[..., Any]) -> Any:
    """Compile a function whose operations are done in the order written, inlined into its callers.

    Without saying so, Numba would compile it with the flags of the first caller.
    """
    return numba.njit(forceinline=True, fastmath=False, **_FLAGS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it in the cache."""
    return _kept(function, ())


def _kept(function: Callable[..., Any], signature: tuple[str, ...]) -> Any:
    _announce_compilations()
    if config.DISABLE_JIT:
        return function
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return numba.njit(*signature, cache=True, fastmath=_REORDERED, **_FLAGS)(function)
    except RuntimeError:  # no folder that can be written
        return numba.njit(*signature, fastmath=_REORDERED, **_FLAGS)(function)
    finally:
        config.CACHE_DIR = before


class entries(dict):
    """A decorator: compile a function for Python to call, for any strides of its arrays, `f[dtype]` for each dtype.

    The signature is given in Numba's notation with {0} for the floating type: "void({0}[:,:], intp)". Without it every
    combination of memory layouts would be compiled anew.
    """

    def __init__(self, signature: str) -> None:
        super().__init__()
        self._signature = signature

    def __call__(self, function: Callable[..., Any]) -> "entries":
        self._function = function
        return self

    def __missing__(self, dtype: Any) -> Any:
        self[dtype] = _kept(self._function, (self._signature.format(dtype.name),))
        return self[dtype]


class _Announcer(event.Listener):
    """Says on stderr that kernels are being compiled, once for each that Python calls."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if self._depth == 0 and function.__module__.startswith(__package__ + "."):
            print(f"tinyvit: compiling the kernel {_name(function)}, once on this machine", file=sys.stderr, flush=True)
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


def _name(function: Any) -> str:
    return f"{function.__module__.removeprefix(__package__ + '.').split('.')[0]}: {function.__name__}"


@functools.cache
def _announce_compilations() -> None:
    event.register("numba:compile", _Announcer())
