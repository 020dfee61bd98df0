"""Training: start a run or resume one, train it epoch by epoch, and leave its files in the run folder.

The test images are used for measurement only: nothing is chosen by them, and the accuracy after the last epoch is the
result.
"""

import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import keep_freed_memory, products_in_one_thread
from ..errors import TrainingFailed
from ..recipe import Recipe
from .curves import draw_curves
from .display import Display
from .folder import (
    CHECKPOINT,
    CURVES,
    METRICS,
    RunError,
    claimed,
    is_complete,
    is_legacy,
    new_run,
    read_recipe,
    remove_leftovers,
    resume_command,
    write_file,
)
from .signals import Interrupted, Stopped, StopRequest
from .state import Training
from .transfer import transfer_encoders


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """The test accuracy after the last epoch, from 0 to 1."""
        return self.metrics[-1]["val_accuracy"]

    def __str__(self) -> str:
        last, expected = self.metrics[-1], self.recipe.about.accuracy
        epochs = f"{last['epoch']} epoch{'s' * (last['epoch'] > 1)}"
        beside = f" (the recipe expects {100 * expected:.1f} %)" if expected else ""
        return (
            f"test accuracy {100 * self.accuracy:.2f} % after {epochs} in {_time(last['seconds'])}{beside}"
            f" -> {self.folder}"
        )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def train(recipe: Recipe, name: str, out: Path | None = None, display: Display | None = None) -> Result:
    """Train by `recipe`, from the start, in a new run folder.

    Parameters
    ----------
    recipe : Recipe
    name, out : the run folder, see `tinyvit.run.folder.new_run`.
    display : Display, optional
        Shows the progress of the run; nothing is shown by default.

    Raises
    ------
    TinyvitError
        If the recipe, the data or the folder cannot be used; a bad recipe leaves no folder.
    TrainingFailed
        If the run has to stop; its last good checkpoint is kept.
    Interrupted
        After Ctrl-C, SIGTERM or SIGHUP, if called from the main thread. The current step is finished and a checkpoint
        is written first. A second Ctrl-C stops at once, with KeyboardInterrupt.
    """
    training = Training(recipe)
    if recipe.task.start_from:
        transfer_encoders(training.model, training.data, recipe)
    display = display or Display()
    display.accept(training)
    folder = new_run(recipe, name, out)
    with claimed(folder):
        return _run(training, folder, display)


def resume(folder: Path, display: Display | None = None) -> Result:
    """Resume the run in `folder` from its checkpoint, as if it had never stopped. Raises what `train` raises."""
    training = Training(read_recipe(folder), legacy=is_legacy(folder))
    display = display or Display()
    display.accept(training)
    with claimed(folder):
        if (folder / CHECKPOINT).exists():
            training.read_checkpoint(folder / CHECKPOINT)
        elif (folder / METRICS).exists():
            raise RunError(f"{folder} has no {CHECKPOINT}, so the run cannot be resumed; start a new one")
        return _run(training, folder, display)


def _run(training: Training, folder: Path, display: Display) -> Result:
    """Train from the present position to the end, or until a signal to stop, and leave all files in `folder`."""
    recipe, position = training.recipe, training.position
    finished = position.epoch == recipe.train.epochs and is_complete(folder, position.metrics_lines())
    unwritable = suppress(TrainingFailed) if finished else nullcontext()  # a finished run may lie on a read-only disk
    remove_leftovers(folder)
    keep_freed_memory()
    # NumPy's warnings are off: losses, gradients and weights are checked for values that are not finite.
    products = products_in_one_thread() if training.uses_one_product_thread else nullcontext()
    with StopRequest() as stop, display, np.errstate(all="ignore"), unwritable, products:
        try:
            display.started(training, folder)
            finished = _train_epochs(training, folder, display, stop)
        except FloatingPointError as error:
            raise TrainingFailed(
                f"{error}; {folder / CHECKPOINT} is of the last good step. A smaller train.lr, a longer "
                "train.warmup_epochs or train.clip_norm=1 may help"
            ) from error
        if position.metrics:
            title = os.fsencode(folder).decode(errors="replace")  # the name of a folder need not be valid text
            write_file(folder / CURVES, lambda path: draw_curves(path, title, position.metrics))
    if not finished:
        raise Interrupted(
            f"stopped in epoch {position.epoch + 1} of {recipe.train.epochs}, after step {position.step}; "
            f"continue with: {resume_command(folder)}"
        )
    return Result(folder, recipe, position.metrics)


def _train_epochs(training: Training, folder: Path, display: Display, stop: StopRequest) -> bool:
    """Train to the end (True) or until a signal to stop (False); the last state is in the checkpoint."""
    position = training.position
    training.write_checkpoint(folder)
    try:
        while position.epoch < training.recipe.train.epochs:
            for batches in training.groups():
                training.step(batches)
                display.stepped(position)
                stop.check()
                if training.checkpoint_is_due():
                    training.write_checkpoint(folder)
            training.finish_epoch(stop.check)
            training.write_checkpoint(folder)
            display.finished_epoch(position)
    except Stopped:
        training.write_checkpoint(folder)
        return False
    return True
