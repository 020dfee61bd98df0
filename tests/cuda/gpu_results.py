"""Hooks of pytest for tests on a GPU: a file of their results, and which warnings fail them.

The file has a line for each test. Tests that have passed with the same sources are skipped the next time.
"""

import functools
import json
import os
from pathlib import Path

import pytest

from benchmarks.machine import describe_sources

RESULTS = Path("gpu-tests.jsonl")
_FOLDERS = ("kernels", "tinyvit", "tests/cuda", "tests/kernels", "tests/support")
# Later filters come first. Libraries warn about what is theirs, such as drivers and deprecated functions.
_WARNINGS = ("default", r"error:::(tinyvit|benchmarks|test_\w+|\w+_trials)(\.|$)")

sources = functools.cache(functools.partial(describe_sources, _FOLDERS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let warnings of libraries pass on a GPU, and leave out what has passed there."""
    is_marked = config.option.markexpr == "gpu"
    if is_marked or os.environ.get("TINYVIT_TRIALS") == "gpu":
        for item in items:
            for warning in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
    if not is_marked or not RESULTS.exists():
        return
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    passed = {line["test"] for line in lines if line["outcome"] == "passed" and line.get("sources") == sources()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a line for a test on a GPU."""
    if report.when != "call" or "gpu" not in report.keywords or report.skipped:
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    line["sources"] = sources()
    if report.failed:
        line["says"] = report.longreprtext[-2000:]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
