"""The command `python -m benchmarks`: suites, wrong usage, and what it does with results."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import benchmarks.contenders as contenders
from benchmarks.cases import SUITES
from benchmarks.cli import main
from benchmarks.cpu import measure
from benchmarks.report.csv_files import read_runs

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_lists_the_suites() -> None:
    output = CliRunner().invoke(main, []).output
    for suite in SUITES.values():
        assert re.search(rf"^  {suite.name} +{re.escape(suite.about)}$", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("attention --peers tensorflow", "there is no peer 'tensorflow'"),
        ("attention --shapes vit-xxl", "has no shape vit-xxl"),
        ("train --without attention,everything", "there is no fusion 'everything'; available: linear_bias"),
        ("train --baseline nobody", "--baseline nobody does not take part"),
        ("compare nowhere.csv nowhere.csv", "nowhere.csv"),
        ("report nowhere.csv", "nowhere.csv"),
    ],
)
def test_wrong_usage_is_reported(arguments: str, message: str) -> None:
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code != 0
    assert message in result.output


def test_a_run_is_measured_appended_compared_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    monkeypatch.setattr(contenders, "OURS", ())
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "measure_ceilings", lambda ceilings, processes: None)  # this takes seconds
    options = "--shapes digits-s --peers numpy --rounds 2 --budget 0.01 --threads 1"
    assert "digits-s b64" in invoke("train", *options.split(), "--out", str(tmp_path))
    file = tmp_path / "train.csv"
    (run,) = read_runs(file)
    (row,) = run.cases[0].rows
    assert (row.contender, len(row.seconds), row.reason) == ("numpy", 2, "")
    assert (run.threads, run.most_rounds, run.budget) == (1, 2, 0.01)

    assert "same" in invoke("compare", str(file), str(file))
    alone = CliRunner().invoke(main, ["compare", str(file)])
    assert alone.exit_code == 2
    assert "holds one run; name a second file" in alone.output
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([*lines, lines[1].replace(run.date, "2100-01-01T00:00:00+00:00")]) + "\n")
    assert "2100-01-01" in invoke("compare", str(file))
    table = invoke("compare", str(file), f"{file}@{run.date}")
    assert table.index("2100-01-01") < table.index(run.date[:10])

    shown = invoke("report", f"{file}@2100", "--out", str(tmp_path / "pages"))
    (page,) = tmp_path.glob("pages/*.html")
    assert f"wrote {page}" in shown


def test_a_file_that_is_not_ours_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("mine\n")
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a file of benchmark results" in result.output
    assert (tmp_path / "train.csv").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md"])
def test_commands_shown_in_the_documents_parse(name: str) -> None:
    for line in re.findall(r"^    python -m benchmarks ?(.*)$", (ROOT / name).read_text("utf-8"), re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words:
            main.commands[words[0]].make_context(words[0], words[1:])
