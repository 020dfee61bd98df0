"""The real CuPy on a pretended device: a device would accept what it is asked, and dtypes and shapes are as expected.

`test_real_cupy.py` runs this file in a process of its own. Kernels do nothing there, so no value is compared.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pretended
import pytest
from pretended import named

os.environ["TINYVIT_TRIALS"] = "gpu"
DEVICE = pretended.installed()

import cupy  # noqa: E402  (after the device is installed)
import draws  # noqa: E402
import fake_cublaslt  # noqa: E402
import kernel_trials  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_trials import DTYPES, SERVED, every_version  # noqa: E402
from task_trials import RUNS, few_samples, run_of  # noqa: E402, F401  (a fixture)
from tinyvit.kernels.cuda import device  # noqa: E402
from tinyvit.kernels.linear import cublaslt, lt  # noqa: E402
from training_trials import IMAGES, LABELS, model_on  # noqa: E402

import tinyvit as tv  # noqa: E402
import tinyvit.functional as F  # noqa: E402
from tinyvit import backend  # noqa: E402
from tinyvit.engine import Op, Tensor  # noqa: E402
from tinyvit.run.captured import WARM_UP, CapturedStep  # noqa: E402

LIBRARY = lt.Library(fake_cublaslt.compiled())  # products are computed at once, on the memory of the device


class ZeroedPool(cupy.cuda.MemoryPool):
    """A pool that gives zeros, also in memory that is used again. No kernel writes there, so what is read is finite."""

    def malloc(self, size: int) -> Any:
        memory = super().malloc(size)
        ctypes.memset(memory.ptr, 0, size)
        return memory


@pytest.fixture(autouse=True)
def on_the_pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backend.gpu.cache_clear()
    with mock.patch.object(cupy, "arange", np.arange):  # it is asked to compute 1 + 2 + 3
        assert backend.gpu() == (cupy, None)
    monkeypatch.setattr(cupy.cuda, "MemoryPool", ZeroedPool)
    cublaslt.forget()
    device.DEVICES.clear()
    with (
        mock.patch.object(device, "compile_cubin", named),
        mock.patch.object(lt, "library", return_value=LIBRARY),
        mock.patch.object(lt, "why_not", return_value=None),
        tv.use_kernels("auto"),
    ):
        DEVICE.restart()
        with cupy.cuda.using_allocator(ZeroedPool().malloc):
            yield


def accepted() -> None:
    assert DEVICE.complaints == []


# The device itself ---------------------------------------------------------------------------------------------------


def test_arrays_are_copied_to_the_device_and_back() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (Tensor(backend.to_device(x, "cuda")).numpy() == x).all()
    there = device.device_of(backend.to_device(x, "cuda"))
    assert (there.arch, there.shared, there.number) == (90, 232_448, 0)
    accepted()


@pytest.mark.parametrize(
    ("grid", "threads", "shared", "complaint"),
    [
        ((1, 65536, 1), 32, 0, "the grid of a launch"),
        ((1, 1, 1), 1025, 0, "the block of a launch"),
        ((1, 1, 1), 32, 60_000, "shared memory that was not allowed"),
    ],
)
def test_a_launch_beyond_the_limits_is_refused(grid: Any, threads: int, shared: int, complaint: str) -> None:
    function = cupy.cuda.driver.moduleGetFunction(cupy.cuda.driver.moduleLoadData(b"PRETENDED"), "any")
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        cupy.cuda.driver.launchKernel(function, *grid, threads, 1, 1, shared, 0, 0, 0)
    assert DEVICE.complaints == [f"1 {complaint}"]


def test_what_waits_makes_a_capture_invalid() -> None:
    x, stream = cupy.ones(3), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture(2)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            stream.synchronize()
        with pytest.raises(cupy.cuda.driver.CUDADriverError):
            x + 1
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="due to a previous error"):
            stream.end_capture()


COMPILE = """
import sys
from tinyvit.kernels.cuda.compiler import CompilerMissing, compile_cubin
try:
    sys.stdout.buffer.write(compile_cubin("average/average.cu", ("average_1<float>",), 90).code)
except CompilerMissing:
    pass
"""


def test_a_compiled_kernel_is_found_by_its_symbol() -> None:
    """It is compiled in another process, where NVRTC is the real one."""
    code = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, check=True).stdout
    if not code:
        pytest.skip("needs NVRTC")
    module = cupy.cuda.driver.moduleLoadData(code)
    (symbol,) = set(re.findall(rb"_Z\w*average_1\w*", code))
    assert cupy.cuda.driver.moduleGetFunction(module, symbol.decode())
    accepted()
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        cupy.cuda.driver.moduleGetFunction(module, "average_2")


# Operations ----------------------------------------------------------------------------------------------------------


def forms(arrays: list[Any]) -> list[Any]:
    return [(y.shape, str(y.dtype)) for y in arrays]


@every_version
@pytest.mark.parametrize("dtype", DTYPES)
@draws.on_drawn(6)
def test_launches_of_every_version_are_accepted(op: type[Op], choice: str, dtype: str, data: st.DataObject) -> None:
    if DTYPES[dtype] not in SERVED[op.kernel or ""]:
        pytest.skip("the inputs are float32, or one of them is")
    trial = kernel_trials.trial_of(data, op, dtype)
    with tv.use_kernels("numpy"):
        expected = forms(trial.run("numpy"))
    assert forms(trial.run(choice)) == expected
    accepted()


def applied(op: type[Op], arrays: list[Any], params: dict[str, Any]) -> list[Any]:
    """Return the outputs, and the gradients of all floating inputs from all outputs that have one."""
    needs = [hasattr(x, "dtype") and x.dtype.kind in "fV" for x in arrays]
    xs = [Tensor(x, need) if hasattr(x, "dtype") else x for x, need in zip(arrays, needs, strict=True)]
    with tv.use_kernels("numpy"), np.errstate(all="ignore"):
        out = op.apply(*xs, **params)
        outs = list(out) if isinstance(out, tuple) else [out]
        wanted = [x for x, need in zip(xs, needs, strict=True) if need]
        used = [y for y in outs if y.requires_grad]
        gradients = tv.grad(used, wanted, [y.detach() for y in used], allow_unused=True) if used else []
    return [t.data for t in (*outs, *gradients) if t is not None]


def selects(index: Any) -> bool:
    """Return whether an index has a boolean array."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, np.ndarray) and part.dtype.kind == "b" for part in parts)


@pytest.mark.parametrize("op", Op.registry.values(), ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_rules_use_cupy_as_they_use_numpy(op: type[Op], dtype: str) -> None:
    """Every function exists, takes these arguments and dtypes, and gives results of the same dtype and shape."""
    for sample in op.samples():
        if selects(sample.params.get("index")):
            continue  # a kernel counts the selected elements
        arrays = [x.astype(DTYPES[dtype]) if getattr(x, "dtype", None) == np.float64 else x for x in sample.inputs]
        moved = [backend.to_device(x, "cuda") if isinstance(x, np.ndarray) else x for x in arrays]
        assert forms(applied(op, moved, sample.params)) == forms(applied(op, arrays, sample.params))
    accepted()


# Steps and runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_step_is_captured_and_replayed(precision: str) -> None:
    model = model_on("cuda", dropout=0.1)
    optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2)
    ema = tv.optim.EMA(model.parameters(), 0.9)
    step = CapturedStep(
        lambda images, labels: F.cross_entropy(model(Tensor(images)), labels), optimizer, precision, average=ema
    )
    before = DEVICE.replays
    for _ in range(6):
        step((IMAGES, LABELS))
    assert step.reason is None
    assert step.is_captured
    assert DEVICE.replays - before >= 2
    captured = [launch.name for launch in DEVICE.launches if launch.captured]
    assert len(captured) <= DEVICE.nodes
    for part in ("attention_forward", "attention_backward", "layer_norm_backward", "adamw_step", "average_1"):
        assert any(part in name for name in captured), part
    accepted()


@pytest.mark.parametrize("wait", ["item", "synchronize"])
def test_a_step_that_waits_runs_uncaptured(wait: str) -> None:
    model = model_on("cuda")

    def loss_of(images: Any, labels: Any) -> Tensor:
        loss = F.cross_entropy(model(Tensor(images)), labels)
        loss.item() if wait == "item" else cupy.cuda.get_current_stream().synchronize()
        return loss

    step = CapturedStep(loss_of, tv.optim.AdamW(model.parameters()))
    for _ in range(WARM_UP):
        step((IMAGES, LABELS))
    with pytest.warns(RuntimeWarning, match="cannot be captured in a CUDA graph"):
        step((IMAGES, LABELS))
    step((IMAGES, LABELS))
    assert not step.is_captured
    assert not any(launch.captured for launch in DEVICE.launches[-20:])


@pytest.mark.parametrize(("name", "assignments", "graphs"), RUNS)
def test_a_run_of_any_task_is_captured(name: str, assignments: tuple[str, ...], graphs: int) -> None:
    before = DEVICE.replays
    seen, metrics, _ = run_of(name, "cuda", *assignments)
    assert seen.training.steps.graph.reason is None
    assert metrics[-1]["step"] == 8
    assert DEVICE.replays - before == graphs
    accepted()
