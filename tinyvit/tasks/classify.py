"""Classification of images, videos and spectrograms, by a ViT."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..data import Batch, Dataset, load_dataset
from ..engine import Tensor
from ..errors import DataError
from ..nn import Module
from .base import HIDING, DataSpec, Report, Task, build_vit, count_confusions


class Classify(Task):
    """One class for each image. The accuracy is the share of images whose most probable class is their label."""

    unused = ("task.fusion", "task.text_depth", "task.word_prior", *HIDING)

    def load(self, split: str) -> Dataset:
        data = self.recipe.data
        dataset = load_dataset(data.name, split, image_size=data.image_size or None)
        if len(dataset.classes) < 2:
            raise DataError(
                f"{data.name} has the class {dataset.classes[0]!r} only, so there is nothing to learn; the layout is "
                "PATH/train/<class>/<file>: is the path a folder too high?"
            )
        return dataset

    def build(self, data: DataSpec) -> Module:
        return build_vit(self.recipe, data, len(data.classes))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        smoothing = self.recipe.train.label_smoothing
        return F.cross_entropy(model(batch.images), batch.labels, label_smoothing=smoothing, reduction="sum")

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, np.ndarray]:
        logits = model(batch.images)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum").item()
        return loss, logits.numpy().argmax(axis=1)

    def report(self, dataset: Dataset, loss: float, measured: Sequence[np.ndarray]) -> Report:
        confusion = count_confusions(dataset.labels, np.concatenate(measured), len(dataset.classes))
        return Report(loss, float(confusion.trace() / len(dataset)), {}, dataset.classes, confusion)

    def summary(self, report: Report, count: int) -> list[str]:
        """Return accuracy and loss, then a table with a line for each class."""
        assert report.confusion is not None
        right, images = report.confusion.diagonal(), report.confusion.sum(axis=1)
        counts = f"{right.sum():,} of {images.sum():,} test images"
        width = max(5, *map(len, report.names))
        lines = [
            f"accuracy {100 * report.accuracy:.2f} % ({counts}), loss {report.loss:.4f}",
            "",
            f"{'class':{width}}  images   right   accuracy",
        ]
        for name, n, k in zip(report.names, images, right, strict=True):
            accuracy = f"{100 * k / n:7.2f} %" if n else "       -"
            lines.append(f"{name:{width}}  {n:6}  {k:6}   {accuracy}")
        return lines
