"""How the steps of a run are made: one operation after the other, or, on a GPU, each as one CUDA graph."""

import math
from typing import TYPE_CHECKING, Any

from ..autocast import LossScaler
from ..backend import is_on_gpu
from ..context import autocast
from ..data import Batch
from ..engine import Tensor
from ..optim import Adam, clip_grad_norm
from .captured import CapturedStep

if TYPE_CHECKING:
    from .loop import Training

READ_EVERY = 16  # steps as CUDA graphs whose losses are read together: till then nothing waits for the device


class Steps:
    """Makes the steps of a run.

    Attributes
    ----------
    scaler : LossScaler in float16, else None.
    graph : makes steps as a CUDA graph; None where that cannot be.
    why_no_graph : what speaks against it on a GPU; else empty.
    """

    def __init__(self, training: "Training") -> None:
        self._training, self._settings = training, training.recipe.train
        self._unread: list[tuple[int, Tensor, int]] = []  # of steps made: number, mean loss, images
        self._images = 0  # of the step that is made
        on_gpu = any(is_on_gpu(p.data) for p in training.model.parameters())
        self.why_no_graph = "train.optimizer is 'sgd'" if on_gpu and self._settings.optimizer == "sgd" else ""
        self.graph = self._graph() if on_gpu and not self.why_no_graph else None
        own = LossScaler(training.optimizer) if self._settings.precision == "float16" and not self.graph else None
        self.scaler = self.graph.scaler if self.graph else own

    def __call__(self, batches: list[Batch]) -> None:
        """Make one step of the optimizer, down the gradient of the mean loss of all images in `batches`.

        Raises FloatingPointError if the loss, or the gradient's norm, is not finite.
        """
        self._images = sum(len(batch.labels) for batch in batches)
        if self.graph:
            mean = self.graph(*(self._arrays(batch) for batch in batches))
            self._unread.append((self._training.position.step + 1, mean, self._images))
            if len(self._unread) == READ_EVERY:
                self.read_losses()
        else:
            self._step(batches)

    def read_losses(self) -> None:
        """Wait for the device, and add the losses of the steps since the last time to the position."""
        position, unread = self._training.position, self._unread
        self._unread = []
        for step, mean, images in unread:
            loss = mean.item() * images
            self._require_finite("loss", step, loss)
            position.loss_sum += loss
            position.images += images

    def _step(self, batches: list[Batch]) -> None:
        training, position, loss_sum = self._training, self._training.position, 0.0
        training.optimizer.zero_grad()
        for batch in batches:
            with autocast(self._settings.precision):
                loss = training.task.loss(training.model, training.task.prepared(training.model, batch))
            mean = loss / self._images
            (self.scaler.scaled(mean) if self.scaler else mean).backward()
            loss_sum += loss.item()
        self._require_finite("loss", position.step + 1, loss_sum)
        if self.scaler:
            self.scaler.step(self._settings.clip_norm)
        else:
            if self._settings.clip_norm:
                norm = clip_grad_norm(training.model.parameters(), self._settings.clip_norm)
                self._require_finite("gradient's norm", position.step + 1, norm)
            training.optimizer.step()
        position.loss_sum += loss_sum
        position.images += self._images

    def _arrays(self, batch: Batch) -> tuple[Any, ...]:
        """What the loss of a batch is computed from, as `_loss` takes it."""
        batch = self._training.task.prepared(self._training.model, batch)
        return batch.images, batch.labels, batch.texts, batch.image_of, *batch.drawn

    def _loss(self, images: Any, labels: Any, texts: Any, image_of: Any, *drawn: Any) -> Tensor:
        """The part of a batch in the mean loss of a step, of arrays on the device."""
        batch = Batch(images, labels, 0, texts, image_of, drawn)
        return self._training.task.loss(self._training.model, batch) / self._images

    def _graph(self) -> CapturedStep:
        optimizer, settings = self._training.optimizer, self._settings
        assert isinstance(optimizer, Adam)
        return CapturedStep(self._loss, optimizer, settings.precision, settings.clip_norm)

    def _require_finite(self, what: str, step: int, value: float) -> None:
        if not math.isfinite(value):
            epoch = self._training.position.epoch + 1
            raise FloatingPointError(f"the {what} of step {step} is {value}, in epoch {epoch}")
