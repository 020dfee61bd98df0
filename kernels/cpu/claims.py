"""Share compilation between two processes: which of the two compiles a kernel.

Numba holds the interpreter's lock while it compiles, so a second thread would not help. `start_helper` starts a second
process (`kernels/precompile.py`), which compiles the kernels that a training step needs later. Each process claims a
kernel before it compiles it, by creating a file in a folder that both know, and removes the file when the compiled code
is in the cache. The helper skips what the first process has claimed, and the first process waits for what the helper
has claimed, so no kernel is compiled twice.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import cache

WANTED = "TINYVIT_COMPILE_AHEAD"  # the environment variable; 0: no helper
_PROGRAM = f"{__package__.rpartition('.')[0]}.precompile"

_folder: Path | None = None  # of the claims: a file for each kernel that is being compiled
_helper: "subprocess.Popen[bytes] | None" = None  # set in the first process only


class Claimed(Exception):
    """Raised in the helper: the first process compiles this kernel."""


def start_helper(dtype: str, kernel: str) -> None:
    """Start a process that compiles the kernels for `dtype`, except `kernel`, which this process compiles itself.

    Nothing happens where a helper was started before, in the helper itself, where TINYVIT_COMPILE_AHEAD is 0, and where
    compiled code cannot be kept, so that the two processes could not share it.
    """
    global _folder, _helper
    if _folder is not None or os.environ.get(WANTED) == "0" or not cache.can_keep():
        return
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        folder = Path(tempfile.mkdtemp(prefix="tinyvit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / kernel).touch()
        # -P: a file of the current folder that has the name of a module must not be run.
        command = [sys.executable, "-P", "-m", _PROGRAM, dtype, str(folder)]
        _helper = subprocess.Popen(command, env=os.environ | {WANTED: "0"} | cache.for_children(), **quiet)
    except OSError:  # no folder can be written, or no interpreter started: this process compiles everything
        return
    _folder = folder
    atexit.register(_stop, _helper)


def _stop(helper: "subprocess.Popen[bytes]") -> None:
    helper.terminate()
    helper.wait()


def join(folder: Path) -> None:
    """Make this process the helper of the one that created `folder`."""
    global _folder
    _folder = folder


def claim(kernel: str) -> bool:
    """Claim a kernel for this process; return False if the other process has claimed it."""
    if _folder is not None:
        try:
            (_folder / kernel).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # the disk is full: at worst both processes compile it
            pass
    return True


def release(kernel: str) -> None:
    """Give up the claim to a kernel, whose compiled code is now in the cache."""
    if _folder is not None:
        (_folder / kernel).unlink(missing_ok=True)


def wait_for(kernel: str) -> None:
    """Wait until the helper has compiled a kernel, or has ended. In the helper itself, raise Claimed."""
    if _helper is None:
        raise Claimed(kernel)
    while _folder is not None and (_folder / kernel).exists() and _helper.poll() is None:
        time.sleep(0.01)
