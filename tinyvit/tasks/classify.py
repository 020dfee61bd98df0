"""Naming what is on an image, in a video or in a spectrogram: a ViT."""

from collections.abc import Callable
from typing import Any

from .. import functional as F
from ..data import Batch, Dataset, load_dataset
from ..engine import Tensor
from ..nn import Module
from ..run.evaluate import evaluate
from .base import DataSpec, Found, Task, build_vit, nothing


class Classify(Task):
    """One class for each image."""

    def load(self, split: str) -> Dataset:
        data = self.recipe.data
        return load_dataset(data.name, split, image_size=data.image_size or None)

    def build(self, data: DataSpec) -> Module:
        return build_vit(self.recipe, data, len(data.classes))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        smoothing = self.recipe.train.label_smoothing
        return F.cross_entropy(model(batch.images), batch.labels, label_smoothing=smoothing, reduction="sum")

    def evaluate(
        self, model: Module, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        loss, accuracy, confusion = evaluate(model, dataset, batch_size, after_batch)
        return loss, accuracy, Found({}, dataset.classes, confusion)
