"""Makes this Python lack what it lacks in a browser: `import tests.support.like_a_browser` before anything else.

The list is what Pyodide 314.0.7 (Python 3.14) and 0.27.7 (Python 3.12) were seen to lack or to refuse, taken together.
Some modules exist there and refuse to work; here they do the same.
"""

import os
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

ABSENT = {
    *("numba", "llvmlite"),
    *("lzma", "_lzma", "_multiprocessing", "resource"),
    "mmap",  # it is there in both, and reads nothing in 0.27.7
}


class _Absent:
    """A finder of modules that finds none of those in `ABSENT`."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def _no_thread(self: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


def _no_process(*args: Any) -> NoReturn:
    raise OSError(52, "Function not implemented")


for name in [name for name in sys.modules if name.split(".")[0] in ABSENT | {"subprocess"}]:
    del sys.modules[name]  # so that the finder is asked, and subprocess asks which system this is
sys.modules["fcntl"] = types.ModuleType("fcntl")  # empty, as JupyterLite's kernel puts it there
sys.meta_path.insert(0, _Absent())  # type: ignore[arg-type]
sysconfig.get_config_vars()  # read once, from a file whose name has the platform in it
sys.platform = "emscripten"  # subprocess then refuses to start processes
threading.Thread.start = _no_thread  # type: ignore[method-assign]
for name in ("fork", "posix_spawn", "execv"):
    setattr(os, name, _no_process)
for module, name in ((os, "link"), (os, "sched_getaffinity"), (time, "thread_time")):
    if hasattr(module, name):  # not every system has all of them
        delattr(module, name)
