"""Detection: the classes and the boxes of the things in an image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import is_on_gpu, namespace_of, to_host
from ..context import no_grad
from ..data import Batch, BoxDataset, load_boxes
from ..data.dense import NO_BOX
from ..engine import Tensor
from ..errors import RecipeError
from ..functional.tensors import on_device_of
from ..models import Detr, corners_of
from ..models.detr import by_layer
from .base import FIXED, HIDING, READING, Task, eval_mode
from .metrics import THRESHOLDS, Boxes, average_precisions, match_pairs
from .options import augmentation_of
from .report import Report
from .spec import DataSpec

Layers = list[tuple[Tensor, Tensor]]  # of each decoder block, the logits and the boxes of the queries

# Weights of the parts of the loss, which are those of the costs by which queries and things are matched (Carion et al.,
# 2020, appendix A.4).
CLASS, DISTANCE, OVERLAP = 1.0, 5.0, 2.0
NONE_WEIGHT = 0.2  # of a query that is for no thing, in the cross-entropy; there are more of these


class Detect(Task):
    """The class and the box of each thing. The accuracy is the mean average precision at an IoU of 50 % (AP50).

    Each thing is matched with one query, by the assignment of smallest cost (see `match_pairs`); the other queries are
    to say "none". The loss of each decoder block is the cross-entropy of the classes, with the L1 distance and the
    generalized IoU of the matched boxes; the loss is the mean over the blocks.
    """

    score = "AP50"
    unused = (
        *("task.fusion", "task.word_prior", "task.mask_head", "task.dice", *HIDING, "train.label_smoothing"),
        *(*FIXED, *READING),
    )

    def load(self, split: str, like: Any = None) -> Any:
        if split == "validation":
            return None  # it is cut from the train split
        data = self.recipe.data
        return load_boxes(data.name, split, data.image_size or None)

    def check(self, data: DataSpec) -> None:
        super().check(data)
        augment = augmentation_of(self.recipe)
        for key in ("rotate", "cutout"):
            if getattr(augment, key):
                raise RecipeError(f"data.{key} is {getattr(augment, key)}; boxes allow shift, scale, flip and colour")

    def prepare(self, train: Any) -> None:
        most = int((train.labels != NO_BOX).sum(axis=1).max(initial=0))
        if most > self.recipe.task.queries:
            raise RecipeError(
                f"task.queries is {self.recipe.task.queries}, but an image of {train.name} has {most} boxes; give more"
            )

    def build(self, data: DataSpec) -> Detr:
        return Detr(self.vision(data), len(data.classes), self.recipe.task.queries, **self.text_options())

    # The loss

    def with_draws(self, model: Any, batch: Batch) -> Batch:
        """Add the matching to a batch for a GPU, where a step must not wait for the values that decide it.

        It costs a forward pass, which is made in eval mode.
        """
        if not any(is_on_gpu(p.data) for p in model.parameters()):
            return batch
        with no_grad(), eval_mode(model):
            layers = model.layers(batch.images)
        return replace(batch, drawn=(*batch.drawn, *match(layers, batch.labels, batch.drawn[0])))

    def loss(self, model: Any, batch: Batch) -> Tensor:
        logits, predicted = model.stacked_layers(batch.images)
        boxes, *matched = batch.drawn
        count = logits.shape[0] // len(batch.labels)
        query_of, classes = matched or match(_constants(logits, predicted, count), batch.labels, boxes)
        # As many queries are for things after every block, so the mean over all blocks is the mean of their losses.
        repeated = [namespace_of(x).concatenate([x] * count) for x in (batch.labels, boxes)]
        pairs = [x.reshape(-1, x.shape[-1]) for x in (query_of, classes)]
        return loss_of_layer(logits, predicted, *repeated, *pairs) * len(batch.labels)

    # Evaluation

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, tuple[list[Boxes], list[Boxes]]]:
        """Return the loss of a batch after the last block, and its predicted and its true boxes."""
        logits, predicted = model(batch.images)
        boxes, labels = batch.drawn[0], np.asarray(batch.labels)
        query_of, classes = match([(logits, predicted)], labels, boxes)
        loss = loss_of_layer(logits, predicted, labels, boxes, query_of[0], classes[0])
        truth = [Boxes(some[own != NO_BOX], own[own != NO_BOX]) for some, own in zip(boxes, labels, strict=True)]
        return loss.item() * len(labels), (found_boxes(logits, predicted), truth)

    def report(self, dataset: BoxDataset, loss: float, measured: Sequence[tuple[list[Boxes], list[Boxes]]]) -> Report:
        pairs = [pair for batch in measured for pair in zip(*batch, strict=True)]
        count = len(dataset.classes)

        def precisions(chosen: np.ndarray) -> np.ndarray:
            some = [pair for pair, taken in zip(pairs, chosen, strict=True) if taken]
            return average_precisions([found for found, _ in some], [real for _, real in some], count)

        table = precisions(dataset.counts)
        shares = {"AP50:95": _mean(table), "AP75": _mean(table[:, THRESHOLDS.tolist().index(0.75)])}
        for number, kind in enumerate(dataset.kinds):
            if (chosen := dataset.kind_of == number).any():
                of_kind = precisions(chosen)
                shares |= {f"AP50, {kind}": _mean(of_kind[:, 0]), f"AP50:95, {kind}": _mean(of_kind)}
        for name, row in zip(dataset.classes, table, strict=True):
            if not np.isnan(row).any():
                shares |= {f"AP50 of {name}": float(row[0]), f"AP50:95 of {name}": float(row.mean())}
        return Report(loss, _mean(table[:, 0]), shares)


def _constants(logits: Tensor, boxes: Tensor, count: int) -> Layers:
    return by_layer(Tensor(logits.data), Tensor(boxes.data), count)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


def found_boxes(logits: Tensor, boxes: Tensor) -> list[Boxes]:
    """Return for each image the most probable class of each query but "none", its probability and its box.

    The boxes are by their corners, in units of the sides of the image.
    """
    with no_grad():
        probabilities, corners = F.softmax(logits).numpy()[..., :-1], corners_of(boxes).numpy()
    labels, scores = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
    return [Boxes(*one) for one in zip(corners, labels, scores, strict=True)]


def match(layers: Layers, labels: Any, boxes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Match the things of each image with queries, after each decoder block.

    Parameters
    ----------
    layers : logits (B, Q, K + 1) and boxes (B, Q, 4), by centre and size, of each block.
    labels, boxes : of the things, (B, M) with `NO_BOX` and (B, M, 4) by their corners.

    Returns
    -------
    query_of : int64 (layers, B, M), the query of each thing; 0 where there is no thing.
    classes : int64 (layers, B, Q), the class that each query is to name; K for "none".
    """
    labels, boxes = to_host(labels), to_host(boxes)
    (count, queries, none), things = layers[0][0].shape, labels.shape[1]
    query_of = np.zeros((len(layers), count, things), np.int64)
    classes = np.full((len(layers), count, queries), none - 1, np.int64)
    for place, (logits, predicted) in enumerate(layers):
        costs = matching_costs(logits, predicted, labels, boxes)
        for image in range(count):
            there = np.flatnonzero(labels[image] != NO_BOX)
            own = match_pairs(costs[image, there])
            query_of[place, image, there] = own
            classes[place, image, own] = labels[image, there]
    return query_of, classes


@no_grad()
def matching_costs(logits: Tensor, predicted: Tensor, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the cost of each query for each thing, (B, M, Q); of places without a thing, any finite number."""
    probabilities = F.softmax(logits).numpy()  # (B, Q, K + 1)
    found, sizes = corners_of(predicted).numpy()[:, None], predicted.numpy()[:, None]  # (B, 1, Q, 4)
    truth = boxes[:, :, None]  # (B, M, 1, 4)
    centre = np.concatenate([truth[..., :2] + truth[..., 2:], 2 * (truth[..., 2:] - truth[..., :2])], axis=-1) / 2
    likely = np.take_along_axis(probabilities, np.maximum(labels, 0)[:, None, :], axis=2).swapaxes(1, 2)
    distance, overlap = np.abs(sizes - centre).sum(axis=-1), F.generalized_iou(found, truth).numpy()
    return np.nan_to_num(-CLASS * likely + DISTANCE * distance - OVERLAP * overlap, nan=1e6, posinf=1e6, neginf=-1e6)


def loss_of_layer(logits: Tensor, predicted: Tensor, labels: Any, boxes: Any, query_of: Any, classes: Any) -> Tensor:
    """Return the loss of the queries after one block, averaged over the queries and over the things of the batch.

    If the batch is repeated for several blocks, see `Detr.stacked_layers`, this is the mean of their losses.

    Parameters
    ----------
    logits, predicted : (B, Q, K + 1), and boxes (B, Q, 4) by centre and size.
    labels, boxes : of the things, (B, M) and (B, M, 4) by their corners.
    query_of, classes : of one block, see `match`.
    """
    labels, boxes, query_of, classes = (on_device_of(x, logits).data for x in (labels, boxes, query_of, classes))
    surprise = F.cross_entropy(logits, classes, reduction="none")
    some = surprise.dtype.type(NONE_WEIGHT)
    weights = Tensor((classes != logits.shape[-1] - 1) * (1 - some) + some)
    class_loss = (surprise * weights).sum() / weights.sum()
    there = Tensor((labels != NO_BOX).astype(surprise.dtype))  # (B, M)
    count = F.maximum(there.sum(), 1.0)
    own = F.take_rows(predicted, query_of)  # (B, M, 4)
    corners = Tensor(boxes.astype(surprise.dtype, copy=False))
    distance = F.abs(own - centres_of(corners)).sum(axis=-1)
    overlap = 1 - F.generalized_iou(corners_of(own), corners)
    return CLASS * class_loss + ((DISTANCE * distance + OVERLAP * overlap) * there).sum() / count


def centres_of(corners: Tensor) -> Tensor:
    """Return boxes (..., 4), given by their corners, by centre and size."""
    first, last = corners[..., :2], corners[..., 2:]
    return F.concatenate([(first + last) * 0.5, last - first], axis=-1)
