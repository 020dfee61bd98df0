"""Tables for the terminal, and the texts of their cells."""

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from ..stats import Summary
from .compare import Change
from .records import CaseResult, Row, Run

RATIO = "x {baseline}: median of the ratios of the rounds, not ratio of the medians"
_NOT_TIMED = {"WRONG": "bold red", "failed": "yellow"}
_STYLES = {"faster": "green", "slower": "red", "same": "dim"}


# Cells ----------------------------------------------------------------------------------------------------------------


def _unit(seconds: float) -> tuple[float, str]:
    """The largest unit in which a duration is at least 1: how many of it make a second, and its name."""
    return (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")


def _three_digits(value: float) -> str:
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def seconds_text(seconds: float) -> str:
    """A duration with three digits and its unit: 1.23 s, 45.6 ms, 789 us."""
    scale, name = _unit(seconds)
    return f"{_three_digits(seconds * scale)} {name}"


def median_text(row: Row) -> str:
    return seconds_text(row.time.median) if row.time else ""


def range_text(row: Row) -> str:
    """The 20 and 80 % quantiles of the time of a call, in the unit of the median."""
    if row.time is None:
        return ""
    scale, _ = _unit(row.time.median)
    return f"{_three_digits(row.time.low * scale)} - {_three_digits(row.time.high * scale)}"


def rate_text(rate: float | None, share: float | None) -> str:
    """Billions per second, and the share of the ceiling."""
    return "" if rate is None else f"{rate / 1e9:.1f}" + ("" if share is None else f" ({share:.0%})")


def speed_text(speed: Summary | None) -> str:
    return _three_digits(speed.median) if speed else ""


def memory_text(row: Row) -> str:
    return "" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}"


def error_text(row: Row) -> str:
    return "" if row.error is None else f"{row.error:.0e}"


# Tables ---------------------------------------------------------------------------------------------------------------


def case_columns(case: CaseResult) -> dict[str, Callable[[Row], str]]:
    """The columns of a case by name, each with the function that makes the text of a timed row."""
    columns: dict[str, Callable[[Row], str]] = {
        "median": median_text,
        "20 - 80 %": range_text,
        f"x {case.baseline}": lambda row: speed_text(case.speed(row)),
    }
    if case.flops:
        columns["GFLOP/s (max)"] = lambda row: rate_text(case.rate(row), case.share_of_gemm(row))
    if case.bytes:
        columns["GB/s (max)"] = lambda row: rate_text(case.bandwidth(row), case.share_of_copy(row))
    return columns


def case_table(case: CaseResult, memory: bool, about: str = "") -> Table:
    """The table of one case; with `memory`, its last column is the peak memory of each process, else the error.

    Below it stand `about`, the processor, and how the ratios were computed. A contender that was wrong or failed has a
    row that says so; `reasons` has the rest.
    """
    table = Table(title=f"[bold]{escape(case.label)}[/]", title_justify="left", box=None, pad_edge=False)
    explained = case.baseline and RATIO.format(baseline=case.baseline)
    table.caption, table.caption_justify = escape("\n".join(filter(None, (about, explained)))) or None, "left"
    table.add_column("contender", overflow="fold")  # the only column that a narrow terminal may wrap
    columns = case_columns(case) | ({"MB": memory_text} if memory else {"error": error_text})
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in case.rows:
        if row.time is not None:
            table.add_row(escape(row.contender), *(text(row) for text in columns.values()))
        elif row.verdict:
            table.add_row(escape(row.contender), f"[{_NOT_TIMED[row.verdict]}]{row.verdict}[/]")
    return table


def reasons(case: CaseResult) -> list[str]:
    """A line for each contender that was not timed."""
    return [
        f"[{_NOT_TIMED.get(row.verdict, 'yellow')}]{escape(row.contender)}[/]: {escape(row.reason)}"
        for row in case.rows
        if row.reason
    ]


def comparison_table(before: Run, after: Run, changes: Sequence[Change]) -> Table:
    """Two runs side by side; a change beyond the noise is coloured."""
    table = Table(box=None, pad_edge=False)
    table.add_column("case")
    table.add_column("contender")
    for run in (before, after):
        table.add_column(f"{run.date[:10]} {run.commit[:8]}", justify="right")
    table.add_column("x as fast", justify="right")
    table.add_column("")
    shown = ""
    for change in changes:
        table.add_row(
            "" if change.case == shown else escape(change.case),
            escape(change.contender),
            seconds_text(change.before.median),
            seconds_text(change.after.median),
            f"{change.ratio:.2f}",
            f"[{_STYLES[change.verdict]}]{change.verdict}[/]",
        )
        shown = change.case
    return table
