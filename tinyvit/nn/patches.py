"""Images and videos to tokens: patch embedding, convolutional stem, fixed positions."""

import itertools
import math

import numpy as np

from .. import functional as F
from ..functional.tensors import Pair, Tensor, check_flags, integers, is_sequence
from . import init
from .containers import Sequential
from .layers import Conv2d, Identity, LayerNorm, MaxPool2d, ReLU, initialize_conv
from .module import Module, Parameter

Sizes = tuple[int, ...]
STEMS = ("linear", "conv", "cct", "spt")
_CCT_CHANNELS = 64  # of all convolutions of a "cct" stem but the last


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
    transformers see better, 2021), and `proj` is 1 x 1. Two further stems:

    - "cct": for each halving of the image a 3 x 3 convolution, ReLU and a 3 x 3 max pooling of stride 2, the last with
      dim channels; P is a power of 2, and there is no `proj` (Hassani et al., Escaping the big data paradigm with
      compact transformers, 2021);
    - "spt": shifted patch tokenization. Beside each patch lie those of the image moved by P / 2 in each diagonal
      direction, and a layer norm precedes `proj` (Lee et al., Vision transformer for small-size datasets, 2021).

    An `image_size` of three numbers (T, H, W) is that of videos (B, T, C, H, W): patches are then tubelets, of P frames
    or `patch_size` = (frames, height, width), and proj.weight is (dim, C, *patch_size). A spectrogram is an image of
    one channel.
    """

    def __init__(
        self,
        image_size: int | Sizes,
        patch_size: int | Sizes,
        in_channels: int,
        dim: int,
        stem: str = "linear",
        bias: bool = True,
    ) -> None:
        check_flags("PatchEmbed", bias=bias)
        init.check_sizes("PatchEmbed", in_channels=in_channels, dim=dim)
        axes = max(2, len(integers("image_size", image_size)))
        if axes > 3:
            raise ValueError(f"image_size is {image_size!r}; it must be one integer, two of images, or three of videos")
        self.image_size = as_sizes("image_size", image_size, axes)
        self.patch_size = as_sizes("patch_size", patch_size, axes)
        if any(n % p for n, p in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if stem not in STEMS or (stem != "linear" and axes > 2):
            others = ", ".join(map(repr, STEMS[1:]))
            raise ValueError(f"stem is {stem!r}; it must be 'linear' or, for images, one of {others}")
        self.grid = tuple(n // p for n, p in zip(self.image_size, self.patch_size, strict=True))
        self.in_channels = in_channels
        self.stem_name = stem
        self.stem, self.proj = _stem_and_projection(stem, self.patch_size, in_channels, dim, bias)

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
    bias (dim,), or None. With `norm`, a layer norm of all values of a patch comes first.
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: Sizes, bias: bool = True, norm: bool = False, eps: float = 1e-5
    ) -> None:
        check_flags("PatchProjection", bias=bias, norm=norm)
        init.check_sizes("PatchProjection", in_channels=in_channels, dim=dim)
        if not is_sequence(patch_size) or min(integers("PatchProjection: patch_size", patch_size), default=0) < 1:
            raise ValueError(
                f"PatchProjection: patch_size is {patch_size!r}; it must be positive integers, one for each axis"
            )
        fan_in = in_channels * math.prod(patch_size)
        self.norm = LayerNorm(fan_in, eps) if norm else Identity()
        self.weight = Parameter(init.uniform_fan_in((dim, in_channels, *patch_size), fan_in))
        self.bias = Parameter(init.uniform_fan_in((dim,), fan_in)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        dim, _, *patch_size = self.weight.shape
        return F.linear(self.norm(F.patches(x, tuple(patch_size))), self.weight.reshape(dim, -1), self.bias)


class PixelTokens(Module):
    """Every pixel of an image is a token: (B, C, H, W) -> (B, H W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.patches(x, 1)


class DiagonalShifts(Module):
    """An image, and the image moved by `shift` pixels in each diagonal direction: (B, C, H, W) -> (B, 5 C, H, W).

    What is moved out is lost, and zeros move in. The order is that of Lee et al. (2021): the contents move up and left,
    up and right, down and left, down and right.
    """

    def __init__(self, shift: Pair) -> None:
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        (down, right), (h, w) = self.shift, x.shape[2:]
        padded = F.pad(x, ((0, 0), (0, 0), (down, down), (right, right)))
        corners = [(2 * down, 2 * right), (2 * down, 0), (0, 2 * right), (0, 0)]
        return F.concatenate([x, *(padded[:, :, i : i + h, j : j + w] for i, j in corners)], axis=1)

    def describe(self) -> str:
        return f"shift={self.shift}"


def _stem_and_projection(
    name: str, patch: Sizes, in_channels: int, dim: int, bias: bool
) -> tuple[Module | None, Module]:
    """Return the stem, which runs before the patches are cut, or None; and the module that makes tokens of patches."""
    if name == "conv":
        return _conv_stem(patch, in_channels, dim), PatchProjection(dim // 2, dim, (1, 1), bias)
    if name == "cct":
        return _cct_stem(patch, in_channels, dim), PixelTokens()
    if name == "spt":
        shifts = DiagonalShifts((patch[0] // 2, patch[1] // 2))
        return shifts, PatchProjection(5 * in_channels, dim, patch, bias, norm=True)
    return None, PatchProjection(in_channels, dim, patch, bias)


def _cct_stem(patch: Sizes, in_channels: int, dim: int) -> Sequential:
    """Convolution, ReLU and pooling for each factor 2 of the patch size, as in CCT-2/3x2 of patches of 4."""
    halvings = patch[0].bit_length() - 1
    if patch[0] != patch[1] or patch[0] != 2**halvings or halvings < 1:
        raise ValueError(f"stem='cct' needs square patches whose patch_size is 2, 4, 8 or so, not {patch}")
    widths = [in_channels, *[min(_CCT_CHANNELS, dim)] * (halvings - 1), dim]
    layers: list[Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [Conv2d(before, after, 3, padding=1, bias=False), ReLU(), MaxPool2d(3, stride=2, padding=1)]
    stem = Sequential(*layers)
    initialize_conv(stem)
    return stem


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
