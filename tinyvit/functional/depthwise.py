"""Depthwise convolution of tokens: each channel of a grid has a small filter of its own."""

import itertools
from typing import Any

from ..backend import Namespace
from ..engine import Op, Tensor
from .arguments import refuse_arguments
from .constants import as_floating
from .samples import sample
from .teaching import Fault


def _shifted(xp, x, kernel):
    """For each (i, j) of the kernel, in order, what it is multiplied with: x (B, H, W, C) moved, zeros around it."""
    (kh, kw), (h, w) = kernel, x.shape[1:3]
    padded = xp.pad(x, ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0)))
    for i, j in itertools.product(range(kh), range(kw)):
        yield padded[:, i : i + h, j : j + w]


class DepthwiseConv(Op):
    """y(p) = sum over s of w(s) x(p + s) + b, in each channel        dx(p) = sum over s of w(-s) dy(p + s)

    dw(s) = sum over the batch and all p of dy(p) x(p + s),  db = sum dy
    """

    autocast = "wide"
    saves = ("x for weight", "weight for x")
    kernel = "depthwise_conv"
    letters = ("x: B y x C", "weight: C 1 i j", "bias: C", "out: B y x C")
    fault = Fault(
        right="dx = xp.depthwise_conv(dy, xp.flip(weight, axis=(2, 3)), None)",
        wrong="dx = xp.depthwise_conv(dy, weight, None)",
        mistake="the filter is not flipped: each weight meets the gradient from the opposite side",
    )

    @staticmethod
    def forward(xp, x, weight, bias):
        kernel = weight.shape[2:]
        taps = xp.reshape(xp.transpose(weight, (2, 3, 1, 0)), (kernel[0] * kernel[1], weight.shape[0]))
        y = 0 if bias is None else bias
        for k, moved in enumerate(_shifted(xp, x, kernel)):
            y = moved * taps[k] + y
        return y

    def backward(ctx, xp, dy):
        x, weight = ctx.saved
        dx = dweight = db = None
        # y(p) = sum over s of w(s) x(p + s) + b
        if ctx.needs[0]:
            dx = xp.depthwise_conv(dy, xp.flip(weight, axis=(2, 3)), None)
        if ctx.needs[1]:
            parts = [xp.sum(dy * moved, axis=(0, 1, 2)) for moved in _shifted(xp, x, ctx.shapes[1][2:])]
            dweight = xp.reshape(xp.stack(parts, axis=-1), ctx.shapes[1])
        if ctx.needs[2]:
            db = xp.sum(dy, axis=(0, 1, 2))
        return dx, dweight, db

    @staticmethod
    def samples():
        yield sample((2, 4, 3, 5), (5, 1, 3, 3), (5,))
        yield sample((1, 2, 2, 3), (3, 1, 1, 5), None)


Namespace.extend("depthwise_conv", DepthwiseConv.forward)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-correlate each channel of a grid of tokens with a filter of its own.

    x (B, H, W, C), channels last, as tokens lie in memory; weight (C, 1, KH, KW) with odd KH and KW; bias (C,) ->
    (B, H, W, C). There are zeros around the grid. The weights are those of a convolution of images with `groups` = C.
    """
    try:
        ok = x.ndim == 4 and weight.ndim == 4 and weight.shape[:2] == (x.shape[3], 1)
        if not ok or not all(k % 2 for k in weight.shape[2:]):
            raise ValueError(
                f"depthwise_conv: x has shape {x.shape} and weight {weight.shape}; they must be (B, H, W, C) and "
                "(C, 1, KH, KW), with odd KH and KW"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"depthwise_conv: bias has shape {bias.shape}; it must be {weight.shape[:1]}")
        return DepthwiseConv.apply(*as_floating(x, weight, bias))
    except (AttributeError, TypeError) as error:
        given: dict[str, Any] = {"x": x, "weight": weight}
        refuse_arguments("depthwise_conv", error, given, {"bias": bias})
