"""The real CuPy on a pretended device, in processes of their own, whose libraries are replaced."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pretended
import pytest
from test_emulated import assert_passed, run

from benchmarks.gpu import first_look

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def needs_cupy_and_a_compiler() -> None:
    if reason := pretended.why_not():
        pytest.skip(reason)
    try:
        pretended.cuda_of_cupy()
    except LookupError as error:
        pytest.skip(str(error))


def test_cupy_accepts_what_it_is_asked() -> None:
    assert_passed(run(file="real_cupy_trials.py"))


LIMIT = 15.0  # seconds for a step; what takes longer is ended, as on a device


def test_the_first_look_at_a_gpu_runs_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is made, those that check values fail, and the file has a line for each step and each prediction."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {pretended.HERE / "pretended_python.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    planned = [replace(step, seconds=min(step.seconds, LIMIT)) for step in first_look.steps(minutes=0.05)]
    path, said = tmp_path / "look.jsonl", []
    failed = first_look.run(path, said.append, planned, tmp_path)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    steps = {line["step"]: line for line in lines if "step" in line}
    assert list(steps) == [step.name for step in planned]
    assert len(said) == len(lines) == len(planned) + len(first_look.PREDICTIONS)
    assert failed == sum(line["outcome"] in ("failed", "out of time") for line in steps.values())
    assert all(line["seconds"] < LIMIT + 30 for line in steps.values())

    assert steps["machine"]["outcome"] == "passed", steps["machine"]["says"]
    assert re.search(r"^  cuda +yes$", steps["machine"]["says"], re.MULTILINE), steps["machine"]["says"]
    assert steps["primitives"]["outcome"] == "failed"  # they compute nothing
    assert steps["graph"]["outcome"] == "passed", steps["graph"]["says"]
    assert steps["graph"]["found"][0] == {"captured": True, "reason": None}
