"""The result of a finished run: its test images are measured once, and the figures are written into the run folder.

test.json holds the loss and the accuracies, and says which epoch's weights were measured. Runs that name classes also
get classes.csv (images, precision and recall of each class), confusion.csv (a row for each class, a column for each
class that it was taken for) and confusion.png.
"""

import csv
import io
import json
import math
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.files import parse_json, read_text
from ..backend.words import counted
from ..checkpoint import atomic_write
from ..recipe import Recipe
from ..tasks import Report, task_of
from .curves import draw_confusion
from .folder import write_file
from .position import best_epoch
from .state import Training
from .summary import result_html

TEST, CLASSES, CONFUSION, MATRIX = "test.json", "classes.csv", "confusion.csv", "confusion.png"
# The commands that use a run, by the kind of its task, with their arguments after the run.
USES = {
    "classify": ("predict", "IMAGE"),
    "vqa": ("ask", "IMAGE QUESTION"),
    "caption": ("caption", "IMAGE"),
    "retrieve": ("retrieve", "--images FOLDER TEXT"),
    "segment": ("segment", "IMAGE"),
    "detect": ("detect", "IMAGE"),
    "translate": ("translate", "TEXT"),
}
_IN_MEMORY = ("motion", "chirps")  # generated videos and spectrograms, which are in no files that `predict` reads
_DRAWN = 100  # classes of the largest confusion matrix that is drawn


@dataclass(frozen=True)
class Result:
    """The result of a finished run: `test` is the content of test.json, `metrics` are the lines of metrics.jsonl."""

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]
    test: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The accuracy on the test split, from 0 to 1, of the weights to use."""
        return self.test["accuracy"]

    def _repr_html_(self) -> str:
        return result_html(str(self), self.metrics, task_of(self.recipe).score)

    def __str__(self) -> str:
        last, expected, epoch = self.metrics[-1], self.recipe.about.accuracy, self.test["epoch"]
        epochs, score = counted(last["epoch"], "epochs"), task_of(self.recipe).score
        kept = f" with the weights of epoch {epoch}," if self.recipe.train.keep == "best" else ""
        verb = "aims at" if self.recipe.about.is_aim else "expects"
        beside = f" (the recipe {verb} {100 * expected:.1f} %)" if expected else ""
        return (
            f"test {score} {100 * self.accuracy:.2f} %{kept} after {epochs} in {_time(last['seconds'])}{beside}"
            f" -> {self.folder}"
        )


def next_steps(result: Result) -> str:
    """Return a line with the commands that use a finished run, which name its folder."""
    run, data = shlex.quote(str(result.folder)), result.recipe.data.name
    command, arguments = USES.get(result.recipe.task.kind, ("", "")) if data not in _IN_MEMORY else ("", "")
    if data.startswith("sounds:"):
        arguments = "SOUND"
    use = f"; tinyvit {command} {run} {arguments}" if command else ""
    return f"next: tinyvit evaluate {run}{use}"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def test_figures(
    training: Training, folder: Path, after_batch: Callable[[], None], unwritable: AbstractContextManager[Any]
) -> dict[str, Any]:
    """Return the content of test.json, which is measured and written unless it is there already.

    `after_batch` is called after each batch of test images, and may raise an exception to stop. Files are written
    within the context `unwritable`, which may suppress TrainingFailed.
    """
    position = training.position
    epoch = best_epoch(position.metrics) if training.best is not None else position.epoch
    origin = {"epoch": epoch, "step": position.step, "data": training.recipe.data.name}
    group = training.group
    if (known := group.broadcast(_read(folder / TEST, origin) if group.is_first else None)) is not None:
        return known
    report = training.measure_test(after_batch)
    figures = origin | {training.task.samples: len(training.test_data)} | report.figures()
    text = json.dumps(figures, indent=1) + "\n"
    if not group.is_first:
        return figures
    with unwritable:
        if report.names and report.names == training.data.classes:
            write_classes(folder, report)
        write_file(folder / TEST, lambda path: atomic_write(path, text.encode()))
    return figures


def _read(path: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a test.json, or None if there is none of these weights."""
    try:
        found = parse_json(read_text(path))
        is_known = all(found[key] == value for key, value in origin.items())
        return found if is_known and math.isfinite(found["accuracy"] + found["loss"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_classes(folder: Path, report: Report) -> None:
    """Write classes.csv, confusion.csv and confusion.png of a report. Raises TrainingFailed."""
    assert report.confusion is not None
    table = report.by_class()
    rows = [list(table[0]), *([f"{x:.6g}" if isinstance(x, float) else x for x in row.values()] for row in table)]
    matrix = [["", *report.names]]
    matrix += [[name, *map(str, row)] for name, row in zip(report.names, report.confusion.tolist(), strict=True)]
    for name, content in ((CLASSES, csv_of(rows)), (CONFUSION, csv_of(matrix))):
        write_file(folder / name, lambda path, content=content: atomic_write(path, content))  # type: ignore[misc]
    if len(report.names) <= _DRAWN:
        write_file(folder / MATRIX, lambda path: draw_confusion(path, report))


def csv_of(rows: list[list[Any]]) -> bytes:
    """Return a table as the content of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="replace")
