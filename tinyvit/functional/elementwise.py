"""Operations that act on each element by itself, with NumPy's broadcasting."""

import math
from typing import Any

import numpy as np

from .. import context
from ..backend import BFLOAT16
from ..dispatch import LARGE_SUM
from ..engine import Op, Tensor
from .arguments import as_operand
from .constants import constant
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
        yield sample((2, 3), (1, 3), low=-2.0, high=-0.5)


class Power(Op):
    """z = x^y        dx = dz y x^(y-1),  dy = dz z log x

    log x counts as 0 where x <= 0, except at x = 0 with y < 0, where z is infinite.
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
                slope = y * x ** xp.where((x == 0) & (y == 0), 1.0, y - 1.0)
            else:
                slope = y * x ** (y - 1) if y else xp.zeros_like(x)
            dx = xp.sum_to_shape(dz * slope, ctx.shapes[0])
        if ctx.needs[1]:
            log_x = xp.log(xp.where(x > 0, x, xp.ones_like(x)))
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


class Maximum(Op):
    """z = max(x, y)        the larger one gets dz, equal ones half of it each"""

    saves = ("x", "y")

    @staticmethod
    def forward(xp, x, y):
        return xp.maximum(x, y)

    def backward(ctx, xp, dz):
        x, y = ctx.saved
        return _to_the_greater(ctx, xp, dz, x, y)

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((3, 1), (4,))


class Minimum(Op):
    """z = min(x, y)        the smaller one gets dz, equal ones half of it each"""

    saves = ("x", "y")

    @staticmethod
    def forward(xp, x, y):
        return xp.minimum(x, y)

    def backward(ctx, xp, dz):
        x, y = ctx.saved
        return _to_the_greater(ctx, xp, dz, -x, -y)

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((4,), (3, 1))


def _to_the_greater(ctx, xp, dz, x, y):
    tied = xp.where(x == y, 0.5 * dz, 0.0)
    dx = xp.where(x > y, dz, tied)
    dy = xp.where(y > x, dz, tied)
    return xp.sum_to_shape(dx, ctx.shapes[0]), xp.sum_to_shape(dy, ctx.shapes[1])


class Where(Op):
    """z = x where the condition holds, else y        dx = dz there, 0 elsewhere; dy the other way round"""

    copies = ("condition",)

    @staticmethod
    def forward(xp, x, y, *, condition):
        return xp.where(condition, x, y)

    def backward(ctx, xp, dz):
        dx = xp.sum_to_shape(xp.where(ctx.condition, dz, 0.0), ctx.shapes[0]) if ctx.needs[0] else None
        dy = xp.sum_to_shape(xp.where(ctx.condition, 0.0, dz), ctx.shapes[1]) if ctx.needs[1] else None
        return dx, dy

    @staticmethod
    def samples():
        condition = np.arange(12).reshape(3, 4) % 3 == 0
        yield sample((3, 4), (3, 4), condition=condition)
        yield sample((4,), (3, 1), condition=condition)


class Clip(Op):
    """y = x limited to [lowest, highest]        dx = dy where x lies within, 0 elsewhere"""

    copies = ("lowest", "highest")

    saves = ("x",)

    @staticmethod
    def forward(xp, x, *, lowest, highest):
        return xp.clip(x, lowest, highest)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        dy = dy if ctx.lowest is None else xp.where(x >= ctx.lowest, dy, 0.0)
        return dy if ctx.highest is None else xp.where(x <= ctx.highest, dy, 0.0)

    @staticmethod
    def samples():
        yield sample((3, 4), lowest=-0.5, highest=0.75)
        yield sample((5,), lowest=None, highest=0.25)


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


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y, broadcast; equal elements share the gradient. NaN wins."""
    return Maximum.apply(x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y, broadcast; equal elements share the gradient. NaN wins."""
    return Minimum.apply(x, y)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where `condition` (a boolean array or tensor) holds, else y; all three broadcast."""
    holds = constant(condition, "where: condition")
    if holds.dtype.kind not in "biuf":
        raise TypeError(f"where: condition has dtype {holds.dtype}; it must be boolean")
    return Where.apply(x, y, condition=holds)


def clip(x: Any, min: float | None = None, max: float | None = None) -> Tensor:
    """x limited to [min, max]; None leaves that side open. The gradient is 0 outside."""
    if min is None and max is None:
        raise ValueError("clip: min and max are both None; give at least one of them")
    return Clip.apply(x, lowest=_bound("min", min), highest=_bound("max", max))


def _bound(name: str, value: Any) -> Any:
    """A bound of `clip`, which is a constant."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"clip: {name} requires a gradient; use F.maximum and F.minimum, which give it one")
    if value is None or isinstance(value, Tensor):
        return value if value is None else value.data
    as_operand("clip", name, value)  # refuses what holds no real numbers
    return value


def rounds_to_bfloat16(x: Tensor) -> bool:
    """Whether `autocast` is on, is to bfloat16, and rounds x before a matrix product."""
    return context.now().precision == BFLOAT16 and x.dtype.itemsize < 8
