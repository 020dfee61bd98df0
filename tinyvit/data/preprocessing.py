"""Bring images to the size of a model by the rules that its weights were trained with, as timm states and applies them.

A pretrained model loses several points of accuracy if images are resized or normalized in another way, so these rules
travel with its weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's names, in lower case
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Resize:
    """Resize an image and cut out its centre, exactly as timm's evaluation transform does with Pillow.

    Attributes
    ----------
    interpolation : one of `INTERPOLATIONS`.
    crop_pct : the side of the centre that is cut out, as a share of the resized image.
    crop_mode : what is resized to size / crop_pct: with "center" the shorter side, with "border" the longer one (the
        rest is filled), with "squash" both.
    fill : the values, 0 to 255, of each channel of a border; black by default, the mean of the images in timm.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise DataError(f"crop_mode is {self.crop_mode!r}; it must be one of {', '.join(CROP_MODES)}")
        if type(self.crop_pct) not in (int, float) or not 0.05 <= self.crop_pct <= 1.5:
            raise DataError(f"crop_pct is {self.crop_pct!r}; it must be a number from 0.05 to 1.5")

    @classmethod
    def of_state(cls, state: Sequence[Any], mean: Sequence[float]) -> Self:
        """Restore what `state` returned; borders get the mean of the images. Raises DataError for anything else."""
        if len(state) != 3:
            raise DataError(f"resize is {state!r:.100}; it must be interpolation, crop_pct and crop_mode")
        interpolation, crop_pct, crop_mode = state
        fill = tuple(round(255 * m) for m in mean) if crop_mode == "border" else ()
        return cls(interpolation, crop_pct, crop_mode, fill)

    def state(self) -> tuple[str, float, str]:
        """Return interpolation, crop_pct and crop_mode."""
        return self.interpolation, self.crop_pct, self.crop_mode

    def __call__(self, image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
        """Return `image` with the `size` (height, width)."""
        from PIL import Image

        scaled = tuple(math.floor(n / self.crop_pct) for n in size)
        target = self._scaled_size((image.height, image.width), scaled)
        if target != (image.height, image.width):
            image = image.resize(target[::-1], Image.Resampling[self.interpolation.upper()])
        return _centre(image, size, self.fill if self.crop_mode == "border" else ())

    def _scaled_size(self, size: tuple[int, int], scaled: tuple[int, ...]) -> tuple[int, int]:
        """Return the size to which an image of `size` is resized; both are (height, width)."""
        height, width = size
        if self.crop_mode == "squash":
            return scaled[0], scaled[1]
        if self.crop_mode == "center" and scaled[0] == scaled[1]:  # as torchvision: the longer side is rounded down
            short, long = min(size), max(size)
            other = int(scaled[0] * long / short)
            return (scaled[0], other) if height <= width else (other, scaled[0])
        ratios = height / scaled[0], width / scaled[1]
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def _centre(image: "Image.Image", size: tuple[int, int], fill: tuple[int, ...]) -> "Image.Image":
    """Cut out the centre of `size` (height, width), after adding a border where the image is smaller."""
    from PIL import ImageOps

    height, width = size
    missing = max(0, height - image.height), max(0, width - image.width)
    if any(missing):
        top, left = missing[0] // 2, missing[1] // 2
        border = (left, top, missing[1] - left, missing[0] - top)
        image = ImageOps.expand(image, border, fill if len(fill) == len(image.getbands()) > 1 else (*fill, 0)[0])
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a model.

    Attributes
    ----------
    mean, std : of each channel, for pixels in 0..1; see `tinyvit.data.normalize`.
    resize : how an image of any size is brought to that of the model.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.std]
        known = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
        if not known or len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise DataError(f"mean and std are {self.mean} and {self.std}; they must be as many numbers, std positive")
