"""Training: start a run or resume one, train it epoch by epoch, and leave its files in the run folder.

Each epoch is measured on the validation images, by which the recipe may choose the weights and the end of the run. The
test images are measured once, at the end: their accuracy is the result.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Group, Stopped, keep_freed_memory, products_in_one_thread
from ..checkpoint import load
from ..dispatch import products_as
from ..errors import TrainingFailed
from ..recipe import Recipe
from ..tasks.spec import AnyDataset
from .agreement import require_agreement, sharded
from .continued import continued, retry_command, write_recipe
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
from .moved import require_data
from .position import Position, is_at_end
from .pretrained import adopted, is_pretrained, transfer_pretrained
from .results import Result, test_figures
from .signals import Interrupted, StopRequest
from .state import Training
from .transfer import start_weights


def train(
    recipe: Recipe, name: str, out: Path | None = None, display: Display | None = None, group: Group | None = None
) -> Result:
    """Train by `recipe`, from the start, in a new run folder.

    Parameters
    ----------
    recipe : Recipe
    name, out : the run folder, see `tinyvit.run.folder.new_run`.
    display : Display, optional
        Shows the progress of the run; nothing is shown by default.
    group : Group, optional
        The processes that train together, see `tinyvit.distributed`; all of them call this function. By default this
        process trains alone.

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
    group = group or Group()
    recipe = sharded(adopted(recipe), group)
    training = Training(recipe, group=group)
    start = recipe.task.start_from
    if is_pretrained(start):
        transfer_pretrained(training.model, training.data, recipe)
    elif start:
        training.origin = start_weights(training.model, training.data, recipe)
    if start:
        training.restart_average()
    display = display or Display()
    display.accept(training)
    require_agreement(training)
    folder = group.broadcast(new_run(recipe, name, out) if group.is_first else Path())
    with claimed(folder) if group.is_first else nullcontext():
        return _run(training, folder, display)


def resume(
    folder: Path, display: Display | None = None, assignments: Sequence[str] = (), group: Group | None = None
) -> Result:
    """Resume the run in `folder` from its checkpoint, as if it had never stopped. Raises what `train` raises.

    With `assignments`, such as "train.epochs=60", a finished run continues, see `tinyvit.run.continued`. Process 0 of
    `group` reads the folder; their number may differ from that of the processes which trained before.
    """
    group = group or Group()
    found = group.broadcast((read_recipe(folder), is_legacy(folder)) if group.is_first else None)
    assert found is not None
    recipe, legacy = found
    sharded(recipe, group, of_run=folder)
    require_data(recipe, folder)
    if assignments:
        recipe = group.broadcast(_longer(recipe, folder, assignments) if group.is_first else recipe)
    training = Training(recipe, legacy=legacy, group=group)
    display = display or Display()
    display.accept(training)
    require_agreement(training)
    with claimed(folder) if group.is_first else nullcontext():
        if group.broadcast((folder / CHECKPOINT).exists()):
            training.read_checkpoint(folder / CHECKPOINT)
        elif group.broadcast((folder / METRICS).exists()):
            raise RunError(f"{folder} has no {CHECKPOINT}, so the run cannot be resumed; start a new one")
        if assignments and group.is_first:  # only now: the checkpoint was read, and is of this recipe and these data
            write_recipe(folder, recipe)
        return _run(training, folder, display)


def _longer(recipe: Recipe, folder: Path, assignments: Sequence[str]) -> Recipe:
    """Return the recipe by which the finished run in `folder` continues."""
    if not (folder / CHECKPOINT).is_file():
        raise RunError(f"{folder} has no {CHECKPOINT}, so the run cannot be continued; start a new one")
    position = Position.from_state(load(folder / CHECKPOINT)["position"])
    at_end = is_at_end(recipe.train, position.metrics)
    at_end |= position.epoch == recipe.train.continued_from > 0  # a continuation of which nothing is stored
    is_finished = position.batch == 0 and at_end
    return continued(recipe, folder, assignments, is_finished, position.epoch)


def _run(training: Training, folder: Path, display: Display) -> Result:
    """Train from the present position to the end, or until a signal to stop, and leave all files in `folder`."""
    recipe, position, group = training.recipe, training.position, training.group
    finished = training.is_finished and is_complete(folder, position.metrics_lines())
    unwritable = suppress(TrainingFailed) if finished else nullcontext()  # a finished run may lie on a read-only disk
    if group.is_first:
        remove_leftovers(folder)
    group.began(folder, resume_command(folder))
    keep_freed_memory()
    # NumPy's warnings are off: losses, gradients and weights are checked for values that are not finite.
    products = products_in_one_thread() if training.uses_one_product_thread else nullcontext()
    choice = products_as(training.products)
    with StopRequest(group) as stop, display, np.errstate(all="ignore"), products, choice:
        group.barrier()  # from here on a signal to any process stops all of them after the same step
        try:
            display.started(training, folder)
            figures = _train_epochs(training, folder, display, stop, unwritable)
        except FloatingPointError as error:
            smaller = [f"{key}={getattr(recipe.train, key) / 10:.2g}" for key in ("lr", "min_lr")]
            raise TrainingFailed(
                f"{error}; {folder / CHECKPOINT} is of the last good step. A smaller train.lr, a longer "
                "train.warmup_epochs or train.clip_norm=1 may help, in a new run: "
                f"{retry_command(folder, recipe, smaller)}"
            ) from error
        if position.metrics and group.is_first:
            title = os.fsencode(folder).decode(errors="replace")  # the name of a folder need not be valid text
            drawn = title, position.metrics, training.measured, training.task.score
            with unwritable:
                write_file(folder / CURVES, lambda path: draw_curves(path, *drawn))
    if figures is None:
        where = "before the test" if training.is_finished else f"in epoch {position.epoch + 1} of {recipe.train.epochs}"
        raise Interrupted(f"stopped {where}, after step {position.step}; continue with: {resume_command(folder)}")
    return Result(folder, recipe, position.metrics, figures)


def _train_epochs(
    training: Training, folder: Path, display: Display, stop: StopRequest, unwritable: AbstractContextManager[Any]
) -> dict[str, Any] | None:
    """Train to the end and return the figures of the test, or until a signal to stop (None), and write a checkpoint."""
    position, size = training.position, training.recipe.data.batch_size
    with unwritable:
        training.write_checkpoint(folder)
    try:
        while not training.is_finished:
            for batches in training.groups():
                training.step(batches)
                display.stepped(position)
                stop.check()
                if training.checkpoint_is_due():
                    training.write_checkpoint(folder)
            training.finish_epoch(_counter(display, stop, training.measured, training.measured_data, size))
            training.write_checkpoint(folder)
            display.finished_epoch(position)
        # A signal comes too late here: all that is left takes as long as one more measurement.
        after_batch = _counter(display, None, "test", training.test_data, size)
        figures = test_figures(training, folder, after_batch, unwritable)
        display.tested()
        return figures
    except Stopped:
        training.write_checkpoint(folder)
        return None


def _counter(display: Display, stop: StopRequest | None, split: str, data: AnyDataset, size: int) -> Callable[[], None]:
    """Return what is called after each measured batch of `size` samples: it shows their number, and may stop."""
    done, total = count(1), math.ceil(len(data) / size)

    def after_batch() -> None:
        display.measuring(split, next(done), total)
        if stop is not None:
            stop.check_here()

    return after_batch
