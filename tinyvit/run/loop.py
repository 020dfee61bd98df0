"""Training: one readable loop, and a state that can be written down after any step and gone on from exactly.

What a run computes depends on its recipe alone. All that changes during it is in `Training`: the weights, the
optimizer, their average, the random stream, and the position in the data. Shuffling and augmentation are drawn from the
position (see `tinyvit.data.Loader`), so a run that was stopped, or killed, and resumed gives the same bits as one that
was not. The test images are only looked at; nothing is chosen by them, and the last epoch's accuracy is the result.
"""

import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import default_device, default_generator, keep_freed_memory, manual_seed
from ..checkpoint import atomic_write, load, save
from ..data import Augment, Batch, Loader
from ..errors import CheckpointError, DataError
from ..nn import Module
from ..optim import EMA, SCHEDULES, SGD, Adam, AdamW, Optimizer, decay_groups
from ..tasks import DataSpec, mistake_in, task_of
from .curves import draw_curves
from .display import Display
from .folder import (
    CHECKPOINT,
    CURVES,
    METRICS,
    MODEL,
    RunError,
    build_model,
    claimed,
    freeze_encoders,
    load_data,
    new_run,
    read_recipe,
    require_same_recipe,
    take_encoders,
)
from .recipe import Recipe
from .signals import Interrupted, Stopped, StopRequest
from .steps import Steps


class TrainingFailed(Exception):
    """A run that could not go on: its numbers left the finite ones, or the disk is full."""


@dataclass(frozen=True)
class Result:
    """What a finished run has come to."""

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """Share of the test images that the last epoch's model gets right, from 0 to 1."""
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


# What users call ----------------------------------------------------------------------------------------------------


def train(recipe: Recipe, name: str, out: Path | None = None, display: Display | None = None) -> Result:
    """Train by `recipe`, from the start, in a new run folder.

    Parameters
    ----------
    recipe : Recipe
    name, out : the run folder, see `tinyvit.run.folder.new_run`.
    display : Display, optional
        What is shown meanwhile; nothing by default.

    Raises
    ------
    TinyvitError
        If the recipe, the data or the folder will not do; no folder is made for a bad recipe.
    TrainingFailed
        If the run cannot go on; its last good checkpoint is kept.
    Interrupted
        After Ctrl-C, SIGTERM or SIGHUP, if called from the main thread. The step under way is finished, and a
        checkpoint written. A second Ctrl-C stops at once, with KeyboardInterrupt.
    """
    training = Training(recipe)
    if recipe.task.start_from:
        take_encoders(training.model, training.data, recipe)
    display = display or Display()
    display.accept(training)
    folder = new_run(recipe, name, out)
    with claimed(folder):
        return _go_on(training, folder, display)


def resume(folder: Path, display: Display | None = None) -> Result:
    """Go on with the run in `folder` from its checkpoint, as if it had never stopped; raises what `train` does."""
    training = Training(read_recipe(folder))
    display = display or Display()
    display.accept(training)
    with claimed(folder):
        if (folder / CHECKPOINT).exists():
            training.read_checkpoint(folder / CHECKPOINT)
        elif (folder / METRICS).exists():
            raise RunError(f"{folder} has no {CHECKPOINT}, so the run cannot go on; start a new one")
        return _go_on(training, folder, display)


def _go_on(training: "Training", folder: Path, display: Display) -> Result:
    """Train from where `training` stands to the end, or until a signal; leave everything in `folder`."""
    recipe, position = training.recipe, training.position
    finished = position.epoch == recipe.train.epochs and _is_all_there(folder, position)
    unwritable = suppress(TrainingFailed) if finished else nullcontext()  # a finished run may lie on a read-only disk
    keep_freed_memory()
    # what is not finite is found by looking for it
    with StopRequest() as stop, display, np.errstate(all="ignore"), unwritable:
        try:
            display.started(training, folder)
            finished = _train_epochs(training, folder, display, stop)
        except FloatingPointError as error:
            raise TrainingFailed(
                f"{error}; {folder / CHECKPOINT} is of the last good step. A smaller train.lr, a longer "
                "train.warmup_epochs or train.clip_norm=1 may help"
            ) from error
        if position.metrics:
            title = os.fsencode(folder).decode(errors="replace")  # its name may hold bytes that are no text
            _write(folder / CURVES, lambda path: draw_curves(path, title, position.metrics))
    if not finished:
        raise Interrupted(
            f"stopped in epoch {position.epoch + 1} of {recipe.train.epochs}, after step {position.step}; "
            f"go on with: {_command(folder)}"
        )
    return Result(folder, recipe, position.metrics)


def _is_all_there(folder: Path, position: "Position") -> bool:
    """Whether `folder` has every file of a run that has come to `position`; a run killed while it wrote lacks some."""
    files = [folder / name for name in (METRICS, MODEL, CURVES)]
    return all(file.is_file() for file in files) and files[0].read_bytes() == position.metrics_lines()


def _train_epochs(training: "Training", folder: Path, display: Display, stop: StopRequest) -> bool:
    """Train to the end (True) or until it is asked to stop (False), the last state being in the checkpoint."""
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


def _command(folder: Path) -> str:
    return f"tinyvit train --resume {shlex.quote(str(folder))}"


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(path)`; a full disk and the like raise TrainingFailed, with the name of the file."""
    try:
        write(path)
    except (CheckpointError, OSError) as error:
        told = error if isinstance(error, CheckpointError) else f"{path} cannot be written ({error.strerror})"
        raise TrainingFailed(f"{told}; then go on with: {_command(path.parent)}") from error


# The state of a run -------------------------------------------------------------------------------------------------


@dataclass
class Position:
    """How far a run has come; what it has measured so far is part of that."""

    epoch: int = 0  # how many are finished
    batch: int = 0  # of the epoch under way: how many batches were learnt from
    images: int = 0  # the images in them
    loss_sum: float = 0.0  # the sum of their losses
    epoch_seconds: float = 0.0  # and the time it took
    step: int = 0  # of the optimizer, over all epochs
    seconds: float = 0.0  # over all epochs, tests included
    metrics: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl

    def metrics_lines(self) -> bytes:
        """What metrics.jsonl holds."""
        return "".join(json.dumps(line) + "\n" for line in self.metrics).encode()


class Training:
    """A run at one moment: the model and all that changes with it.

    Raises RecipeError or DataError if the recipe and its data do not fit together.
    """

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.train
        self.recipe, self.task = recipe, task_of(recipe)
        self.train_data, self.test_data = (load_data(recipe, split) for split in ("train", "test"))
        self.task.learn_from(self.train_data)
        self.data = DataSpec.of(self.train_data)
        if self.test_data.images.shape[1:] != self.data.shape:
            raise DataError(
                f"{recipe.data.name} has train images of the shape {self.data.shape} (C, H, W) and test images of "
                f"{self.test_data.images.shape[1:]}; set data.image_size, and all are brought to that size"
            )
        keys = {key.name: getattr(recipe.data, key.name) for key in dataclasses.fields(Augment)}
        augment = Augment(**keys) if any(keys.values()) else None
        self.loader = Loader(self.train_data, recipe.data.batch_size, seed=settings.seed, augment=augment)
        self.steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.total_steps = settings.epochs * self.steps_per_epoch

        manual_seed(settings.seed)
        self.model = build_model(recipe, self.data).to(default_device())
        freeze_encoders(self.model, recipe)
        self.optimizer = _build_optimizer(recipe, self.model)
        self.steps = Steps(self)
        if self.steps.graph:
            self.loader.dataset = self.train_data.in_one_shape(recipe.data.batch_size)
        self.ema = EMA(self.model.parameters(), settings.ema) if settings.ema else None
        self.position = Position()
        self._lap_began = self._written = time.perf_counter()

    # One step, one epoch

    def groups(self) -> Iterator[list[Batch]]:
        """The batches that are left of this epoch, in groups of `accumulate`, one for each step."""
        batches = self.loader.batches(self.position.epoch, self.position.batch)
        while group := list(islice(batches, self.recipe.train.accumulate)):
            yield group

    def step(self, batches: list[Batch]) -> None:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`."""
        position = self.position
        self.optimizer.set_lr(self.learning_rate(position.step + 1))
        self.steps(batches)
        if self.ema:
            self.ema.update()
        position.step += 1
        position.batch += len(batches)
        position.epoch_seconds += self._lap()

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step number `step`, counted from 1 to `total_steps`."""
        settings = self.recipe.train
        warmup_steps = min(round(settings.warmup_epochs * self.steps_per_epoch), self.total_steps - 1)
        return SCHEDULES[settings.schedule](step, self.total_steps, warmup_steps, settings.lr, settings.min_lr)

    def finish_epoch(self, after_batch: Callable[[], None]) -> None:
        """Measure the model on the test images, add a line to the metrics, and turn to the next epoch.

        `after_batch` is called after each batch of test images, and may raise: nothing has changed then.
        """
        position = self.position
        self.steps.read_losses()
        position.epoch_seconds += self._lap()
        with self.averaged():
            size = self.recipe.data.batch_size
            loss, accuracy, found = self.task.evaluate(self.model, self.test_data, size, after_batch)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss on the test images after step {position.step} is {loss}")
        self._lap()
        line: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "train_loss": position.loss_sum / position.images,
            "val_loss": loss,
            "val_accuracy": accuracy,
            "lr": self.learning_rate(position.step),
            "images_per_s": round(position.images / position.epoch_seconds, 1),
            "seconds": round(position.seconds, 3),
        }
        if found.shares:
            line["val_accuracies"] = found.shares
        position.metrics.append(line)
        position.epoch += 1
        position.batch = position.images = 0
        position.loss_sum = position.epoch_seconds = 0.0

    def averaged(self) -> AbstractContextManager[None]:
        """Within this block the model has the weights to use: their running average, if the recipe wants one."""
        return self.ema.applied() if self.ema else nullcontext()

    def _lap(self) -> float:
        """Add the time since the last call to the run's, and return it."""
        now = time.perf_counter()
        lap, self._lap_began = now - self._lap_began, now
        self.position.seconds += lap
        return lap

    # Writing it down, and reading it back

    def checkpoint_is_due(self) -> bool:
        return time.perf_counter() - self._written >= 60 * self.recipe.train.checkpoint_minutes

    def write_checkpoint(self, folder: Path) -> None:
        """Write the checkpoint, then what follows from it: a run killed in between makes up for it when it resumes."""
        self.steps.read_losses()
        if not all(np.isfinite(p.numpy()).all() for p in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.position.step}")
        with self.averaged():
            weights = self.model.state_dict()
        lines = self.position.metrics_lines()
        _write(folder / CHECKPOINT, lambda path: save(path, self.state_dict()))
        _write(folder / MODEL, lambda path: save(path, weights))
        _write(folder / METRICS, lambda path: atomic_write(path, lines))
        self._lap()  # writing counts for the run, not for the speed of training
        self._written = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_toml(),
            "data": self.data.state_dict(),
            "train_images": len(self.train_data),
            "position": dataclasses.asdict(self.position),
            "generator": default_generator.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.steps.scaler.state_dict() if self.steps.scaler else None,
        }

    def read_checkpoint(self, path: Path) -> None:
        """Go to the state in a checkpoint; CheckpointError if it is not one of this recipe with this data."""
        state = load(path)
        try:
            self._check_origin(path, state)
            self.position = Position(**state["position"])
            default_generator.load_state_dict(state["generator"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            if self.steps.scaler:
                self.steps.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not the checkpoint of a run ({type(error).__name__}: {error})") from error

    def _check_origin(self, path: Path, state: Mapping[str, Any]) -> None:
        """Refuse to go on with another recipe or other data: the run would be neither the old one nor a new one."""
        require_same_recipe(path, state, self.recipe, ("data", "model", "train", "task"))
        if (DataSpec.from_state(state["data"]), state["train_images"]) != (self.data, len(self.train_data)):
            raise CheckpointError(f"{path} is of a run on other images than {self.recipe.data.name} now holds")


def _build_optimizer(recipe: Recipe, model: Module) -> Optimizer:
    settings = recipe.train
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = decay_groups(learning, settings.weight_decay)
    if settings.optimizer != "sgd":
        rule = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
        return rule(groups, settings.lr, (settings.beta1, settings.beta2))
    try:
        return SGD(groups, settings.lr, settings.momentum, nesterov=settings.nesterov)
    except ValueError as error:
        raise mistake_in(settings, error) from error
