"""Augmentation: random changes of training images that keep their class.

Each image of a batch is cropped, rotated, scaled, shifted, mirrored, coloured and partly covered by random amounts of
its own. Areas that come into view are filled with 0, the background. `Augment` draws the random amounts and passes them
to functions, which can therefore be tested without randomness. Masks and boxes are changed by the same amounts as their
images. `tinyvit.data.mix` mixes images and their labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.checks import check_flags
from .colour import jitter_colours
from .geometry import draw_boxes, erase, resized_crops, sources, transform
from .policy import apply_policy

IGNORED = 255  # in a mask, the class of pixels that neither loss nor evaluation counts
POLICIES = ("none", "rand", "trivial")
NOT_WITH_TARGETS = ("crop", "flip_alternating", "policy", "erasing")  # changes that masks and boxes do not follow


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch of images, applied in the order of the attributes.

    Attributes
    ----------
    crop : float
        Cut out a box and stretch it to the whole image: its smallest share of the area; 0 for none.
    rotate : float
        Largest rotation about the centre in degrees, in either direction.
    scale : float
        Enlarge or shrink about the centre by a factor from 1 - scale to 1 + scale.
    shift : int
        Largest shift in whole pixels, vertically and horizontally: a random crop after padding.
    flip : bool
        Mirror left and right with probability 1/2.
    flip_alternating : bool
        Mirror half of the images in the first epoch, the others in the second, and so on in turn, so that two epochs
        show both sides of every image (Jordan 2024, arXiv:2404.00498).
    policy : {"none", "rand", "trivial"}
        RandAugment with `policy_layers` operations of the strength `policy_strength`, or TrivialAugment, see
        `tinyvit.data.policy`.
    colour : float
        Change brightness, contrast and saturation, each by a factor from 1 - colour to 1 + colour.
    cutout : int
        Side of a square in pixels that is covered, centred on a random pixel (DeVries and Taylor 2017,
        arXiv:1708.04552).
    erasing : float
        The share of images of which a rectangle is filled with noise (Zhong et al. 2017, arXiv:1708.04896).
    """

    crop: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shift: int = 0
    flip: bool = False
    flip_alternating: bool = False
    policy: str = "none"
    policy_layers: int = 2
    policy_strength: float = 0.3
    colour: float = 0.0
    cutout: int = 0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        check_flags("Augment", flip=self.flip, flip_alternating=self.flip_alternating)
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate is {self.rotate}; it must be from 0 to 180 degrees")
        for name in ("scale", "crop", "colour", "policy_strength", "erasing"):
            if not 0 <= getattr(self, name) <= 1 or (name == "scale" and self.scale == 1):
                most = "less than 1" if name == "scale" else "at most 1"
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more and {most}")
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 pixels or more")
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}")

    def __call__(
        self,
        images: NDArray,
        rng: np.random.Generator,
        mirrored: NDArray[np.bool_] | None = None,
        masks: NDArray[np.uint8] | None = None,
        boxes: NDArray[np.float32] | None = None,
    ) -> Any:
        """Return changed images of the same shape and dtype; the given ones are not modified.

        Parameters
        ----------
        images : uint8 or float (B, C, H, W), or (B, T, C, H, W) of videos, whose frames are all changed alike
            Colours and policies change uint8 images only, of 1 or 3 channels.
        rng : numpy.random.Generator
            The random stream; the result depends on nothing else.
        mirrored : bool (B,), optional
            Which images `flip_alternating` mirrors in this epoch; by default half of them, at random.
        masks : uint8 (B, H, W), optional
            Classes of the pixels. They move with the pixels; those of pixels that come into view or are covered become
            `IGNORED`. Then the result is (images, masks).
        boxes : float32 (B, M, 4), optional
            Corners (left, top, right, bottom) in pixels, which move with the images and may then lie outside. Then the
            result is (images, boxes). Boxes cannot be rotated.
        """
        if boxes is not None and self.rotate:
            raise ValueError(f"rotate is {self.rotate}; boxes cannot be rotated")
        for name in () if masks is None and boxes is None else NOT_WITH_TARGETS:
            if name in self.used():
                raise ValueError(f"{name} is {getattr(self, name)!r}; masks and boxes cannot follow it")
        shape = images.shape
        images = images.reshape(len(images), -1, *shape[-2:])  # the frames of a video become channels
        images, masks, boxes = self._moved(images, rng, mirrored, masks, boxes)
        if self.policy != "none":
            images = apply_policy(images, self.policy, self.policy_layers, self.policy_strength, rng)
        if self.colour:
            images = jitter_colours(images, self.colour, rng)
        if self.cutout:
            centres = rng.integers(shape[-2:], size=(len(images), 2))
            images = cover_squares(images, centres, self.cutout)
            masks = masks if masks is None else cover_squares(masks[:, None], centres, self.cutout, IGNORED)[:, 0]
        if self.erasing:
            images = erase(images, self.erasing, rng)
        images = images.reshape(shape)
        targets = tuple(target for target in (masks, boxes) if target is not None)
        return (images, *targets) if targets else images

    def _moved(
        self, images: NDArray, rng: np.random.Generator, mirrored: NDArray | None, masks: Any, boxes: Any
    ) -> tuple[NDArray, Any, Any]:
        """Crop, rotate, scale, shift and mirror images (B, C, H, W), and masks and boxes with them."""
        batch, _, height, width = images.shape
        if self.crop:
            images = resized_crops(images, draw_boxes(batch, height, width, self.crop, rng))
        if self.rotate or self.scale:
            degrees = rng.uniform(-self.rotate, self.rotate, (batch,))
            factors = rng.uniform(1 - self.scale, 1 + self.scale, (batch,))
            images = rotate_and_scale(images, degrees, factors)
            masks = masks if masks is None else rotate_and_scale_masks(masks, degrees, factors)
            boxes = boxes if boxes is None else scale_boxes(boxes, factors, (height, width))
        if self.shift:
            offsets = rng.integers(-self.shift, self.shift, (batch, 2), endpoint=True)
            images = shift_pixels(images, offsets)
            masks = masks if masks is None else shift_pixels(masks[:, None], offsets, IGNORED)[:, 0]
            boxes = boxes if boxes is None else boxes + np.tile(offsets[:, None, ::-1], 2).astype(np.float32)
        if self.flip:
            sides = rng.random((batch, 1, 1, 1)) < 0.5
            images = np.where(sides, images[..., ::-1], images)
            masks = masks if masks is None else np.where(sides[:, 0], masks[..., ::-1], masks)
            boxes = boxes if boxes is None else np.where(sides[:, 0], mirror_boxes(boxes, width), boxes)
        elif self.flip_alternating:
            which: Any = rng.random(batch) < 0.5 if mirrored is None else mirrored
            images = np.where(which[:, None, None, None], images[..., ::-1], images)
        return images, masks, boxes

    def used(self) -> list[str]:
        """Return the names of the changes that are made."""
        options = ("policy_layers", "policy_strength")
        return [name for name, value in vars(self).items() if value and value != "none" and name not in options]


def shift_pixels(images: NDArray, offsets: NDArray[np.int64], fill: int = 0) -> NDArray:
    """Shift each image by whole pixels; offsets (B, 2) are rows down and columns right."""
    height, width = images.shape[2:]
    margin = int(np.abs(offsets).max(initial=0))
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = (margin - offsets).T
    return windows[np.arange(len(images)), :, top, left]


def rotate_and_scale(images: NDArray, degrees: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray:
    """Rotate each image counter-clockwise and enlarge it, about its centre, with bilinear sampling.

    degrees and factors (B,). A result of integer dtype is rounded to the nearest.
    """
    return transform(images, rotations(degrees, factors), np.zeros((len(images), 2)))


def rotations(degrees: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrices (B, 2, 2) for (y, x) by which `transform` rotates and enlarges images."""
    cos, sin = np.cos(np.deg2rad(degrees)) / factors, np.sin(np.deg2rad(degrees)) / factors
    return np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=1)


def rotate_and_scale_masks(
    masks: NDArray[np.uint8], degrees: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Change masks (B, H, W) as `rotate_and_scale` changes images, but take the class of the nearest pixel."""
    places = sources(rotations(degrees, factors), np.zeros((len(masks), 2)), *masks.shape[1:])
    y, x = (np.rint(place).astype(np.int64) for place in places)
    framed = np.pad(masks, ((0, 0), (1, 1), (1, 1)), constant_values=IGNORED)
    return framed[np.arange(len(masks))[:, None, None], y, x]


def scale_boxes(boxes: NDArray[np.float32], factors: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge boxes (B, M, 4) about the centre of images of the size (H, W), each batch element by its factor."""
    centre: Any = np.array([size[1], size[0]] * 2, np.float32) / 2
    return centre + factors.astype(np.float32)[:, None, None] * (boxes - centre)


def mirror_boxes(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Mirror boxes (..., 4) left and right in images of this width."""
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    return np.stack([width - right, top, width - left, bottom], axis=-1)


def cover_squares(images: NDArray, centres: NDArray[np.int64], side: int, fill: int = 0) -> NDArray:
    """Fill a square around one pixel of each image, as far as it lies inside; centres (B, 2) are y, x."""
    first = (centres - side // 2)[:, :, None]  # (B, 2, 1)
    rows, columns = (
        (np.arange(length) >= first[:, axis]) & (np.arange(length) < first[:, axis] + side)
        for axis, length in enumerate(images.shape[2:])
    )
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    return np.where(covered, images.dtype.type(fill), images)
