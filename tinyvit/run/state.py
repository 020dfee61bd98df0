"""The state of a run: all that changes while it trains, and how a checkpoint stores and restores it.

What a run computes depends on its recipe alone. All that changes during it is in `Training`: the weights, the
optimizer, their average, the random stream, and the position in the data. Shuffling and augmentation are drawn from the
position (see `tinyvit.data.Loader`), so a run that was stopped, or killed, and resumed gives the same bits as one that
ran through.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import default_device, default_generator, is_on_gpu, manual_seed, product_threads
from ..checkpoint import load, require_finite
from ..data import Batch, Dataset, Loader
from ..data.datasets import equal_images
from ..data.image_files import listed
from ..dispatch import is_served
from ..errors import CheckpointError, DataError, RecipeError, log
from ..functional.linalg import Linear
from ..nn import Module
from ..optim import EMA, SCHEDULES, SGD, Adam, AdamW, Optimizer, decay_groups
from ..recipe import Recipe, Train
from ..tasks import DataSpec, recipe_error, task_of
from ..tasks.base import DEFAULTS, AnyDataset, augmentation_of
from .folder import build_model, load_data, require_same_recipe, write_progress
from .steps import Losses, Steps
from .transfer import freeze_encoders

_MEASURED = ("epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "seconds")


@dataclass
class Position:
    """How far a run has come, and what it has measured so far."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # batches of the current epoch that were trained on
    images: int = 0  # images in them whose losses are known
    loss_sum: float = 0.0  # the sum of these losses
    epoch_seconds: float = 0.0  # the time that training took in this epoch
    step: int = 0  # optimizer steps, over all epochs
    seconds: float = 0.0  # over all epochs, evaluations included
    metrics: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Position":
        """Restore the position in a checkpoint. Raises TypeError or ValueError if it is none that a run can have."""
        position = cls(**state)
        if missing := {"epoch", "batch", "step", "metrics"} - state.keys():
            raise ValueError(f"position lacks {', '.join(sorted(missing))}")
        for name, value in dataclasses.asdict(cls()).items():
            found, kinds = getattr(position, name), int | float if type(value) is float else type(value)
            if not isinstance(found, kinds) or type(found) is bool:
                raise TypeError(f"position.{name} is {found!r:.100}")
        counts = (position.epoch, position.batch, position.images, position.step, position.seconds)
        times_agree = (position.batch > 0) == (position.images > 0) == (position.epoch_seconds > 0)
        are_finite = math.isfinite(position.loss_sum + position.seconds + position.epoch_seconds)
        if min(counts) < 0 or len(position.metrics) != position.epoch or not times_agree or not are_finite:
            raise ValueError(f"position is {position!r:.200}")
        for line in position.metrics:
            if not all(isinstance(line.get(key), int | float) for key in _MEASURED):
                raise ValueError(f"position.metrics holds {line!r:.100}")
        return position

    def metrics_lines(self) -> bytes:
        """Return the content of metrics.jsonl."""
        return "".join(json.dumps(line) + "\n" for line in self.metrics).encode()

    def add_losses(self, losses: Losses) -> None:
        """Add the losses of steps to the epoch's, one by one, so that their sum is the same after resuming."""
        for loss_sum, images in losses:
            self.loss_sum += loss_sum
            self.images += images

    def finish_epoch(self, line: dict[str, Any]) -> None:
        """Add the line of this epoch to the metrics, and go to the beginning of the next one."""
        self.metrics.append(line)
        self.epoch += 1
        self.batch = self.images = 0
        self.loss_sum = self.epoch_seconds = 0.0


class Training:
    """A run at one moment: its data, its model, and all that changes while it trains.

    `legacy` says that the run was begun by an earlier version: then `data.limit` takes the first samples, and options
    that have no effect are accepted.

    Raises RecipeError or DataError if the recipe and its data do not fit together.
    """

    def __init__(self, recipe: Recipe, legacy: bool = False) -> None:
        settings = recipe.train
        self.recipe, self.task, self.legacy = recipe, task_of(recipe), legacy
        self.train_data, self.test_data = (load_data(recipe, split, legacy) for split in ("train", "test"))
        _warn_of_equal_images(self.train_data, self.test_data)
        self.task.prepare(self.train_data)
        self.data = DataSpec.of(self.train_data)
        if self.test_data.images.shape[1:] != self.data.shape:
            raise DataError(
                f"{recipe.data.name} has train images of the shape {self.data.shape} (C, H, W) and test images of "
                f"{self.test_data.images.shape[1:]}; set data.image_size, which resizes all images"
            )
        if not legacy:
            self.task.check(self.data)
            _check_optimizer_options(settings)
        augment = augmentation_of(recipe)
        self.loader = Loader(
            self.train_data, recipe.data.batch_size, seed=settings.seed, augment=augment if augment.used() else None
        )
        self.steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.total_steps = settings.epochs * self.steps_per_epoch

        manual_seed(settings.seed)
        self.model = build_model(recipe, self.data).to(default_device())
        freeze_encoders(self.model, recipe)
        self.optimizer = _build_optimizer(recipe, self.model)
        self.ema = EMA(self.model.parameters(), settings.ema) if settings.ema else None
        self.steps = Steps(self.model, self.task, self.optimizer, settings, self.ema)
        if self.steps.graph:
            self.loader.dataset = self.train_data.with_equal_batches(recipe.data.batch_size)
        self.position = Position()
        self._lap_began = self._written = time.perf_counter()

    # One step, one epoch

    def groups(self) -> Iterator[list[Batch]]:
        """Yield the remaining batches of this epoch, in groups of `accumulate`, one group for each step."""
        batches = self.loader.batches(self.position.epoch, self.position.batch)
        while group := list(islice(batches, self.recipe.train.accumulate)):
            yield group

    def step(self, batches: list[Batch]) -> None:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`."""
        position = self.position
        self.optimizer.set_lr(self.learning_rate(position.step + 1))
        position.add_losses(self.steps(batches, position.step + 1, position.epoch + 1))
        position.step += 1
        position.batch += len(batches)
        position.epoch_seconds += self._lap()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step number `step`, counted from 1 to `total_steps`.

        The step after the warm-up, or the first, has the full rate; the smallest is reached after the last step.
        """
        settings = self.recipe.train
        warmup_steps = min(round(settings.warmup_epochs * self.steps_per_epoch), self.total_steps - 1)
        schedule = SCHEDULES[settings.schedule]
        return schedule(step, self.total_steps + 1, max(warmup_steps, 1), settings.lr, settings.min_lr)

    def finish_epoch(self, after_batch: Callable[[], None]) -> None:
        """Evaluate the model on the test images, add a line to the metrics, and go to the next epoch.

        `after_batch` is called after each batch of test images. If it raises an exception, the position is unchanged.
        """
        position = self.position
        position.add_losses(self.steps.read_losses())
        position.epoch_seconds += self._lap()
        with self.averaged():
            report = self.task.evaluate(self.model, self.test_data, self.recipe.data.batch_size, after_batch)
        if not math.isfinite(report.loss):
            raise FloatingPointError(f"the loss on the test images after step {position.step} is {report.loss}")
        self._lap()
        line: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "train_loss": position.loss_sum / position.images,
            "val_loss": report.loss,
            "val_accuracy": report.accuracy,
            "lr": self.learning_rate(position.step),
            "images_per_s": round(position.images / position.epoch_seconds, 1),
            "seconds": round(position.seconds, 3),
        }
        if report.shares:
            line["val_accuracies"] = report.shares
        position.finish_epoch(line)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model the weights to use within this block: their running average, if the recipe asks for one."""
        return self.ema.applied() if self.ema else nullcontext()

    def _lap(self) -> float:
        """Add the time since the last call to the run's, and return it."""
        now = time.perf_counter()
        lap, self._lap_began = now - self._lap_began, now
        self.position.seconds += lap
        return lap

    # The checkpoint

    def checkpoint_is_due(self) -> bool:
        """Return whether the last checkpoint is older than the recipe allows."""
        return time.perf_counter() - self._written >= 60 * self.recipe.train.checkpoint_minutes

    def write_checkpoint(self, folder: Path) -> None:
        """Write the checkpoint, the weights to use and the metrics into the run folder.

        Raises FloatingPointError if the weights are not finite, and TrainingFailed if a file cannot be written.
        """
        self.position.add_losses(self.steps.read_losses())
        if not all(np.isfinite(p.numpy()).all() for p in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.position.step}")
        with self.averaged():
            weights = self.model.state_dict()
        write_progress(folder, self.state_dict(), weights, self.position.metrics_lines())
        self._lap()  # writing counts as time of the run, but not as time of training
        self._written = time.perf_counter()

    @property
    def uses_one_product_thread(self) -> bool:
        """Whether NumPy's matrix products are to use one thread, so that the bits of a run depend on no number of them.

        It costs little where kernels make most products, and in float16, which NumPy converts back and forth. Otherwise
        products use all threads, and the run may only be resumed with as many.
        """
        kernels_multiply = is_served(Linear.kernel, np.dtype(np.float32), "cpu")
        return self.recipe.train.precision == "float16" or kernels_multiply

    @property
    def threads(self) -> int:
        """The number of threads on which the bits of this run depend: 1 if they depend on none."""
        on_gpu = any(is_on_gpu(p.data) for p in self.model.parameters())
        return 1 if on_gpu or self.uses_one_product_thread else product_threads()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of the data: a run may only be resumed with the same images and texts."""
        return {"train": self.train_data.fingerprint(), "test": self.test_data.fingerprint()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "recipe": self.recipe.to_toml(),
            "data": self.data.state_dict(),
            "train_images": len(self.train_data),
            "fingerprints": self.fingerprints,
            "legacy": self.legacy,
            "threads": self.threads,
            "position": dataclasses.asdict(self.position),
            "generator": default_generator.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.steps.scaler.state_dict() if self.steps.scaler else None,
        }

    def read_checkpoint(self, path: Path) -> None:
        """Restore the state in a checkpoint. Raises CheckpointError if it is of another recipe or of other data."""
        state = load(path)
        try:
            self._require_same_origin(path, state)
            position = Position.from_state(state["position"])
            steps = math.ceil(position.batch / self.recipe.train.accumulate)
            reached = position.epoch * self.steps_per_epoch + steps
            if position.batch > len(self.loader) or position.step != reached or reached > self.total_steps:
                raise ValueError(f"position is none of a run of {self.total_steps} steps: {position!r:.200}")
            self.position = position
            default_generator.load_state_dict(state["generator"])
            with np.errstate(over="ignore"):  # values that float32 lacks become infinite, and are found below
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            if self.steps.scaler:
                self.steps.scaler.load_state_dict(state["scaler"])
            require_finite(path, self.model.state_dict())
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CheckpointError(f"{path} is not the checkpoint of a run ({type(error).__name__}: {error})") from error

    def _require_same_origin(self, path: Path, state: Mapping[str, Any]) -> None:
        """Refuse to resume with another recipe or other data: the run would be neither the old one nor a new one."""
        require_same_recipe(path, state, self.recipe, ("data", "model", "train", "task"))
        if (threads := state.get("threads", self.threads)) != self.threads:
            raise CheckpointError(
                f"{path} is of a run whose matrix products used {threads} threads; here they use {self.threads}, which "
                f"changes their last bits. Resume it with TINYVIT_THREADS={threads}"
            )
        before, count, name = DataSpec.from_state(state["data"]), state["train_images"], self.recipe.data.name
        changes = before.differences(self.data)
        if count != len(self.train_data):
            changes.append(f"there were {count:,} train {self.task.samples} and are now {len(self.train_data):,}")
        if not changes and before != self.data:
            changes.append("the images are normalized in another way, or the texts have another length")
        for split, fingerprint in state.get("fingerprints", {}).items():
            if not changes and fingerprint != self.fingerprints[split]:
                changes.append(f"files of the {split} split have another content")
        if changes:
            raise CheckpointError(
                f"{path} is of a run on other images than {name} now holds: {'; '.join(changes)}; put those back, or "
                "start a new run"
            )


def _warn_of_equal_images(train: AnyDataset, test: AnyDataset) -> None:
    """Warn if files of the test split hold images to learn from: then the accuracy promises too much."""
    if isinstance(train, Dataset) and isinstance(test, Dataset) and train.files and test.files:
        pairs = [f"{test.files[j]} = {train.files[i]}" for i, j in equal_images(train, test)]
        if pairs:
            log.warning(
                "%s: %s of %s test images are train images too, so the accuracy will be too high: %s",
                *(train.name, f"{len(pairs):,}", f"{len(test):,}", listed(pairs)),
            )


def _check_optimizer_options(settings: Train) -> None:
    """Raise RecipeError if the recipe sets an option that its optimizer does not have."""
    of_others = ("momentum", "nesterov") if settings.optimizer != "sgd" else ("beta1", "beta2")
    for key in of_others:
        value, default = getattr(settings, key), DEFAULTS[f"train.{key}"]
        if value != default:
            raise RecipeError(
                f"train.{key} is {value}, which {settings.optimizer} does not use; leave it at {default}, or choose "
                "another train.optimizer"
            )


def _build_optimizer(recipe: Recipe, model: Module) -> Optimizer:
    settings = recipe.train
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = decay_groups(trainable, settings.weight_decay)
    if settings.optimizer != "sgd":
        optimizer = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
        return optimizer(groups, settings.lr, (settings.beta1, settings.beta2))
    try:
        return SGD(groups, settings.lr, settings.momentum, nesterov=settings.nesterov)
    except ValueError as error:
        raise recipe_error(settings, error) from error
