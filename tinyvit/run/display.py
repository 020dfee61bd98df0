"""Displays of a run while it trains: a live bar on a terminal, a line for each epoch elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..backend.terminal import printable, show
from .state import Position, Training
from .steps import Steps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Display:
    """The events of a run, each a method that the training loop calls; this display shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def accept(self, training: Training) -> None:
        """Check the run before its folder is made; raises TinyvitError if this display cannot show such a run."""

    def started(self, training: Training, folder: Path) -> None:
        """Show that the run is about to begin, or to resume."""

    def stepped(self, position: Position) -> None:
        """Show that the optimizer has made a step."""

    def finished_epoch(self, position: Position) -> None:
        """Show that an epoch has ended, and its line has been added to the metrics."""


class Lines(Display):
    """A line on standard output for each epoch. If a line cannot be written, training continues."""

    def started(self, training: Training, folder: Path) -> None:
        self.epochs = training.recipe.train.epochs
        self._print(heading(training, folder))

    def finished_epoch(self, position: Position) -> None:
        line = position.metrics[-1]
        self._print(
            f"epoch {line['epoch']:{len(str(self.epochs))}}/{self.epochs}"
            f"  train loss {line['train_loss']:.4f}  test loss {line['val_loss']:.4f}"
            f"  test accuracy {100 * line['val_accuracy']:.2f} %"
            f"  {line['images_per_s']:,.0f} images/s  {line['seconds']:.0f} s"
        )

    def _print(self, text: str) -> None:
        try:
            show(text)
        except BrokenPipeError:  # the reader closed the pipe
            raise
        except OSError:  # the disk is full, for example; metrics.jsonl has the same line
            pass


class Bar(Display):
    """A progress bar over the whole run, with the latest loss, accuracy and speed."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[measured]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def started(self, training: Training, folder: Path) -> None:
        self.bar.console.print(printable(heading(training, folder)), markup=False, highlight=False, soft_wrap=True)
        self.epochs = training.recipe.train.epochs
        self.task: TaskID = self.bar.add_task(
            "", total=training.total_steps, completed=training.position.step, measured=""
        )
        self._show(training.position)

    def stepped(self, position: Position) -> None:
        self._show(position)

    def finished_epoch(self, position: Position) -> None:
        self._show(position)

    def _show(self, position: Position) -> None:
        epoch = min(position.epoch + 1, self.epochs)
        measured = _measured(position)
        self.bar.update(
            self.task, completed=position.step, description=f"epoch {epoch}/{self.epochs}", measured=measured
        )


def live_display() -> Display:
    """Return a progress bar if standard output is a terminal, else a line for each epoch."""
    from rich.console import Console

    console = Console()
    return Bar(console) if console.is_terminal else Lines()


def _measured(position: Position) -> str:
    """Return the loss and the speed of this epoch, or of the one that has just ended, and the last accuracy."""
    last: dict[str, Any] = position.metrics[-1] if position.metrics else {}
    if position.images:
        loss, speed = position.loss_sum / position.images, position.images / position.epoch_seconds
    elif last:
        loss, speed = last["train_loss"], last["images_per_s"]
    else:
        return ""
    accuracy = f" test {100 * last['val_accuracy']:.1f} %" if last else ""
    return f"loss {loss:.3f}{accuracy} {speed:,.0f} img/s"


def heading(training: Training, folder: Path) -> str:
    """Return the first line of a run: what is trained on which data, and its folder."""
    position, epochs = training.position, training.recipe.train.epochs
    if position.epoch == epochs:
        return f"{folder} is finished: all {epochs} epochs are trained"
    resumed = f", resuming in epoch {position.epoch + 1} after step {position.step:,}" if position.step else ""
    weights, steps = sum(p.size for p in training.model.parameters()), training.total_steps
    return (
        f"{training.recipe.data.name}: {len(training.train_data):,} {training.task.samples} to learn from, "
        f"{len(training.test_data):,} held out for the test; {weights:,} weights; "
        f"{steps:,} step{'s' * (steps > 1)}{_way_of(training.steps)}{resumed} -> {folder}"
    )


def _way_of(steps: Steps) -> str:
    """Return how steps are made on a GPU, as a part of a sentence; nothing on the CPU."""
    lost = "".join(f", but {what}," for what in steps.lost)
    if steps.graph:
        return f", each one CUDA graph{lost}"
    return f", operation by operation because {steps.why_no_graph}{lost}" if steps.why_no_graph else lost
