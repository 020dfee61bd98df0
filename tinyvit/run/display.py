"""What is shown while a run trains: a live bar on a terminal, a line for each epoch elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from .loop import Position, Training
    from .steps import Steps


class Display:
    """Told what happens in a run; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def accept(self, training: "Training") -> None:
        """Asked before a run folder is made; raises TinyvitError if this display cannot show such a run."""

    def started(self, training: "Training", folder: Path) -> None:
        """The run is about to begin, or to go on."""

    def stepped(self, position: "Position") -> None:
        """The optimizer made a step."""

    def finished_epoch(self, position: "Position") -> None:
        """An epoch's line was added to the metrics."""


class Lines(Display):
    """A line for each epoch, on standard output; training goes on where that cannot be written."""

    def started(self, training: "Training", folder: Path) -> None:
        self.epochs = training.recipe.train.epochs
        self._print(heading(training, folder))

    def finished_epoch(self, position: "Position") -> None:
        line = position.metrics[-1]
        self._print(
            f"epoch {line['epoch']:{len(str(self.epochs))}}/{self.epochs}"
            f"  train loss {line['train_loss']:.4f}  test loss {line['val_loss']:.4f}"
            f"  test accuracy {100 * line['val_accuracy']:.2f} %"
            f"  {line['images_per_s']:,.0f} images/s  {line['seconds']:.0f} s"
        )

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # nobody reads any more
            raise
        except OSError:  # the disk is full, say; the same line is in the metrics
            pass


class Bar(Display):
    """A bar over the whole run, with what is known so far."""

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

    def started(self, training: "Training", folder: Path) -> None:
        self.bar.console.print(heading(training, folder), markup=False, highlight=False, soft_wrap=True)
        self.epochs = training.recipe.train.epochs
        self.task: TaskID = self.bar.add_task(
            "", total=training.total_steps, completed=training.position.step, measured=""
        )
        self._show(training.position)

    def stepped(self, position: "Position") -> None:
        self._show(position)

    def finished_epoch(self, position: "Position") -> None:
        self._show(position)

    def _show(self, position: "Position") -> None:
        epoch = min(position.epoch + 1, self.epochs)
        measured = _measured(position)
        self.bar.update(
            self.task, completed=position.step, description=f"epoch {epoch}/{self.epochs}", measured=measured
        )


def _measured(position: "Position") -> str:
    """The loss and the speed of this epoch, or of the one that just ended, and the last accuracy."""
    last: dict[str, Any] = position.metrics[-1] if position.metrics else {}
    if position.images:
        loss, speed = position.loss_sum / position.images, position.images / position.epoch_seconds
    elif last:
        loss, speed = last["train_loss"], last["images_per_s"]
    else:
        return ""
    accuracy = f" test {100 * last['val_accuracy']:.1f} %" if last else ""
    return f"loss {loss:.3f}{accuracy} {speed:,.0f} img/s"


def heading(training: "Training", folder: Path) -> str:
    """What is trained on what, and where it goes."""
    position, epochs = training.position, training.recipe.train.epochs
    if position.epoch == epochs:
        return f"{folder} is finished: all {epochs} epochs are trained"
    begun = f", going on in epoch {position.epoch + 1} after step {position.step:,}" if position.step else ""
    weights, steps = sum(p.size for p in training.model.parameters()), training.total_steps
    learnt = f"{len(training.train_data):,} {training.task.samples} to learn from"
    return (
        f"{training.recipe.data.name}: {learnt}, {len(training.test_data):,} held out for the test; "
        f"{weights:,} weights; {steps:,} step{'s' * (steps > 1)}{_way(training.steps)}{begun} -> {folder}"
    )


def _way(steps: "Steps") -> str:
    """How steps are made on a GPU."""
    if steps.graph:
        return ", each one CUDA graph"
    return f", operation by operation since {steps.why_no_graph}" if steps.why_no_graph else ""


def live_display() -> Display:
    """The display for where standard output goes."""
    from rich.console import Console

    console = Console()
    return Bar(console) if console.is_terminal else Lines()
