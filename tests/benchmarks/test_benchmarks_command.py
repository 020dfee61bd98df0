"""The command `python -m benchmarks`: suites, wrong usage, and what it does with results."""

import re
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from tiers import quick_first

import benchmarks.contenders as contenders
from benchmarks.cases import SUITES
from benchmarks.cli import main
from benchmarks.cpu import measure
from benchmarks.cpu.channel import LostError
from benchmarks.cpu.run import noise_warning
from benchmarks.machine import LIMITS, describe_machine
from benchmarks.report.csv_files import read_runs

ROOT = Path(__file__).resolve().parents[2]
Answer = dict[str, str] | str  # of a process: a string is the reason why there is none


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
    for variable in LIMITS:  # whose values, if any, are those of this machine
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "measure_ceilings", lambda ceilings, processes: None)  # this takes seconds
    options = "--shapes digits-s --peers numpy --rounds 2 --budget 0.01 --threads 1"
    shown = invoke("train", *options.split(), "--out", str(tmp_path))
    assert "digits-s b64" in shown
    table = shown[shown.index("digits-s b64") :]
    assert re.search(r"\b1 thread\b", table)  # below the table, with the processor
    assert describe_machine().device.split()[0] in table
    file = tmp_path / "train.csv"
    (run,) = read_runs(file)
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in run.machine.features
    (row,) = run.cases[0].rows
    assert (row.contender, len(row.seconds), row.reason) == ("numpy", 2, "")
    assert (run.threads, run.most_rounds, run.budget) == (1, 2, 0.01)

    same = invoke("compare", str(file), str(file))
    assert "same" in same
    assert f"before  {file}: {run.date}, commit {run.commit}, load" in same
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


@pytest.mark.parametrize("suite", SUITES)
def test_the_number_of_threads_is_that_of_the_environment(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVIT_THREADS", "0")
    result = CliRunner().invoke(main, [suite, "--peers", "none"])
    assert result.exit_code == 2
    assert "'--threads'" in result.output


def test_a_noisy_machine_is_warned_of() -> None:
    quiet, noisy = [100.0, 101.0, 99.0, 100.5, 99.5], [100.0, 50.0, 99.0, 100.5, 60.0, 98.0]
    assert noise_warning(quiet) == ""
    assert noise_warning([*quiet, 1.0]) == ""  # one slow run is no noise
    assert noise_warning(noisy[:4]) == ""  # too few to tell
    assert re.search(r"noisy: in 6 equal runs, .* varied by \d\d%", noise_warning(noisy))


def test_a_file_that_is_not_ours_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("mine\n")
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a file of benchmark results" in result.output
    assert (tmp_path / "train.csv").read_text() == "mine\n"


@pytest.mark.parametrize(
    "name", ["README.md", "benchmarks/README.md", "docs/guides/benchmarks.md", "docs/guides/gpu.md"]
)
def test_commands_shown_in_the_documents_parse(name: str) -> None:
    for line in re.findall(r"^    python -m benchmarks ?(.*)$", (ROOT / name).read_text("utf-8"), re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words:
            main.commands[words[0]].make_context(words[0], words[1:])


@pytest.fixture
def own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of kernels, and suites that measure little else."""
    monkeypatch.setattr(contenders, "OURS", ())
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "measure_ceilings", lambda ceilings, processes: None)
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def right(x, weight, bias, eps):\n"
        "    centred = x - x.mean(-1, keepdims=True)\n"
        "    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias\n"
        "def wrong(x, weight, bias, eps):\n"
        "    return right(x, weight, bias, eps) * np.float32(1.001)\n"
    )
    return file


def measured(*kernels: str) -> tuple[int, str]:
    options = ["layer_norm", "--quick", "--peers", "numpy", "--rounds", "2", "--budget", "0.001", "--threads", "1"]
    result = CliRunner().invoke(main, [*options, *(word for kernel in kernels for word in ("--kernel", kernel))])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("place", "message"),
    quick_first(
        [
            ("{}:nothing", "has no function 'nothing'; available: right, wrong"),
            ("{}", "is not of the form module:function or file.py:function; functions in the file: right, wrong"),
            ("{}:", "functions in the file: right, wrong"),
            ("tinyvit", "is not of the form module:function or file.py:function"),
            ("{}:wright", "has no function 'wright' (did you mean 'right'?); available: right, wrong"),
            ("no_such_file.py:right", "there is no file 'no_such_file.py'"),
            ("no_such_module:right", "No module named 'no_such_module'"),
        ],
        2,
    ),
)
def test_a_missing_kernel_is_refused_before_anything_is_timed(
    place: str, message: str, own_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.cpu.run.measure_suite", lambda *_: pytest.fail("something was timed"))
    status, output = measured(place.format(own_kernels))
    assert status == 2
    assert message in " ".join(output.split())


@pytest.mark.slow
def test_a_wrong_kernel_ends_with_a_status_and_a_right_one_without(own_kernels: Path) -> None:
    status, output = measured(f"{own_kernels}:right")
    assert status == 0, output
    assert "has no function" not in output  # the backward function is optional
    status, output = measured(f"{own_kernels}:right", f"{own_kernels}:wrong")
    assert status == 1
    assert output.count("mine:wrong: WRONG: error of out") == 1
    assert "mine:right" not in output
    assert "numpy" not in output, "nothing else was timed"


class Canned:
    """The processes of a run; `answers` has what is answered to "CONTENDER QUESTION" or "CONTENDER CASE"."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers, self.asked, self.equal_runs, self.folder = answers, [], [], ""

    def __call__(self, settings: measure.Settings, folder: Path) -> "Canned":
        self.settings = settings
        return self

    def contender(self, spec: contenders.Spec) -> SimpleNamespace:
        return SimpleNamespace(ask=partial(self.answer, spec.name))

    def reference(self) -> SimpleNamespace:
        return SimpleNamespace(ask=partial(self.answer, "reference"))

    def answer(self, name: str, question: str, timeout: float, case: str = "", **given: object) -> object:
        self.asked.append((name, question))
        answer = self.answers.get(f"{name} {question}") or self.answers.get(f"{name} {case}")
        if isinstance(answer, str):
            raise LostError(answer)
        return answer or {"error": 0.0, "peak_memory": 1, "seconds": [1e-3]}

    def drop(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("case", ["mnist-s 1088x64/forward", "vit-s 8320x192/forward"], ids=["first", "second"])
@pytest.mark.parametrize(
    "answer", [{"wrong": "it is wrong"}, "ValueError: it is wrong, at mine.py:3", "died (SIGKILL)"]
)
def test_kernels_that_fail_the_check_are_named_once_before_anything_is_timed(
    case: str, answer: Answer, own_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.cpu.user_kernels.checked", lambda spec, threads: spec)
    reason = answer if isinstance(answer, str) else f"WRONG: {answer['wrong']}"
    canned = Canned({f"mine:wrong layer_norm/layer_norm/{case}": answer})
    monkeypatch.setattr("benchmarks.cpu.run.Processes", canned)
    status, output = measured(f"{own_kernels}:right", f"{own_kernels}:wrong")
    assert status == 1
    assert output.count(f"mine:wrong: {reason}") == output.count(reason) == 1
    assert canned.asked
    assert not [asked for asked in canned.asked if asked[0] == "numpy" or asked[1] == "time"]


def test_a_kernel_that_fails_as_it_is_timed_ends_with_a_status_and_one_reason(
    own_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.cpu.user_kernels.checked", lambda spec, threads: spec)
    monkeypatch.setattr("benchmarks.cpu.run.Processes", Canned({"mine:right finish": "died (SIGKILL)"}))
    status, output = measured(f"{own_kernels}:right")
    assert status == 1
    assert output.count("died (SIGKILL)") == 1
    assert output.endswith("Error: mine:right failed; the reason is below the table\n")
