"""Convolution and pooling of images, over the windows that im2col lays out as columns."""

import itertools
import math
from typing import Any

import numpy as np

from ..backend import Namespace
from ..backend.checks import number
from ..engine import Op, Tensor
from .arguments import Pair, as_operand, as_pair, integers, refuse_arguments
from .constants import as_floating
from .samples import sample
from .teaching import Fault


def _positions(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """How many windows fit: (OH, OW)."""
    rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[-2:], kernel, stride, padding, strict=True))
    return rows, columns


def _window_views(x: Any, kernel: Pair, stride: Pair, positions: Pair) -> Any:
    """For each (i, j) of the kernel, the view (B, C, OH, OW) of the pixels of x that fall on it."""
    (sh, sw), (oh, ow) = stride, positions
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        yield i, j, x[:, :, i : i + sh * oh : sh, j : j + sw * ow : sw]


class Im2col(Op):
    """y = the windows of x (B, C, H, W) as columns (B, C KH KW, OH OW)        dx = dy added back where it was read"""

    @staticmethod
    def forward(xp, x, *, kernel, stride, padding, value=0.0):
        b, c = x.shape[:2]
        oh, ow = _positions(x.shape, kernel, stride, padding)
        if padding != (0, 0):
            x = xp.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=value)
        columns = xp.empty((b, c, *kernel, oh, ow), x.dtype)
        for i, j, view in _window_views(x, kernel, stride, (oh, ow)):
            columns[:, :, i, j] = view
        return columns.reshape(b, c * kernel[0] * kernel[1], oh * ow)

    def backward(ctx, xp, dy):
        return xp.col2im(dy, ctx.shapes[0], ctx.kernel, ctx.stride, ctx.padding)

    @staticmethod
    def samples():
        yield sample((2, 3, 5, 4), kernel=(3, 2), stride=(2, 1), padding=(1, 0), value=1.5)
        yield sample((1, 2, 3, 3), kernel=(1, 1), stride=(1, 1), padding=(0, 0))


class Col2im(Op):
    """y = columns (B, C KH KW, OH OW) added back into an image (B, C, H, W)        dx = im2col(dy); its adjoint"""

    @staticmethod
    def forward(xp, x, *, shape, kernel, stride, padding):
        (b, c, h, w), (ph, pw) = shape, padding
        oh, ow = _positions(shape, kernel, stride, padding)
        columns = x.reshape(b, c, *kernel, oh, ow)
        image = xp.zeros((b, c, h + 2 * ph, w + 2 * pw), x.dtype)
        for i, j, view in _window_views(image, kernel, stride, (oh, ow)):
            view += columns[:, :, i, j]
        return image[:, :, ph : ph + h, pw : pw + w]

    def backward(ctx, xp, dy):
        return xp.im2col(dy, ctx.kernel, ctx.stride, ctx.padding)

    @staticmethod
    def samples():
        yield sample((2, 18, 4), shape=(2, 3, 4, 4), kernel=(3, 2), stride=(2, 2), padding=(1, 0))


class Conv2d(Op):
    """y = W columns + b        dcolumns = W^T dy,  dW = sum over the batch of dy columns^T,  db = sum dy

    with columns = im2col(x), and W (O, C KH KW) and y (B, O, OH OW) in matrix form.
    """

    autocast = "narrow"
    saves = ("x for weight", "weight for x")
    kernel = "conv2d"
    letters = ("x: B C y x", "weight: O C i j", "bias: O", "out: B O y x")
    fault = Fault(
        right="db = xp.sum(dy, axis=(0, 2))",
        wrong="db = xp.mean(dy, axis=(0, 2))",
        mistake="the gradient of the bias is averaged over the positions instead of summed",
    )

    @staticmethod
    def forward(xp, x, weight, bias, *, stride, padding):
        columns = xp.im2col(x, weight.shape[2:], stride, padding)
        y = xp.matmul(_as_matrix(xp, weight), columns)
        y = y if bias is None else y + xp.reshape(bias, (bias.shape[0], 1))
        return xp.reshape(y, (*y.shape[:2], *_positions(x.shape, weight.shape[2:], stride, padding)))

    def backward(ctx, xp, dy):
        x, weight = ctx.saved
        shape, kernel = ctx.shapes[1], ctx.shapes[1][2:]
        dy = xp.reshape(dy, (*dy.shape[:2], dy.shape[2] * dy.shape[3]))  # (B, O, OH OW)
        dx = dweight = db = None
        # y = weight @ columns + bias
        if ctx.needs[0]:
            dcolumns = xp.matmul(xp.swapaxes(_as_matrix(xp, weight), 0, 1), dy)
            dx = xp.col2im(dcolumns, ctx.shapes[0], kernel, ctx.stride, ctx.padding)
        if ctx.needs[1]:
            columns = xp.im2col(x, kernel, ctx.stride, ctx.padding)
            dweight = xp.sum(xp.matmul(dy, xp.swapaxes(columns, 1, 2)), axis=0)
            dweight = xp.reshape(dweight, shape)
        if ctx.needs[2]:
            db = xp.sum(dy, axis=(0, 2))
        return dx, dweight, db

    @staticmethod
    def samples():
        yield sample((2, 3, 5, 4), (2, 3, 3, 2), (2,), stride=(2, 1), padding=(1, 1))
        yield sample((1, 2, 3, 3), (4, 2, 1, 1), None, stride=(1, 1), padding=(0, 0))


class MaxPool2d(Op):
    """y = the largest of each window, -inf around the image        dx = dy at the largest, shared equally among ties"""

    saves = ("x", "out")
    kernel = "max_pool2d"
    letters = ("x out: B C y x",)

    @staticmethod
    def forward(xp, x, *, window, stride, padding):
        return xp.max(_windows(xp, x, window, stride, padding, _lowest(x.dtype)), axis=2)

    def backward(ctx, xp, dy):
        x, y = ctx.saved
        windows = _windows(xp, x, ctx.window, ctx.stride, ctx.padding, -np.inf)  # (B, C, K, OH, OW)
        b, c, k, oh, ow = windows.shape
        y, dy = (xp.reshape(a, (b, c, 1, oh, ow)) for a in (y, dy))
        # y = max(windows)
        ties = xp.where(windows == y, xp.ones_like(windows), 0.0)
        dwindows = ties * (dy / xp.sum(ties, axis=2, keepdims=True))
        columns = xp.reshape(dwindows, (b, c * k, oh * ow))
        return xp.col2im(columns, x.shape, ctx.window, ctx.stride, ctx.padding)

    @staticmethod
    def samples():
        yield sample((2, 2, 5, 4), window=(3, 2), stride=(2, 2), padding=(1, 0))
        yield sample((1, 1, 4, 4), window=(3, 3), stride=(1, 1), padding=(1, 1))


class AvgPool2d(Op):
    """y = the mean of each window, the zeros around it counted        dx = dy / (KH KW), added over the windows"""

    letters = ("x out: B C y x",)

    @staticmethod
    def forward(xp, x, *, window, stride, padding):
        return xp.mean(_windows(xp, x, window, stride, padding, 0.0), axis=2)

    def backward(ctx, xp, dy):
        b, c, oh, ow = dy.shape
        count = ctx.window[0] * ctx.window[1]
        dwindows = xp.broadcast_to(xp.reshape(dy / count, (b, c, 1, oh * ow)), (b, c, count, oh * ow))
        columns = xp.reshape(dwindows, (b, c * count, oh * ow))
        return xp.col2im(columns, ctx.shapes[0], ctx.window, ctx.stride, ctx.padding)

    @staticmethod
    def samples():
        yield sample((2, 2, 5, 4), window=(3, 2), stride=(2, 2), padding=(1, 1))


def _as_matrix(xp, weight):
    """Filters (O, C, KH, KW) as (O, C KH KW)."""
    return xp.reshape(weight, (weight.shape[0], math.prod(weight.shape[1:])))


def _lowest(dtype: Any) -> Any:
    """Return the value that pads an image for a maximum: the lowest one of the dtype."""
    return -np.inf if dtype.kind in "fV" else np.iinfo(dtype).min if dtype.kind in "iu" else False


def _windows(xp, x, kernel, stride, padding, value):
    """The windows of x (B, C, H, W) as (B, C, KH KW, OH, OW)."""
    columns = xp.im2col(x, kernel, stride, padding, value)
    return xp.reshape(columns, (*x.shape[:2], kernel[0] * kernel[1], *_positions(x.shape, kernel, stride, padding)))


def _im2col_of_arrays(xp, x, kernel, stride, padding, value=0.0):
    return Im2col.forward(xp, x, kernel=kernel, stride=stride, padding=padding, value=value)


def _col2im_of_arrays(xp, x, shape, kernel, stride, padding):
    return Col2im.forward(xp, x, shape=shape, kernel=kernel, stride=stride, padding=padding)


Namespace.extend("im2col", _im2col_of_arrays)
Namespace.extend("col2im", _col2im_of_arrays)


# What users call ----------------------------------------------------------------------------------------------------


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Pair = 1, padding: int | Pair = 0
) -> Tensor:
    """Cross-correlate images with filters.

    x (B, C, H, W), weight (O, C, KH, KW), bias (O,) -> (B, O, OH, OW) with OH = (H + 2 padding - KH) // stride + 1.
    """
    try:
        if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1]:
            raise ValueError(
                f"conv2d: x has shape {x.shape} and weight {weight.shape}; they must be (B, C, H, W) and (O, C, KH, KW)"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"conv2d: bias has shape {bias.shape}; it must be {weight.shape[:1]}")
    except (AttributeError, TypeError) as error:
        refuse_arguments("conv2d", error, {"x": x, "weight": weight}, {"bias": bias})
    stride, padding = _fitting("conv2d", x, weight.shape[2:], stride, padding)
    return Conv2d.apply(*as_floating(x, weight, bias), stride=stride, padding=padding)


def max_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The largest value of each window of x (B, C, H, W); the stride is the window's size by default."""
    window = as_pair("max_pool2d", "kernel_size", kernel_size, 1)
    stride, padding = _fitting("max_pool2d", x, window, window if stride is None else stride, padding)
    if 2 * padding[0] > window[0] or 2 * padding[1] > window[1]:
        raise ValueError(f"max_pool2d: padding {padding} is more than half of kernel_size {window}")
    return MaxPool2d.apply(x, window=window, stride=stride, padding=padding)


def avg_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The mean of each window of x (B, C, H, W), padding counted; the stride is the window's size by default."""
    window = as_pair("avg_pool2d", "kernel_size", kernel_size, 1)
    stride, padding = _fitting("avg_pool2d", x, window, window if stride is None else stride, padding)
    return AvgPool2d.apply(x, window=window, stride=stride, padding=padding)


def im2col(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, value: float = 0.0) -> Tensor:
    """The windows of x (B, C, H, W), padded with `value`, as columns (B, C KH KW, OH OW)."""
    kernel, value = as_pair("im2col", "kernel", kernel, 1), number("im2col: value", value)
    stride, padding = _fitting("im2col", x, kernel, stride, padding)
    return Im2col.apply(x, kernel=kernel, stride=stride, padding=padding, value=value)


def col2im(x: Tensor, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Columns (B, C KH KW, OH OW) added back into an image of `shape` (B, C, H, W); integers give float32."""
    shape, kernel = integers("col2im: shape", shape), as_pair("col2im", "kernel", kernel, 1)
    stride, padding = as_pair("col2im", "stride", stride, 1), as_pair("col2im", "padding", padding, 0)
    x = x if isinstance(x, Tensor) else as_operand("col2im", "x", x)
    return Col2im.apply(as_floating(x), shape=shape, kernel=kernel, stride=stride, padding=padding)


def _fitting(
    name: str, x: Tensor, kernel: tuple[int, ...], stride: int | Pair, padding: int | Pair
) -> tuple[Pair, Pair]:
    stride, padding = as_pair(name, "stride", stride, 1), as_pair(name, "padding", padding, 0)
    try:
        fits = x.ndim == 4 and all(n + 2 * p >= k for n, k, p in zip(x.shape[2:], kernel, padding, strict=True))
    except (AttributeError, TypeError) as error:
        refuse_arguments(name, error, {"x": x})
    if not fits:
        raise ValueError(
            f"{name}: a window of {kernel} does not fit x of shape {x.shape} (B, C, H, W) with padding {padding}"
        )
    return stride, padding
