"""Classification of images, videos and spectrograms, by a ViT."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..context import autocast, no_grad
from ..data import Batch, Dataset, load_dataset
from ..engine import Tensor
from ..errors import DataError, RecipeError
from ..nn import Module, add_lora
from .base import DENSE, HIDING, OF_TEACHERS, Task, build_vit, count_confusions
from .options import DEFAULTS, OWN_IMAGES, load_images, statistics_of
from .report import Report
from .spec import DataSpec

_TOP = (3, 5)  # an image counts as right if its class is among so many of the most probable ones


class Classify(Task):
    """One class for each image. The accuracy is the share of images whose most probable class is their label.

    Attributes
    ----------
    teacher : a trained model, whose predictions on the same changed images are learned beside the labels; or None.
    """

    teacher: Any = None
    unused = ("task.fusion", "task.text_depth", "task.word_prior", *HIDING, *DENSE)

    def load(self, split: str, like: Any = None) -> Dataset | None:
        data = self.recipe.data
        if data.resize and not data.name.startswith(OWN_IMAGES):
            raise RecipeError(f"data.resize is {data.resize!r}; the images of {data.name} have a fixed size")
        if data.name.startswith(OWN_IMAGES):
            dataset = load_images(self.recipe, split, like)
        elif split == "validation":
            return None
        else:
            dataset = load_dataset(data.name, split, image_size=data.image_size or None)
        if data.normalize:
            mean, std = statistics_of(data.normalize, len(dataset.mean))
            dataset = dataclasses.replace(dataset, mean=mean, std=std)
        if len(dataset.classes) < 2:
            raise DataError(
                f"{data.name} has the class {dataset.classes[0]!r} only, so there is nothing to learn; the layout is "
                "PATH/<class>/<file>, or PATH/train/<class>/<file>: is the path a folder too high?"
            )
        return dataset

    def check(self, data: DataSpec) -> None:
        super().check(data)
        task = self.recipe.task
        for key in OF_TEACHERS if not task.teacher else OF_TEACHERS[1:2] if task.distill == "hard" else ():
            self.refuse_other_than_default(
                key, "with task.distill = 'hard'" if task.teacher else "without task.teacher"
            )
        if not task.lora_rank and task.lora_targets != DEFAULTS["task.lora_targets"]:
            raise RecipeError(f"task.lora_targets is {task.lora_targets!r}, but task.lora_rank is 0: set it too")
        if task.lora_rank and (task.freeze != "none" or not task.start_from):
            raise RecipeError(
                f"task.lora_rank is {task.lora_rank}; adapters need weights to start from, which they freeze by "
                "themselves: set task.start_from, and leave task.freeze at 'none'"
            )

    def build(self, data: DataSpec) -> Module:
        model = build_vit(self.recipe, data, len(data.classes))
        task = self.recipe.task
        if task.lora_rank:
            try:
                add_lora(model, task.lora_rank, task.lora_targets.split())
            except ValueError as error:
                raise RecipeError(f"task.lora_targets is {task.lora_targets!r}: {error}") from error
            for head in (model.head, model.head_dist):
                if head is not None:
                    head.requires_grad_()
        return model

    def with_draws(self, model: Module, batch: Batch) -> Batch:
        """Return `batch` with what the teacher says about its images: classes (B,), or softened probabilities."""
        if self.teacher is None:
            return batch
        with no_grad(), autocast("float32"):
            logits = self.teacher(batch.images)
            if self.recipe.task.distill == "hard":
                found = logits.argmax(axis=-1)
            else:
                found = F.softmax(logits / self.recipe.task.distill_temperature, axis=-1)
        return dataclasses.replace(batch, drawn=(found.data,))

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Return the cross-entropy with the labels and, weighted with it, the loss of distillation.

        That is the cross-entropy with the teacher's class, or the divergence KL(teacher, student) of softened
        probabilities times the square of the temperature. A `distilled` model learns from the teacher by its second
        head. (Hinton et al., Distilling the knowledge in a neural network, 2015; Touvron et al., DeiT, 2021, equations
        2 and 3.)
        """
        smoothing, task = self.recipe.train.label_smoothing, self.recipe.task
        if self.teacher is None:
            return F.cross_entropy(model(batch.images), batch.labels, label_smoothing=smoothing, reduction="sum")
        logits, learned = model.forward_both(batch.images)
        of_labels = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="sum")
        (found,) = batch.drawn
        if task.distill == "hard":
            of_teacher = F.cross_entropy(learned, found, reduction="sum")
        else:
            student = F.log_softmax(learned / task.distill_temperature, axis=-1)
            certain = Tensor(found + (found == 0))  # 0 log 0 = 0
            of_teacher = (Tensor(found) * (F.log(certain) - student)).sum() * task.distill_temperature**2
        return (1 - task.distill_weight) * of_labels + task.distill_weight * of_teacher

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, np.ndarray]:
        logits = model(batch.images)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum").item()
        scores = logits.numpy()
        of_label = np.take_along_axis(scores, batch.labels[:, None], axis=1)
        return loss, np.stack([scores.argmax(axis=1), (scores > of_label).sum(axis=1)])

    def report(self, dataset: Dataset, loss: float, measured: Sequence[np.ndarray]) -> Report:
        taken, above = np.concatenate(measured, axis=1)  # the most probable class; how many are above the label's
        count = len(dataset.classes)
        confusion = count_confusions(dataset.labels, taken, count)
        top = {k: float((above < k).mean()) for k in _TOP if k < count}
        return Report(loss, float(confusion.trace() / len(dataset)), {}, dataset.classes, confusion, top)

    def summary(self, report: Report, count: int) -> list[str]:
        """Return accuracy and loss, then a table with a line for each class."""
        assert report.confusion is not None
        right, images = report.confusion.diagonal(), report.confusion.sum(axis=1)
        counts = f"{right.sum():,} of {images.sum():,} test images"
        width = max(5, *map(len, report.names))
        lines = [
            f"accuracy {100 * report.accuracy:.2f} % ({counts}), loss {report.loss:.4f}",
            "",
            f"{'class':{width}}  images   right     recall  precision         F1",
        ]
        for row in report.by_class():
            shares = (row[key] for key in ("recall", "precision", "f1"))
            measures = "  ".join("        -" if x is None else f"{100 * x:7.2f} %" for x in shares)
            lines.append(f"{row['class']:{width}}  {row['samples']:6}  {row['right']:6}  {measures}")
        return lines
