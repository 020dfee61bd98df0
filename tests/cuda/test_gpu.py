"""Tests that need a GPU; they are skipped, with the reason, if there is none.

`python -m pytest -m gpu` runs all of them and writes gpu-tests.jsonl, a line for each test. Started again with the same
sources, it skips the tests that have passed.

They should take less than MINUTES on 16 cores. These are estimates, since no GPU has run them yet:

| what                          | how much                                                           | seconds  |
|-------------------------------|--------------------------------------------------------------------|----------|
| compiling, before all else    | 273 kernels x 0.27 s (measured), by 16 processes, and their start  | 15       |
| kernel trials                 | 60 tests x 24 + 20 x 6 x 2 + 50 examples x 0.04 s (measured, with- | 90       |
|                               | out the kernels), loading 200 kernels, 5 s to start                |          |
| trials of training and tasks  | 56 tests, 60 runs of 8 steps, CuPy compiling 100 kernels of its own| 60 each  |
| a sanitizer                   | 60 tests x 2 examples x 0.5 s, most of it the tool's               | 60 each  |
| tests in this process         | 60 runs of 3 steps, 11 kernels by numba-cuda's compiler            | 45       |

Everything below the first line runs in parallel and takes about 2 minutes. After MINUTES no test begins, and processes
that are still running are ended and count as failed. Tests that have passed by then need not run again.
"""

import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer
from test_emulated import HERE, pytest_on
from tinyvit.kernels import registry
from tinyvit.kernels.cuda.compiler import compile_cubin

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

MINUTES = 4
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
SANITIZER = shutil.which("compute-sanitizer", path=PATH)
TRIALS = tuple(f"{what}_trials.py" for what in ("corner", "kernel", "primitive", "task", "training", "update"))
SANITIZED = "exact and not linear"  # what the tools would find in the kernels of cuBLAS is not ours to mend
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


def _compile_all() -> None:
    """Compile all kernels on all processors at once. Compiling each when it is first used would take minutes."""
    arch = int(tv.backend.gpu()[0].cuda.Device().compute_capability)
    modules = {spec.module for spec in registry.SPECS if spec.technology == "cupy"}
    asked = [kernel for name in modules for kernel, _ in getattr(importlib.import_module(name), "kernels", tuple)()]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_cubin, [k.source for k in asked], [(k.expression,) for k in asked], [arch] * len(asked)))


class Processes:
    """Trials that run in parallel, each in a process of its own.

    Parameters
    ----------
    names : names of TRIALS, which run on the device what the emulator runs; names of TOOLS, which run the kernels
        under that tool of the sanitizer.
    folder : for their output.

    Attributes
    ----------
    until : the time at which they are ended.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        self._folder, self.until = folder, time.monotonic() + 60 * MINUTES
        _compile_all()
        self._begun = {name: self._begin(name) for name in names if name in TRIALS or SANITIZER}

    def _begin(self, name: str) -> "subprocess.Popen[bytes]":
        settings = {"TINYVIT_TRIALS": "gpu", "TINYVIT_COMPILE_AHEAD": "0", "TINYVIT_EXAMPLES": "24"}
        command = pytest_on(name)
        if name in TOOLS:
            tool = [str(SANITIZER), "--tool", name, "--error-exitcode", "9"]
            command = [*tool, *pytest_on("kernel_trials.py", "-k", SANITIZED)]
            settings |= {"TINYVIT_EXAMPLES": "2", "TINYVIT_SANITIZE": "1"}
        with (self._folder / name).open("wb") as said:
            environment, where = os.environ | settings, HERE.parents[1]
            return subprocess.Popen(
                command, cwd=where, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def assert_passed(self, name: str) -> None:
        """Wait for one of them to end, and check that it has passed."""
        try:
            status: Any = self._begun[name].wait(max(0.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = f"not ended after {MINUTES} minutes"
        assert status == 0, f"{status}: {(self._folder / name).read_text(errors='replace')[-3000:]}"

    def end(self) -> None:
        for process in self._begun.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module", autouse=True)
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Start the processes that tests of this session will wait for; the other tests run meanwhile."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = [params["process"] for params in chosen if "process" in params]
    begun = Processes(names, tmp_path_factory.mktemp("said"))
    yield begun
    begun.end()


@pytest.fixture(autouse=True)
def in_time(processes: Processes) -> None:
    if time.monotonic() > processes.until:
        pytest.fail(f"{MINUTES} minutes are over; start again: tests that have passed are skipped")


def _trained(where: str, precision: str, steps: int = 20) -> tuple[list[float], list[bytes]]:
    tv.manual_seed(0)
    model = tv.models.ViT(16, 4, 10, dim=64, depth=3, heads=2, in_channels=3, dropout=0.1).to(where)
    optimizer = tv.optim.AdamW(model.parameters(), lr=1e-3)
    rng, losses = np.random.default_rng(0), []
    with tv.use_kernels("auto"):
        for _ in range(steps):
            images, labels = rng.standard_normal((32, 3, 16, 16)).astype(np.float32), rng.integers(10, size=32)
            optimizer.zero_grad()
            with tv.autocast(precision):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, [p.numpy().tobytes() for p in model.parameters()]


def test_losses_agree_with_those_of_the_cpu() -> None:
    np.testing.assert_allclose(_trained("cuda", "float32")[0], _trained("cpu", "float32")[0], rtol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_thirty_runs_give_the_same_bits(precision: str) -> None:
    first = _trained("cuda", precision, steps=3)
    assert all(_trained("cuda", precision, steps=3) == first for _ in range(29))


def test_the_kernels_in_python_agree_with_those_in_cuda() -> None:
    peer("numba_cuda", "numba-cuda")
    rng = np.random.default_rng(0)
    q, k, v = (tv.tensor(rng.standard_normal((2, 3, 65, 64)).astype(np.float32), device="cuda") for _ in range(3))
    w = tv.tensor(np.ones(64, np.float32), device="cuda")

    def results(choice: str) -> list[Any]:
        with tv.use_kernels(choice):
            xs = [Tensor(x.data, True) for x in (q, k, v)]
            y = F.layer_norm(F.scaled_dot_product_attention(*xs), w, w)
            return [y.numpy(), *(g.numpy() for g in tv.grad((y * y).sum(), xs) if g is not None)]

    for choice in ("numba-cuda:v1", "numba-cuda:v2"):
        for found, expected in zip(results(choice), results("cupy"), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.timeout(60 * MINUTES + 30)
@pytest.mark.parametrize("process", TRIALS)
def test_trials(process: str, processes: Processes) -> None:
    """Run on the device what the emulator runs."""
    processes.assert_passed(process)


@pytest.mark.timeout(60 * MINUTES + 30)
@pytest.mark.parametrize("process", TOOLS)
def test_compute_sanitizer(process: str, processes: Processes) -> None:
    if SANITIZER is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    processes.assert_passed(process)
