"""What only a GPU can prove; skipped, with the reason, where there is none.

`python -m pytest -m gpu` runs all of it and writes gpu-tests.jsonl, a line for each test. Started again for the same
commit, it leaves out what has passed.
"""

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_emulated import assert_passed, run
from tinyvit.kernels import registry
from tinyvit.kernels.cuda.compiler import compile_cubin

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.autograd import Tensor

HERE = Path(__file__).resolve().parent
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """All kernels, by all processors at once; one by one, as they are first met, they would take minutes."""
    arch = int(tv.backend.gpu()[0].cuda.Device().compute_capability)
    modules = {spec.module for spec in registry.SPECS if spec.technology == "cupy"}
    asked = [kernel for name in modules for kernel, _ in getattr(importlib.import_module(name), "kernels", tuple)()]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_cubin, [k.source for k in asked], [(k.expression,) for k in asked], [arch] * len(asked)))


@pytest.mark.parametrize("file", ["primitive_trials.py", "kernel_trials.py", "training_trials.py"])
def test_trials(file: str) -> None:
    """What the emulator runs, on the device."""
    assert_passed(run(file=file, TINYVIT_TRIALS="gpu", TINYVIT_EXAMPLES="40"))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer", path=PATH)
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "kernel_trials.py"]
    settings = {"TINYVIT_TRIALS": "gpu", "TINYVIT_EXAMPLES": "4", "TINYVIT_SANITIZE": "1"}
    found = subprocess.run(
        [*command, "-q", "-k", "exact"], cwd=HERE, env=os.environ | settings, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:]


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


def test_the_curve_is_that_of_the_cpu() -> None:
    np.testing.assert_allclose(_trained("cuda", "float32")[0], _trained("cpu", "float32")[0], rtol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_thirty_runs_give_the_same_bits(precision: str) -> None:
    first = _trained("cuda", precision, steps=3)
    assert all(_trained("cuda", precision, steps=3) == first for _ in range(29))


def test_the_numba_twins_agree_with_the_raw_kernels() -> None:
    pytest.importorskip("numba_cuda", reason="needs numba-cuda")
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
