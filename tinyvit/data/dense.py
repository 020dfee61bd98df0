"""Data sets whose images have a class for every pixel (masks) or boxes around things, in memory.

Whatever is done to the size of images is done to their masks and boxes: see `fit_labels` and `fit_boxes`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .augment import IGNORED
from .datasets import Batch, checksum, normalize, sample_indices

BACKGROUND = "background"  # the name of class 0 of masks
NO_BOX = -1  # the label of a place without a box
_SMALLEST = 1.0  # pixels; a box that is narrower after a change of its image is left out


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureDataset:
    """What data sets of masks and of boxes share.

    Attributes
    ----------
    name, split : str
    images : uint8 (n, C, H, W)
    classes : tuple of str
    mean, std : tuple of float
        Of each channel, for pixels in 0..1; the same numbers for both splits.
    kinds, kind_of : tuple of str, int64 (n,)
        Kinds of images, which are measured each on their own, and the kind of each image; without kinds, all zeros.
    apart : tuple of str
        Kinds that do not count towards the figures of all images.
    files : tuple of str
        The file of each image, if each has its own; else empty.
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kinds: tuple[str, ...] = ()
    kind_of: NDArray[np.int64]
    apart: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Self:
        """Return the data set reduced to its first `count` images."""
        return self.chosen(np.arange(min(count, len(self))))

    def chosen(self, indices: NDArray[np.int64]) -> Self:
        """Return the data set reduced to the images with these indices."""
        arrays = {key.name: getattr(self, key.name) for key in fields(self)}
        cut: dict[str, Any] = {name: x[indices] for name, x in arrays.items() if isinstance(x, np.ndarray)}
        return replace(self, **cut, files=tuple(self.files[i] for i in indices) if self.files else ())

    def sample(self, count: int, seed: int = 0) -> Self:
        """Return a random sample of `count` images, in the order of the data set."""
        return self.chosen(sample_indices(self.kind_of, count, seed))

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of all samples in random order."""
        return rng.permutation(len(self))

    def with_equal_batches(self, size: int) -> Self:
        """Return the data set itself: its batches of `size` samples all have the same shape."""
        return self

    def normalize(self, images: NDArray) -> NDArray[np.float32]:
        """Normalize images with the mean and std of this data set."""
        return normalize(images, self.mean, self.std)

    @property
    def counts(self) -> NDArray[np.bool_]:
        """Which images count towards the figures of all images, bool (n,)."""
        return ~np.isin(self.kind_of, [i for i, kind in enumerate(self.kinds) if kind in self.apart])


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskDataset(PictureDataset):
    """One split of a data set with a class for every pixel; see `PictureDataset` for the other attributes.

    Attributes
    ----------
    masks : uint8 (n, H, W)
        Indices into `classes`, of which the first is the background; `IGNORED` where there is no class.
    """

    masks: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.masks.dtype != np.uint8 or self.masks.shape != (len(self.images), *self.images.shape[2:]):
            raise ValueError(f"masks are {self.masks.dtype} {self.masks.shape}, for images {self.images.shape}")

    def batch(self, chosen: NDArray[np.int64], index: int = 0, augment: Callable[..., Any] | None = None) -> Batch:
        """Return batch number `index`; its labels are the masks, int64 (B, H, W)."""
        images, masks = self.images[chosen], self.masks[chosen]
        if augment is not None:
            images, masks = augment(images, masks=masks)
        return Batch(self.normalize(images), masks.astype(np.int64), index)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The masks."""
        return self.masks

    def fingerprint(self) -> str:
        """Return a checksum of all images and masks."""
        return checksum(self.images, self.masks)


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxDataset(PictureDataset):
    """One split of a data set with boxes around things; see `PictureDataset` for the other attributes.

    Attributes
    ----------
    boxes : float32 (n, M, 4)
        Corners (left, top, right, bottom) in pixels, from the upper left corner of the image.
    labels : int64 (n, M)
        The class of what is in each box; `NO_BOX` where an image has fewer than M boxes.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.boxes.shape != (*self.labels.shape, 4) or len(self.labels) != len(self.images):
            raise ValueError(f"boxes are {self.boxes.shape} and labels {self.labels.shape}, for {len(self)} images")

    def batch(self, chosen: NDArray[np.int64], index: int = 0, augment: Callable[..., Any] | None = None) -> Batch:
        """Return batch number `index`; its labels are those of the boxes, int64 (B, M).

        `Batch.drawn` is the boxes, float32 (B, M, 4), in units of the sides of the image, so that the corners of the
        image are (0, 0) and (1, 1). Boxes that `augment` moves out of the image are left out.
        """
        images, boxes, labels = self.images[chosen], self.boxes[chosen], self.labels[chosen]
        height, width = images.shape[2:]
        if augment is not None:
            images, boxes = augment(images, boxes=boxes)
            boxes, inside = clip_boxes(boxes, width, height)
            labels = np.where(inside, labels, NO_BOX)
        sides = np.array([width, height] * 2, np.float32)
        return Batch(self.normalize(images), labels, index, drawn=(boxes / sides,))

    def fingerprint(self) -> str:
        """Return a checksum of all images, boxes and labels."""
        return checksum(self.images, self.boxes, self.labels)


def padded_boxes(
    boxes: list[NDArray[np.float32]], labels: list[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the boxes (M_i, 4) of all images as one array (n, M, 4), and their labels (n, M) with `NO_BOX`."""
    most = max(1, max(map(len, boxes), default=1))
    all_boxes = np.zeros((len(boxes), most, 4), np.float32)
    all_labels = np.full((len(boxes), most), NO_BOX, np.int64)
    for i, (some, their) in enumerate(zip(boxes, labels, strict=True)):
        all_boxes[i, : len(some)], all_labels[i, : len(some)] = some, their
    return all_boxes, all_labels


def clip_boxes(boxes: NDArray[np.float32], width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return boxes (..., 4) cut off at the edges of an image, and which of them are still a pixel wide and high."""
    most = np.array([width, height] * 2, np.float32)
    clipped: Any = np.clip(boxes, 0, most).astype(np.float32)
    return clipped, ((clipped[..., 2:] - clipped[..., :2]) >= _SMALLEST).all(axis=-1)


def fit_labels(mask: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Cut out the largest centred square of a mask (H, W) and resize it, as `read_image` does with the image.

    Each pixel gets the class of the nearest one. Without `size` the mask is returned as it is.
    """
    from PIL import Image, ImageOps

    if size is None or mask.shape == (size, size):
        return mask
    return np.asarray(ImageOps.fit(Image.fromarray(mask), (size, size), Image.Resampling.NEAREST))


def fit_boxes(
    boxes: NDArray[np.float32], width: int, height: int, size: int | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Move boxes (M, 4) as `read_image` moves the pixels of an image; return them, and which are still inside."""
    if size is None or (width, height) == (size, size):
        return clip_boxes(boxes, width, height)
    side = min(width, height)
    margin = np.array([(width - side) / 2, (height - side) / 2] * 2, np.float32)
    return clip_boxes((boxes - margin) * np.float32(size / side), size, size)


__all__ = [
    "BACKGROUND",
    "IGNORED",
    "NO_BOX",
    "BoxDataset",
    "MaskDataset",
    "clip_boxes",
    "fit_boxes",
    "fit_labels",
    "padded_boxes",
]
