"""The measurements of a training run as a page and as a picture."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...backend.pages import page as page_of
from ...checkpoint import atomic_write
from ...run.curves import own_style
from ..record.submodules import top_level_of

_TITLES = {
    "gradients": "gradient norm, largest in each submodule",
    "updates": "update / weight of one step, largest in each submodule",
    "spread": "standard deviation of activations, mean",
    "entropy": "entropy of attention, mean over heads (nats)",
}
_NOTHING = "No step was measured"
_STYLE = (
    "html{font-size:15px}body{max-width:76rem;margin:1.5rem auto;padding:0 1rem}"
    "svg{max-width:100%;height:auto;border-radius:8px}li{color:var(--bad)}"
    "table{border-collapse:collapse}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid var(--line)}"
    "th:first-child{text-align:left}summary{cursor:pointer}.scroll{overflow-x:auto}"
)


@own_style()
def draw_report(
    page: Path, picture: Path, title: str, lines: Sequence[dict[str, Any]], warnings: Sequence[str], steps: int
) -> None:
    """Draw the lines of study.jsonl, from a run of `steps` steps, as a page and as a PNG. Raises OSError."""
    measured = f"{len(lines)} of {steps} steps were measured, and the loss of every step" if lines else _NOTHING
    items = "".join(f"<li>{html.escape(w)}</li>" for w in warnings)
    findings = f"<ul>{items}</ul><p>{measured}.</p>" if items else f"<p>{measured}; there are no warnings.</p>"
    drawn = ""
    if lines:
        figure = _figure(title, lines)
        pixels, vectors = io.BytesIO(), io.StringIO()
        figure.savefig(pixels, format="png", dpi=130)
        figure.savefig(vectors, format="svg", metadata={"Date": None})
        atomic_write(picture, pixels.getvalue())
        svg = vectors.getvalue()
        words = html.escape(f"curves over {steps} steps: the loss, {', '.join(_TITLES.values())}")
        drawn = f'<svg role="img" aria-label="{words}"' + svg[svg.index("<svg") + 4 :] + _tables(lines[-1])
    heading = f"{title}: training, layer by layer"
    body = f"<body><main><h1>{html.escape(heading)}</h1>{findings}{drawn}</main></body>"
    atomic_write(page, page_of(heading, body, [_STYLE]).encode())


def _tables(line: dict[str, Any]) -> str:
    """The measurements of one step as tables: for every head, every activation, every parameter."""
    entropy = {key: [f"{x:.2f}" for x in heads] for key, heads in line["entropy"].items()}
    spread = {
        key: [f"{x:.3g}", f"{100 * line['silent'][key]:.0f} %" if key in line["silent"] else ""]
        for key, x in line["spread"].items()
    }
    updates = {key: [f"{norm:.3g}", f"{line['updates'][key]:.2g}"] for key, norm in line["gradients"].items()}
    heads = max((len(cells) for cells in entropy.values()), default=0)
    tables = (
        ("entropy of attention, in nats", [f"head {h}" for h in range(heads)], entropy),
        ("activations", ["standard deviation", "silent units"], spread),
        ("parameters", ["gradient norm", "update / weight"], updates),
    )
    return f"<h2>At step {line['step']}</h2>" + "".join(_table(*table) for table in tables if table[2])


def _table(title: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    head = "<td></td>" + "".join(f"<th scope='col'>{column}</th>" for column in columns)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    table = f"<div class='scroll' tabindex='0'><table><tr>{head}</tr>{body}</table></div>"
    return f"<details{' open' if len(rows) < 13 else ''}><summary>{title}</summary>{table}</details>"


def _figure(title: str, lines: Sequence[dict[str, Any]]) -> Any:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    steps = [line["step"] for line in lines]
    parts = list(curves(lines, "gradients"))
    shades = {part: colormaps["turbo"](0.05 + 0.9 * i / max(1, len(parts) - 1)) for i, part in enumerate(parts)}
    handles: dict[str, Any] = {}
    grid = figure.subplots(2, 3).flat
    _draw_loss(grid[0], lines)
    grid[-1].set_axis_off()
    for axes, (kind, words) in zip(grid[1:5], _TITLES.items(), strict=True):
        for part, values in curves(lines, kind).items():
            (curve,) = axes.plot(steps, values, color=shades.get(part, "#999999"), linewidth=1.4)
            handles.setdefault(part, curve)
        axes.set_title(words, fontsize=10)
        if kind != "entropy":
            axes.set_yscale("log")
    for axes in grid[:5]:
        axes.set_xlabel("step")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=9, ncols=2)
    return figure


def _draw_loss(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    losses = np.array([loss for line in lines for loss in line["losses"]])
    last = lines[-1]["step"]
    axes.plot(np.arange(last - len(losses) + 1, last + 1), losses, color="#33363c", linewidth=1)
    axes.set_title("loss of each step", fontsize=10)
    axes.set_yscale("log")


def curves(lines: Sequence[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    """A curve for each top-level submodule. Updates are those of weights only, because biases start at 0."""
    parts: dict[str, list[str]] = {}
    for key in lines[-1][kind]:
        if kind != "updates" or key.endswith("weight"):
            parts.setdefault(top_level_of(key.partition("/")[0]) or "model", []).append(key)
    pool = np.max if kind in ("gradients", "updates") else np.mean
    return {
        part: [float(pool([np.mean(line[kind].get(key, np.nan)) for key in keys])) for line in lines]
        for part, keys in parts.items()
    }
