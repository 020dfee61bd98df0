"""Compiling in two processes, for compiling holds the interpreter's lock: which of the two compiles a kernel.

The first kernel that has to be compiled on a machine starts a second process (`ahead`), which compiles what comes later
in a training step. In a folder of their own both mark what they have begun. The second process leaves out what the
first has begun, and the first waits for what the second has begun, so that nothing is compiled twice.
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

WANTED = "TINYVIT_COMPILE_AHEAD"  # 0: no second process

_marks: Path | None = None  # the folder, with a file for each kernel that is being compiled
_helper: "subprocess.Popen[bytes] | None" = None  # the second process, in the first
expected: str | None = None  # what most kernels will compute in, where it is known before one is compiled


class Taken(Exception):
    """Raised in the second process: the first one compiles this kernel."""


def start(dtype: str, kernel: str) -> None:
    """Have a second process compile too, for this dtype or the one that is expected, all but this kernel."""
    global _marks, _helper
    if _marks is not None or os.environ.get(WANTED) == "0":
        return
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        marks = Path(tempfile.mkdtemp(prefix="tinyvit-"))
        atexit.register(shutil.rmtree, marks, ignore_errors=True)
        (marks / kernel).touch()
        command = [sys.executable, "-m", f"{__package__}.ahead", expected or dtype, str(marks)]
        _helper = subprocess.Popen(command, env=os.environ | {WANTED: "0"}, **quiet)
    except OSError:  # no folder that can be written, or no interpreter to start: all is compiled here
        return
    _marks = marks
    atexit.register(_stop, _helper)


def _stop(helper: "subprocess.Popen[bytes]") -> None:
    helper.terminate()
    helper.wait()


def help_with(marks: Path) -> None:
    """This is the second process, and the marks are made in this folder."""
    global _marks
    _marks = marks


def begin(kernel: str) -> bool:
    """Mark a kernel as begun; False if the other process has begun it."""
    if _marks is not None:
        try:
            (_marks / kernel).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # no space: at worst it is compiled twice
            pass
    return True


def end(kernel: str) -> None:
    """A kernel is compiled and kept."""
    if _marks is not None:
        (_marks / kernel).unlink(missing_ok=True)


def wait_for(kernel: str) -> None:
    """Until the other process has compiled a kernel, or has ended; raises Taken if this is the second one."""
    if _helper is None:
        raise Taken(kernel)
    while _marks is not None and (_marks / kernel).exists() and _helper.poll() is None:
        time.sleep(0.01)
