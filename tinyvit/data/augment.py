"""Augmentation: random changes of training images that keep their class.

Each image of a batch is rotated, scaled, shifted, mirrored and partly covered by random amounts of its own. Areas that
come into view are filled with 0, the background. `Augment` draws the random amounts and passes them to functions for
the geometry, which can therefore be tested without randomness.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch of images, applied in the order of the attributes.

    Attributes
    ----------
    rotate : float
        Largest rotation about the centre in degrees, in either direction.
    scale : float
        Enlarge or shrink about the centre by a factor from 1 - scale to 1 + scale.
    shift : int
        Largest shift in whole pixels, vertically and horizontally: a random crop after padding.
    flip : bool
        Mirror left and right with probability 1/2.
    cutout : int
        Side of a square in pixels that is covered, centred on a random pixel (DeVries and Taylor 2017,
        arXiv:1708.04552).
    """

    rotate: float = 0.0
    scale: float = 0.0
    shift: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate is {self.rotate}; it must be from 0 to 180 degrees")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale is {self.scale}; it must be 0 or more and less than 1")
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 pixels or more")

    def __call__(self, images: NDArray, rng: np.random.Generator) -> NDArray:
        """Return changed images of the same shape and dtype; the given ones are not modified.

        Parameters
        ----------
        images : uint8 or float (B, C, H, W), or (B, T, C, H, W) of videos, whose frames are all changed alike
        rng : numpy.random.Generator
            The random stream; the result depends on nothing else.
        """
        shape = images.shape
        batch, height, width = shape[0], *shape[-2:]
        images = images.reshape(batch, -1, height, width)  # the frames of a video become channels
        if self.rotate or self.scale:
            degrees = rng.uniform(-self.rotate, self.rotate, (batch,))
            factors = rng.uniform(1 - self.scale, 1 + self.scale, (batch,))
            images = rotate_and_scale(images, degrees, factors)
        if self.shift:
            images = shift_pixels(images, rng.integers(-self.shift, self.shift, (batch, 2), endpoint=True))
        if self.flip:
            images = np.where(rng.random((batch, 1, 1, 1)) < 0.5, images[..., ::-1], images)
        if self.cutout:
            images = cover_squares(images, rng.integers((height, width), size=(batch, 2)), self.cutout)
        return images.reshape(shape)

    def used(self) -> list[str]:
        """Return the names of the changes that are made."""
        return [name for name, value in vars(self).items() if value]


def shift_pixels(images: NDArray, offsets: NDArray[np.int64]) -> NDArray:
    """Shift each image by whole pixels; offsets (B, 2) are rows down and columns right."""
    height, width = images.shape[2:]
    margin = int(np.abs(offsets).max(initial=0))
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = (margin - offsets).T
    return windows[np.arange(len(images)), :, top, left]


def rotate_and_scale(images: NDArray, degrees: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray:
    """Rotate each image counter-clockwise and enlarge it, about its centre, with bilinear sampling.

    degrees and factors (B,). A result of integer dtype is rounded to the nearest.
    """
    batch, channels, height, width = images.shape
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    cos = (np.cos(np.deg2rad(degrees)) / factors).astype(np.float32)[:, None, None]
    sin = (np.sin(np.deg2rad(degrees)) / factors).astype(np.float32)[:, None, None]
    # The position (B, H, W) from which each pixel of the result is taken, in an image with a frame of zeros, one pixel
    # wide: positions outside are clipped onto the frame.
    source_y = np.clip(cos * y + sin * x + (height + 1) / 2, 0, height + 1)
    source_x = np.clip(cos * x - sin * y + (width + 1) / 2, 0, width + 1)
    top = np.minimum(source_y.astype(np.int32), height)
    left = np.minimum(source_x.astype(np.int32), width)
    down = (source_y - top)[:, None]
    right = (source_x - left)[:, None]
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float32)
    planes = np.arange(batch * channels).reshape(batch, channels, 1, 1) * ((height + 2) * (width + 2))
    corner = planes + (top * (width + 2) + left)[:, None]
    upper = framed.take(corner) * (1 - right) + framed.take(corner + 1) * right
    corner += width + 2
    lower = framed.take(corner) * (1 - right) + framed.take(corner + 1) * right
    result = upper * (1 - down) + lower * down
    return (np.rint(result) if np.issubdtype(images.dtype, np.integer) else result).astype(images.dtype)


def cover_squares(images: NDArray, centres: NDArray[np.int64], side: int) -> NDArray:
    """Set a square around one pixel of each image to 0, as far as it lies inside; centres (B, 2) are y, x."""
    first = (centres - side // 2)[:, :, None]  # (B, 2, 1)
    rows, columns = (
        (np.arange(length) >= first[:, axis]) & (np.arange(length) < first[:, axis] + side)
        for axis, length in enumerate(images.shape[2:])
    )
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    return np.where(covered, images.dtype.type(0), images)
