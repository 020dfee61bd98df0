"""Tests of the CUDA kernels; they share helpers with the tests of the CPU kernels."""

import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

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


# The results of tests on a GPU: one file with a line for each test. Tests that have passed are skipped the next time.

RESULTS = Path("gpu-tests.jsonl")


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return run.stdout.strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr != "gpu" or not RESULTS.exists():
        return
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    passed = {line["test"] for line in lines if line["outcome"] == "passed" and line["commit"] == _commit()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" or "gpu" not in report.keywords or report.skipped:
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "commit": _commit()}
    if report.failed:
        line["says"] = report.longreprtext[-2000:]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
