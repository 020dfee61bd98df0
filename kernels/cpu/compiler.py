"""Compile the Numba kernels: the flags, the cache, and the line that says which kernel is being compiled.

Sums may be reordered and products fused into them, because vector units gain from that; but NaN, infinities and signs
keep their meaning. Compiled code is kept in `cache_folder()`. If that folder cannot be written, the code that it holds
is still read, and each process compiles the rest anew. The first kernel of a training step that has to be compiled
starts a helper process (`claims`).
"""

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

from .. import cache
from ..interrupts import uninterrupted
from . import claims, processor, progress
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


def is_compiling() -> bool:
    """Return whether kernels are compiled at all, which NUMBA_DISABLE_JIT prevents."""
    return not config.DISABLE_JIT


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
    compiled.compile = uninterrupted(compiled.compile)
    is_file = os.path.exists(function.__code__.co_filename)  # Numba cannot find the source of code in an archive
    if _is_ours(function) and is_file and cache.can_read():
        with _folder_of_numba(str(cache.cache_folder())):
            compiled._cache = _Cache(function)
    if signature is not None:
        compiled.compile(signature)
        compiled.disable_compile()
    return Entry(compiled)


class Entry:
    """A compiled function as Python calls it, whose calls can be watched.

    `compiled` is Numba's own object, which keeps the code for each combination of types.
    """

    __slots__ = ("compiled",)

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def __call__(self, *arguments: Any) -> Any:
        returned = self.compiled(*arguments)
        if _watchers:
            note(self.compiled, arguments)
        return returned


_watchers: dict[int, Callable[..., None]] = {}  # by thread: what is called after its calls


def note(function: Any, arguments: tuple[Any, ...]) -> None:
    """Report a call to this thread's watcher.

    `function` is a compiled entry, or a function of NumPy that writes to its first argument.
    """
    after_call = _watchers.get(threading.get_ident())
    if after_call is not None:
        after_call(function, arguments)


def is_watched() -> bool:
    """Return whether any thread is watched."""
    return bool(_watchers)


@contextlib.contextmanager
def watched(after_call: Callable[..., None]) -> Iterator[None]:
    """Within this block, call `after_call(compiled, arguments)` after each call of an entry by this thread."""
    thread = threading.get_ident()
    before = _watchers.get(thread)
    _watchers[thread] = after_call
    try:
        yield
    finally:
        del _watchers[thread]
        if before is not None:
            _watchers[thread] = before


@contextlib.contextmanager
def _folder_of_numba(folder: str) -> Iterator[None]:
    """Have Numba look for compiled code in `folder` and nowhere else, whatever the user's settings of Numba are."""
    wanted = {"CACHE_DIR": folder, "CACHE_LOCATOR_CLASSES": ""}
    before = {name: getattr(config, name) for name in wanted if hasattr(config, name)}
    for name in before:
        setattr(config, name, wanted[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


class _Locator(UserProvidedCacheLocator):
    """Locates compiled code in the cache folder, which may be read-only."""

    def ensure_cache_path(self) -> None:
        """Do nothing: `cache.write` makes the folder."""


class _Places(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    """Numba's cache of compiled code with verified files, which also survives a full disk."""

    _impl_class = _Places

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = _Files(locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp())
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
        except Exception:  # what an equal version of Numba wrote in other surroundings can raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)
        with contextlib.suppress(OSError):
            claims.release(self._kernel)


class _Files(IndexDataCacheFile):
    """The index of a kernel and the files of its compiled code, whose checksums are verified before they are unpickled.

    A file is named after the signature that it is for. Numba would number the files, and processes that write at the
    same time could exchange them.
    """

    def save(self, key: Any, data: Any) -> None:
        name = self._data_name(hashlib.sha256(self._dump(key)).hexdigest()[:16])
        self._save_index(self._load_index() | {key: name})
        self._save_data(name, data)

    def _data_name(self, number: Any) -> str:
        return f"{self._index_name.removesuffix('.nbi')}.{number}.nbc"

    def _load_index(self) -> dict[Any, str]:
        found = self._read(self._index_name)
        version, stamp, overloads = found or (None, None, {})
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._save_data(self._index_name, (self._version, self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return self._read(name)

    def _save_data(self, name: str, data: Any) -> None:
        cache.write(Path(self._data_path(name)), self._dump(data))

    def _read(self, name: str) -> Any:
        content = cache.read(Path(self._data_path(name)))
        return None if content is None else pickle.loads(content)


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
_SETTING_DTYPE = ("linear", "attention", "conv2d", "cast")
_DTYPES = {"uint16": "bfloat16", "float64": "float64", "float32": "float32"}  # by element type, the first that occurs


class _Announcer(event.Listener):
    """Says which kernel is being compiled, on stderr unless a display follows, and starts the helper process."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if self._depth == 0 and _is_ours(function):
            folder, name = _names(function)
            if os.environ.get(_ANNOUNCING) != "0" and not progress.begin(f"{folder}: {name}"):
                line = f"tinyvit: compiling the kernel {folder}: {name}, {progress.how_often()}"
                print(line, file=sys.stderr, flush=True)
            if folder in _SETTING_DTYPE:
                met = {str(getattr(argument, "dtype", None)) for argument in event.data["args"]}
                claims.start_helper(next(_DTYPES[kind] for kind in _DTYPES if kind in met), f"{folder}.{name}")
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            progress.end(": ".join(_names(event.data["dispatcher"].py_func)))


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
