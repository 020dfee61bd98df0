"""Figures of segmentation: intersection over union, accuracy of pixels, and how well boundaries agree."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1  # pixels, in rows and in columns, by which boundaries may differ


@dataclass(frozen=True)
class PixelCounts:
    """Counts over the pixels of some images that have a class.

    Attributes
    ----------
    confusion : int64 (K, K)
        How many pixels of each class (row) were taken for each (column).
    boundaries : int64 (K, 4)
        Of each class: the boundary pixels that were predicted, those of them that are near a true one, the true ones,
        and those of them that are near a predicted one.
    """

    confusion: NDArray[np.int64]
    boundaries: NDArray[np.int64]

    @property
    def ious(self) -> NDArray[np.float64]:
        """Intersection over union of each class, (K,); NaN for a class that is neither there nor predicted."""
        hits = self.confusion.diagonal()
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - hits
        return _share(hits, union)

    @property
    def accuracy(self) -> float:
        """The share of all pixels whose class is right."""
        return float(self.confusion.trace() / max(1, self.confusion.sum()))

    def mean_iou(self, background: bool) -> float:
        """Return the mean of the IoU of all classes that are there or predicted, or of all but the first.

        It is 0 if there are none.
        """
        return _mean(self.ious if background else self.ious[1:])

    @property
    def boundary_scores(self) -> NDArray[np.float64]:
        """The F score of each class's boundary, (K,): 2 P R / (P + R) (Csurka et al., 2013); NaN without boundaries.

        P is the share of the predicted boundary pixels that lie within `TOLERANCE` of a true one of that class, R the
        share of the true ones that lie within it of a predicted one.
        """
        predicted, near_true, true, near_predicted = self.boundaries.T
        precision, recall = (
            np.nan_to_num(_share(hits, of)) for hits, of in ((near_true, predicted), (near_predicted, true))
        )
        scores = np.nan_to_num(_share(2 * precision * recall, precision + recall))
        return np.where(predicted + true > 0, scores, np.nan)

    def mean_boundary_score(self) -> float:
        """Return the mean of the boundary scores of all classes but the first that have boundaries."""
        return _mean(self.boundary_scores[1:])


def _share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else 0.0


def count_pixels(predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int, ignored: int) -> PixelCounts:
    """Compare predicted classes of pixels (B, H, W) with the true ones, among which `ignored` stands for none."""
    return PixelCounts(*(counts.sum(axis=0) for counts in count_each(predicted, truth, classes, ignored)))


def count_each(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int, ignored: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same counts of each image: the confusions (B, K, K) and the boundaries (B, K, 4)."""
    known, count = truth != ignored, len(truth)
    image = np.broadcast_to(np.arange(count)[:, None, None], truth.shape)
    cells = (image * classes + np.where(known, truth, 0)) * classes + predicted
    confusion = np.bincount(cells[known], minlength=count * classes * classes).reshape(count, classes, classes)
    boundaries = np.zeros((count, classes, 4), np.int64)
    for number in range(classes):
        is_predicted, is_true = (predicted == number) & known, truth == number
        there = np.flatnonzero((is_predicted | is_true).any(axis=(1, 2)))  # images with this class
        found, real = boundary(is_predicted[there]) & known[there], boundary(is_true[there])
        parts = (found, found & _near(real), real, real & _near(found))
        boundaries[there, number] = np.stack([part.sum(axis=(1, 2)) for part in parts], axis=1)
    return confusion, boundaries


def boundary(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a region (B, H, W) with a pixel above, below, left or right that is not in it.

    What lies outside of the image counts as in the region.
    """
    padded = np.pad(region, ((0, 0), (1, 1), (1, 1)), mode="edge")
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return region & ~inner


def _near(edge: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels within `TOLERANCE` rows and columns of one that is set."""
    height, width = edge.shape[1:]
    padded = np.pad(edge, ((0, 0), (TOLERANCE,) * 2, (TOLERANCE,) * 2))
    rows = np.logical_or.reduce([padded[:, i : i + height] for i in range(2 * TOLERANCE + 1)])
    return np.logical_or.reduce([rows[:, :, j : j + width] for j in range(2 * TOLERANCE + 1)])
