"""The first look at a GPU, as far as it runs without one: steps that fail or hang, and predictions."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import first_look, looks
from benchmarks.gpu.first_look import FOUND, PREDICTIONS, Step
from benchmarks.gpu.measure import tasks

PRINTS = f"import os; print('said'); print('{FOUND}' + '[' + os.environ['MANY'] + ']')"


def code(text: str, seconds: float = 60, **settings: Any) -> Step:
    return Step(text[:20], seconds, [sys.executable, "-c", text], "a step", **settings)


def lines_of(folder: Path, *planned: Step) -> tuple[list[dict[str, Any]], list[str], int]:
    path, said = folder / "look.jsonl", []
    failed = first_look.run(path, said.append, planned, folder)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()], said, failed


@pytest.mark.slow
def test_a_step_that_fails_or_never_ends_does_not_stop_the_rest(tmp_path: Path) -> None:
    lines, said, failed = lines_of(
        tmp_path,
        code("raise SystemExit('no primitives')"),
        code("import time; print('waiting', flush=True); time.sleep(600)", seconds=1.5),
        code("print(1)", tool="a-profiler-that-nobody-has"),
        Step("gone", 9, ["/no/such/program"], "a step"),
        code(PRINTS, settings={"MANY": "3"}),
    )
    steps = [line for line in lines if "step" in line]
    assert [line["outcome"] for line in steps] == ["failed", "out of time", "left out", "failed", "passed"]
    assert failed == 3
    assert "no primitives" in steps[0]["says"]
    assert "waiting" in steps[1]["says"]
    assert steps[1]["seconds"] < 30
    assert "a-profiler-that-nobody-has is not installed" in steps[2]["says"]
    assert (steps[4]["found"], steps[4]["says"]) == ([[3]], "said")
    assert all(line["sources"] == lines[0]["sources"] for line in lines)
    assert len(said) == len(lines)


def test_predictions_stand_beside_measurements(tmp_path: Path) -> None:
    first = PREDICTIONS[0]
    line = {"case": first.case, "dtype": first.dtype, "contender": first.contender, first.field: first.high + 1}
    (tmp_path / first_look.NUMBERS).write_text(json.dumps(line) + "\n")
    lines, said, _ = lines_of(tmp_path)
    assert [line["measured"] for line in lines] == [first.high + 1, *[None] * (len(PREDICTIONS) - 1)]
    assert (lines[0]["held"], lines[1]["held"]) == (False, None)
    assert "not measured" in said[1]


def test_what_is_predicted_is_measured() -> None:
    known = {(task.case.name, task.case.dtype, task.name) for task in tasks(set())}
    assert {(p.case, p.dtype, p.contender) for p in PREDICTIONS} <= known


def test_the_plan_fits_into_its_time_and_names_files_and_looks_that_exist() -> None:
    planned = first_look.steps()
    assert [step.name for step in planned][:4] == ["machine", "primitives", "kernels", "products"]
    usual = sum(step.seconds for step in planned if step.tool is None)
    assert usual <= 25 * 60
    for step in planned:
        for place, word in enumerate(step.command):
            assert not word.endswith(".py") or Path(word).exists(), word
            if word == first_look.LOOKS:
                assert step.command[place + 1] in looks.LOOKS


def test_the_look_at_the_machine_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[dict[str, Any]] = []
    looks.machine(found.append)
    assert {"system", "gpus", "tools", "versions"} == found[0].keys()
    assert "devices" in capsys.readouterr().out
