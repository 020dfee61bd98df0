"""Compile the Numba kernels: the flags, the cache, and the line that says which kernel is being compiled.

Sums may be reordered and products fused into them, because vector units gain from that; but NaN, infinities and signs
keep their meaning. Compiled code is kept in `cache_folder()`. Where that folder cannot be written, each process
compiles anew. The first kernel of a training step that has to be compiled starts a helper process (`claims`).
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config, event
from numba.core.caching import FunctionCache

from ..cache import cache_folder
from . import claims, processor
from .inlining import InlinedCompiler

processor.target()  # sets the processor that Numba compiles for, so it must come before the first compilation

_PACKAGE = __package__.rpartition(".")[0]
_FLAGS = {"error_model": "numpy", "nogil": True}
_INLINED = {
    "forceinline": True,
    "pipeline_class": InlinedCompiler,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
_REORDERED = {"reassoc", "nsz", "contract", "arcp"}


def body(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls: a chunk of a kernel, or a part of one."""
    return numba.njit(fastmath=_REORDERED, **_INLINED, **_FLAGS)(function)


def exact(function: Callable[..., Any]) -> Any:
    """Compile a `body` whose operations are done in the order in which they are written.

    Without flags of its own, a function is compiled with those of its first caller.
    """
    return numba.njit(fastmath={"contract"}, **_INLINED, **_FLAGS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls. If it belongs to this package, keep the compiled code in the cache.

    (For other functions the cache would not notice an edit of code that they call in another file.)
    """
    return _compiled(function, None)


def _compiled(function: Callable[..., Any], signature: str | None) -> Any:
    """Compile `function` for one signature now, or for whatever types it is called with."""
    _announce_compilations()
    if config.DISABLE_JIT:
        return function
    compiled = numba.njit(fastmath=_REORDERED, no_cfunc_wrapper=True, **_FLAGS)(function)
    if _is_ours(function) and _can_keep():
        before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
        compiled._cache = _Cache(function)
        config.CACHE_DIR = before
    if signature is not None:
        compiled.compile(signature)
        compiled.disable_compile()
    return compiled


class _Cache(FunctionCache):
    """Numba's cache of compiled code, which also survives damaged files and a full disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._kernel = ".".join(_names(function))

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        found = self._load(signature, target_context)
        if found is None and not claims.claim(self._kernel):
            claims.wait_for(self._kernel)
            found = self._load(signature, target_context)
        return found

    def _load(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # unpickling half a file can raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)
        with contextlib.suppress(OSError):
            claims.release(self._kernel)


@functools.cache
def _can_keep() -> bool:
    """Whether the cache folder can be written. (Numba would write beside the sources otherwise, and miss edits.)"""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            return True
    except OSError:
        return False


class entries(dict):
    """A decorator for functions that Python calls with arrays of any strides: `f[dtype]` is the one for a dtype.

    The signature is written in Numba's notation, with {0} for the dtype of elements and {1} for the dtype they are
    computed in: "void({0}[:,:], intp)". The two differ for bfloat16, whose bits are passed as uint16. Without a
    signature, Numba would compile the function again for every combination of memory layouts.
    """

    def __init__(self, signature: str) -> None:
        super().__init__()
        self._signature = signature

    def __call__(self, function: Callable[..., Any]) -> "entries":
        self._function = function
        return self

    def __missing__(self, dtype: Any) -> Any:
        names = ("uint16", "float32") if dtype.name == "bfloat16" else (dtype.name, dtype.name)
        self[dtype] = _compiled(self._function, self._signature.format(*names))
        return self[dtype]


_ANNOUNCING = "TINYVIT_ANNOUNCE"  # the environment variable; 0: no lines

# The kernels whose dtype is that of the matrix products of a training step. Under autocast the first product comes
# after a cast to its dtype; what is compiled before it (patches, embeddings, dropout) computes in float32 either way.
_TELLING = ("linear", "attention", "conv2d", "cast")
_DTYPES = {"uint16": "bfloat16", "float64": "float64", "float32": "float32"}  # by element type, the first that occurs


class _Announcer(event.Listener):
    """Prints on stderr which kernel is being compiled, and starts the helper process."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if self._depth == 0 and _is_ours(function):
            folder, name = _names(function)
            if os.environ.get(_ANNOUNCING) != "0":
                line = f"tinyvit: compiling the kernel {folder}: {name}, once on this machine"
                print(line, file=sys.stderr, flush=True)
            if folder in _TELLING:
                met = {str(getattr(argument, "dtype", None)) for argument in event.data["args"]}
                claims.start_helper(next(_DTYPES[kind] for kind in _DTYPES if kind in met), f"{folder}.{name}")
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


@functools.cache
def _announce_compilations() -> None:
    event.register("numba:compile", _Announcer())


def _is_ours(function: Any) -> bool:
    """Whether a function belongs to this package."""
    return (function.__module__ or "").startswith(f"{_PACKAGE}.")


def _names(function: Any) -> tuple[str, str]:
    """Return the name of a kernel's folder, or of a file of kernels/cpu, and that of its entry."""
    path = function.__module__.removeprefix(f"{_PACKAGE}.").removeprefix("cpu.")
    return path.split(".")[0], function.__name__
