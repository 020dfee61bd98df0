"""Kernels never read or write outside their arrays."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pages are closed with mprotect")


def run_fenced(side: str) -> "subprocess.CompletedProcess[str]":
    here = Path(__file__).parent
    command = [sys.executable, str(here / "fenced.py"), side]
    return subprocess.run(command, cwd=here, capture_output=True, text=True)


def test_touching_the_fence_ends_the_process() -> None:
    assert run_fenced("beyond").returncode == -signal.SIGSEGV


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
def test_no_kernel_touches_the_memory_beside_its_arrays(side: str) -> None:
    run = run_fenced(side)
    assert run.returncode == 0, f"the last kernel named here did, or failed:\n{run.stdout[-200:]}{run.stderr[-2000:]}"
