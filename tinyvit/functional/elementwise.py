"""Arithmetic: operations that act on each element by itself, with NumPy's broadcasting."""

import math
from typing import Any

import numpy as np

from .. import context
from ..backend import BFLOAT16
from ..dispatch import LARGE_SUM
from ..engine import Op, Tensor
from .samples import sample

_IMAGES = ("x y out: usually B C y x",)


class Add(Op):
    """z = x + y        dx = dz,  dy = dz"""

    kernel = "add"
    kernel_from = LARGE_SUM
    letters = _IMAGES

    @staticmethod
    def forward(xp, x, y):
        return x + y

    def backward(ctx, xp, dz):
        # z = x + y, where a smaller x or y was repeated: its gradient is the sum over the repetitions
        return xp.sum_to_shape(dz, ctx.shapes[0]), xp.sum_to_shape(dz, ctx.shapes[1])

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((3, 1, 2), (4, 1))
        yield sample((), (2, 3))


class AddNarrow(Op):
    """z = x + y, of equal shapes, y in bfloat16 beside x in float32        dx = dz,  dy = dz in the dtype of y"""

    kernel = "add_narrow"
    narrow = ("y",)

    @staticmethod
    def forward(xp, x, y):
        return x + y

    def backward(ctx, xp, dz):
        # z = x + y
        return dz, dz

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((), ())


class Subtract(Op):
    """z = x - y        dx = dz,  dy = -dz"""

    @staticmethod
    def forward(xp, x, y):
        return x - y

    def backward(ctx, xp, dz):
        return xp.sum_to_shape(dz, ctx.shapes[0]), xp.sum_to_shape(-dz, ctx.shapes[1])

    @staticmethod
    def samples():
        yield sample((3, 4), (4,))
        yield sample((2, 1), (1, 3))


class Multiply(Op):
    """z = x y        dx = dz y,  dy = dz x"""

    saves = ("x for y", "y for x")
    letters = _IMAGES

    @staticmethod
    def forward(xp, x, y):
        return x * y

    def backward(ctx, xp, dz):
        x, y = ctx.saved
        # z = x * y
        dx = xp.sum_to_shape(dz * y, ctx.shapes[0]) if ctx.needs[0] else None
        dy = xp.sum_to_shape(dz * x, ctx.shapes[1]) if ctx.needs[1] else None
        return dx, dy

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((2, 3, 1), (3, 4))
        yield sample((1,), ())


class Divide(Op):
    """z = x / y        dx = dz / y,  dy = -dz z / y"""

    saves = ("y", "out for y")

    @staticmethod
    def forward(xp, x, y):
        return xp.true_divide(x, y)

    def backward(ctx, xp, dz):
        y, z = ctx.saved
        # z = x / y
        dx = dz / y
        dy = xp.sum_to_shape(-(dx * z), ctx.shapes[1]) if ctx.needs[1] else None
        return xp.sum_to_shape(dx, ctx.shapes[0]), dy

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4), low=0.5)
        yield sample((2, 1), (1, 3), low=-2.0, high=-0.5)


class Power(Op):
    """z = x^y        dx = dz y x^(y-1),  dy = dz z log x

    log x counts as 0 where x <= 0, except at x = 0 with y < 0, where z is infinite. Where x or y is infinite, and z or
    x^(y-1) is 0, the gradient is 0, its limit.
    """

    autocast = "wide"
    saves = ("x", "y", "out for y")

    @staticmethod
    def forward(xp, x, y):
        return x**y

    def backward(ctx, xp, dz):
        x, y, z = ctx.saved
        dx = dy = None
        if ctx.needs[0]:
            # z = x ** y; 0 ** 0 has slope 0, not 0 * 0 ** -1
            if hasattr(y, "dtype"):
                power = x ** xp.where((x == 0) & (y == 0), 1.0, y - 1.0)
                slope = xp.where((power == 0) & (xp.abs(y) == math.inf), 0.0, y) * power
            else:
                slope = y * x ** (y - 1) if y else xp.zeros_like(x)
            dx = xp.sum_to_shape(dz * slope, ctx.shapes[0])
        if ctx.needs[1]:
            log_x = xp.log(xp.where((x > 0) & ((x < math.inf) | (z != 0)), x, xp.ones_like(x)))
            log_x = xp.where((x == 0) & (y < 0), -math.inf, log_x)
            dy = xp.sum_to_shape(dz * z * log_x, ctx.shapes[1])
        return dx, dy

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4), low=0.5)
        yield sample((3, 1), (4,), low=0.5)


class Negative(Op):
    """y = -x        dx = -dy"""

    @staticmethod
    def forward(xp, x):
        return -x

    def backward(ctx, xp, dy):
        return -dy

    @staticmethod
    def samples():
        yield sample((3, 4))


class Abs(Op):
    """y = |x|        dx = dy sign x  (0 at 0)"""

    saves = ("x",)

    @staticmethod
    def forward(xp, x):
        return xp.abs(x)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        return dy * xp.sign(x)

    @staticmethod
    def samples():
        yield sample((3, 4))


# What users call ----------------------------------------------------------------------------------------------------


def add(x: Any, y: Any) -> Tensor:
    """x + y, broadcast."""
    both = isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape
    if both and x.dtype == np.float32 and y.dtype == BFLOAT16 and rounds_to_bfloat16(x):
        return AddNarrow.apply(x, y)
    return Add.apply(x, y)


def subtract(x: Any, y: Any) -> Tensor:
    """x - y, broadcast."""
    return Subtract.apply(x, y)


def multiply(x: Any, y: Any) -> Tensor:
    """x * y, broadcast."""
    return Multiply.apply(x, y)


def divide(x: Any, y: Any) -> Tensor:
    """x / y, broadcast; integers give float32."""
    return Divide.apply(x, y)


def power(x: Any, y: Any) -> Tensor:
    """x ** y, broadcast."""
    return Power.apply(x, y)


def negative(x: Any) -> Tensor:
    """-x."""
    return Negative.apply(x)


def abs(x: Any) -> Tensor:
    """|x|; the gradient at 0 is 0."""
    return Abs.apply(x)


def rounds_to_bfloat16(x: Tensor) -> bool:
    """Whether `autocast` is on, is to bfloat16, and rounds x before a matrix product."""
    return context.now().precision == BFLOAT16 and x.dtype.itemsize < 8
