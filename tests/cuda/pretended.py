"""The real CuPy without a GPU: its device is a small library in C, and device memory is ordinary memory.

Kernels do nothing, so all that was not copied is zero; but arrays, dtypes, launchers, streams, events, captures and
graphs are CuPy's own, and what a device would refuse is refused (pretended_device.c). Two facts make this possible:

- CuPy looks for the driver and for NVRTC by name when it needs them, and takes a library that is already loaded under
  that name.
- The CUDA runtime is a part of CuPy's modules, with its functions in their table of symbols. Each function that the
  pretended device has gets a jump to it, in memory.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tinyvit.kernels.cache import cache_folder

HERE = Path(__file__).resolve().parent
LIBRARIES = {"pretended_nvrtc.c": "libnvrtc.so", "pretended_device.c": "libcuda.so.1"}
_FLAGS = ("-std=gnu11", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unused-parameter")
_MODULES = ("cupy_backends.cuda.api.runtime", "cupy.cuda.cub", "cupy.cuda.thrust")  # each has a runtime of its own
_PAGE, _READ_WRITE_EXECUTE = os.sysconf("SC_PAGE_SIZE"), 7


def why_not() -> str | None:
    """Return the reason why there can be no pretended device, None if there can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "jumps are written for x86-64 and Linux"
    missing = [tool for tool in ("gcc", "nm") if not shutil.which(tool)]
    return f"needs {' and '.join(missing)}" if missing else None


class Launch(ctypes.Structure):
    """A launch as the device saw it; `captured` says whether it became a part of a graph."""

    _fields_ = (
        ("_name", ctypes.c_char * 256),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("captured", ctypes.c_int),
    )

    @property
    def name(self) -> str:
        return str(self._name.decode())


class PretendedDevice:
    """What the device was asked."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.pretended_complaints.restype = ctypes.c_char_p
        library.pretended_launch.restype = ctypes.POINTER(Launch)
        self._library = library

    def restart(self) -> None:
        """Forget all launches and complaints."""
        self._library.pretended_restart()
        self._library.pretended_forget()

    @property
    def launches(self) -> list[Launch]:
        return [self._library.pretended_launch(i).contents for i in range(self._library.pretended_launches())]

    @property
    def complaints(self) -> list[str]:
        """What was refused: an error number and the reason, each."""
        return self._library.pretended_complaints().decode().splitlines()

    @property
    def replays(self) -> int:
        """How often a graph was launched."""
        return int(self._library.pretended_replays())

    @property
    def nodes(self) -> int:
        """The number of nodes of the graph that was launched last."""
        return int(self._library.pretended_replayed_nodes())


def named(source: str, expressions: tuple[str, ...], arch: int) -> Any:
    """Return a module that has every kernel, in place of a compiled one: test_nvrtc.py compiles them all."""
    return SimpleNamespace(code=b"PRETENDED", names={e: e for e in expressions})


@functools.cache
def installed() -> PretendedDevice:
    """Load the libraries before CuPy looks for the real ones, and return the device. CuPy must not be loaded yet."""
    import importlib

    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # what CuPy compiles here must not be kept for a real device
    version = cuda_of_cupy()
    loaded = [_loaded(source, name + f".{version}" * (name[-1] != "1")) for source, name in LIBRARIES.items()]
    for name in _MODULES:
        _redirect(importlib.import_module(name), loaded[-1])
    return PretendedDevice(loaded[-1])


def cuda_of_cupy() -> int:
    """Return the major version of CUDA that the installed CuPy is made for. Raises LookupError without CuPy."""
    from importlib import metadata

    for version in (13, 12):
        try:
            metadata.version(f"cupy-cuda{version}x")
        except metadata.PackageNotFoundError:
            continue
        return version
    raise LookupError("needs cupy-cuda12x or cupy-cuda13x")


def _loaded(source: str, name: str) -> ctypes.CDLL:
    """Compile a library unless that was done before, and load it under this name."""
    text = (HERE / source).read_bytes()
    flags = (*_FLAGS, f"-Wl,-soname,{name}")
    library = cache_folder().parent / "emulated" / f"{hashlib.sha256(text + repr(flags).encode()).hexdigest()[:24]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        run = subprocess.run(["gcc", *flags, str(HERE / source), "-o", str(part)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        part.replace(library)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _redirect(module: ModuleType, device: ctypes.CDLL) -> None:
    """Have the functions of the CUDA runtime within a compiled module jump to those of the device."""
    path = str(module.__file__)
    listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    offsets = {row[2]: int(row[0], 16) for row in map(str.split, listed.splitlines()) if len(row) == 3}
    initializer = next(name for name in offsets if name.startswith("PyInit_"))
    base = _address(getattr(ctypes.CDLL(path), initializer)) - offsets[initializer]
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for name, offset in offsets.items():
        if not name.lstrip("_").startswith("cuda") or not hasattr(device, name):
            continue
        place, target = base + offset, _address(getattr(device, name))
        code = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"  # movabs rax, target; jmp rax
        assert protect(place // _PAGE * _PAGE, 2 * _PAGE, _READ_WRITE_EXECUTE) == 0
        ctypes.memmove(place, code, len(code))


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
