"""An emulated device: kernels compiled by g++ against cuda_cpu.h, on arrays in ordinary memory."""

import ctypes
import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tinyvit.kernels.cache import cache_folder
from tinyvit.kernels.cuda import compiler
from tinyvit.kernels.cuda.device import Device, Kernel

HERE = Path(__file__).resolve().parent
SANITIZERS = ("-fsanitize=address,alignment", "-fno-sanitize-recover=all", "--param=asan-stack=0")
_FLAGS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
_FLAGS += ("-Wno-unknown-pragmas", "-Wno-attributes", "-U_FORTIFY_SOURCE", f"-I{HERE}")
# g++ then calls a function of cuda_cpu.h before each access to memory, and does not link ThreadSanitizer's own.
_OBSERVED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-nodefaultlibs")
_LIBRARIES = ("-lstdc++", "-lm", "-lc", "-lgcc")


class EmulatedDevice(Device):
    """Runs kernels immediately, in this process.

    Attributes
    ----------
    schedule : the order in which warps and lanes run: 0 forward, 1 reverse, else shuffled.
    launched : the kernels launched so far, in order.
    """

    def __init__(self, arch: int = 90, shared: int = 232_448, number: int = 0) -> None:
        super().__init__(number, arch, shared)
        self.schedule = 0
        self.launched: list[Kernel] = []

    def why_not(self) -> str | None:
        return None  # g++ compiles

    def _start(self, kernel: Kernel, grid: Any, threads: int, arguments: Sequence[Any], shared: int) -> None:
        self.launched.append(kernel)
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        triple = ctypes.c_uint * 3
        run = compiled(kernel)
        run(triple(*grid), triple(threads, 1, 1), ctypes.c_size_t(shared), pointers, ctypes.c_int(self.schedule))


@functools.cache
def compiled(kernel: Kernel) -> Any:
    """Return the function that runs a kernel: (grid, block, shared, arguments, schedule)."""
    sanitized = bool(os.environ.get("TINYVIT_SANITIZE"))
    folder = Path(os.environ.get("TINYVIT_EMULATED") or cache_folder().parent / "emulated")
    source = compiler.KERNELS / kernel.source  # or an absolute path
    inputs = repr((kernel, sanitized, _FLAGS, _OBSERVED)).encode()
    digest = hashlib.sha256(inputs + b"".join(path.read_bytes() for path in included(source))).hexdigest()[:24]
    library = folder / f"{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unit = f'#include "{source}"\nEXPORT(run_kernel, {kernel.expression})\n'
        part = library.with_suffix(f".{os.getpid()}")
        flags = [*_FLAGS, f"-I{compiler.KERNELS}", *(SANITIZERS if sanitized else _OBSERVED)]
        command = ["g++", *flags, "-x", "c++", "-", "-o", str(part), *_LIBRARIES]
        run = subprocess.run(command, input=unit, text=True, capture_output=True)
        if run.returncode:
            pytest.exit(f"g++ refused {kernel.expression}:\n{run.stderr[-4000:]}", returncode=3)
        part.replace(library)
    return ctypes.CDLL(str(library)).run_kernel


def included(source: Path) -> list[Path]:
    """Return a source and all headers that it includes, each once."""
    found = [source]
    for path in found:
        names = re.findall(r'^#include "(.+)"', path.read_text("utf-8"), re.MULTILINE)
        places = (folder / name for name in names for folder in (compiler.KERNELS, HERE))
        found += [place for place in places if place.exists() and place not in found]
    return found
