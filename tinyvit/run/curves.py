"""Draw the learning curves of a run, and the confusion matrix of its test."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import atomic_write
from ..tasks import Report

_TRAIN, _TEST = "#9a9a9a", "#1f5fa8"


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with Matplotlib's defaults: a settings file, also one of the current folder, could have it start LaTeX.

    Letters that its font lacks, such as Chinese ones, are drawn as boxes, without a warning for each of them.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


@own_style()
def draw_curves(
    path: Path, title: str, metrics: Sequence[dict[str, Any]], measured: str = "validation", score: str = "accuracy"
) -> None:
    """Draw loss and accuracy over the epochs of `metrics` (the lines of metrics.jsonl) as a PNG. Raises OSError.

    `measured` is the split on which each epoch was measured, and `score` the name of the accuracy, see `tasks.Task`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [line["epoch"] for line in metrics]
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    loss, accuracy = figure.subplots(1, 2)
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3 if len(epochs) <= 60 else 0}
    loss.plot(epochs, [line["train_loss"] for line in metrics], color=_TRAIN, label="training images", **style)
    loss.plot(epochs, [line["val_loss"] for line in metrics], color=_TEST, label=f"{measured} images", **style)
    loss.set(title="loss", ylim=(0, None))
    loss.legend(frameon=False)
    accuracies = [line["val_accuracy"] for line in metrics]
    accuracy.plot(epochs, accuracies, color=_TEST, **style)
    accuracy.set(title=f"{score} on {measured} images: {100 * accuracies[-1]:.2f} %")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    atomic_write(path, picture.getvalue())


@own_style()
def draw_confusion(path: Path, report: Report) -> None:
    """Draw the confusion matrix of a report as a PNG: rows are classes, columns what they were taken for.

    The shade of a cell is its share of the row. Raises OSError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert report.confusion is not None
    counts = report.confusion
    names = [name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}" for name in report.names]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 2.2 + 0.42 * len(names))
    figure = Figure(figsize=(side + 0.6, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    small = max(4.0, min(9.0, 190 / len(names)))
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=small, parse_math=False)
    axes.set_yticks(places, names, fontsize=small, parse_math=False)
    axes.set(xlabel="taken for", ylabel="class")
    axes.set_title(f"test images, accuracy {100 * report.accuracy:.2f} %", fontsize=10)
    if len(names) <= 30:
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=small, color=color)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    atomic_write(path, picture.getvalue())
