"""Images made larger or smaller: bilinear interpolation, and channels rearranged as pixels."""

from typing import Any

import numpy as np

from ..backend import Array, namespace_of
from ..backend.checks import integer
from ..engine import Tensor
from .arguments import Pair, as_pair, refuse_arguments
from .linalg import matmul
from .shape import reshape, transpose


def interpolate(x: Tensor, size: int | Pair) -> Tensor:
    """Resize images bilinearly: x (B, C, H, W) -> (B, C, *size), differentiable any number of times.

    Output pixel i has its centre at s = (i + 1/2) H / size - 1/2 of the input, limited to [0, H - 1], and row j of the
    input has the weight max(0, 1 - |s - j|) there; columns likewise. This is `torch.nn.functional.interpolate` with
    mode="bilinear" and align_corners=False; a smaller image is sampled, not averaged. It is two matrix products, one
    with the weights of the columns and one with those of the rows, so its gradient is theirs.
    ValueError if x has other axes, or no pixels.
    """
    height, width = as_pair("interpolate", "size", size, 1)
    try:
        if x.ndim != 4 or 0 in x.shape[2:]:
            raise ValueError(f"interpolate: x has shape {x.shape}; it must be (B, C, H, W) with at least one pixel")
        array = x.data
        down, across = (_hats(array, n, m) for n, m in zip(x.shape[2:], (height, width), strict=True))
    except (AttributeError, TypeError) as error:
        refuse_arguments("interpolate", error, {"x": x})
    return matmul(Tensor(down), matmul(x, Tensor(across.swapaxes(0, 1))))


def _hats(like: Array, count: int, size: int) -> Array:
    """Return the weights (size, count) of `count` input pixels for each of `size` output pixels, on like's device."""
    xp = namespace_of(like)
    centres = ((xp.arange(size) + 0.5) * (count / size) - 0.5).clip(0, count - 1)
    weights = (1 - abs(centres[:, None] - xp.arange(count))).clip(0, None)
    return weights.astype(like.dtype if like.dtype.kind in "fV" else np.float32)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Turn groups of r^2 channels into r x r pixels: x (B, C r^2, H, W) -> (B, C, H r, W r), r = `upscale_factor`.

    y[b, c, h r + i, w r + j] = x[b, c r^2 + i r + j, h, w] (Shi et al., Real-time single image and video
    super-resolution, 2016, equation 4). ValueError if r^2 does not divide the channels.
    """
    r = integer("pixel_shuffle: upscale_factor", upscale_factor)
    try:
        if r < 1 or x.ndim != 4 or x.shape[1] % (r * r):
            raise ValueError(
                f"pixel_shuffle: x has shape {x.shape} and upscale_factor is {r}; x must be (B, C r^2, H, W) for a "
                "factor r of at least 1"
            )
        b, channels, h, w = x.shape
    except (AttributeError, TypeError) as error:
        refuse_arguments("pixel_shuffle", error, {"x": x})
    c = channels // (r * r)
    split: Any = reshape(x, (b, c, r, r, h, w))
    return reshape(transpose(split, (0, 1, 4, 2, 5, 3)), (b, c, h * r, w * r))
