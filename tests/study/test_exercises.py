"""Exercises: what is handed out fails, correct solutions pass, mistakes are noticed; a page holds no answer."""

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from exercise_solutions import MISTAKES, SOLUTIONS

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.cli import commands
from tinyvit.engine import Op
from tinyvit.errors import StudyError
from tinyvit.study import exercises
from tinyvit.study.check.faults import place_for
from tinyvit.study.exercises import exercise_page, judged, write_exercises
from tinyvit.study.page.write import page_of
from tinyvit.study.subject import printed, study_run
from tinyvit.study.trace import trace

ALL = sorted(SOLUTIONS)


def solve(folder: Path, name: str, change: tuple[str, str] = ("", "")) -> None:
    """Write the solution of an exercise, with one change, in place of the missing body."""
    body = textwrap.dedent(SOLUTIONS[name]).strip()
    right, wrong = change
    assert not right or body.count(right) == 1
    file = folder / f"{name}.py"
    source, count = re.subn(
        r"    raise NotImplementedError\(.*\)\n",
        lambda _: textwrap.indent(body.replace(right, wrong) if right else body, "    ") + "\n",
        file.read_text("utf-8"),
    )
    assert count == 1
    file.write_text(source, "utf-8")


def outcomes(folder: Path) -> dict[str, set[str]]:
    """By exercise, the outcomes of its tests, as a student runs them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    environment = os.environ | {"PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found: dict[str, set[str]] = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (?:.*/)?test_(\w+)\.py", ran.stdout, re.MULTILINE):
        found.setdefault(name, set()).add(outcome)
    assert sorted(found) == ALL, ran.stdout[-3000:]
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"your function returned None; is there a `return` at its end\?"),
        ([1.0, 2.5], r"ACTUAL is what your function gave(.|\n)*Mismatched elements: 1 / 2(.|\n)*ACTUAL: .*2\.5"),
        ([1.0], r"ACTUAL is what your function gave(.|\n)*shapes \(1,\), \(2,\) mismatch"),
        ([1.0, float("nan")], r"ACTUAL is what your function gave"),
    ],
)
def test_a_wrong_result_is_shown_beside_the_right_one(found: Any, message: str, tmp_path: Path) -> None:
    write_exercises(tmp_path / "exercises")
    handed_out: dict[str, Any] = {}
    exec((tmp_path / "exercises/differences.py").read_text("utf-8"), handed_out)
    handed_out["compare"]([1.0, 2.0], np.array([1.0, 2.0]))
    with pytest.raises(AssertionError, match=message):
        handed_out["compare"](found if found is None else np.array(found), np.array([1.0, 2.0]))


@pytest.mark.slow
def test_what_is_handed_out_fails(tmp_path: Path) -> None:
    said = write_exercises(tmp_path / "exercises")
    assert said.startswith("6 exercises ->")
    assert all("FAILED" in found for found in outcomes(tmp_path / "exercises").values())


@pytest.mark.slow
def test_correct_solutions_pass(tmp_path: Path) -> None:
    write_exercises(tmp_path / "exercises")
    for name in ALL:
        solve(tmp_path / "exercises", name)
    assert outcomes(tmp_path / "exercises") == {name: {"PASSED"} for name in ALL}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_mistakes_are_noticed(number: int, tmp_path: Path) -> None:
    write_exercises(tmp_path / "exercises")
    for name in ALL:
        solve(tmp_path / "exercises", name, MISTAKES[name][number])
    assert all("FAILED" in found for found in outcomes(tmp_path / "exercises").values())


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "exercises").mkdir()
    (tmp_path / "exercises/softmax_backward.py").write_text("mine")
    result = CliRunner().invoke(commands, ["exercises", str(tmp_path / "exercises")])
    assert "is not an empty folder" in str(result.exception)
    assert [path.name for path in tmp_path.rglob("*")] == ["exercises", "softmax_backward.py"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_exercises(tmp_path / "new")
    assert (tmp_path / "new/README.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# A page with one wrong rule -------------------------------------------------------------------------------------------

NUMBER = 3
EXERCISE = {"exercise": "a mistake"}


@pytest.fixture(scope="module")
def recorded() -> Any:
    """The pass that all exercises are about, without a fault."""
    return study_run().trace


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the command says about an exercise, and its page."""
    path = tmp_path_factory.mktemp("exercise") / "page.html"
    return exercise_page(NUMBER, str(path)), path.read_text("utf-8")


def place_of(number: int, recorded: Any) -> tuple[str, str]:
    """The operation with the wrong rule in an exercise, and the mistake."""
    place = place_for("any", recorded, random.Random(number))
    return place.key, place.mistake


def document_in(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_of_an_exercise_has_no_answer(page: tuple[str, str], recorded: Any) -> None:
    key, mistake = place_of(NUMBER, recorded)
    said, text = page
    assert f"--answer {NUMBER} OPERATION" in said
    assert key not in said
    assert mistake.partition(": ")[2] not in text
    assert "planted" not in text.partition("<script>")[0]
    assert "1 wrong" not in text
    document = document_in(text)
    checks = [op["check"] for op in document["ops"] if op["check"]]
    assert len(checks) > 20
    assert {check["verdict"] for check in checks} == {check["why"] for check in checks} == {""}
    assert {row[-1] for check in checks for row in check["rows"]} == {""}
    assert document["fused"] == []
    assert "exercise" not in document["about"]


def test_the_wrong_rule_ran_and_its_numbers_are_on_the_page(page: tuple[str, str], recorded: Any) -> None:
    apart = {
        op["key"]
        for op in document_in(page[1])["ops"]
        for _, index, _, rule, numeric, tolerance, _ in (op["check"] or {"rows": []})["rows"]
        if index is not None and abs(rule - numeric) > 10 * tolerance
    }
    assert apart == {place_of(NUMBER, recorded)[0]}


def test_readers_without_scripts_see_no_verdict_in_an_exercise() -> None:
    with trace() as small, tv.use_kernels("numpy"):
        F.relu(tv.tensor([1.0, -2.0], requires_grad=True)).sum().backward()
    shown = [page_of(small, about).partition("Without scripts")[2].partition("</table>")[0] for about in ({}, EXERCISE)]
    assert ["agrees" in table for table in shown] == [True, False]


def test_numbers_give_the_same_place_again_and_different_ones(recorded: Any) -> None:
    assert place_of(NUMBER, recorded) == place_of(NUMBER, recorded)
    assert len({place_of(number, recorded)[0] for number in range(4)}) > 1


def test_answers_are_judged(recorded: Any) -> None:
    key, mistake = place_of(5, recorded)
    other = next(entry.key for entry in recorded if entry.backward and entry.key != key)
    assert judged(5, key) == (True, f"right: {mistake}")
    is_right, said = judged(5, other)
    assert not is_right
    assert key not in said


def test_an_answer_is_the_name_of_an_operation_as_far_as_it_is_needed(monkeypatch) -> None:
    subject = study_run("digits")
    entries, place = list(subject.trace), place_for("any", subject.trace, random.Random(1))
    monkeypatch.setattr(exercises, "study_run", lambda run: subject)
    monkeypatch.setattr(exercises, "place_for", lambda *arguments: place)
    for name in sorted(Op.registry):
        keys = [entry.key for entry in entries if entry.op.name == name]
        if len(keys) == 1:
            assert judged(1, name) == judged(1, keys[0])
        elif name in keys:  # one of several has no other name
            assert judged(1, name) == (name == place.key, f"no: the gradient rule of {name} is right")
        elif keys:
            with pytest.raises(StudyError, match=f"there are {len(keys)} operations '{name}' .* such as {keys[0]}$"):
                judged(1, name)
        else:
            with pytest.raises(StudyError, match=f"there is no operation '{name}' on the page; names are written as "):
                judged(1, name)


def test_a_run_that_cannot_be_studied_names_the_kinds_that_can() -> None:
    for run in ("caption", "vqa", "retrieve"):
        with pytest.raises(StudyError, match=f"{run} is not a classifier of images; .* 'segment' and 'detect' runs"):
            printed(run, None, None, None)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--answer", "5", "head/linear"], {0, 1}, ""),
        (["--answer", "5", "no_such"], {2}, "there is no operation 'no_such'"),
        (["--answer", "5", "layer_norm"], {2}, "name one, such as blocks.0.norm1/layer_norm"),
        (["--answer", "5"], {2}, "--answer N OPERATION"),
        (["--answer", "-1", "head/linear"], {2}, "must be between 0 and"),
        (["--exercise", "5", "runs/mnist"], {2}, "leave out 'runs/mnist'"),
        (["--exercise", "5", "--text"], {2}, "no other option"),
        (["--exercise", "5", "--answer", "5", "head/linear"], {2}, "no other option"),
    ],
)
def test_the_command_of_exercises(arguments: list[str], status: set[int], words: str) -> None:
    result = CliRunner().invoke(commands, ["study", *arguments])
    said = result.output + str(result.exception or "")
    assert words in said
    assert result.exit_code in status or (2 in status and result.exit_code == 1)  # the group turns errors into 2
