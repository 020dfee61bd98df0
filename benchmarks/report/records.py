"""The results of a run: what was measured, what follows from it, and its files (JSON to keep, CSV to plot)."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..stats import Summary, differ, ratios, summarize

FORMAT = 1  # of the JSON files


@dataclass
class Row:
    """One contender on one case: the median seconds of a call in each round, or the reason why there are none."""

    contender: str
    seconds: list[float] = field(default_factory=list)
    reason: str = ""
    deviations: dict[str, list[float]] = field(default_factory=dict)  # of each output: error, allowed
    peak_memory: int | None = None  # bytes, of the whole process

    def give_up(self, reason: str) -> None:
        """Keep no times, only why."""
        self.seconds, self.reason = [], " ".join(reason.split())

    @property
    def time(self) -> Summary | None:
        return summarize(self.seconds) if self.seconds else None

    @property
    def error(self) -> float | None:
        """The largest error among the outputs."""
        return max((error for error, _ in self.deviations.values()), default=None)


@dataclass
class CaseResult:
    """All contenders on one case. `gemm` and `copy` are the ceilings in each round, per second."""

    id: str
    label: str
    operation: str
    direction: str
    shape: dict[str, Any]
    flops: int
    bytes: int | None
    baseline: str = ""
    gemm: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def row(self, contender: str) -> Row | None:
        return next((row for row in self.rows if row.contender == contender), None)

    def speed(self, row: Row) -> Summary | None:
        """How many times as fast as the baseline: the median of the ratios of each round."""
        baseline = self.row(self.baseline)
        if baseline is None or len(baseline.seconds) != len(row.seconds) or not row.seconds:
            return None
        return summarize(ratios(baseline.seconds, row.seconds))

    def rate(self, row: Row) -> float | None:
        """Floating-point operations per second."""
        return self.flops / row.time.median if row.time and self.flops else None

    def bandwidth(self, row: Row) -> float | None:
        """Bytes per second."""
        return self.bytes / row.time.median if row.time and self.bytes else None

    def share_of_gemm(self, row: Row) -> float | None:
        rate = self.rate(row)
        return rate / summarize(self.gemm).median if rate and self.gemm else None

    def share_of_copy(self, row: Row) -> float | None:
        bandwidth = self.bandwidth(row)
        return bandwidth / summarize(self.copy).median if bandwidth and self.copy else None


@dataclass
class Run:
    """Everything that one command measured, with what is needed to judge it."""

    suite: str
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def contenders(self) -> list[str]:
        """Names of all contenders, in the order of the table."""
        return list(dict.fromkeys(row.contender for case in self.cases for row in case.rows))

    @property
    def ceilings(self) -> tuple[float, float] | None:
        """The median GEMM peak and copy bandwidth of all rounds, per second."""
        gemm, copy = ([v for case in self.cases for v in getattr(case, name)] for name in ("gemm", "copy"))
        return (summarize(gemm).median, summarize(copy).median) if gemm and copy else None


# Files --------------------------------------------------------------------------------------------------------------


def to_json(run: Run) -> str:
    return json.dumps({"format": FORMAT, **asdict(run)}, indent=1) + "\n"


def from_json(text: str) -> Run:
    """The run in a JSON text; ValueError if it is not one of ours."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ValueError(f"this is no result file of format {FORMAT}")
    cases = [CaseResult(**{**c, "rows": [Row(**row) for row in c["rows"]]}) for c in data.pop("cases")]
    return Run(**data, cases=cases)


def to_csv(run: Run) -> str:
    """One line for each contender on each case; empty fields where nothing was measured."""
    text = io.StringIO()
    lines = list(_csv_lines(run))
    writer = csv.DictWriter(text, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_lines(run: Run) -> Iterator[dict[str, Any]]:
    nothing = (None, None, None)
    for case in run.cases:
        for row in case.rows:
            seconds, speed = row.time or nothing, case.speed(row) or nothing
            yield {
                "suite": run.suite, "case": case.label, "contender": row.contender, "rounds": len(row.seconds),
                "seconds": seconds[0], "seconds_20": seconds[1], "seconds_80": seconds[2],
                "baseline": case.baseline, "speed": speed[0], "speed_20": speed[1], "speed_80": speed[2],
                "flops_per_second": case.rate(row), "share_of_gemm": case.share_of_gemm(row),
                "bytes_per_second": case.bandwidth(row), "share_of_copy": case.share_of_copy(row),
                "peak_memory": row.peak_memory, "error": row.error, "reason": row.reason,
            }  # fmt: skip


# Comparing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One contender on one case, in two runs."""

    case: str
    contender: str
    before: Summary
    after: Summary

    @property
    def ratio(self) -> float:
        """How many times as fast after as before."""
        return self.before.median / self.after.median

    @property
    def verdict(self) -> str:
        if not differ(self.before, self.after):
            return "same"
        return "faster" if self.ratio > 1 else "slower"


def compare(before: Run, after: Run) -> list[Change]:
    """What both runs timed, in the order of the first."""
    later = {case.id: case for case in after.cases}
    pairs = [(case, row, later[case.id].row(row.contender)) for case in before.cases if case.id in later
             for row in case.rows]  # fmt: skip
    return [
        Change(case.label, row.contender, row.time, other.time)
        for case, row, other in pairs
        if other and row.time and other.time
    ]


def read_run(path: Path) -> Run:
    """Read a JSON result file; OSError or ValueError, with the path, if that fails."""
    try:
        return from_json(path.read_text("utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a result file: {error}") from error
