"""Run pytest in processes that are forked from one which has already imported what all of them need.

That process starts no threads, and imports nothing that is tested: tinyvit, its kernels and their tests differ from run
to run.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # so that NumPy starts none
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "ml_dtypes", "numba", "llvmlite.binding", "hypothesis.strategies", "pytest"])
_turn = threading.Lock()  # multiprocessing checks on all processes when one is started or joined


def pytest_in(
    place: Path, arguments: Sequence[str], settings: dict[str, str], timeout: float, started: Path
) -> "subprocess.CompletedProcess[str]":
    """Run pytest as `subprocess.run` would: in a folder, with additional environment variables and a timeout.

    The file `started` then holds the name of the test that was started last.
    """
    outputs = [place / name for name in ("stdout", "stderr")]
    process = _CONTEXT.Process(target=_run, args=(place, arguments, settings, outputs, started))
    with _turn:
        process.start()
    in_time = wait([process.sentinel], timeout)
    with _turn:
        if not in_time:
            process.kill()
        process.join()
    if not in_time:
        raise subprocess.TimeoutExpired(arguments, timeout)
    stdout, stderr = (path.read_text("utf-8", "replace") for path in outputs)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


class _Starts:
    """A plugin of pytest that keeps the name of the test that was started last, even if the process is killed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file.write_text(nodeid, "utf-8")


def _run(
    place: Path, arguments: Sequence[str], settings: dict[str, str], outputs: Sequence[Path], started: Path
) -> None:
    """Run pytest in this process, and exit with its status."""
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ |= settings
    os.chdir(place)
    sys.path[:1] = [str(place), settings["PYTHONPATH"]]  # in the place of this checkout
    import numba
    import pytest

    numba.config.reload_config()
    # The plugin of hypothesis is imported already, so pytest cannot rewrite its asserts.
    arguments = [*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main(arguments, plugins=[_Starts(started)])
    atexit._run_exitfuncs()  # a fault may show in them, and multiprocessing does not run them
    sys.exit(status)
