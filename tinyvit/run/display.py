"""Displays of a run while it trains: a live bar on a terminal, a line for each epoch elsewhere."""

import errno
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..backend.html import box_html, table_html, text_html
from ..backend.terminal import printable, show
from ..backend.threads import can_start_threads
from ..backend.words import counted
from ..kernels.cpu import progress
from .choices import choices
from .position import Position, best_epoch
from .state import Training
from .steps import Steps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


_EPOCHS_SHOWN = 8  # in a notebook


class Display:
    """The events of a run, each a method that the training loop calls; this display shows nothing."""

    _steps: Steps | None = None  # until the reason why they are not recorded has been shown

    def _news(self) -> str:
        """Return why steps on the CPU are not recorded, once, as soon as that is known; else an empty text."""
        reason = self._steps.why_not_recorded if self._steps else ""
        if not reason:
            return ""
        self._steps = None
        return f"recorded steps, which make small models faster, are not used, because {reason}; results are the same"

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

    def measuring(self, split: str, done: int, total: int) -> None:
        """Show that a batch of the split "validation" or "test" was measured, number `done` of `total`."""

    def tested(self) -> None:
        """Show that the run has ended with the test."""

    def finished_epoch(self, position: Position) -> None:
        """Show that an epoch has ended, and its line has been added to the metrics."""


class _Visible(Display):
    """A display that also shows how far the compilation of kernels has come."""

    def __enter__(self) -> Self:
        self._compilation = progress.followed(self.compiling)  # a new one, so that a display serves several runs
        self._compilation.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._compilation.__exit__(None, None, None)

    def compiling(self, state: str) -> None:
        """Show that kernels are compiled, and how far that has come."""


class Lines(_Visible):
    """A line on standard output for each epoch, and one whenever nothing was printed for `every` seconds.

    A line that would repeat the one before says for how long nothing has changed: on a busy machine the compilation of
    a kernel, or one step, can take minutes. If a line cannot be written, training continues.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self._began = self._printed = time.monotonic()
        self._doing, self._compiles = "", False  # until the first step is made
        self._said, self._since = "", self._began  # what the last line was about, and when it was first said
        self._closed_pipe = False
        self._lock = threading.Lock()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        if can_start_threads():
            self._watch = threading.Thread(target=self._report, name="tinyvit-lines", daemon=True)
            self._watch.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    def compiling(self, state: str) -> None:
        """Show that kernels are compiled, if that begins; the line that is printed after a while says how far."""
        if not self._doing and not self._compiles:
            self._compiles, self._said, self._since = True, _without_time(state), time.monotonic()
            try:
                self._print(f"  {state}; this is done {progress.how_often()}")
            except BrokenPipeError:  # the next step raises it; here the compiler would
                self._closed_pipe = True

    def started(self, training: Training, folder: Path) -> None:
        self.recipe, self.measured, self.steps = training.recipe.train, training.measured, training.total_steps
        self.score = training.task.score
        self.teamwork, self._steps = training.teamwork, training.steps
        self._print("\n".join(opening(training, folder)))

    def stepped(self, position: Position) -> None:
        mean = f", train loss {position.loss_sum / position.images:.4f}" if position.images else ""
        self._doing = f"epoch {position.epoch + 1}/{self.recipe.epochs}, step {position.step:,} of {self.steps:,}{mean}"
        if news := self._news():
            self._print(news)
        self._report_without_thread()
        if self._closed_pipe:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def measuring(self, split: str, done: int, total: int) -> None:
        self._doing = f"measuring {split} batch {done:,} of {total:,}"
        self._report_without_thread()

    def finished_epoch(self, position: Position) -> None:
        line, epochs = position.metrics[-1], self.recipe.epochs
        best = best_epoch(position.metrics) == position.epoch and self.recipe.keep == "best"
        self._print(
            f"epoch {line['epoch']:{len(str(epochs))}}/{epochs}"
            f"  train loss {line['train_loss']:.4f}  {self.measured} loss {line['val_loss']:.4f}"
            f"  {self.measured} {self.score} {100 * line['val_accuracy']:.2f} %"
            f"  {line['images_per_s']:,.0f} images/s  {line['seconds']:.0f} s{'  best so far' if best else ''}"
            f"{self.teamwork}"
        )

    def _report(self) -> None:
        """Print what the run is doing whenever it has printed nothing for a while."""
        while not self._ended.wait(min(1.0, self.every / 4)):
            self.report_if_silent()

    def _report_without_thread(self) -> None:
        if self._watch is None:
            self.report_if_silent()

    def report_if_silent(self) -> None:
        """Print what the run is doing if nothing was printed for a while."""
        if (now := time.monotonic()) - self._printed >= self.every:
            text = self._doing or progress.state()
            if (about := self._doing or _without_time(text)) != self._said:
                self._said, self._since = about, now
            elif text:
                text += f", unchanged for {now - self._since:.0f} s"
            try:
                self._print(f"  {text or f'the first step: {now - self._began:.0f} s so far'}")
            except BrokenPipeError:
                self._closed_pipe = True

    def _print(self, text: str) -> None:
        with self._lock:
            self._printed = time.monotonic()
            try:
                show(text)
            except BrokenPipeError:  # the reader closed the pipe
                raise
            except OSError:  # the disk is full, for example; metrics.jsonl has the same line
                pass


def _without_time(state: str) -> str:
    """Return what a line before the first step is about: the number of kernels, without the estimates after it."""
    return re.split(r" of about | so far", state)[0]


class Bar(_Visible):
    """A progress bar over the whole run, with the latest loss, accuracy and speed.

    Batches that are measured count as a third of a step: they have no backward pass.
    """

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
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.bar.stop()

    def compiling(self, state: str) -> None:
        """Show how far the compilation of kernels has come, until the next step."""
        if self.bar.tasks:
            self.bar.update(self.task, measured=state)

    def started(self, training: Training, folder: Path) -> None:
        text = printable("\n".join(opening(training, folder)))
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.epochs, self.measured, self.teamwork = training.recipe.train.epochs, training.measured, training.teamwork
        size = training.recipe.data.batch_size
        self._of_epoch, self._of_test = (
            math.ceil(len(data) / size) / 3 for data in (training.measured_data, training.test_data)
        )
        self._position, self._measured_now, self._steps = training.position, 0.0, training.steps
        total = training.total_steps + self.epochs * self._of_epoch + self._of_test
        self.task: TaskID = self.bar.add_task("", total=total, completed=training.position.step, measured="")
        self._show(training.position)

    def stepped(self, position: Position) -> None:
        if news := self._news():
            self.bar.console.print(printable(news), markup=False, highlight=False, soft_wrap=True)
        self._show(position)

    def measuring(self, split: str, done: int, total: int) -> None:
        self._measured_now = done / 3
        self._show(self._position)

    def finished_epoch(self, position: Position) -> None:
        self._measured_now = 0.0
        self._show(position)

    def tested(self) -> None:
        self.bar.update(self.task, completed=self.bar.tasks[0].total)

    def _show(self, position: Position) -> None:
        epoch = min(position.epoch + 1, self.epochs)
        measured = f"{_measured(position, self.measured)}{self.teamwork if position.metrics else ''}"
        done = position.step + position.epoch * self._of_epoch + self._measured_now
        self.bar.update(self.task, completed=done, description=f"epoch {epoch}/{self.epochs}", measured=measured)


class Notebook(_Visible):
    """A progress bar with the last epochs in a cell of a notebook, which is drawn anew as the run goes on.

    `draw` shows a text of HTML in place of the one before.
    """

    def __init__(self, draw: Callable[[str], object], every: float = 0.25) -> None:
        self.draw, self.every = draw, every
        self._drawn, self._heading, self._state = -math.inf, "", ""
        self._share, self._position = 0.0, None  # type: float, Position | None

    def compiling(self, state: str) -> None:
        """Show how far the compilation of kernels has come, until the next step."""
        self._state = state
        self._show(now=True)

    def started(self, training: Training, folder: Path) -> None:
        self._heading, self._steps = heading(training, folder), training.steps
        self.epochs, self.measured = training.recipe.train.epochs, training.measured
        self.score = training.task.score
        self._total = max(1, training.total_steps)
        self.stepped(training.position)

    def stepped(self, position: Position) -> None:
        if news := self._news():
            self._heading += f"; {news}"
        self._position, self._share = position, position.step / self._total
        epoch = min(position.epoch + 1, self.epochs)
        self._state = f"epoch {epoch}/{self.epochs} {_measured(position, self.measured)}"
        self._show()

    def measuring(self, split: str, done: int, total: int) -> None:
        self._state = f"measuring {split} batch {done} of {total}"
        self._show()

    def finished_epoch(self, position: Position) -> None:
        self.stepped(position)
        self._show(now=True)

    def tested(self) -> None:
        self._share, self._state = 1.0, "done"
        self._show(now=True)

    def _show(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._drawn < self.every:
            return
        self._drawn = time.monotonic()
        bar = f'<progress max="1" value="{self._share:.4f}" style="width:24em"></progress> {text_html(self._state)}'
        metrics = self._position.metrics[-_EPOCHS_SHOWN:] if self._position is not None else []
        rows = [
            (
                f"epoch {line['epoch']}",
                f"train loss {line['train_loss']:.4f}",
                f"{self.measured} loss {line['val_loss']:.4f}",
                f"{self.measured} {self.score} {100 * line['val_accuracy']:.2f} %",
            )
            for line in metrics
        ]
        self.draw(box_html(self._heading, f"<div>{bar}</div>", table_html(rows) if rows else ""))


def _notebook() -> Notebook | None:
    """Return a display in the cell that runs now, if this process is the kernel of a notebook."""
    if (shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()) is None:
        return None
    if not hasattr(shell, "kernel"):  # IPython in a terminal
        return None
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return Notebook(lambda text: handle.update(HTML(text)))


def live_display() -> Display:
    """Return a progress bar on a terminal and in a notebook; else a line for each epoch."""
    if (notebook := _notebook()) is not None:
        return notebook
    from rich.console import Console

    console = Console()
    return Bar(console) if console.is_terminal else Lines()


def _measured(position: Position, split: str) -> str:
    """Return the loss and the speed of this epoch, or of the one that has just ended, and the last accuracy."""
    last: dict[str, Any] = position.metrics[-1] if position.metrics else {}
    if position.images:
        loss, speed = position.loss_sum / position.images, position.images / position.epoch_seconds
    elif last:
        loss, speed = last["train_loss"], last["images_per_s"]
    else:
        return ""
    accuracy = f" {split} {100 * last['val_accuracy']:.1f} %" if last else ""
    return f"loss {loss:.3f}{accuracy} {speed:,.0f} img/s"


_CONTINUING = {  # schedules that do not begin anew
    "constant": "the same learning rate",
    "cooldown": "the learning rate train.lr, which falls at the end",
}


def opening(training: Training, folder: Path) -> list[str]:
    """Return the first lines of a run: its heading and, if it begins, what was chosen by data of the user's own."""
    is_new = not training.position.step and not training.recipe.train.continued_from
    return [heading(training, folder), *(choices(training.recipe, training.data, folder) if is_new else [])]


def heading(training: Training, folder: Path) -> str:
    """Return the first line of a run: what is trained on which data, and its folder."""
    position, epochs = training.position, training.recipe.train.epochs
    if training.is_finished:
        trained = f"{position.epoch} of {counted(epochs, 'epochs')} are trained"
        if position.epoch == epochs:
            trained = f"all {epochs} epochs are trained" if epochs > 1 else "its epoch is trained"
        early = f", because the last {training.recipe.train.patience} were no better" if position.epoch < epochs else ""
        return f"{folder} is finished: {trained}{early}"
    held = f"{len(training.validation_data):,} for validation, " if training.validation_data is not None else ""
    settings = training.recipe.train
    restart = ""
    if settings.continued_from:
        how = _CONTINUING.get(settings.schedule, "a warm restart of the learning rate")
        restart = f", continued after epoch {settings.continued_from} with {how}"
    resumed = f", resuming in epoch {position.epoch + 1} after step {position.step:,}" if position.step else ""
    weights, steps = sum(p.size for p in training.model.parameters()), training.total_steps
    together = f" by {training.group.size} processes" if training.group.size > 1 else ""
    return (
        f"{training.recipe.data.name}: {counted(len(training.train_data), training.task.samples)} to train on, "
        f"{held}{len(training.test_data):,} for the test; {counted(weights, 'weights')}; "
        f"{counted(steps, 'steps')}{together}{_way_of(training.steps)}{restart}{resumed}{training.origin}"
        f" -> {folder}"
    )


def _way_of(steps: Steps) -> str:
    """Return how steps are made on a GPU, as a part of a sentence; nothing on the CPU."""
    lost = "".join(f", but {what}," for what in steps.lost)
    if steps.graph:
        return f", each one CUDA graph{lost}"
    return f", operation by operation because {steps.why_no_graph}{lost}" if steps.why_no_graph else lost
