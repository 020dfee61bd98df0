"""Where compiled kernels are kept: one folder for each state of the sources, so that an edit never meets old code."""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


@functools.cache
def cache_folder() -> Path:
    """Return the folder of compiled kernels, which need not exist yet.

    It is in NUMBA_CACHE_DIR, else in tinyvit/kernels of the user's cache folder; its name holds a hash of all kernel
    sources.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    if wanted:
        return Path(wanted) / f"tinyvit-{digest}"
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "tinyvit" / "kernels" / digest
    except RuntimeError:  # the user has no home folder
        return Path(os.devnull) / digest


def kept_object(name: str, target: str, compile_it: Callable[[], bytes]) -> bytes:
    """Return the object code that `compile_it()` makes for `target`, from the cache if it is there."""
    file = cache_folder() / f"{name}-{hashlib.sha256(target.encode()).hexdigest()[:16]}.o"
    with contextlib.suppress(OSError):
        digest, code = (kept := file.read_bytes())[:32], kept[32:]
        if hashlib.sha256(code).digest() == digest:  # a truncated file would crash the process that runs it
            return code
    code = compile_it()
    with contextlib.suppress(OSError):  # the folder cannot be written, or the disk is full
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            try:
                part.write(hashlib.sha256(code).digest() + code)
                part.close()
                os.replace(part.name, file)
            except OSError:
                os.unlink(part.name)
    return code
