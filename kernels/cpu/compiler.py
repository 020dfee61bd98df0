"""How the Numba kernels are compiled: the flags, the cache, and the line that says what is being compiled.

Sums may be reordered and products fused into them, for that is what vector units do; but NaN, infinities and signs
keep their meaning. What was compiled is kept in the user's cache folder, under a name that holds a hash of all kernel
sources: an upgrade or an edit never meets old code. Where that folder cannot be written, compiling is done anew in
each process. The first kernel that has to be compiled starts a second process that compiles others (`two_processes`),
unless TINYVIT_COMPILE_AHEAD is 0.
"""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event
from numba.core.caching import FunctionCache

from . import processor, two_processes
from .parts import PartCompiler

processor.target()  # says what Numba shall compile for, before it compiles anything

_PACKAGE = __package__.rpartition(".")[0]  # tinyvit.kernels
_FLAGS = {"error_model": "numpy", "nogil": True}
_PART = {"forceinline": True, "pipeline_class": PartCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_REORDERED = {"reassoc", "nsz", "contract", "arcp"}


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else tinyvit/kernels in the user's cache folder."""
    folder = Path(__file__).parents[1]
    sources = sorted(p for p in folder.rglob("*.py"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given) / f"tinyvit-{digest}"
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "tinyvit" / "kernels" / digest
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / digest


def kept_object(name: str, target: str, compile_it: Callable[[], bytes]) -> bytes:
    """The object code that `compile_it()` gives for a target, from the cache if it is there."""
    file = cache_folder() / f"{name}-{hashlib.sha256(target.encode()).hexdigest()[:16]}.o"
    with contextlib.suppress(OSError):
        digest, code = (kept := file.read_bytes())[:32], kept[32:]
        if hashlib.sha256(code).digest() == digest:  # else it was cut short, and would crash whoever runs it
            return code
    code = compile_it()
    with contextlib.suppress(OSError):  # no folder that can be written, or no space
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            try:
                part.write(hashlib.sha256(code).digest() + code)
                part.close()
                os.replace(part.name, file)
            except OSError:
                os.unlink(part.name)
    return code


def body(function: Callable[..., Any]) -> Any:
    """Compile a function that other compiled code calls: a chunk of a kernel, or a part of one."""
    return numba.njit(fastmath=_REORDERED, **_PART, **_FLAGS)(function)


def exact(function: Callable[..., Any]) -> Any:
    """Compile a function whose operations are done in the order written, inlined into its callers.

    Without saying so, Numba would compile it with the flags of the first caller.
    """
    return numba.njit(fastmath={"contract"}, **_PART, **_FLAGS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls; if it is one of this package, keep it in the cache.

    (Of others the cache would not see that a part of them, in another file, was edited.)
    """
    return _kept(function, ())


def _kept(function: Callable[..., Any], signature: tuple[str, ...]) -> Any:
    _announce_compilations()
    if config.DISABLE_JIT:
        return function
    compiled = numba.njit(fastmath=_REORDERED, no_cfunc_wrapper=True, **_FLAGS)(function)
    if (function.__module__ or "").startswith(f"{_PACKAGE}.") and _can_keep():
        before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
        compiled._cache = _Cache(function)
        config.CACHE_DIR = before
    for one in signature:
        compiled.compile(one)
        compiled.disable_compile()
    return compiled


class _Cache(FunctionCache):
    """Numba's cache of compiled code, for which a damaged file is as good as none, and a full disk no error."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._kernel = ".".join(_names(function))

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        found = self._load(signature, target_context)
        if found is None and not two_processes.begin(self._kernel):
            two_processes.wait_for(self._kernel)
            found = self._load(signature, target_context)
        return found

    def _load(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # whatever unpickling half a file raises
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)
        with contextlib.suppress(OSError):
            two_processes.end(self._kernel)


@functools.cache
def _can_keep() -> bool:
    """Whether the cache folder can be written. (Numba would else keep code beside the sources, and not see edits.)"""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            return True
    except OSError:
        return False


class entries(dict):
    """A decorator: compile a function for Python to call, for any strides of its arrays, `f[dtype]` for each dtype.

    The signature is given in Numba's notation with {0} for the type of elements and {1} for the one that they are
    computed in: "void({0}[:,:], intp)". They differ for bfloat16, whose bits are given as uint16. Without the signature
    every combination of memory layouts would be compiled anew.
    """

    def __init__(self, signature: str) -> None:
        super().__init__()
        self._signature = signature

    def __call__(self, function: Callable[..., Any]) -> "entries":
        self._function = function
        return self

    def __missing__(self, dtype: Any) -> Any:
        names = ("uint16", "float32") if dtype.name == "bfloat16" else (dtype.name, dtype.name)
        self[dtype] = _kept(self._function, (self._signature.format(*names),))
        return self[dtype]


class _Announcer(event.Listener):
    """Says on stderr which kernel is being compiled, and has a second process help."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if self._depth == 0 and (function.__module__ or "").startswith(f"{_PACKAGE}."):
            if os.environ.get(_ANNOUNCING) != "0":
                line = f"tinyvit: compiling the kernel {': '.join(_names(function))}, once on this machine"
                print(line, file=sys.stderr, flush=True)
            kinds = {str(getattr(kind, "dtype", None)) for kind in event.data["args"]}
            dtype = next((name for kind, name in _ELEMENTS.items() if kind in kinds), None)
            if dtype:
                two_processes.start(dtype, ".".join(_names(function)))
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


_ANNOUNCING = "TINYVIT_ANNOUNCE"  # 0: no lines


# What is computed with, by the types of elements that a kernel is compiled for, if the first kernel has some of them.
_ELEMENTS = {"uint16": "bfloat16", "float64": "float64", "float32": "float32"}


def _names(function: Any) -> tuple[str, str]:
    """The folder of a kernel, and the name of its entry."""
    folder = function.__module__.removeprefix(f"{_PACKAGE}.").removeprefix("cpu.").split(".")[0]
    return folder, function.__name__


@functools.cache
def _announce_compilations() -> None:
    event.register("numba:compile", _Announcer())
