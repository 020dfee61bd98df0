"""The optimizer steps of a run: operation by operation, from a record on the CPU, or as CUDA graphs on a GPU."""

import math
from typing import Any

from ..backend import can_capture_products, is_on_gpu, shortcomings
from ..context import autocast
from ..data import Batch
from ..engine import Tensor
from ..nn import Module
from ..optim import EMA, Adam, LossScaler, Optimizer
from ..optim.clipping import Clipping
from ..recipe import Train
from ..tasks import Task
from .captured import CapturedStep
from .captured_cpu import CapturedGradients

READ_EVERY = 16  # steps made as CUDA graphs whose losses are read together, because reading waits for the device

Losses = list[tuple[float, int]]  # of several steps: the sum of the losses, the number of images


class Steps:
    """Make the optimizer steps of a run, by the settings of its recipe, and update the average of the weights.

    Attributes
    ----------
    scaler : the LossScaler for float16, else None.
    graph : the CapturedStep that makes steps as CUDA graphs; None where it cannot be used.
    why_no_graph : the reason it cannot be used on a GPU, else empty.
    gradients : the CapturedGradients that compute gradients on the CPU; None where they cannot be used.
    lost : what the GPU lacks that such a run could use, with the reasons.
    """

    def __init__(
        self, model: Module, task: Task, optimizer: Optimizer, settings: Train, average: EMA | None = None
    ) -> None:
        self.model, self.task, self.optimizer, self.settings = model, task, optimizer, settings
        self.images = 0  # in all batches of the step that is being made
        self.parameters = list(model.parameters())
        self._average = average
        self._clip = Clipping(self.parameters)
        self._unread: list[tuple[int, int, Tensor, int]] = []  # step, epoch, mean loss, images
        on_gpu = any(is_on_gpu(p.data) for p in self.parameters)
        self.lost = shortcomings(settings.precision) if on_gpu else []
        self.why_no_graph = ""
        if on_gpu and not isinstance(optimizer, Adam):
            self.why_no_graph = f"train.optimizer is {settings.optimizer!r}"
        elif on_gpu and settings.shards:
            self.why_no_graph = f"train.shards is {settings.shards}"
        elif on_gpu and not can_capture_products():
            self.why_no_graph = "CuPy's own products cannot be captured"
        self.graph: CapturedStep | None = None
        self.scaler: LossScaler | None = None
        if on_gpu and isinstance(optimizer, Adam) and not self.why_no_graph:
            self.graph = CapturedStep(self._mean_loss, optimizer, settings.precision, settings.clip_norm, average)
            self.scaler = self.graph.scaler
        elif settings.precision == "float16":
            self.scaler = LossScaler(optimizer)
        self.gradients: CapturedGradients | None = None
        if not on_gpu and self.scaler is None and not (settings.shards and task.compares):
            self.gradients = CapturedGradients(self._losses, self.parameters)

    @property
    def why_not_recorded(self) -> str:
        """The reason why steps on the CPU are made operation by operation, as far as it is known by now, else empty."""
        if self.gradients is not None:
            return self.gradients.reason or ""
        if self.graph or self.why_no_graph:
            return ""
        if self.scaler is None:
            return f"train.shards is {self.settings.shards}, and the samples of a batch are compared with each other"
        return f"train.precision is {self.settings.precision!r}"

    def __call__(self, batches: list[Any], step: int, epoch: int) -> Losses:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`.

        Returns the losses that are known by now: of this step, or on a GPU of several steps at a time. Raises
        FloatingPointError, which names the step and the epoch, if the loss or the gradient's norm is not finite.
        """
        self.images = sum(batch.count for batch in batches)
        if not self.graph:
            losses = [(self._make_step(batches, step, epoch), self.images)]
            if self._average:
                self._average.update()
            return losses
        mean = self.graph(*(self._arrays(batch) for batch in batches))
        self._unread.append((step, epoch, mean, self.images))
        return self.read_losses() if len(self._unread) == READ_EVERY else []

    def read_losses(self) -> Losses:
        """Wait for the device, and return the losses of the steps since the last reading."""
        unread, self._unread = self._unread, []
        losses = []
        for step, epoch, mean, images in unread:
            losses.append((mean.item() * images, images))
            require_finite(losses[-1][0], f"the loss of step {step}", epoch)
        return losses

    def _make_step(self, batches: list[Any], step: int, epoch: int) -> float:
        """Make a step operation by operation, and return the sum of the losses of all images."""
        loss_sum = self.differentiate(batches, step, epoch)
        require_finite(loss_sum, f"the loss of step {step}", epoch)
        if self.scaler:
            self.scaler.step(self.settings.clip_norm)
            return loss_sum
        if self.settings.clip_norm:
            norm = self._clip(self.settings.clip_norm)
            require_finite(norm, f"the gradient's norm of step {step}", epoch)
        self.optimizer.step()
        return loss_sum

    def differentiate(self, batches: list[Any], step: int, epoch: int) -> float:
        """Give all parameters the gradient of the mean loss of all images, and return the sum of the losses."""
        loss_sum = 0.0
        self.optimizer.zero_grad()
        for batch in batches:
            loss_sum += self.add_gradient(batch, is_only_one=len(batches) == 1)
        return loss_sum

    def add_gradient(self, batch: Batch, is_only_one: bool) -> float:
        """Add the share of a batch to the gradients of all parameters, and return the sum of its losses."""
        arrays = self._arrays(batch)
        if self.gradients is not None:
            recorded = self.gradients(arrays, self.images, is_only_one)
            if recorded is not None:
                return recorded
        loss, mean = self._losses(*arrays)
        self.walk_back(mean)
        return float(loss.item())

    def walk_back(self, mean: Tensor) -> None:
        """Add the gradients of a share of the mean loss, which float16 scales."""
        (self.scaler.scaled(mean) if self.scaler else mean).backward()

    def _losses(self, images: Any, labels: Any, texts: Any, image_of: Any, *drawn: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its share in the mean loss of a step, from its arrays."""
        with autocast(self.settings.precision):
            loss = self.task.loss(self.model, Batch(images, labels, 0, texts, image_of, drawn))
        return loss, loss / self.images

    def _arrays(self, batch: Batch) -> tuple[Any, ...]:
        """Return the arrays of a batch in the order in which `_losses` and `_mean_loss` take them."""
        with autocast(self.settings.precision):
            batch = self.task.with_draws(self.model, batch)
        return batch.images, batch.labels, batch.texts, batch.image_of, *batch.drawn

    def _mean_loss(self, images: Any, labels: Any, texts: Any, image_of: Any, *drawn: Any) -> Tensor:
        """Return the share of a batch in the mean loss of a step, from arrays on the device."""
        return self.task.loss(self.model, Batch(images, labels, 0, texts, image_of, drawn)) / self.images


def require_finite(value: float, what: str, epoch: int) -> None:
    """Raise FloatingPointError, which names the epoch, if a value is not finite."""
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}, in epoch {epoch}")
