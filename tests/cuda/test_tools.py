"""What tests on a GPU rely on: layouts of arrays on the device, a file of results, and warnings of libraries."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import draws
import fake_cupy
import gpu_results
import ml_dtypes
import numpy as np
import pytest
from layouts import BOUNDARY, packed, shifted, uploaded
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
