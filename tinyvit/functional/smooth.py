"""Smooth functions of one variable: the exponential, logarithm, square root, tanh, sigmoid and error function."""

import math
from typing import Any

from ..backend import Namespace
from ..engine import Op, Tensor
from .constants import as_floating
from .samples import sample

_TWO_OVER_SQRT_PI = 2 / math.sqrt(math.pi)


class Exp(Op):
    """y = exp x        dx = dy y"""

    autocast = "wide"
    saves = ("out",)

    @staticmethod
    def forward(xp, x):
        return xp.exp(x)

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return dy * y

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample(())


class Log(Op):
    """y = log x        dx = dy / x"""

    autocast = "wide"
    saves = ("x",)

    @staticmethod
    def forward(xp, x):
        return xp.log(x)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        return dy / x

    @staticmethod
    def samples():
        yield sample((3, 4), low=0.5)


class Sqrt(Op):
    """y = sqrt x        dx = dy / (2 y)"""

    saves = ("out",)

    @staticmethod
    def forward(xp, x):
        return xp.sqrt(x)

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return dy / (2 * y)

    @staticmethod
    def samples():
        yield sample((3, 4), low=0.5)


class Tanh(Op):
    """y = tanh x        dx = dy (1 - y^2)"""

    saves = ("out",)

    @staticmethod
    def forward(xp, x):
        return xp.tanh(x)

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return dy * (1 - y * y)

    @staticmethod
    def samples():
        yield sample((3, 4))


class Sigmoid(Op):
    """y = 1 / (1 + exp(-x))        dx = dy y (1 - y)"""

    saves = ("out",)

    @staticmethod
    def forward(xp, x):
        e = xp.exp(-xp.abs(x))  # never overflows
        return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))

    def backward(ctx, xp, dy):
        (y,) = ctx.saved
        return dy * y * (1 - y)

    @staticmethod
    def samples():
        yield sample((3, 4))


Namespace.extend("sigmoid", Sigmoid.forward)


class Erf(Op):
    """y = erf x = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x        dx = dy 2/sqrt(pi) exp(-x^2)"""

    saves = ("x",)

    @staticmethod
    def forward(xp, x):
        return xp.erf(x)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        return dy * (_TWO_OVER_SQRT_PI * xp.exp(-(x * x)))

    @staticmethod
    def samples():
        yield sample((3, 4))


# What users call ----------------------------------------------------------------------------------------------------


def exp(x: Any) -> Tensor:
    """e ** x."""
    return Exp.apply(as_floating(x))


def log(x: Any) -> Tensor:
    """The natural logarithm of x."""
    return Log.apply(as_floating(x))


def sqrt(x: Any) -> Tensor:
    """The square root of x."""
    return Sqrt.apply(as_floating(x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent of x."""
    return Tanh.apply(as_floating(x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return Sigmoid.apply(as_floating(x))


def erf(x: Any) -> Tensor:
    """The error function of x."""
    return Erf.apply(as_floating(x))
