"""Images cut into patches: the first step of a ViT."""

from ..autograd import Op, Tensor
from .samples import sample

Pair = tuple[int, int]


def _six_axes(shape: tuple[int, ...], size: Pair) -> tuple[int, ...]:
    """(B, C, rows of patches, P, columns of patches, Q) of an image's shape (B, C, H, W)."""
    b, c, h, w = shape
    return b, c, h // size[0], size[0], w // size[1], size[1]


class Patches(Op):
    """y = the patches of x, each as a row        dx = dy put back where it was read"""

    kernel = "patches"
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


def patches(x: Tensor, size: int | Pair) -> Tensor:
    """Cut images into patches of `size` = (P, Q), P x P if it is one number: (B, C, H, W) -> (B, N, C P Q).

    N = (H / P)(W / Q), row by row; ValueError if patches of that size do not tile the images.
    """
    p, q = (size, size) if isinstance(size, int) else size
    if x.ndim != 4 or min(p, q) < 1 or x.shape[2] % p or x.shape[3] % q:
        raise ValueError(
            f"patches: x has shape {x.shape} and size is {size}; x must be (B, C, H, W), tiled by the patches"
        )
    return Patches.apply(x, size=(p, q))
