"""Images and videos to tokens: patch embedding, convolutional stem, fixed positions."""

import math

import numpy as np

from .. import functional as F
from ..functional.arguments import integers, is_sequence
from ..functional.tensors import Tensor
from . import init
from .containers import Sequential
from .layers import Conv2d, ReLU
from .module import Module, Parameter

Sizes = tuple[int, ...]


def as_sizes(name: str, value: int | Sizes, axes: int = 2) -> Sizes:
    """One positive integer for each axis."""
    numbers = integers(name, value)
    sizes = numbers if is_sequence(value) else numbers * axes
    if len(sizes) != axes or min(sizes) < 1:
        many = {1: "one", 2: "two", 3: "three"}.get(axes, str(axes))
        raise ValueError(f"{name} is {value!r}; it must be one or {many} positive integers")
    return sizes


class PatchEmbed(Module):
    """Cut images into patches and project each: (B, C, H, W) -> (B, N, dim), N = (H / P)(W / P), row by row.

    The weights are those of a convolution with kernel and stride P: proj.weight (dim, C, P, P). With stem="conv" a few
    small convolutions take the image down to one pixel for each patch first (Xiao et al., Early convolutions help
    transformers see better, 2021), and `proj` is 1 x 1.

    An `image_size` of three numbers (T, H, W) is that of videos (B, T, C, H, W): patches are then tubelets, of P frames
    or `patch_size` = (frames, height, width), and proj.weight is (dim, C, *patch_size). A spectrogram is an image of
    one channel.
    """

    def __init__(
        self, image_size: int | Sizes, patch_size: int | Sizes, in_channels: int, dim: int, stem: str = "linear"
    ) -> None:
        axes = max(2, len(integers("image_size", image_size)))
        self.image_size, self.patch_size = (
            as_sizes("image_size", image_size, axes),
            as_sizes("patch_size", patch_size, axes),
        )
        if any(n % p for n, p in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if stem not in ("linear", "conv") or (stem == "conv" and axes > 2):
            raise ValueError(f"stem is {stem!r}; it must be 'linear' or, for images, 'conv'")
        self.grid = tuple(n // p for n, p in zip(self.image_size, self.patch_size, strict=True))
        self.in_channels = in_channels
        self.stem = _conv_stem(self.patch_size, in_channels, dim) if stem == "conv" else None
        channels, patch = (in_channels, self.patch_size) if self.stem is None else (dim // 2, (1, 1))
        self.proj = PatchProjection(channels, dim, patch)

    def forward(self, images: Tensor) -> Tensor:
        frames, pixels = self.image_size[:-2], self.image_size[-2:]
        expected = (*frames, self.in_channels, *pixels)
        if images.shape[1:] != expected:
            raise ValueError(f"images have shape {images.shape}; this model takes (B, {', '.join(map(str, expected))})")
        x = images.swapaxes(1, 2) if frames else images  # channels first
        return self.proj(x if self.stem is None else self.stem(x))


class PatchProjection(Module):
    """Cut an image or a video into patches and apply one linear map to each: (B, C, *sizes) -> (B, N, dim).

    This is the convolution whose stride is its kernel size, with the weights of one: weight (dim, C, *patch_size),
    bias (dim,).
    """

    def __init__(self, in_channels: int, dim: int, patch_size: Sizes) -> None:
        fan_in = in_channels * math.prod(patch_size)
        self.weight = Parameter(init.uniform_fan_in((dim, in_channels, *patch_size), fan_in))
        self.bias = Parameter(init.uniform_fan_in((dim,), fan_in))

    def forward(self, x: Tensor) -> Tensor:
        dim, _, *patch_size = self.weight.shape
        return F.linear(F.patches(x, tuple(patch_size)), self.weight.reshape(dim, -1), self.bias)


def _conv_stem(patch: Sizes, in_channels: int, dim: int) -> Sequential:
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


def sincos2d(grid: Sizes, dim: int) -> np.ndarray:
    """Positions of a grid, row by row: the first dim / 2 channels encode the row, the others the column; (N, dim)."""
    if len(grid) != 2:
        raise ValueError(f"pos_embed='sincos2d' needs images, not patches in a grid of {grid}")
    if dim % 4:
        raise ValueError(f"two-dimensional sinusoidal positions need a dim that is a multiple of 4, not {dim}")
    rows, columns = (sincos1d(n, dim // 2) for n in grid)
    return np.concatenate([np.repeat(rows, grid[1], axis=0), np.tile(columns, (grid[0], 1))], axis=1)
