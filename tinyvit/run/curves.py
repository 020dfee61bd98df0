"""Draw the learning curves of a run."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint import atomic_write

_TRAIN, _TEST = "#9a9a9a", "#1f5fa8"


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with Matplotlib's defaults: a settings file, also one of the current folder, could have it start LaTeX."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@own_style()
def draw_curves(path: Path, title: str, metrics: Sequence[dict[str, Any]]) -> None:
    """Draw loss and accuracy over the epochs of `metrics` (the lines of metrics.jsonl) as a PNG. Raises OSError."""
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
    loss.plot(epochs, [line["val_loss"] for line in metrics], color=_TEST, label="test images", **style)
    loss.set(title="loss (cross-entropy)", ylim=(0, None))
    loss.legend(frameon=False)
    accuracies = [line["val_accuracy"] for line in metrics]
    accuracy.plot(epochs, accuracies, color=_TEST, **style)
    accuracy.set(title=f"accuracy on test images: {100 * accuracies[-1]:.2f} %")
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
