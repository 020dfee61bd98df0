"""Activation functions, softmax among them."""

import math
from typing import Any

import numpy as np

from ..backend import Namespace
from ..engine import Op, Tensor
from .arguments import Axis, one_of, reduced_axes, refuse_arguments
from .constants import as_floating
from .reduction import largest
from .samples import sample
from .shape import reshape
from .teaching import Fault, Question

_SQRT_HALF = math.sqrt(1 / 2)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_ONE_OVER_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_GELU_CUBIC = 0.044715
_SILU_EDGE = 1000.0  # from here on sigmoid is 1, and below its negative 0, in every dtype
_GELU_EDGE = 64.0  # from here on P(x) is 1 to the last bit, and x^3 is far from overflow


def _middle_zero(ctx, gradient):
    """The index of the middle one of the elements that relu cut to 0."""
    (y,) = ctx.saved
    zeros = np.argwhere(y == 0)
    return tuple(zeros[len(zeros) // 2]) if len(zeros) else None


_CUT = Question(
    "the output at {index} is 0. Which gradient comes back there?",
    "Where relu gave 0, its input could move without changing anything.",
    "dx",
    options=("0", "that of the output", "half of it"),
    element=_middle_zero,
)


class Relu(Op):
    """y = max(x, 0)        dx = dy where x > 0"""

    saves = ("out",)
    letters = ("x out: usually B C y x",)
    is_activation = True
    fault = Fault(
        right="xp.where(y > 0, dy, 0.0)",
        wrong="xp.where(y >= 0, dy, 0.0)",
        mistake="the gradient passes through where the output was cut to 0",
    )
    questions = (_CUT, _CUT)

    @staticmethod
    def forward(xp, x):
        return xp.maximum(x, 0)

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return xp.where(y > 0, dy, 0.0)

    @staticmethod
    def samples():
        yield sample((3, 4))


class Silu(Op):
    """y = x s,  s = sigmoid(x)        dx = dy s (1 + x (1 - s))"""

    saves = ("x",)
    is_activation = True

    @staticmethod
    def forward(xp, x):
        return xp.maximum(x, -_SILU_EDGE) * xp.sigmoid(x)  # below it sigmoid is 0, and -inf * 0 would be NaN

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        # y = x * sigmoid(x)
        s = xp.sigmoid(x)
        x = xp.clip(x, -_SILU_EDGE, _SILU_EDGE)  # beyond the edges the slope is 0 or 1, and inf * 0 would be NaN
        return dy * (s * (1 + x * (1 - s)))

    @staticmethod
    def samples():
        yield sample((3, 4))


def _gelu(xp, x, approximate):
    # Below the edge y is 0, and -inf * 0 would be NaN. P(x) comes first: one array less is held at a time.
    if approximate == "tanh":
        return (1 + _gelu_tanh(xp, xp.clip(x, -_GELU_EDGE, _GELU_EDGE))) * (0.5 * xp.maximum(x, -_GELU_EDGE))
    return _normal_cdf(xp, x) * xp.maximum(x, -_GELU_EDGE)


def _gelu_slope(xp, x, approximate):
    """d gelu(x) / dx."""
    x = xp.clip(x, -_GELU_EDGE, _GELU_EDGE)  # beyond the edges the slope is 0 or 1, and powers of x would overflow
    if approximate == "tanh":
        # y = x (1 + t) / 2,  t = tanh(u),  u = sqrt(2/pi) (x + c x^3)
        t = _gelu_tanh(xp, x)
        du = _SQRT_2_OVER_PI * (1 + (3 * _GELU_CUBIC) * (x * x))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du
    # y = x P(x),  P' = exp(-x^2 / 2) / sqrt(2 pi)
    return _normal_cdf(xp, x) + x * (_ONE_OVER_SQRT_2PI * xp.exp(-0.5 * (x * x)))


def _gelu_tanh(xp, x):
    return xp.tanh(_SQRT_2_OVER_PI * (x + _GELU_CUBIC * (x * x * x)))


def _normal_cdf(xp, x):
    return 0.5 + 0.5 * xp.erf(_SQRT_HALF * x)


_FAULT = Fault(
    right="_normal_cdf(xp, x) + x * (_ONE_OVER_SQRT_2PI * xp.exp(-0.5 * (x * x)))",
    wrong="_normal_cdf(xp, x) + _ONE_OVER_SQRT_2PI * xp.exp(-0.5 * (x * x))",
    mistake="the product rule on x P(x) gives P + x P'; the factor x is missing",
    function="_gelu_slope",
)


class Gelu(Op):
    """y = x P(x),  P(x) = (1 + erf(x / sqrt 2)) / 2        dx = dy (P + x P'),  P' = exp(-x^2 / 2) / sqrt(2 pi)

    approximate="tanh": P(x) = (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2.
    """

    autocast = "narrow"
    saves = ("x",)
    kernel = "gelu"
    is_activation = True
    fault = _FAULT

    @staticmethod
    def forward(xp, x, *, approximate="none"):
        return _gelu(xp, x, approximate)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        return dy * _gelu_slope(xp, x, ctx.approximate)

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((3, 4), approximate="tanh")


class BiasGelu(Op):
    """y = gelu(x + b)        dx = dy gelu'(x + b),  db = sum of dx over all rows"""

    autocast = "narrow"
    saves = ("x", "bias")
    kernel = "bias_gelu"
    is_activation = True
    fault = _FAULT

    @staticmethod
    def forward(xp, x, bias, *, approximate="none"):
        return _gelu(xp, x + bias, approximate)

    def backward(ctx, xp, dy):
        x, bias = ctx.saved
        # y = gelu(x + bias)
        dx = dy * _gelu_slope(xp, x + bias, ctx.approximate)
        return dx, xp.sum_to_shape(dx, bias.shape)

    @staticmethod
    def samples():
        yield sample((2, 3, 4), (4,))
        yield sample((5, 4), (4,), approximate="tanh")


class Softmax(Op):
    """y = exp x / sum(exp x) along an axis        dx = y (dy - sum(dy y))"""

    autocast = "wide"
    saves = ("out",)
    kernel = "softmax"
    fault = Fault(
        right="y * (dy - xp.sum(dy * y, axis=ctx.axis, keepdims=True))",
        wrong="y * dy",
        mistake="softmax was differentiated as if its divisor were a constant",
    )

    @staticmethod
    def forward(xp, x, *, axis=-1):
        e = xp.exp(x - largest(xp, x, axis))
        return e / xp.sum(e, axis=axis, keepdims=True)

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        # dy_i / dx_j = y_i (delta_ij - y_j)
        return y * (dy - xp.sum(dy * y, axis=ctx.axis, keepdims=True))

    @staticmethod
    def samples():
        yield sample((3, 5))
        yield sample((2, 3, 4), axis=1)


class LogSoftmax(Op):
    """y = x - log(sum(exp x)) along an axis        dx = dy - exp(y) sum(dy)"""

    autocast = "wide"
    saves = ("out",)

    @staticmethod
    def forward(xp, x, *, axis=-1):
        shifted = x - largest(xp, x, axis)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return dy - xp.exp(y) * xp.sum(dy, axis=ctx.axis, keepdims=True)

    @staticmethod
    def samples():
        yield sample((3, 5))
        yield sample((2, 3, 4), axis=0)


Namespace.extend("log_softmax", LogSoftmax.forward)


# What users call ----------------------------------------------------------------------------------------------------


def relu(x: Any) -> Tensor:
    """max(x, 0)."""
    return Relu.apply(x)


def silu(x: Any) -> Tensor:
    """x * sigmoid(x) (Elfwing et al., 2017)."""
    return Silu.apply(as_floating(x))


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit (Hendrycks and Gimpel, 2016), exact ("none") or by their formula with "tanh"."""
    return Gelu.apply(as_floating(x), approximate=one_of("gelu: approximate", approximate, ("none", "tanh")))


def bias_gelu(x: Any, bias: Any, approximate: str = "none") -> Tensor:
    """gelu(x + bias) in one operation: x (..., C), bias (C,)."""
    try:
        if bias.ndim != 1 or x.ndim == 0 or x.shape[-1] != bias.shape[0]:
            raise ValueError(f"bias_gelu: x has shape {x.shape} and bias {bias.shape}; they must be (..., C) and (C,)")
    except (AttributeError, TypeError) as error:
        refuse_arguments("bias_gelu", error, {"x": x, "bias": bias})
    return BiasGelu.apply(
        *as_floating(x, bias), approximate=one_of("bias_gelu: approximate", approximate, ("none", "tanh"))
    )


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, without overflow; NaN where all of x is -inf."""
    return _along(Softmax, as_floating(x), reduced_axes("softmax", x, axis))


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)) along `axis`, without overflow or cancellation."""
    return _along(LogSoftmax, as_floating(x), reduced_axes("log_softmax", x, axis))


def _along(op: type[Op], x: Any, axis: Axis) -> Tensor:
    """Apply a kind of softmax along one axis; a scalar is a row of one element."""
    if isinstance(axis, int):
        return op.apply(x, axis=axis)
    if axis is not None or np.ndim(x) > 0:
        raise TypeError(f"{op.name}: axis is {axis}; it must be one integer")
    return reshape(op.apply(reshape(x, 1), axis=0), ())
