"""What tests on a GPU rely on: layouts of arrays on the device, a file of results, and warnings of libraries."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import draws
import fake_cupy
import gpu_results
import ml_dtypes
import numpy as np
import pytest
from layouts import BOUNDARY, packed, shifted, uploaded
from peers import peer
from primitive_trials import EXP2_TOLERANCE
from test_emulated import run
from test_gpu import SANITIZED
from tinyvit.kernels import registry
from tinyvit.kernels.cuda import device

import tinyvit as tv
from benchmarks.gpu import looks
from benchmarks.machine import ROOT, describe_sources

LAYOUTS = draws.LAYOUTS | {"packed": packed, "shifted": shifted}
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (7,), (), (0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_on_the_device_has_the_layout_that_it_has_on_the_host(layout: str, shape: Any, dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    array = LAYOUTS[layout](values) if shape and shape[0] else values
    with fake_cupy.installed() as cupy:
        there, memory = uploaded(array, cupy)
        assert (there.shape, there.dtype) == (array.shape, array.dtype)
        assert there.get().tobytes() == array.tobytes()
        if array.size:
            assert there.strides == array.strides
            offset, size = there.data.ptr - memory.data.ptr, memory.nbytes
            assert offset % BOUNDARY == array.ctypes.data % BOUNDARY
            low, high = (offset + end - array.ctypes.data for end in np.lib.array_utils.byte_bounds(array))
            assert 0 <= low <= high <= size


def test_around_a_view_on_the_device_lies_what_lies_around_it_on_the_host() -> None:
    array = LAYOUTS["part"](np.ones((3, 5), np.float32))
    with fake_cupy.installed() as cupy:
        _, memory = uploaded(array, cupy)
        elements = memory.get()[-array.base.nbytes :].view(np.float32)
    np.testing.assert_array_equal(elements, array.base.reshape(-1))


def test_the_hash_of_sources_follows_every_change_and_needs_no_git(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "kernels/deep").mkdir(parents=True)
    source = tmp_path / "kernels/deep/a.cu"
    found = set()
    for text in ("int a;", "int b;", "int a; "):
        source.write_text(text)
        found.add(describe_sources(["kernels"], tmp_path))
    source.rename(source.with_name("b.cu"))
    assert describe_sources(["kernels"], tmp_path) not in found
    assert len(found) == 3


def test_a_test_that_passed_runs_again_when_a_source_has_changed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # there is no git
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    config = SimpleNamespace(option=SimpleNamespace(markexpr="gpu"), hook=hook)

    def selected() -> list[str]:
        items = [SimpleNamespace(nodeid=n, add_marker=lambda mark: None) for n in ("good", "bad", "new")]
        gpu_results.pytest_collection_modifyitems(config, items)
        return [item.nodeid for item in items]

    for name, outcome in (("good", "passed"), ("bad", "failed")):
        report = SimpleNamespace(nodeid=name, outcome=outcome, when="call", keywords={"gpu": 1}, skipped=False)
        gpu_results.pytest_runtest_logreport(
            SimpleNamespace(**vars(report), duration=1, failed=outcome == "failed", longreprtext="because")
        )
    assert selected() == ["bad", "new"]
    monkeypatch.setattr(gpu_results, "sources", lambda: "those of another day")
    assert selected() == ["good", "bad", "new"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warned", "status"), [("numba_cuda.dispatcher", 0), ("cupy", 0), ("tinyvit.run.captured", 1), ("test_gpu", 1)]
)
def test_on_a_gpu_only_our_own_warnings_fail_a_test(warned: str, status: int, tmp_path: Path) -> None:
    test = f"import warnings\ndef test(): warnings.warn_explicit('careful', UserWarning, 'file', 1, {warned!r})\n"
    (tmp_path / "test_warns.py").write_text(test)
    path = os.pathsep.join(map(str, (HERE, ROOT)))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "gpu_results", "-p", "no:cacheprovider", "."]
    environment = os.environ | {"TINYVIT_TRIALS": "gpu", "PYTHONPATH": path}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == status, found.stdout + found.stderr


# The sanitizer ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sanitizer_runs_our_kernels_and_none_of_cublas() -> None:
    """It runs every version of every kernel but those of `linear`, whose work is done in NVIDIA's library."""
    found = run("-k", SANITIZED, "--collect-only", TINYVIT_SANITIZE="1")
    assert found.returncode == 0, found.stdout + found.stderr
    chosen = [line for line in found.stdout.splitlines() if "::" in line]
    assert not [line for line in chosen if "linear" in line]
    of_ours = {spec.operation for spec in registry.SPECS if spec.technology == "cupy"} - {"linear"}
    tried = {operation for operation in of_ours if any(re.search(rf"\b{operation}-v", line) for line in chosen)}
    updates = {spec.operation for spec in registry.SPECS if isinstance(spec, registry.UpdateSpec)}
    assert tried == of_ours - updates


def test_the_result_of_ex2_may_be_off_by_what_nvidia_allows_and_no_more() -> None:
    exact = np.exp2(np.linspace(-3, 3, 4001))
    mantissa_of_one = exact / 2.0 ** np.floor(np.log2(exact))
    two_ulp, four_ulp = (exact * (1 + n * 2**-23 / mantissa_of_one) for n in (2, 4))
    assert (np.abs(two_ulp.astype(np.float32) / exact - 1) <= EXP2_TOLERANCE).all()
    assert (np.abs(four_ulp.astype(np.float32) / exact - 1) > EXP2_TOLERANCE).any()


# Kernels in Python, by numba.cuda -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("pointer", "named"), [(0, 1), (0x5500, 0x5500)])
def test_the_default_stream_has_a_number_that_is_not_0(pointer: int, named: int) -> None:
    """For 0, Numba would ask CuPy's arrays for their stream, and CuPy would warn at every launch."""
    simt = peer("tinyvit.kernels.cuda.simt", "numba-cuda")
    stream = SimpleNamespace(ptr=pointer)
    library = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: stream))
    with (
        mock.patch.object(simt, "library_of", return_value=library),
        mock.patch.object(simt.cuda, "external_stream", side_effect=lambda number: ("stream", number)),
    ):
        assert simt.stream_of(None) == ("stream", named)


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "warns"), [(None, 0), ("1", 1), ("0", 0)])
def test_small_grids_are_no_reason_to_warn_unless_somebody_asks_for_it(asked: str | None, warns: int) -> None:
    peer("tinyvit.kernels.cuda.simt", "numba-cuda")
    name = "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {} if asked is None else {name: asked}
    text = "import tinyvit.kernels.cuda.simt; from numba import config; print(int(config.CUDA_LOW_OCCUPANCY_WARNINGS))"
    found = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(warns), found.stderr


def test_the_look_at_products_finds_each_of_them_right() -> None:
    clock = SimpleNamespace(seconds=lambda function, cold: (function(), 1e-6)[1])
    lines: list[dict[str, Any]] = []
    with fake_cupy.installed():
        device.DEVICES[0] = fake_cupy.CapturableDevice()
        looks.products(lines.append, clock, [(33, 16, 24), (7, 5, 3)])
        device.DEVICES.clear()
    assert len(lines) == 3 * 2 * 3
    assert not [line for line in lines if "failed" in line or not line["algorithm"]]
    assert all(line["error"] < 0.02 for line in lines)


@pytest.mark.slow
def test_the_look_at_a_graph_counts_its_nodes_by_kind() -> None:
    lines: list[dict[str, Any]] = []
    shape = replace(looks.VIT_S, dim=32, depth=1, heads=2, image=8, channels=1, patch=4, classes=5, batch=6)
    with fake_cupy.installed(), tv.use_kernels("auto"):
        device.DEVICES[0] = fake_cupy.CapturableDevice()
        looks.graph(lines.append, shape)
        device.DEVICES.clear()
    captured, counted = lines
    assert captured == {"captured": True, "reason": None}
    assert counted["nodes"] == sum(counted["kinds"].values()) > 30
    assert any("attention" in kind for kind in counted["kinds"])
