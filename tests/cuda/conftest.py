"""The tests of the CUDA kernels share helpers with those of the CPU's."""

import sys
from pathlib import Path

import hypothesis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels")]

# Kernels on the CPU are slow: the first failure is shown as it was drawn.
hypothesis.settings.register_profile(
    "first-failure",
    hypothesis.settings.get_profile("tinyvit"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.register_profile("faults", hypothesis.settings.get_profile("first-failure"))
