"""Results survive their CSV file, runs can be chosen and compared, and a page shows a run."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cases import SUITES
from benchmarks.costs import cost
from benchmarks.report.compare import compare, described, notes, only_in_one, same_code
from benchmarks.report.csv_files import COLUMNS, append_run, check_file, find_runs, from_csv, read_runs, to_csv
from benchmarks.report.page import to_html, write_page
from benchmarks.report.records import CaseResult, Machine, Row, Run
from benchmarks.stats import Summary

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
DATE = "2026-01-02T03:04:05+00:00"


def example(seconds: Sequence[float], suite: str = "attention", date: str = DATE) -> Run:
    case = SUITES[suite].cases[0]
    flops, size = cost(case)
    rows = [Row("numpy", [0.010, 0.011, 0.012]), Row("<mine>", [*seconds]), Row("torch", reason="WRONG: <b>")]
    sizes = {name: value for name, value in vars(case.shape).items() if name != "name"}
    result = CaseResult(case.name, case.direction, sizes, flops, size, "numpy", 1e11, 3e10, rows)
    machine = Machine("A <CPU>", 2, ["avx2"], 2**30, "a system", 0.1)
    return Run(suite, date, "abc+", machine, {"numpy": "2"}, 2, 3, 1.0, [result])


# CSV files ------------------------------------------------------------------------------------------------------------

SECONDS = st.floats(1e-7, 1e3)
LINE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
ROWS = st.builds(
    Row,
    contender=st.sampled_from(["tinyvit", "numpy", "torch", "mine.py:fast"]),
    seconds=st.lists(SECONDS, max_size=4),
    reason=LINE,
    error=st.none() | SECONDS,
    peak_memory=st.none() | st.integers(0, 2**40),
)
CASES = st.builds(
    CaseResult,
    name=LINE,
    direction=st.sampled_from(["forward", "backward", "step"]),
    sizes=st.dictionaries(st.sampled_from(["N", "D", "batch"]), st.integers(1, 10**6)),
    flops=st.integers(0, 10**12),
    bytes=st.none() | st.integers(0, 10**12),
    baseline=st.sampled_from(["", "numpy"]),
    gemm=st.none() | SECONDS,
    copy=st.none() | SECONDS,
    rows=st.lists(ROWS, min_size=1, max_size=3, unique_by=lambda row: row.contender),
)
RUNS = st.builds(
    Run,
    suite=st.sampled_from(list(SUITES)),
    date=st.sampled_from([DATE, "2027-01-02T03:04:05+01:00"]),
    commit=st.just("abc+"),
    machine=st.builds(
        Machine,
        device=LINE,
        processors=st.integers(1, 256),
        features=st.lists(st.sampled_from(["avx2", "sve"]), unique=True),
        memory=st.none() | st.integers(1, 2**50),
        system=LINE,
        load=st.none() | st.floats(0, 100),
    ),
    versions=st.dictionaries(st.sampled_from(["python", "numpy"]), st.sampled_from(["2.0", "3.11.7+cpu"])),
    threads=st.integers(1, 256),
    most_rounds=st.integers(1, 20),
    budget=SECONDS,
    cases=st.lists(CASES, min_size=1, max_size=3, unique_by=lambda case: (case.name, case.direction)),
)


def rounded(value: Any) -> Any:
    """Every float with six digits, as files have it."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@given(RUNS)
def test_a_run_survives_its_file(run: Run) -> None:
    (found,) = from_csv(to_csv(run))
    assert asdict(found) == rounded(asdict(run))


@given(RUNS)
def test_a_file_has_a_line_for_each_row(run: Run) -> None:
    text = to_csv(run)
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    rows = [(case, row) for case in run.cases for row in case.rows]
    assert len(text.splitlines()) == 1 + len(rows)
    for line, (case, row) in zip(lines, rows, strict=True):
        assert (line["suite"], line["case"], line["direction"]) == (run.suite, case.name, case.direction)
        assert (line["contender"], line["device"], line["date"]) == (row.contender, run.machine.device, run.date)
        assert line["threads"] == str(run.threads)
        assert_numbers_for_readers_are_right(line, case, row)


def assert_numbers_for_readers_are_right(line: dict[str, str], case: CaseResult, row: Row) -> None:
    """The columns that follow from others, and which nothing reads."""
    for name, summary in (("seconds", row.time), ("ratio", case.speed(row))):
        assert (line[name] == "") == (summary is None)
        if summary is not None:
            assert float(line[name]) == pytest.approx(summary.median, rel=1e-5)


def test_a_reason_of_several_lines_stays_in_one() -> None:
    run = example([0.02])
    run.cases[0].rows[2].give_up("one\rtwo\nthree")
    assert from_csv(to_csv(run))[0].cases[0].rows[2].reason == "one two three"
    assert len(to_csv(run).splitlines()) == 4


def test_runs_are_appended_and_found_by_their_date(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    dates = ("2026-01-02T03:04:05+00:00", "2026-01-02T09:00:00+00:00", "2027-01-01T00:00:00+00:00")
    runs = [example([0.02] * 3, date=date) for date in dates]
    paths = {append_run(run, folder) for run in runs}
    assert paths == {folder / "attention.csv"}
    (path,) = paths
    assert read_runs(path) == runs
    assert find_runs(str(path)) == runs
    assert find_runs(f"{path}@2026-01-02") == runs[:2]
    assert find_runs(f"{path}@2026-01-02T09") == runs[1:2]
    with pytest.raises(ValueError, match=f"attention.csv has no run of 2025; available: {re.escape(dates[0])}, "):
        find_runs(f"{path}@2025")


def test_runs_of_other_machines_and_suites_may_share_a_file() -> None:
    here, train = example([0.02] * 3), example([0.02] * 3, "train")
    there = replace(here, machine=replace(here.machine, device="Another CPU"))
    first, *rest = to_csv(here, header=False).splitlines(keepends=True)
    mixed = [to_csv(there), first, to_csv(train, header=False), *rest]
    assert from_csv("".join(mixed)) == [there, here, train]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns suite, case"),
        ("a,b\n1,2\n", "lacks the columns suite, case"),
        ('{"format": 1}', "lacks the columns"),
        (",".join(COLUMNS) + "\ntrain,digits-s\n", "line 2 has not as many fields"),
        (to_csv(example([0.02])).replace("0.02", "soon"), "could not convert string to float: 'soon'"),
    ],
)
def test_another_file_is_refused_before_a_run_is_appended(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "attention.csv"
    check_file("attention", tmp_path)
    path.write_text(text)
    for read in (lambda: read_runs(path), lambda: check_file("attention", tmp_path)):
        with pytest.raises(ValueError, match=f"attention.csv: not a file of benchmark results: .*{message}"):
            read()


def test_the_results_of_this_project_can_be_read() -> None:
    paths = sorted(RESULTS.iterdir())
    assert {path.suffix for path in paths} == {".csv"}
    assert {path.stem for path in paths} <= SUITES.keys()
    for path in paths:
        known = {(case.name, case.direction) for case in SUITES[path.stem].cases}
        rows = [(case, row) for run in read_runs(path) for case in run.cases for row in case.rows]
        assert {(case.name, case.direction) for case, _ in rows} <= known
        lines = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
        for line, (case, row) in zip(lines, rows, strict=True):
            assert_numbers_for_readers_are_right(line, case, row)


# Comparisons and pages ------------------------------------------------------------------------------------------------


def test_a_comparison_marks_changes_beyond_the_noise() -> None:
    before = example([0.020, 0.021, 0.022])
    for seconds, verdict in (([0.010] * 3, "faster"), ([0.040] * 3, "slower"), ([0.0205, 0.0215, 0.023], "same")):
        own, mine = compare(before, example(seconds))
        assert (own.contender, own.verdict, own.ratio) == ("numpy", "same", 1)
        assert (mine.contender, mine.verdict) == ("<mine>", verdict)
        assert mine.ratio == pytest.approx(0.021 / sorted(seconds)[1])


def loaded(load: float, seed: int, commit: str, factor: float = 1.0, torch: str = "2.13", rounds: int = 15) -> Run:
    """A run on a machine whose load slows all contenders of a round; ours takes `factor` times as long as it did."""
    rng = np.random.default_rng(seed)
    cases = []
    for number, base in enumerate((1e-3, 5e-3, 2e-2)):
        slow = 1 + load * rng.random(rounds)  # what all contenders of a round have in common
        own = lambda seconds, slow=slow: [float(s) for s in seconds * slow * rng.normal(1, 0.01, rounds)]  # noqa: E731
        times = {"tinyvit": base * factor, "torch": 2 * base, "torch-compile": 1.5 * base, "jax": 3 * base}
        rows = [Row(name, own(seconds)) for name, seconds in times.items()]
        cases.append(CaseResult(f"case {number}", "step", {"N": number}, 10**9, None, "torch", None, None, rows))
    machine = Machine("A CPU", 2, [], None, "a system", load)
    return Run("train", DATE, commit, machine, {"numpy": "2", "torch": torch, "jax": "0.10"}, 2, 15, 1.0, cases)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("load_before", "load_after"), [(0.0, 3.0), (3.0, 0.1), (2.0, 4.0)])
def test_equal_code_is_called_equal_under_load(seed, load_before, load_after) -> None:
    before = loaded(load_before, 100 + seed, "abc")
    for commit in ("abc", "def"):  # by the commit; and by the times, where the commit only changed something else
        changes = compare(before, loaded(load_after, 200 + seed, commit))
        assert {change.verdict for change in changes} == {"same"}
        assert all(change.ratio == pytest.approx(1, abs=0.05) for change in changes)
    raw = [change.before.median / change.after.median for change in changes]
    assert any(abs(ratio - 1) > 0.2 for ratio in raw)  # the times themselves differ


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_change_of_our_code_is_found_under_load_and_not_ascribed_to_others(factor) -> None:
    before = loaded(0.1, 1, "abc")
    for change in compare(before, loaded(3.0, 2, "def", factor)):
        expected = "same" if change.contender != "tinyvit" else "faster" if factor < 1 else "slower"
        assert change.verdict == expected
        assert change.ratio == pytest.approx(1 / factor if change.contender == "tinyvit" else 1, rel=0.05)


def test_libraries_of_another_version_are_no_controls() -> None:
    before, after = loaded(0.0, 1, "abc"), loaded(3.0, 2, "def", torch="2.14")
    assert {change.contender for change in compare(before, after) if change.is_control} == {"jax"}
    before.versions["jax"] = "0.9"
    assert not any(change.is_control for change in compare(before, after))
    assert any(change.verdict == "slower" for change in compare(before, after))  # only times are left to compare


@pytest.mark.parametrize("commit", ["abc+", "unknown"])
def test_a_commit_with_changes_says_nothing_about_the_code(commit) -> None:
    before, after = loaded(0.1, 1, commit), loaded(0.1, 2, commit, 2.0)
    assert not same_code(before, after)
    assert {change.verdict for change in compare(before, after) if change.contender == "tinyvit"} == {"slower"}
    assert "the commits do not say what differs" in " ".join(notes(before, after, []))


def test_a_kernel_of_the_user_may_change_within_a_commit() -> None:
    before, after = loaded(0.1, 1, "abc"), loaded(0.1, 2, "abc")
    for run, factor in ((before, 1.0), (after, 2.0)):
        for case in run.cases:
            case.rows.append(Row("mine:attention", [factor * s for s in case.rows[1].seconds]))
    verdicts = {change.contender: change.verdict for change in compare(before, after)}
    assert verdicts.pop("mine:attention") == "slower"
    assert set(verdicts.values()) == {"same"}


def test_a_comparison_names_files_load_and_what_is_in_one_run_only() -> None:
    before, after = loaded(0.1, 1, "abc"), loaded(3.0, 2, "abc")
    assert described(before, "a.csv@2026") == f"a.csv: {DATE}, commit abc, load 0.10"
    assert described(before, "b@home.csv") == f"b@home.csv: {DATE}, commit abc, load 0.10"
    told = notes(before, after, compare(before, after))
    assert "the machine was busy after: load 3.00 on 2 processors" in told
    assert not any("busy before" in note for note in told)
    assert "both runs are of the commit abc, so their code is equal: differences are noise" in told
    assert only_in_one(before, after) == ([], [])
    del before.cases[0].rows[3], after.cases[2]
    after.cases[1].rows[1].give_up("WRONG")
    assert only_in_one(before, after) == (
        ["case 1: torch", *(f"case 2: {name}" for name in ("tinyvit", "torch", "torch-compile", "jax"))],
        ["case 0: jax"],
    )


def test_runs_of_different_suites_have_nothing_to_compare() -> None:
    assert compare(example([0.02] * 3), example([0.02] * 3, "train")) == []


def test_shares_are_relative_to_the_ceilings() -> None:
    case = example([0.02] * 3).cases[0]
    row = case.row("<mine>")
    assert row is not None
    assert case.bytes is not None
    assert case.share_of_gemm(row) == pytest.approx(case.flops / 0.02 / 1e11)
    assert case.share_of_copy(row) == pytest.approx(case.bytes / 0.02 / 3e10)
    assert case.speed(row) == pytest.approx(Summary(0.55, 0.52, 0.58))


@pytest.mark.parametrize("suite", ["attention", "train"])
def test_a_page_needs_no_other_file(suite: str) -> None:
    page = to_html(example([0.02] * 3, suite))
    assert not re.search(r"<script|<link|<img|@import|\b(src|href)=\"(?!#)", page)
    assert "<mine>" not in page
    assert "&lt;mine&gt;" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == (3 if suite == "attention" else 1)
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_pages_are_named_after_suite_processor_and_date(tmp_path: Path) -> None:
    run = example([0.02] * 3, "train")
    html, png = write_page(run, tmp_path)
    assert [path.name for path in (html, png)] == [
        f"train-a-cpu-2026-01-02T030405.{suffix}" for suffix in ("html", "png")
    ]
    assert html.read_text("utf-8") == to_html(run)
    assert png.read_bytes().startswith(b"\x89PNG")
