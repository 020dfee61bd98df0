"""The CUDA kernels on the CPU, compiled by g++. They have a process of their own, because a fault ends the process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def pytest_on(file: str, *arguments: str) -> list[str]:
    """Return the command that runs the tests of a file of this folder."""
    command = [sys.executable, "-m", "pytest", str(HERE / file), "-q", "-p", "no:cacheprovider"]
    return [*command, "--hypothesis-profile=first-failure", *arguments]


def run(*arguments: str, file: str = "kernel_trials.py", **environment: str) -> "subprocess.CompletedProcess[str]":
    command, settings = pytest_on(file, "-x", *arguments), os.environ | {"TINYVIT_COMPILE_AHEAD": "0", **environment}
    return subprocess.run(command, cwd=HERE.parents[1], env=settings, capture_output=True, text=True)


def assert_passed(found: "subprocess.CompletedProcess[str]") -> None:
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


@pytest.mark.slow
def test_the_emulated_primitives_are_correct() -> None:
    assert_passed(run(file="primitive_trials.py"))


@pytest.mark.slow
def test_training_on_the_emulated_device_follows_training_on_the_cpu() -> None:
    assert_passed(run(file="training_trials.py"))


@pytest.mark.slow
def test_runs_of_every_task_on_the_emulated_device_are_captured() -> None:
    assert_passed(run(file="task_trials.py"))


@pytest.mark.slow
def test_the_kernels_that_serve_all_parameters_at_once_agree_with_numpy() -> None:
    assert_passed(run(file="update_trials.py"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["attention", "layer_norm", "not attention and not layer_norm"])
def test_the_kernels_agree_with_the_plain_rules(part: str) -> None:
    assert_passed(run("-k", part))


@pytest.mark.slow
def test_corners_of_shape_have_the_values_and_gradients_of_the_host() -> None:
    assert_passed(run(file="corner_trials.py"))


@pytest.mark.slow
def test_no_kernel_touches_memory_outside_its_arrays() -> None:
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).exists():
        pytest.skip("needs AddressSanitizer")
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0", "TINYVIT_SANITIZE": "1"}
    assert_passed(run("-k", "exact", LD_PRELOAD=library, TINYVIT_EXAMPLES="3", **options))
