"""The benchmarks of a GPU, as far as they run without one: the line of a contender, PyTorch and Triton."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer

from benchmarks.cases import VIT_S
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import measure as gpu_measure
from benchmarks.gpu.clock import Clock

CASE = gpu_cases.Case("attention", "bfloat16", floor_bytes=1e6, flops=1e9)
STEP = gpu_cases.Case("step", "bfloat16", 0, 0)
BEST = {"copy_bytes_per_s": 1e12, "gemm_flop_per_s": 1e14}


class FakeClock(Clock):
    """A clock for which the device takes 2 us with a cold cache and 1 us with a warm one, and the host 3 us."""

    def __init__(self) -> None:
        pass

    def seconds(self, function: Callable[[], Any], cold: bool) -> float:
        function()
        return 2e-6 if cold else 1e-6

    def seconds_each(self, function: Callable[[], Any], calls: int) -> float:
        return 5e-6

    def host_seconds(self, function: Callable[[], Any], calls: int) -> float:
        return 3e-6


def line_of(case: gpu_cases.Case, make: gpu_cases.Make) -> dict[str, Any]:
    return gpu_measure.measured(case, "ours", make, FakeClock(), BEST)


def test_the_line_of_a_kernel_has_times_and_shares_of_the_limits_of_the_device() -> None:
    found = line_of(CASE, lambda: lambda: None)
    assert found.pop("contender") == "ours"
    assert (found.pop("case"), found.pop("dtype")) == ("attention", "bfloat16")
    assert found == pytest.approx({"cold_us": 2, "warm_us": 1, "share_of_copy": 0.5, "share_of_gemm": 5.0})


def test_the_line_of_a_training_step_has_its_time_and_that_of_python() -> None:
    found = line_of(STEP, lambda: lambda: None)
    assert (found["step_us"], found["host_us"]) == pytest.approx((5, 3))
    assert "share_of_copy" not in found


def test_an_absent_or_broken_peer_has_a_line_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu.torch_peer", raising=False)
    make = gpu_cases.peer("torch", "attention", (1, 1, 2, 8), "float32", False, "MATH")
    assert line_of(CASE, make)["refused"] == "torch is not installed"
    monkeypatch.delitem(sys.modules, "torch")
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert line_of(CASE, make)["refused"] == (
        "torch is installed, but cannot be imported (OSError: libcudart.so.12: cannot open shared object file)"
    )

    def broken() -> Any:
        raise RuntimeError("no kernel for this dtype")

    assert line_of(CASE, lambda: broken)["refused"] == "RuntimeError: no kernel for this dtype"


def test_all_contenders_have_a_name_of_their_own() -> None:
    for source in (gpu_cases.attention_cases, gpu_cases.layer_norm_cases, gpu_cases.step_cases):
        for case, contenders in source():
            names = [name for name, _ in contenders]
            assert len(set(names)) == len(names), case
            assert names[0] in ("raw", "captured"), case


# PyTorch's part -----------------------------------------------------------------------------------------------------


@pytest.fixture
def peers() -> Iterator[Any]:
    torch = peer("torch", "PyTorch")
    from benchmarks.gpu import torch_peer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine the threads would wait for one another
    yield torch_peer
    torch.set_num_threads(threads)


def test_pytorch_attends_and_gives_three_gradients(peers: Any) -> None:
    assert peers.attention((2, 3, 5, 8), "float32", False, "MATH", "cpu")().shape == (2, 3, 5, 8)
    gradients = peers.attention((2, 3, 5, 8), "bfloat16", True, "MATH", "cpu")()
    assert [tuple(g.shape) for g in gradients] == [(2, 3, 5, 8)] * 3
    assert all(g.abs().sum() > 0 for g in gradients)


def test_pytorch_normalizes_and_gives_three_gradients(peers: Any) -> None:
    y = peers.layer_norm(6, 32, "float32", False, False, "cpu")()
    np.testing.assert_allclose(y.mean(axis=1).numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=1, correction=0).numpy(), 1, rtol=1e-3)
    assert [tuple(g.shape) for g in peers.layer_norm(6, 32, "float32", True, False, "cpu")()] == [(6, 32), (32,), (32,)]


def test_a_step_of_pytorch_learns(peers: Any) -> None:
    step = peers.train_step(replace(VIT_S, dim=24, depth=1, batch=4), False, "cpu")
    losses = [step().item() for _ in range(4)]
    assert losses[-1] < losses[0]


# Triton's part ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_triton_agrees_with_pytorch_in_its_interpreter() -> None:
    peer("torch", "PyTorch")
    peer("triton", "Triton")
    trials = Path(__file__).with_name("triton_trials.py")
    command = [sys.executable, "-m", "pytest", str(trials), "-q", "-x", "-p", "no:cacheprovider"]
    settings = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
