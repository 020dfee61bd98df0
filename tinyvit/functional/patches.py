"""Images, and arrays of any number of axes, cut into patches: the first step of a ViT."""

import math

from ..engine import Op, Tensor
from .arguments import Pair, integers, is_sequence, refuse_arguments
from .samples import sample
from .shape import reshape, transpose


def _six_axes(shape: tuple[int, ...], size: Pair) -> tuple[int, ...]:
    """(B, C, rows of patches, P, columns of patches, Q) of an image's shape (B, C, H, W)."""
    b, c, h, w = shape
    return b, c, h // size[0], size[0], w // size[1], size[1]


class Patches(Op):
    """y = the patches of x, each as a row        dx = dy put back where it was read"""

    kernel = "patches"
    letters = ("x: B C y x",)
    view = True

    @staticmethod
    def forward(xp, x, *, size):
        b, c, down, p, across, q = _six_axes(x.shape, size)
        pixels = xp.transpose(xp.reshape(x, (b, c, down, p, across, q)), (0, 2, 4, 1, 3, 5))
        return xp.reshape(pixels, (b, down * across, c * p * q))

    def backward(ctx, xp, dy):
        b, c, down, p, across, q = _six_axes(ctx.shapes[0], ctx.size)
        pixels = xp.transpose(xp.reshape(dy, (b, down, across, c, p, q)), (0, 3, 1, 4, 2, 5))
        return xp.reshape(pixels, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((2, 3, 4, 6), size=(2, 3))
        yield sample((1, 2, 3, 4), size=(3, 1))
        yield sample((2, 1, 2, 2), size=(2, 2))


def patches(x: Tensor, size: int | tuple[int, ...]) -> Tensor:
    """Cut x (B, C, *sizes) into patches of `size`: (B, N, C times the elements of a patch), in row-major order.

    One number for each axis after the channels, or one for all. Images (B, C, H, W) in patches (P, Q) give N =
    (H / P)(W / Q) rows; videos (B, C, T, H, W) are cut into tubelets in the same way (Arnab et al., ViViT, 2021).
    ValueError if patches of that size do not tile x.
    """
    try:
        axes = x.ndim - 2
    except (AttributeError, TypeError) as error:
        refuse_arguments("patches", error, {"x": x})
    numbers = integers("patches: size", size)
    sizes = numbers if is_sequence(size) else numbers * axes
    if axes < 1 or len(sizes) != axes or min(sizes) < 1 or any(n % p for n, p in zip(x.shape[2:], sizes, strict=True)):
        raise ValueError(
            f"patches: x has shape {x.shape} and size is {size}; x must be (B, C, *sizes), such as "
            "(B, C, H, W), and size must divide its sizes"
        )
    if axes == 2:
        return Patches.apply(x, size=sizes)
    b, c = x.shape[:2]
    counts = tuple(n // p for n, p in zip(x.shape[2:], sizes, strict=True))
    split = reshape(x, (b, c, *(n for pair in zip(counts, sizes, strict=True) for n in pair)))
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return reshape(transpose(split, order), (b, math.prod(counts), c * math.prod(sizes)))
