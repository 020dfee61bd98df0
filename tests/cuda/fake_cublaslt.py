"""A stand-in for cuBLASLt: a library in C++ with its functions, called as the real one is (see cublaslt_cpu.cpp)."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinyvit.kernels.cache import cache_folder
from tinyvit.kernels.linear.lt import Library

SOURCE = Path(__file__).with_name("cublaslt_cpu.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-Wall")


@functools.cache
def compiled() -> ctypes.CDLL:
    """Return the library; skip the test that needs it where there is no compiler."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(_FLAGS).encode()).hexdigest()[:24]
    library = cache_folder().parent / "emulated" / f"{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        run = subprocess.run(["g++", *_FLAGS, str(SOURCE), "-o", str(part)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        part.replace(library)
    found = ctypes.CDLL(str(library))
    found.last_complaint.restype = ctypes.c_char_p
    found.copy_of.argtypes, found.copy_of.restype = (ctypes.c_void_p,), ctypes.c_void_p
    found.attribute_of.argtypes, found.attribute_of.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_longlong
    return found


class Recorded(Library):
    """The stand-in, whose products are given to `do`, which may compute them at once or add them to a graph.

    cublasLtMatmul reads a description when it is called, so a product that is computed later has a copy of it.
    """

    def __init__(self, do: Callable[[Callable[[], None], str], None]) -> None:
        super().__init__(compiled())
        self._do = do

    def multiply(self, handle: int, description: int, *rest: Any) -> None:
        copy = compiled().copy_of(description)
        self._do(lambda: self._multiply_now(handle, copy, *rest), "cublasLt")

    def _multiply_now(self, *arguments: Any) -> None:
        try:
            super().multiply(*arguments)
        except RuntimeError as error:
            raise AssertionError(f"{error}: {compiled().last_complaint().decode()}") from error
