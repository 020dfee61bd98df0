"""Segmentation: the class of every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import namespace_of
from ..data import Batch, MaskDataset, load_masks
from ..data.augment import IGNORED
from ..engine import Tensor
from ..functional.tensors import on_device_of
from ..models import LinearHead, QueryHead, Segmenter
from ..nn import Module
from .base import FIXED, HIDING, READING, DataSpec, Report, Task
from .metrics import PixelCounts, count_each


class Segment(Task):
    """A class for each pixel of an image. The accuracy is the mean of the IoU of all classes but the background.

    The loss is the mean cross-entropy of the pixels that have a class; task.dice adds the Dice loss with that weight.
    The key task.mask_head chooses between a linear map of each patch and a query for each class.
    """

    score = "mean IoU"
    unused = ("task.fusion", "task.word_prior", "task.queries", *HIDING, "train.label_smoothing", *FIXED, *READING)

    def load(self, split: str, like: Any = None) -> Any:
        if split == "validation":
            return None  # it is cut from the train split
        data = self.recipe.data
        return load_masks(data.name, split, data.image_size or None)

    def check(self, data: DataSpec) -> None:
        super().check(data)
        if self.recipe.task.mask_head == "linear":
            self.refuse_other_than_default("task.text_depth", "with task.mask_head 'linear'")

    def build(self, data: DataSpec) -> Segmenter:
        vision, dim, classes = self.vision(data), self.recipe.model.dim, len(data.classes)
        if self.recipe.task.mask_head == "queries":
            return Segmenter(vision, QueryHead(vision.patch_embed, num_classes=classes, **self.text_options()))
        return Segmenter(vision, LinearHead(vision.patch_embed, dim, classes))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return self._loss(model(batch.images), batch.labels) * len(batch.labels)

    def _loss(self, logits: Tensor, masks: Any) -> Tensor:
        loss = F.cross_entropy(logits, masks, ignore_index=IGNORED)
        weight = self.recipe.task.dice
        return loss + weight * dice_loss(logits, masks) if weight else loss

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """Return the loss of a batch, and the counts of each image, see `count_each`."""
        logits = model(batch.images)
        predicted, masks = logits.numpy().argmax(axis=-1), np.asarray(batch.labels)
        counts = count_each(predicted, masks, logits.shape[-1], IGNORED)
        return self._loss(logits, batch.labels).item() * len(masks), counts

    def report(self, dataset: MaskDataset, loss: float, measured: Sequence[tuple[np.ndarray, np.ndarray]]) -> Report:
        images = [np.concatenate(counts) for counts in zip(*measured, strict=True)]

        def over(chosen: np.ndarray) -> PixelCounts:
            return PixelCounts(*(counts[chosen].sum(axis=0) for counts in images))

        total = over(dataset.counts)
        shares = {
            "mean IoU with background": total.mean_iou(background=True),
            "accuracy of pixels": total.accuracy,
            "F of boundaries": total.mean_boundary_score(),
        }
        for number, kind in enumerate(dataset.kinds):
            if (chosen := dataset.kind_of == number).any():
                shares[f"mean IoU, {kind}"] = over(chosen).mean_iou(background=False)
        for name, iou, score in zip(dataset.classes, total.ious, total.boundary_scores, strict=True):
            if not np.isnan(iou):
                shares[f"IoU of {name}"] = float(iou)
            if not np.isnan(score):
                shares[f"F of the boundary of {name}"] = float(score)
        confusion = total.confusion
        return Report(loss, total.mean_iou(background=False), shares, dataset.classes, confusion)


def dice_loss(logits: Tensor, masks: Any) -> Tensor:
    """Return the Dice loss of logits (B, H, W, K) against classes (B, H, W), a scalar.

    It is the mean over the classes of 1 - (2 sum of p t + 1) / (sum of p + sum of t + 1), with the probabilities p and
    the truth t (0 or 1) of all pixels that have a class (Milletari et al., V-Net, 2016, with t instead of t^2).
    """
    xp, masks = namespace_of(logits.data), on_device_of(masks, logits).data
    known = (masks != IGNORED)[..., None]
    truth = Tensor(((masks[..., None] == xp.arange(logits.shape[-1])) & known).astype(logits.dtype))
    p = F.softmax(logits) * Tensor(known.astype(logits.dtype))
    axes = (0, 1, 2)
    hits, total = (p * truth).sum(axis=axes), p.sum(axis=axes) + truth.sum(axis=axes)
    return (1 - (2 * hits + 1) / (total + 1)).mean()
