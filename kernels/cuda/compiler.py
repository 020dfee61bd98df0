"""Compile CUDA C++ to cubins with NVRTC, which needs neither a GPU nor a driver.

Continuous integration and the running program compile with the same function. Cubins are kept in the user's cache
folder, under a hash of everything that they depend on.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cache

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # compute capabilities, times 10
KERNELS = Path(__file__).resolve().parents[1]
_OPTIONS = ("--std=c++17", "--ptxas-options=-v", f"-I{KERNELS}")


class CompilerMissing(RuntimeError):
    """NVRTC cannot be loaded."""


class CompilationFailed(RuntimeError):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture.

    Attributes
    ----------
    code : the bytes of the file.
    names : the symbol of each expression, like "layer_norm_forward<float, 4>".
    log : the compiler's messages, with warnings and resources.
    """

    code: bytes
    names: dict[str, str]
    log: str


@dataclass(frozen=True)
class Resources:
    """The resources of a multiprocessor that one kernel uses."""

    symbol: str
    registers: int
    stack: int
    spills: int


def compile_cubin(source: str, expressions: Sequence[str], arch: int) -> Cubin:
    """Compile some kernels of a file, or take them from the cache.

    Parameters
    ----------
    source : path of the .cu file within kernels/, like "layer_norm/layer_norm.cu".
    expressions : the kernels to compile, templates with their arguments.
    arch : compute capability times 10, like 90.

    Raises
    ------
    CompilerMissing, CompilationFailed
    """
    text = (KERNELS / source).read_bytes()
    headers = b"".join(p.read_bytes() for p in sorted(KERNELS.rglob("*.cuh")))
    version = nvrtc_version()
    inputs = json.dumps([source, list(expressions), arch, version, _OPTIONS[:-1]]).encode()
    digest = hashlib.sha256(inputs + text + headers).hexdigest()[:32]
    folder = cache.cache_folder().parent / "cubins"
    kept = folder / f"{digest}.cubin", folder / f"{digest}.json"
    code, facts = map(cache.read, kept) if cache.can_read() else (None, None)
    if code is not None and facts is not None:
        return Cubin(code, **json.loads(facts))
    cubin = _compiled(source, text.decode(), expressions, arch)
    if cache.can_keep():
        facts = json.dumps({"names": cubin.names, "log": cubin.log}).encode()
        with contextlib.suppress(OSError):  # the disk is full
            for path, data in zip(kept, (cubin.code, facts), strict=True):
                cache.write(path, data)
    return cubin


def resources(log: str) -> Iterator[Resources]:
    """Yield the resources of each kernel in a compiler's log."""
    for part in log.split("Compiling entry function ")[1:]:
        symbol = re.match(r"'(\S+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        if symbol and frame and used:
            stack, stores, loads = map(int, frame.groups())
            yield Resources(symbol[1], int(used[1]), stack, stores + loads)


def nvrtc_version() -> tuple[int, int]:
    """Return the major and minor version of the compiler; raise CompilerMissing if there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("nvrtc").abs_path
    except Exception as error:  # the package is missing or finds no library; its errors have no common class
        raise CompilerMissing(f"NVRTC, NVIDIA's compiler, is not found ({type(error).__name__}: {error})") from error
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise CompilerMissing(f"NVRTC, NVIDIA's compiler, does not load ({error})") from error


def _compiled(source: str, text: str, expressions: Sequence[str], arch: int) -> Cubin:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), source.encode(), 0, None, None), source)
    try:
        for expression in expressions:
            _check(nvrtc.nvrtcAddNameExpression(program, expression.encode()), expression)
        options = [f"--gpu-architecture=sm_{arch}", *_OPTIONS]
        given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _got(nvrtc, "ProgramLog", program).decode(errors="replace").strip("\0\n")
        if status:
            raise CompilationFailed(f"{source} for sm_{arch}:\n{log}")
        code, names, name = _got(nvrtc, "CUBIN", program), {}, ctypes.c_char_p()
        for expression in expressions:
            _check(nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)), expression)
            names[expression] = (name.value or b"").decode()
        return Cubin(code, names, log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _got(nvrtc: ctypes.CDLL, what: str, program: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, data), what)
    return data.raw


def _check(status: int, what: str) -> None:
    if status:
        raise CompilationFailed(f"{what}: NVRTC gave error {status}")
