"""Operations that choose between elements: maximum, minimum, where, and clip."""

from typing import Any

import numpy as np

from ..engine import Op, Tensor
from .arguments import as_operand
from .constants import constant
from .samples import sample


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
