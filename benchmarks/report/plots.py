"""Plots of a run: speed against the baseline, time against N, and the roofline.

matplotlib is imported when something is drawn.
"""

import io
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from .records import CaseResult, Row, Run

# Colours that differ on white and on black, and markers for readers who cannot distinguish the colours.
_LOOKS = {
    "tinyvit": ("#2f7de1", "o"),
    "tinyvit-bf16": ("#74b0ff", "8"),
    "tinyvit-numba": ("#16a5b8", "D"),
    "numpy": ("#8a8a8a", "s"),
    "tinyvit-numpy": ("#6c7a89", "d"),
    "torch": ("#e8590c", "^"),
    "torch-compile": ("#d6336c", "v"),
    "torch-bf16": ("#9a5fd0", "<"),
    "torch-bf16-compile": ("#6741d9", "h"),
    "jax": ("#37973d", ">"),
    "jax-bf16": ("#82b366", "H"),
    "autograd": ("#a9762f", "p"),
}
# For kernels of users and for engines without a fusion.
_OTHERS = [(c, m) for m in "*PXd" for c in ("#b59f00", "#c2255c", "#5c7cfa")]

# The colour of text and lines, and that of the grid: on white, and placeholders that `to_svg` replaces by the page's.
_PRINT = ("#222222", "#d4d4d4")
_PAGE = ("#123456", "#654321")


class Panel(NamedTuple):
    """One picture, `height` inches high; `draw(figure, run)` draws it."""

    title: str
    height: float
    draw: Callable[[Any, Run], None]


def panels(run: Run) -> list[Panel]:
    """The pictures for which this run has data."""
    cases = _timed(run)
    found = []
    if cases:
        spread = max(len(_timed_rows(case)) for case in cases)
        names = _names(run)
        height = 0.9 + 0.2 * -(-len(names) // _columns(names)) + len(cases) * (0.3 + 0.07 * spread)
        found.append(Panel("Speed", height, _draw_speed))
    if cases and run.suite == "attention":
        found.append(Panel("Time against N", 4.4, _draw_time_against_tokens))
    if run.ceilings and any(case.flops and case.bytes for case in cases):
        found.append(Panel("Roofline", 5.2, _draw_roofline))
    return found


def _timed(run: Run) -> list[CaseResult]:
    return [case for case in run.cases if case.baseline]


def _timed_rows(case: CaseResult) -> list[Row]:
    return [row for row in case.rows if row.seconds]


def look(run: Run, contender: str) -> tuple[str, str]:
    """The colour and the marker of a contender."""
    if contender in _LOOKS:
        return _LOOKS[contender]
    others = [name for name in run.contenders if name not in _LOOKS]
    return _OTHERS[others.index(contender) % len(_OTHERS)]


# Pictures -----------------------------------------------------------------------------------------------------------


def to_png(run: Run) -> bytes:
    """All panels, one below the other, on white."""
    picture = io.BytesIO()
    _render(run, panels(run), _PRINT, picture, format="png", dpi=130)
    return picture.getvalue()


def to_svg(run: Run, panel: Panel) -> str:
    """One panel as an SVG element that inherits the colours of the page around it."""
    picture = io.StringIO()
    _render(run, [panel], _PAGE, picture, format="svg", transparent=True, metadata={"Date": None})
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :].replace(_PAGE[0], "currentColor").replace(_PAGE[1], "var(--line)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{panel.title}" ', 1)


def _render(run: Run, chosen: Sequence[Panel], colours: tuple[str, str], file: Any, **options: Any) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, faint = colours
    texts = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
    style: Any = dict.fromkeys(texts, ink)
    style |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), faint)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.facecolor": "none"}
    style |= {"grid.linewidth": 0.6, "legend.frameon": False, "font.size": 10, "svg.fonttype": "none"}
    style["svg.hashsalt"] = chosen[0].title  # makes the ids of the pictures in one page differ
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, sum(panel.height for panel in chosen)), layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(chosen), 1, height_ratios=[panel.height for panel in chosen], squeeze=False)
        for panel, part in zip(chosen, parts[:, 0], strict=True):
            if len(chosen) > 1:
                part.suptitle(panel.title, fontsize=13, weight="bold", x=0.01, ha="left")
            panel.draw(part, run)
        figure.savefig(file, **options)


# Panels -------------------------------------------------------------------------------------------------------------


def _legend(figure: Any, run: Run, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=name)
        for name in names
        for colour, marker in [look(run, name)]
    ]
    spacing = {"columnspacing": 1.2, "handletextpad": 0.2}
    figure.legend(handles=handles, loc="outside upper right", ncols=_columns(names), **spacing)


def _columns(names: Sequence[str]) -> int:
    """How many of these names fit in one line of a legend."""
    return max(1, min(len(names), 130 // (max(map(len, names)) + 4)))


def _names(run: Run) -> list[str]:
    return [
        name for name in run.contenders if any(row.contender == name for c in _timed(run) for row in _timed_rows(c))
    ]


def _draw_speed(figure: Any, run: Run) -> None:
    """Draw a line for each case with a mark for each contender: its median ratio and the 20 to 80 % range."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes = figure.subplots()
    cases, names = _timed(run), _names(run)
    for y, case in enumerate(cases):
        rows = _timed_rows(case)
        axes.axhspan(y - 0.5, y + 0.5, color="#808080", alpha=0.08 * (y % 2), linewidth=0)
        for i, row in enumerate(rows):
            speed = case.speed(row)
            if speed is None:
                continue
            at = y + 0.8 * ((i + 0.5) / len(rows) - 0.5)
            colour, marker = look(run, row.contender)
            axes.plot([speed.low, speed.high], [at, at], color=colour, linewidth=1.4, solid_capstyle="butt")
            axes.plot(speed.median, at, color=colour, marker=marker, markersize=5)
    axes.axvline(1, color=look(run, cases[0].baseline)[0], linewidth=1, alpha=0.6)
    axes.set(xscale="log", ylim=(len(cases) - 0.5, -0.5), xlabel=f"times as fast as {cases[0].baseline}")
    axes.set_yticks(range(len(cases)), [case.label for case in cases])
    axes.tick_params(axis="y", length=0)
    left, right = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < 200 * left else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    _legend(figure, run, names)


def _draw_time_against_tokens(figure: Any, run: Run) -> None:
    """Draw nanoseconds per element of q against N.

    Dividing by the elements removes batch, heads and head size; a flat line means memory-bound.
    """
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    names = _names(run)
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward"), strict=True):
        cases = [case for case in _timed(run) if case.direction == direction]
        tokens = sorted({case.sizes["N"] for case in cases})
        for name in names:
            found: dict[int, list[float]] = {}
            for case in cases:
                row, s = case.row(name), case.sizes
                if row is not None and row.time is not None:
                    found.setdefault(s["N"], []).append(row.time.median / (s["B"] * s["H"] * s["N"] * s["D"]) * 1e9)
            colour, marker = look(run, name)
            points = sorted((n, median(times)) for n, times in found.items())
            axes.plot(*zip(*points, strict=True) if points else ((), ()), color=colour, marker=marker, markersize=5)
        axes.set(xscale="log", yscale="log", title=direction, xlabel="N (tokens)")
        axes.set_xticks(tokens, [str(n) for n in tokens], fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid()
    figure.axes[0].set_ylabel("ns per element of q")
    _legend(figure, run, names)


def _draw_roofline(figure: Any, run: Run) -> None:
    """Draw rates against arithmetic intensity, below the limits of memory (the slope) and arithmetic (the roof)."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes = figure.subplots()
    assert run.ceilings is not None
    gemm, copy = run.ceilings
    cases = [case for case in _timed(run) if case.flops and case.bytes]
    intensities = [case.flops / case.bytes for case in cases if case.bytes]
    left, right = min(*intensities, gemm / copy) / 2, max(*intensities, gemm / copy) * 2
    axes.plot([left, gemm / copy, right], [left * copy / 1e9, gemm / 1e9, gemm / 1e9], color="#808080", linewidth=2)
    axes.annotate(f"GEMM {gemm / 1e9:.0f} GFLOP/s", (right, gemm / 1e9), (0, 5), textcoords="offset points", ha="right")
    axes.annotate(
        f"copy {copy / 1e9:.0f} GB/s", (left, left * copy / 1e9), (8, -8), textcoords="offset points", va="top"
    )
    for case, intensity in zip(cases, intensities, strict=True):
        for row in _timed_rows(case):
            colour, marker = look(run, row.contender)
            fill = "none" if case.direction == "backward" else "full"
            style = {"color": colour, "marker": marker, "markersize": 6, "fillstyle": fill, "linestyle": "none"}
            axes.plot(intensity, (case.rate(row) or 0) / 1e9, **style)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (filled: forward, hollow: backward)")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid()
    _legend(figure, run, _names(run))
