"""The state of a run: all that changes while it trains, and how a checkpoint stores and restores it.

What a run computes depends on its recipe alone. All that changes during it is in `Training`: the weights, the
optimizer, their average, the random stream, and the position in the data. Shuffling and augmentation are drawn from the
position (see `tinyvit.data.Loader`), so a run that was stopped, or killed, and resumed gives the same bits as one that
ran through.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Group, default_device, default_generator, is_on_gpu, manual_seed, product_threads
from ..checkpoint import load, require_finite
from ..data import Loader, Mix
from ..data.looks import range_of_looks
from ..dispatch import is_served, products_of_blas
from ..errors import CheckpointError, DataError, RecipeError
from ..functional.linalg import Linear
from ..nn import Module
from ..optim import EMA, SCHEDULES
from ..optim.tree import shards_of
from ..recipe import Recipe
from ..tasks import DataSpec, Report, task_of
from ..tasks.options import augmentation_of
from ..tasks.spec import AnyDataset
from .arithmetic import arithmetic_of, warn_of_other_arithmetic
from .continued import STEADY, is_continuation
from .equal_samples import warn_of_contradictions, warn_of_equal_images
from .folder import build_model, changed_keys, load_splits, require_same_recipe, write_progress
from .groups import set_rates
from .optimizer import check_optimizer, new_optimizer
from .position import Position, best_epoch, check_choice, is_at_end
from .sharded import ShardedSteps, number_of_shards
from .steps import Steps
from .teacher import attach_teacher
from .teamwork import Teamwork
from .transfer import freeze_encoders


class Training:
    """A run at one moment: its data, its model, and all that changes while it trains.

    `legacy` says that the run was begun by an earlier version: then `data.limit` takes the first samples, and options
    that have no effect are accepted. The processes of `group` train together, all with a state like this.

    Raises RecipeError or DataError if the recipe and its data do not fit together.
    """

    def __init__(self, recipe: Recipe, legacy: bool = False, group: Group | None = None) -> None:
        settings, self.group = recipe.train, group or Group()
        self.recipe, self.task, self.legacy = recipe, task_of(recipe), legacy
        self.train_data, self.validation_data, self.test_data = load_splits(recipe, legacy)
        warn_of_equal_images(self.train_data, self.test_data)
        warn_of_contradictions(recipe.task.kind, (self.train_data, self.validation_data, self.test_data))
        self.task.prepare(self.train_data)
        known = range_of_looks(self.train_data.images)
        self.data = dataclasses.replace(DataSpec.of(self.train_data), looks=known)
        if self.test_data.images.shape[1:] != self.data.shape:
            raise DataError(
                f"{recipe.data.name} has train images of the shape {self.data.shape} (C, H, W) and test images of "
                f"{self.test_data.images.shape[1:]}; set data.image_size, which resizes all images"
            )
        if not legacy:
            self.task.check(self.data)
            check_optimizer(settings)
        check_choice(recipe)
        self._teacher = attach_teacher(self.task, recipe, self.data)
        if settings.continued_from >= settings.epochs:
            raise RecipeError(
                f"train.continued_from is {settings.continued_from}; it must be less than train.epochs, which is "
                f"{settings.epochs}; --resume DIR --set epochs=... sets it"
            )
        self.loader = loader_of(recipe, self.train_data)
        self.steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.total_steps = settings.epochs * self.steps_per_epoch

        manual_seed(settings.seed)
        self.model = build_model(recipe, self.data).to(default_device())
        freeze_encoders(self.model, recipe)
        self.optimizer, self._lr_factors = new_optimizer(recipe, self.model)
        self.ema = EMA(self.model.parameters(), settings.ema) if settings.ema else None
        self.steps, self.teamwork = self._new_steps(), Teamwork(self.group)
        if self.steps.graph:
            self.loader.dataset = self.train_data.with_equal_batches(recipe.data.batch_size)
        self.origin = ""  # how the weights began, if not at random, for the first line of the run
        self.position = Position()
        # shapes whose products OpenBLAS makes, for the whole run
        self.products = self.group.broadcast(sorted(products_of_blas()))
        self.best: dict[str, Any] | None = None  # the weights of the best epoch so far, if the recipe keeps them
        self._lap_began = self._written = time.perf_counter()

    # One step, one epoch

    def _new_steps(self) -> Steps:
        parts = (self.model, self.task, self.optimizer, self.recipe.train, self.ema)
        return ShardedSteps(*parts, self.group) if self.recipe.train.shards else Steps(*parts)

    def groups(self) -> Iterator[list[Any]]:
        """Yield the remaining batches of this epoch, in groups of `accumulate`, one group for each step."""
        begin = self.position.epoch, self.position.batch
        batches: Iterator[Any]
        if shards := number_of_shards(self.recipe.train, self.group):
            own = shards_of(self.group.rank, self.group.size, shards)
            batches = self.loader.sharded_batches(*begin, shards, own)
        else:
            batches = self.loader.batches(*begin)
        while group := list(islice(batches, self.recipe.train.accumulate)):
            yield group

    def step(self, batches: list[Any]) -> None:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`."""
        position = self.position
        set_rates(self.optimizer.groups, self._lr_factors, self.learning_rate(position.step + 1))
        position.add_losses(self.steps(batches, position.step + 1, position.epoch + 1))
        position.step += 1
        position.batch += len(batches)
        position.epoch_seconds += self._lap()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step number `step`, counted from 1 to `total_steps`.

        The step after the warm-up, or the first, has the full rate; the smallest is reached after the last step.
        """
        settings = self.recipe.train
        before = settings.continued_from * self.steps_per_epoch  # steps before the schedule began anew
        is_again = step > before > 0
        step, total = (step - before, self.total_steps - before) if step > before else (step, before)
        warmup_steps = min(round(settings.warmup_epochs * self.steps_per_epoch), total - 1)
        if is_again and settings.schedule in STEADY:
            warmup_steps = 0
        schedule = partial(SCHEDULES[settings.schedule], lr=settings.lr, min_lr=settings.min_lr)
        options = {"cooldown": settings.cooldown} if settings.schedule == "cooldown" else {}
        return schedule(step, total + 1, max(warmup_steps, 1), **options)

    def finish_epoch(self, after_batch: Callable[[], None]) -> None:
        """Evaluate the model on the validation images, add a line to the metrics, and go to the next epoch.

        `after_batch` is called after each batch of them. If it raises an exception, the position is unchanged.
        """
        position = self.position
        position.add_losses(self.steps.read_losses())
        position.epoch_seconds += self._lap()
        self.teamwork.finish_epoch(position.epoch_seconds)
        with self.averaged():
            report = self._evaluate(self.measured_data, after_batch)
            weights = self.model.state_dict() if self.recipe.train.keep == "best" else None
        if not math.isfinite(report.loss):
            raise FloatingPointError(
                f"the loss on the {self.measured} {self.task.samples} after step {position.step} is {report.loss}"
            )
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
        if weights is not None and best_epoch(position.metrics) == position.epoch:
            self.best = weights

    @property
    def measured(self) -> str:
        """The split on which each epoch is measured: "validation", or "test" if the recipe holds nothing out."""
        return "test" if self.validation_data is None else "validation"

    @property
    def measured_data(self) -> AnyDataset:
        """The data of this split."""
        return self.test_data if self.validation_data is None else self.validation_data

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are trained, or no epoch of the last `train.patience` was better than those before."""
        return is_at_end(self.recipe.train, self.position.metrics)

    def measure_test(self, after_batch: Callable[[], None]) -> Report:
        """Evaluate the weights to use on the test images."""
        with self.averaged() if self.best is None else _exchanged(self.model, self.best):
            report = self._evaluate(self.test_data, after_batch)
        if not math.isfinite(report.loss):
            raise FloatingPointError(f"the loss on the test {self.task.samples} is {report.loss}")
        self._lap()
        return report

    def _evaluate(self, data: AnyDataset, after_batch: Callable[[], None]) -> Report:
        return self.task.evaluate(self.model, data, self.recipe.data.batch_size, after_batch, self.group)

    def restart_average(self) -> None:
        """Begin the average of the weights with their present values."""
        if self.ema:
            self.ema = EMA(self.model.parameters(), self.recipe.train.ema)
            self.steps = self._new_steps()

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
        """Write the checkpoint, the weights to use and the metrics into the run folder, as process 0 of a group.

        Raises FloatingPointError if the weights are not finite, and TrainingFailed if a file cannot be written.
        """
        self.position.add_losses(self.steps.read_losses())
        if not all(np.isfinite(p.numpy()).all() for p in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.position.step}")
        if self.group.is_first:
            with self.averaged():
                weights = self.model.state_dict() if self.best is None else self.best
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
        in_one = self.recipe.train.precision == "float16" or self.recipe.train.shards > 0
        return in_one or (kernels_multiply and not self.products)

    @property
    def threads(self) -> int:
        """The number of threads on which the bits of this run depend: 1 if they depend on none."""
        on_gpu = any(is_on_gpu(p.data) for p in self.model.parameters())
        return 1 if on_gpu or self.uses_one_product_thread else product_threads()

    @property
    def arithmetic(self) -> dict[str, str]:
        """Device, kernels and versions of this run. Its last bits depend on them, so resuming with others warns."""
        return arithmetic_of(next(self.model.parameters()).data)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of the data: a run may only be resumed with the same images and texts."""
        splits = {"train": self.train_data, "validation": self.validation_data, "test": self.test_data}
        return {name: data.fingerprint() for name, data in splits.items() if data is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "recipe": self.recipe.to_toml(),
            "data": self.data.state_dict(),
            "train_images": len(self.train_data),
            "fingerprints": self.fingerprints,
            "legacy": self.legacy,
            "threads": self.threads,
            "arithmetic": self.arithmetic,
            "products": [list(shape) for shape in self.products],
            "position": dataclasses.asdict(self.position),
            "teacher": self._teacher,
            "generator": default_generator.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "best": self.best,
            "scaler": self.steps.scaler.state_dict() if self.steps.scaler else None,
        }

    def read_checkpoint(self, path: Path) -> None:
        """Restore the state in a checkpoint. Raises CheckpointError if it is of another recipe or of other data.

        Process 0 of a group reads the file.
        """
        state = self.group.broadcast(load(path) if self.group.is_first else {})
        try:
            self.products = [(int(r), int(k), int(n)) for r, k, n in state.get("products", ())]
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
            self._take_best(state.get("best"))
            require_finite(path, self.model.state_dict())
            if reached < self.total_steps:
                warn_of_other_arithmetic(path, state.get("arithmetic", {}), self.arithmetic)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CheckpointError(f"{path} is not the checkpoint of a run ({type(error).__name__}: {error})") from error

    def _take_best(self, best: Mapping[str, Any] | None) -> None:
        """Take the weights of the best epoch from a checkpoint. Raises ValueError if they do not fit."""
        if (best is not None) != (self.recipe.train.keep == "best" and self.position.epoch > 0):
            raise ValueError(
                "the weights of the best epoch are missing, or are there although the recipe keeps the last ones"
            )
        if best is not None:
            with _exchanged(self.model, best):
                self.best = self.model.state_dict()

    def _require_same_origin(self, path: Path, state: Mapping[str, Any]) -> None:
        """Refuse to resume with another recipe or other data: the run would be neither the old one nor a new one."""
        sections = ("data", "model", "train", "task")
        if not is_continuation(self.recipe, state["position"], changed_keys(state, self.recipe, sections)):
            require_same_recipe(path, state, self.recipe, sections)
        if (threads := state.get("threads", self.threads)) != self.threads:
            raise CheckpointError(
                f"{path} is of a run whose matrix products used {threads} threads; here they use {self.threads}, which "
                f"changes their last bits. Resume it with TINYVIT_THREADS={threads}"
            )
        if state.get("teacher", "") != self._teacher:
            raise CheckpointError(
                f"{path} is of a run whose teacher, {self.recipe.task.teacher}, had other weights; put those back, or "
                "start a new run"
            )
        before, count, name = DataSpec.from_state(state["data"]), state["train_images"], self.recipe.data.name
        changes = before.differences(self.data)
        if count != len(self.train_data):
            changes.append(f"there were {count:,} train {self.task.samples} and are now {len(self.train_data):,}")
        for split, fingerprint in state.get("fingerprints", {}).items():
            if not changes and fingerprint != self.fingerprints.get(split):
                changes.append(f"files of the {split} split have another content")
        if not changes and before != self.data:
            changes.append("the images are normalized in another way, or the texts have another length")
        if changes:
            raise CheckpointError(
                f"{path} is of a run on other images than {name} now holds: {'; '.join(changes)}; put those back, or "
                "start a new run"
            )


def loader_of(recipe: Recipe, data: AnyDataset) -> Loader:
    """Return the batches of training data by a recipe, shuffled, augmented and mixed."""
    augment, keys = augmentation_of(recipe), recipe.data
    mixes = keys.mixup or keys.cutmix
    return Loader(
        data,
        keys.batch_size,
        seed=recipe.train.seed,
        augment=augment if augment.used() else None,
        mix=Mix(len(data.classes), keys.mixup, keys.cutmix) if mixes else None,
        repeats=keys.repeats,
    )


@contextmanager
def _exchanged(model: Module, weights: Mapping[str, Any]) -> Iterator[None]:
    """Give the model other weights within this block."""
    own = model.state_dict()
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
