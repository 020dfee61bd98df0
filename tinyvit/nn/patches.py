"""Images to tokens: patch embedding, convolutional stem, fixed positions."""

import numpy as np

from .. import functional as F
from ..autograd import Tensor
from .layers import Conv2d, ReLU
from .module import Module, Sequential

Pair = tuple[int, int]


def as_pair(name: str, value: int | Pair) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise ValueError(f"{name} is {value!r}; it must be one or two positive integers")
    return pair


class PatchEmbed(Module):
    """Cut images into patches and project each: (B, C, H, W) -> (B, N, dim), N = (H / P)(W / P), row by row.

    The weights are those of a convolution with kernel and stride P: proj.weight (dim, C, P, P). With stem="conv" a few
    small convolutions take the image down to one pixel for each patch first (Xiao et al., Early convolutions help
    transformers see better, 2021), and `proj` is 1 x 1.
    """

    def __init__(
        self, image_size: int | Pair, patch_size: int | Pair, in_channels: int, dim: int, stem: str = "linear"
    ) -> None:
        self.image_size, self.patch_size = (
            as_pair("image_size", image_size),
            as_pair("patch_size", patch_size),
        )
        if any(n % p for n, p in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if stem not in ("linear", "conv"):
            raise ValueError(f"stem is {stem!r}; it must be 'linear' or 'conv'")
        self.grid = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        self.in_channels = in_channels
        self.stem = _conv_stem(self.patch_size, in_channels, dim) if stem == "conv" else None
        patch, channels = (self.patch_size, in_channels) if self.stem is None else ((1, 1), dim // 2)
        self.proj = Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (self.in_channels, *self.image_size):
            raise ValueError(
                f"images have shape {images.shape}; this model takes (B, {self.in_channels}, "
                f"{self.image_size[0]}, {self.image_size[1]})"
            )
        x = images if self.stem is None else self.stem(images)
        weight = self.proj.weight
        patches = F.patches(x, (weight.shape[2], weight.shape[3]))
        return F.linear(patches, weight.reshape(weight.shape[0], -1), self.proj.bias)


def _conv_stem(patch: Pair, in_channels: int, dim: int) -> Sequential:
    """Convolutions and ReLUs whose strides multiply to the patch size, up to dim / 2 channels; square patches only."""
    if patch[0] != patch[1]:
        raise ValueError(f"stem='conv' needs square patches, not {patch}")
    strides = _prime_factors(patch[0]) or [1]
    if dim < 2 ** len(strides):
        raise ValueError(
            f"stem='conv' with patches of {patch[0]} needs a dim of at least {2 ** len(strides)}, not {dim}"
        )
    layers: list[Module] = []
    for i, stride in enumerate(strides):
        channels = dim // 2 ** (len(strides) - i)
        kernel = max(3, stride + 1 - stride % 2)  # odd, and at least the stride
        layers += [Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2), ReLU()]
        in_channels = channels
    return Sequential(*layers)


def _prime_factors(n: int) -> list[int]:
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors


def sincos1d(count: int, dim: int) -> np.ndarray:
    """PE(i, 2j) = sin(i / 10000^(2j/dim)), PE(i, 2j+1) = cos(i / 10000^(2j/dim)): (count, dim) float32.

    (Vaswani et al., Attention is all you need, 2017, section 3.5.)
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even dim, not {dim}")
    angle = np.arange(count)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(count, dim).astype(np.float32)


def sincos2d(grid: Pair, dim: int) -> np.ndarray:
    """Positions of a grid, row by row: the first dim / 2 channels encode the row, the others the column; (N, dim)."""
    if dim % 4:
        raise ValueError(f"two-dimensional sinusoidal positions need a dim that is a multiple of 4, not {dim}")
    rows, columns = (sincos1d(n, dim // 2) for n in grid)
    return np.concatenate([np.repeat(rows, grid[1], axis=0), np.tile(columns, (grid[0], 1))], axis=1)
