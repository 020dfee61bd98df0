"""Tests of the CUDA kernels; they share helpers with the tests of the CPU kernels."""

import sys
from pathlib import Path

import hypothesis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels")]

# CUDA kernels are slow on the CPU, so the first failure is shown as it was drawn.
hypothesis.settings.register_profile(
    "first-failure",
    hypothesis.settings.get_profile("tinyvit"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.register_profile("kernel-faults", hypothesis.settings.get_profile("first-failure"))

from gpu_results import pytest_collection_modifyitems, pytest_runtest_logreport  # noqa: E402, F401  (hooks)
