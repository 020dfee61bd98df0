"""The optimizer steps of a run: made operation by operation or, on a GPU, each as one CUDA graph."""

import math
from typing import Any

from ..backend import can_capture_products, is_on_gpu, shortcomings
from ..context import autocast
from ..data import Batch
from ..engine import Tensor
from ..nn import Module
from ..optim import EMA, Adam, LossScaler, Optimizer, clip_grad_norm
from ..recipe import Train
from ..tasks import Task
from .captured import CapturedStep

READ_EVERY = 16  # steps made as CUDA graphs whose losses are read together, because reading waits for the device

Losses = list[tuple[float, int]]  # of several steps: the sum of the losses, the number of images


class Steps:
    """Make the optimizer steps of a run, by the settings of its recipe, and update the average of the weights.

    Attributes
    ----------
    scaler : the LossScaler for float16, else None.
    graph : the CapturedStep that makes steps as CUDA graphs; None where it cannot be used.
    why_no_graph : the reason it cannot be used on a GPU, else empty.
    lost : what the GPU lacks that such a run could use, with the reasons.
    """

    def __init__(
        self, model: Module, task: Task, optimizer: Optimizer, settings: Train, average: EMA | None = None
    ) -> None:
        self._model, self._task, self._optimizer, self._settings = model, task, optimizer, settings
        self._average = average
        self._unread: list[tuple[int, int, Tensor, int]] = []  # step, epoch, mean loss, images
        self._images = 0  # in all batches of the step that is being made
        on_gpu = any(is_on_gpu(p.data) for p in model.parameters())
        self.lost = shortcomings(settings.precision) if on_gpu else []
        self.why_no_graph = ""
        if on_gpu and not isinstance(optimizer, Adam):
            self.why_no_graph = "train.optimizer is 'sgd'"
        elif on_gpu and not can_capture_products():
            self.why_no_graph = "CuPy's own products cannot be captured"
        self.graph: CapturedStep | None = None
        self.scaler: LossScaler | None = None
        if on_gpu and isinstance(optimizer, Adam) and not self.why_no_graph:
            self.graph = CapturedStep(self._mean_loss, optimizer, settings.precision, settings.clip_norm, average)
            self.scaler = self.graph.scaler
        elif settings.precision == "float16":
            self.scaler = LossScaler(optimizer)

    def __call__(self, batches: list[Batch], step: int, epoch: int) -> Losses:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`.

        Returns the losses that are known by now: of this step, or on a GPU of several steps at a time. Raises
        FloatingPointError, which names the step and the epoch, if the loss or the gradient's norm is not finite.
        """
        self._images = sum(len(batch.labels) for batch in batches)
        if not self.graph:
            losses = [(self._make_step(batches, f"step {step}", epoch), self._images)]
            if self._average:
                self._average.update()
            return losses
        mean = self.graph(*(self._arrays(batch) for batch in batches))
        self._unread.append((step, epoch, mean, self._images))
        return self.read_losses() if len(self._unread) == READ_EVERY else []

    def read_losses(self) -> Losses:
        """Wait for the device, and return the losses of the steps since the last reading."""
        unread, self._unread = self._unread, []
        losses = []
        for step, epoch, mean, images in unread:
            losses.append((mean.item() * images, images))
            _require_finite(losses[-1][0], f"the loss of step {step}", epoch)
        return losses

    def _make_step(self, batches: list[Batch], step: str, epoch: int) -> float:
        """Make a step operation by operation, and return the sum of the losses of all images."""
        loss_sum = 0.0
        self._optimizer.zero_grad()
        for batch in batches:
            with autocast(self._settings.precision):
                loss = self._task.loss(self._model, self._task.with_draws(self._model, batch))
            mean = loss / self._images
            (self.scaler.scaled(mean) if self.scaler else mean).backward()
            loss_sum += loss.item()
        _require_finite(loss_sum, f"the loss of {step}", epoch)
        if self.scaler:
            self.scaler.step(self._settings.clip_norm)
            return loss_sum
        if self._settings.clip_norm:
            norm = clip_grad_norm(self._model.parameters(), self._settings.clip_norm)
            _require_finite(norm, f"the gradient's norm of {step}", epoch)
        self._optimizer.step()
        return loss_sum

    def _arrays(self, batch: Batch) -> tuple[Any, ...]:
        """Return the arrays of a batch in the order in which `_mean_loss` takes them."""
        batch = self._task.with_draws(self._model, batch)
        return batch.images, batch.labels, batch.texts, batch.image_of, *batch.drawn

    def _mean_loss(self, images: Any, labels: Any, texts: Any, image_of: Any, *drawn: Any) -> Tensor:
        """Return the share of a batch in the mean loss of a step, from arrays on the device."""
        batch = Batch(images, labels, 0, texts, image_of, drawn)
        return self._task.loss(self._model, batch) / self._images


def _require_finite(value: float, what: str, epoch: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}, in epoch {epoch}")
