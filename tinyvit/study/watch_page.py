"""What was seen while a model trained, as a picture and as a page."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import atomic_write
from .parts import part_of

_TITLES = {
    "gradients": "gradient norm, the largest of a part's parameters",
    "updates": "update / weight of one step, the largest of a part's weights",
    "spread": "standard deviation of activations, mean of a part's operations",
    "entropy": "entropy of attention, mean of the heads (nats)",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:1.5rem auto;padding:0 1rem;color:#1b1c1f;"
    "background:#fff}svg{max-width:100%;height:auto}li{color:#b3261e}table{border-collapse:collapse}"
    "td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #ddd}th:first-child{text-align:left}"
    ".scroll{overflow-x:auto}"
)


def draw_page(page: Path, picture: Path, title: str, lines: Sequence[dict[str, Any]], warnings: Sequence[str]) -> None:
    """Draw the lines of study.jsonl as a page and as a PNG. Raises OSError."""
    told = "".join(f"<li>{html.escape(w)}</li>" for w in warnings)
    told = f"<ul>{told}</ul>" if told else "<p>Nothing to worry about was seen.</p>"
    drawn = ""
    if lines:
        figure = _figure(title, lines)
        pixels, vectors = io.BytesIO(), io.StringIO()
        figure.savefig(pixels, format="png", dpi=130)
        figure.savefig(vectors, format="svg", metadata={"Date": None})
        atomic_write(picture, pixels.getvalue())
        svg = vectors.getvalue()
        drawn = svg[svg.index("<svg") :] + _table(lines[-1])
    heading = f"{html.escape(title)}: what training looked like inside"
    document = (
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{heading}</title><style>{_STYLE}</style><h1>{heading}</h1>{told}{drawn}</html>"
    )
    atomic_write(page, document.encode())


def _table(line: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{norm:.3g}</td><td>{line['updates'][name]:.2g}</td></tr>"
        for name, norm in line["gradients"].items()
    )
    head = "<tr><th>parameter</th><th>gradient norm</th><th>update / weight</th></tr>"
    return f"<h2>After step {line['step']}</h2><div class='scroll'><table>{head}{rows}</table></div>"


def _figure(title: str, lines: Sequence[dict[str, Any]]) -> Any:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    steps = [line["step"] for line in lines]
    parts = list(_curves(lines, "gradients"))
    shades = {part: colormaps["viridis"](0.95 * i / max(1, len(parts) - 1)) for i, part in enumerate(parts)}
    handles: dict[str, Any] = {}
    for axes, (kind, words) in zip(figure.subplots(2, 2).flat, _TITLES.items(), strict=True):
        for part, values in _curves(lines, kind).items():
            (curve,) = axes.plot(steps, values, color=shades.get(part, "#999999"), linewidth=1.4)
            handles.setdefault(part, curve)
        axes.set_title(words, fontsize=10)
        axes.set_xlabel("step")
        if kind != "entropy":
            axes.set_yscale("log")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def _curves(lines: Sequence[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    """A curve for each part of the model; of updates, those of weights alone, since biases begin at 0."""
    parts: dict[str, list[str]] = {}
    for key in lines[-1][kind]:
        if kind != "updates" or key.endswith("weight"):
            parts.setdefault(part_of(key.partition("/")[0]) or "model", []).append(key)
    pool = np.max if kind in ("gradients", "updates") else np.mean
    return {
        part: [float(pool([np.mean(line[kind].get(key, np.nan)) for key in keys])) for line in lines]
        for part, keys in parts.items()
    }
