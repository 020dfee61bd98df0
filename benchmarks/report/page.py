"""The page of a run: one HTML file that needs no other, and its plots as one PNG picture."""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

from tinyvit.backend.words import counted

from ..stats import MIN_ROUNDS, NOISE
from .plots import look, panels, to_png, to_svg
from .records import CaseResult, Row, Run
from .table import case_columns, error_text, memory_text

METHOD = f"""\
Every contender ran in its own process with the same number of threads, on inputs drawn from one seed. Before a
contender was timed, its outputs were verified against NumPy in float64, on the same buffers; a wrong contender is not
timed. Each round timed every contender once, after a pause, in an order that rotates. Times are medians over the
rounds (within a round, over its calls), with the 20 and 80 % quantiles. Speed is the median of the ratios of each
round, so that whatever slowed a whole round cancels. A case ended when the standard error of every such median was
below {NOISE:.0%}, after at least {MIN_ROUNDS} rounds, or after the largest number of rounds. Each round also measured
the ceilings, by the fastest of a few calls: a large float32 matrix product by NumPy, and a copy of arrays larger than
the caches. GFLOP/s and GB/s count the work of the algorithm in float32, the same for all contenders, with the share
of the ceiling in brackets; bfloat16 and caches can exceed it. The error is the largest of any output, relative to the
largest value of that output; the peak memory is that of the process."""


def write_page(run: Run, folder: Path) -> list[Path]:
    """Write the page and the picture of `run` into `folder`, and return their paths.

    Their names tell suite, processor and date, so writing the same run again overwrites its files and no others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", run.machine.device.lower()).strip("-")
    stem = f"{run.suite}-{device}-{run.date[:19].replace(':', '')}"
    files = {folder / f"{stem}.html": to_html(run).encode()}
    if panels(run):
        files[folder / f"{stem}.png"] = to_png(run)
    for path, content in files.items():
        path.write_bytes(content)
    return list(files)


# The page -----------------------------------------------------------------------------------------------------------

_STYLE = """
:root { --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --band: #f6f8fa; --wrong: #c92a2a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e6e8eb; --faint: #9aa4af; --line: #363c45; --band: #1c2027; --wrong: #ff8787; }
}
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.faint { color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .6rem 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .5rem 0; overflow-x: auto; } svg { width: 100%; min-width: 36rem; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.reason { text-align: left; white-space: normal; color: var(--faint); } td.wrong { color: var(--wrong); }
i { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
@media (max-width: 46rem) {
  thead { display: none; } tbody { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr; column-gap: 1.4rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  td { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .6rem; padding: .06rem 0; border: 0;
    font-size: .86rem; }
  td:first-child, td.reason { grid-column: 1 / -1; justify-content: flex-start; align-items: center; }
  td:first-child { font-weight: 600; }
  td[data-name]::before { content: attr(data-name); color: var(--faint); } td:empty { display: none; }
}
"""

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="faint">{subtitle}</p>
{facts}
{pictures}
<h2>Results</h2>
{tables}
<h2>Method</h2>
<p>{method}</p>
</body>
</html>
"""


def to_html(run: Run) -> str:
    """The page, without scripts or references to other files."""
    pictures = "\n".join(
        f"<h2>{escape(panel.title)}</h2>\n<figure>{to_svg(run, panel)}</figure>" for panel in panels(run)
    )
    return _PAGE.format(
        title=f"tinyvit benchmarks: {escape(run.suite)}",
        subtitle=f"{escape(run.machine.device)}, {counted(run.threads, 'threads')}, {escape(run.date[:10])}",
        style=_STYLE,
        facts=_facts(run),
        pictures=pictures,
        tables="\n".join(_table(run, case) for case in run.cases),
        method=METHOD,
    )


def _facts(run: Run) -> str:
    machine = run.machine
    commit = run.commit.removesuffix("+") + (" and uncommitted changes" if run.commit.endswith("+") else "")
    memory = "" if machine.memory is None else f", {machine.memory / 2**30:.0f} GiB"
    facts = {
        "Processor": f"{machine.device}, {machine.processors} usable{memory}",
        "Extensions": ", ".join(machine.features) or "unknown",
        "System": machine.system,
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "Commit": commit,
        "Started": run.date + ("" if machine.load is None else f", load {machine.load:.1f}"),
        "Settings": f"{counted(run.threads, 'threads')}, at most {run.most_rounds} rounds, "
        f"{run.budget:g} s for each contender and case",
    }
    if run.ceilings:
        gemm, copy = run.ceilings
        facts["Ceilings"] = f"GEMM {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s"
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()) + "</dl>"


def _table(run: Run, case: CaseResult) -> str:
    columns = case_columns(case) | {"error": error_text, "peak MB": memory_text}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("contender", *columns))
    body = "\n".join(_row(run, row, columns) for row in case.rows)
    return f"<h3>{escape(case.label)}</h3>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _row(run: Run, row: Row, columns: dict[str, Callable[[Row], str]]) -> str:
    first = f'<td><i style="background: {look(run, row.contender)[0]}"></i>{escape(row.contender)}</td>'
    if row.time is None:
        kind = "reason wrong" if row.reason.startswith("WRONG") else "reason"
        return f'<tr>{first}<td class="{kind}" colspan="{len(columns)}">{escape(row.reason)}</td></tr>'
    cells = (f'<td data-name="{escape(name)}">{escape(text(row))}</td>' for name, text in columns.items())
    return f"<tr>{first}{''.join(cells)}</tr>"
