"""Generated canvases: two to four handwritten digits of MNIST on 64 x 64 pixels, with masks of their ink and boxes.

The digits of the train split of MNIST are on train canvases, those of its test split on test canvases.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .by_name import load_dataset

SIDE = 64  # pixels
COUNTS = {"train": 20_000, "test": 2_000}
_SEEDS = {"train": 0, "test": 1}
_INK = 128  # a pixel of at least this value is ink
_ATTEMPTS = 50  # places that are tried for a digit before the canvas is begun anew


@dataclass(frozen=True)
class Canvases:
    """Canvases with the truth about them.

    Attributes
    ----------
    images : uint8 (n, 1, 64, 64)
    masks : uint8 (n, 64, 64)
        0 where there is no ink, else the digit plus 1.
    boxes, labels : lists of float32 (digits, 4) and int64 (digits,)
        The smallest box around the ink of each digit (left, top, right, bottom), and the digit.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]


def draw_canvases(split: str) -> Canvases:
    """Draw the canvases of "train" (20,000) or "test" (2,000). Raises DataError if MNIST cannot be had."""
    mnist = load_dataset("mnist", split)
    rng, count = np.random.default_rng((40, _SEEDS[split])), COUNTS[split]
    digits = [_cut_out(image) for image in mnist.images[:, 0]]
    canvases = Canvases(np.zeros((count, 1, SIDE, SIDE), np.uint8), np.zeros((count, SIDE, SIDE), np.uint8), [], [])
    for image, mask in zip(canvases.images[:, 0], canvases.masks, strict=True):
        chosen = rng.integers(len(digits), size=rng.integers(2, 5))
        boxes = _places([digits[i] for i in chosen], rng)
        labels = mnist.labels[chosen]
        for i, label, (left, top, right, bottom) in zip(chosen, labels, boxes.astype(int), strict=True):
            image[top:bottom, left:right] = digits[i]
            mask[top:bottom, left:right][digits[i] >= _INK] = label + 1
        canvases.boxes.append(_around_ink(boxes, [digits[i] for i in chosen]))
        canvases.labels.append(labels)
    return canvases


def _cut_out(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the smallest part of an image that has all pixels above zero."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _places(digits: list[NDArray[np.uint8]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a place for each digit, such that no two overlap; return them as boxes (digits, 4)."""
    while True:
        boxes = np.zeros((0, 4), np.float32)
        for digit in digits:
            height, width = digit.shape
            for top, left in rng.integers((SIDE - height + 1, SIDE - width + 1), size=(_ATTEMPTS, 2)):
                box = np.array([left, top, left + width, top + height], np.float32)
                if not ((box[:2] < boxes[:, 2:]) & (box[2:] > boxes[:, :2])).all(axis=1).any():
                    boxes = np.concatenate([boxes, box[None]])
                    break
        if len(boxes) == len(digits):
            return boxes


def _around_ink(boxes: NDArray[np.float32], digits: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the boxes of the ink in digits that lie in `boxes`."""
    ink = []
    for (left, top, _, _), digit in zip(boxes, digits, strict=True):
        rows, columns = (np.flatnonzero((digit >= _INK).any(axis=axis)) for axis in (1, 0))
        ink.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1])
    return np.array(ink, np.float32)
