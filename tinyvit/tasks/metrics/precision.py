"""Average precision of boxes by the rules of COCO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, from which a box counts as found
RECALLS = np.linspace(0, 1, 101)  # at which the precision is read
MOST = 100  # boxes of one image and one class that count


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: corners (M, 4), classes int64 (M,), and for predictions the scores (M,)."""

    corners: NDArray[np.floating]
    labels: NDArray[np.int64]
    scores: NDArray[np.floating] | None = None


def iou_of_all(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the IoU of each box in x (M, 4) with each in y (S, 4): (M, S) float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    sides = np.minimum(x[:, None, 2:], y[None, :, 2:]) - np.maximum(x[:, None, :2], y[None, :, :2])
    common = sides.clip(0, None).prod(axis=-1)
    area_x, area_y = ((box[:, 2:] - box[:, :2]).prod(axis=-1) for box in (x, y))
    union = area_x[:, None] + area_y[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def average_precisions(
    predicted: Sequence[Boxes], truth: Sequence[Boxes], classes: int, thresholds: NDArray[np.floating] = THRESHOLDS
) -> NDArray[np.float64]:
    """Return the average precision of each class at each threshold of IoU: (classes, thresholds).

    Of each image and class, the `MOST` boxes with the highest scores take part, best first. Each takes the box of the
    same class that is not yet taken and has the largest IoU with it, if that reaches the threshold. Over all images,
    in the order of the scores, precision and recall follow, and the average is of the precision at 101 recalls, where
    the precision at a recall is the best at that or any larger one (Lin et al., Microsoft COCO, 2014, and its
    evaluation code). NaN for a class without true boxes.
    """
    result = np.full((classes, len(thresholds)), np.nan)
    for number in range(classes):
        scores, hits, count = [], [], 0
        for found, real in zip(predicted, truth, strict=True):
            assert found.scores is not None
            own, true = found.labels == number, real.corners[real.labels == number]
            order = np.argsort(-found.scores[own], kind="stable")[:MOST]
            scores.append(found.scores[own][order])
            hits.append(_hits(iou_of_all(found.corners[own][order], true), thresholds))
            count += len(true)
        if count:
            order = np.argsort(-np.concatenate(scores), kind="stable")
            right = np.concatenate(hits)[order]
            result[number] = [_average(column, count) for column in right.T]
    return result


def _hits(ious: NDArray[np.float64], thresholds: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which predictions, best first, find a true box at each threshold, (M, thresholds); ious (M, S)."""
    hits = np.zeros((len(ious), len(thresholds)), bool)
    for place, threshold in enumerate(thresholds):
        free = np.ones(ious.shape[1], bool)
        for i, row in enumerate(ious):
            left = np.where(free & (row >= min(threshold, 1 - 1e-10)), row, -1)
            if len(left) and left.max() >= 0:
                best = len(left) - 1 - int(left[::-1].argmax())  # of equal ones the last, as COCO's code has it
                hits[i, place], free[best] = True, False
    return hits


def _average(right: NDArray[np.bool_], count: int) -> float:
    """Return the average precision of predictions, best first, of which some are right; there are `count` to find."""
    found = right.cumsum()
    recall, precision = found / count, found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or any larger one
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())
