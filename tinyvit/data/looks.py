"""What images look like in two numbers, by which one that is unlike all training images is noticed.

Brightness is the mean of the values, and evenness the share of neighbouring pixels that hardly differ: drawings are
even, photographs are not. A run keeps the range of both over its training images. An image outside of it is unlike
them; one within it may still be, because two numbers say little.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("brightness", "evenness")
_EQUAL = 10  # the largest difference, of 255, of pixels that hardly differ, as in a drawing that was saved as JPEG
_MARGIN = 0.1  # by which a range is left before an image counts as unlike
_FEWEST, _MOST = 50, 1000  # images whose range is worth keeping; images that are looked at


def looks(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return brightness and evenness, from 0 to 1, of images uint8 (n, C, H, W), as an array (n, 2)."""
    values = images.astype(np.int16)
    even = [
        (np.abs(np.diff(values, axis=axis)).max(axis=1) <= _EQUAL).reshape(len(values), -1)
        for axis in (2, 3)
        if values.shape[axis] > 1
    ]
    evenness = np.concatenate(even, axis=1).mean(axis=1) if even else np.ones(len(values))
    return np.stack([values.mean(axis=(1, 2, 3)) / 255, evenness], axis=1)


def range_of_looks(images: Any) -> tuple[float, ...]:
    """Return the least and the largest brightness, then the same of evenness; nothing for videos and few images."""
    if len(images.shape) != 4 or len(images) < _FEWEST:
        return ()
    found = looks(images[np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(np.int64)])
    ends = np.stack([found.min(axis=0), found.max(axis=0)], axis=1)
    return tuple(round(float(end), 4) for end in ends.ravel())


def unlike(pixels: NDArray[np.uint8], known: Sequence[float]) -> str:
    """Return how an image, uint8 (C, H, W), is unlike those of a range; empty if it is not, or if none is known."""
    if not known:
        return ""
    least, most = np.reshape(known, (2, 2)).T
    return "; ".join(
        f"its {name} is {value:.2f}, theirs {low:.2f} to {high:.2f}"
        for name, value, low, high in zip(NAMES, looks(pixels[None])[0], least, most, strict=True)
        if not low - _MARGIN <= value <= high + _MARGIN
    )
