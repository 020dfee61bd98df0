"""Operations that reduce axes, and broadcasting, their adjoint."""

import functools
import math
from typing import Any

from ..backend import Namespace
from ..backend.checks import finite_number, flag, integer
from ..engine import Op, Tensor
from .arguments import Axis, integers, reduced_axes, refuse_arguments
from .constants import as_floating
from .samples import sample
from .shape import reshape
from .teaching import Fault


@functools.lru_cache  # each step asks for the same few shapes
def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction of `shape` over `axis` with keepdims=True."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % len(shape) for a in axes}
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


@functools.lru_cache
def _count(shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements of `shape` are reduced to one over `axis`."""
    return math.prod(n for n, k in zip(shape, _kept(shape, axis), strict=True) if k == 1)


def _freedom(shape: tuple[int, ...], axis: Axis, correction: float) -> float:
    """Return the divisor of a variance, n - correction; 0, as in NumPy, where that is negative."""
    left = _count(shape, axis) - correction
    return left if left > 0 else 0


def largest(xp: Any, x: Any, axis: Axis) -> Any:
    """The largest element over `axis`, which is kept; -inf where there is none."""
    if _count(x.shape, axis) == 0:
        return xp.zeros(_kept(x.shape, axis), x.dtype) - math.inf
    return xp.max(x, axis=axis, keepdims=True)


def _repeat(ctx, xp, dy):
    """dy, one value for each reduced group, repeated over the elements of the group."""
    shape = ctx.shapes[0]
    return xp.broadcast_to(xp.reshape(dy, _kept(shape, ctx.axis)), shape)


class Sum(Op):
    """y = sum of x over axes        dx = dy, repeated over them"""

    autocast = "wide"

    @staticmethod
    def forward(xp, x, *, axis=None, keepdims=False):
        return xp.sum(x, axis=axis, keepdims=keepdims)

    def backward(ctx, xp, dy):
        return _repeat(ctx, xp, dy)

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=1)
        yield sample((2, 3, 4), axis=(0, -1), keepdims=True)


class Mean(Op):
    """y = (sum of x over axes) / n        dx = dy / n, repeated over them"""

    autocast = "wide"
    fault = Fault(
        right="dy / (_count(ctx.shapes[0], ctx.axis) or 1)",
        wrong="dy",
        mistake="the gradient is not divided by the number of elements that were averaged",
    )

    @staticmethod
    def forward(xp, x, *, axis=None, keepdims=False):
        return xp.mean(x, axis=axis, keepdims=keepdims)

    def backward(ctx, xp, dy):
        # y = sum(x) / n
        return _repeat(ctx, xp, dy / (_count(ctx.shapes[0], ctx.axis) or 1))

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=-1)
        yield sample((2, 3, 4), axis=(0, 2), keepdims=True)


class Var(Op):
    """y = sum of (x - mean)^2 / (n - correction)        dx = dy 2 (x - mean) / (n - correction)"""

    autocast = "wide"
    saves = ("x",)

    @staticmethod
    def forward(xp, x, *, axis=None, correction=0, keepdims=False):
        centered = x - xp.mean(x, axis=axis, keepdims=True)
        return xp.sum(centered * centered, axis=axis, keepdims=keepdims) / _freedom(x.shape, axis, correction)

    def backward(ctx, xp, dy):
        (x,) = ctx.saved
        # y = sum((x - mean)^2) / (n - correction); the gradient through mean is 0, since the deviations sum to 0
        centered = x - xp.mean(x, axis=ctx.axis, keepdims=True)
        freedom = _freedom(x.shape, ctx.axis, ctx.correction)
        return _repeat(ctx, xp, dy) * centered * (2 / freedom if freedom else math.inf)

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=1, correction=1)
        yield sample((2, 3, 4), axis=(0, -1), keepdims=True)


class Max(Op):
    """y = largest of x over axes        dx = dy at the largest, shared equally among ties"""

    saves = ("x", "out")

    @staticmethod
    def forward(xp, x, *, axis=None, keepdims=False):
        return xp.max(x, axis=axis, keepdims=keepdims)

    def backward(ctx, xp, dy):
        x, y = ctx.saved
        return _to_the_extreme(ctx, xp, dy, x, y)

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=(0, 2), keepdims=True)


class Min(Op):
    """y = smallest of x over axes        dx = dy at the smallest, shared equally among ties"""

    saves = ("x", "out")

    @staticmethod
    def forward(xp, x, *, axis=None, keepdims=False):
        return xp.min(x, axis=axis, keepdims=keepdims)

    def backward(ctx, xp, dy):
        x, y = ctx.saved
        return _to_the_extreme(ctx, xp, dy, x, y)

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=1, keepdims=True)


def _to_the_extreme(ctx, xp, dy, x, y):
    kept = _kept(x.shape, ctx.axis)
    ties = xp.where(x == xp.reshape(y, kept), xp.ones_like(x), 0.0)
    return ties * (xp.reshape(dy, kept) / xp.sum(ties, axis=ctx.axis, keepdims=True))


class Logsumexp(Op):
    """y = log of the sum of exp x over axes        dx = dy exp(x - y)"""

    autocast = "wide"
    saves = ("x", "out")

    @staticmethod
    def forward(xp, x, *, axis=None, keepdims=False):
        peak = largest(xp, x, axis)
        shift = xp.where(xp.abs(peak) == math.inf, 0.0, peak)
        total = xp.sum(xp.exp(x - shift), axis=axis, keepdims=True)
        y = shift + xp.where(total > 0, xp.log(xp.where(total > 0, total, 1.0)), -math.inf)
        return y if keepdims else xp.sum(y, axis=axis)

    def backward(ctx, xp, dy):
        x, y = ctx.saved
        # y = log(sum(exp(x)))
        y = xp.reshape(y, _kept(x.shape, ctx.axis))
        return _repeat(ctx, xp, dy) * xp.exp(x - xp.where(y == -math.inf, 0.0, y))

    @staticmethod
    def samples():
        yield sample((3, 4))
        yield sample((2, 3, 4), axis=-1)
        yield sample((2, 3, 4), axis=(0, 1), keepdims=True)


class Cumsum(Op):
    """y_i = x_0 + ... + x_i along an axis        dx_i = dy_i + dy_(i+1) + ...: the sums from the other end"""

    autocast = "wide"

    @staticmethod
    def forward(xp, x, *, axis):
        return xp.cumsum(x, axis=axis)

    def backward(ctx, xp, dy):
        return xp.flip(xp.cumsum(xp.flip(dy, axis=ctx.axis), axis=ctx.axis), axis=ctx.axis)

    @staticmethod
    def samples():
        yield sample((5,), axis=0)
        yield sample((2, 3, 4), axis=-2)


class BroadcastTo(Op):
    """y = x repeated to a larger shape        dx = dy summed over the repetitions"""

    view = True

    @staticmethod
    def forward(xp, x, *, shape):
        return xp.broadcast_to(x, shape)

    def backward(ctx, xp, dy):
        return xp.sum_to_shape(dy, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((3, 1), shape=(2, 3, 4))
        yield sample((), shape=(2, 2))


class SumToShape(Op):
    """y = x summed over the axes along which `shape` has to be repeated to become x's; the adjoint of broadcast_to"""

    @staticmethod
    def forward(xp, x, *, shape):
        extra = x.ndim - len(shape)
        ones = tuple(i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1)
        return xp.reshape(xp.sum(x, axis=tuple(range(extra)) + ones), shape)

    def backward(ctx, xp, dy):
        # dy broadcasts against the shape that was summed, after its trailing axes
        return xp.broadcast_to(dy, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((2, 3, 4), shape=(3, 1))
        yield sample((2, 3), shape=())


def _sum_arrays_to_shape(xp: Namespace, x: Any, shape: tuple[int, ...]) -> Any:
    return x if x.shape == shape else SumToShape.forward(xp, x, shape=shape)


Namespace.extend("sum_to_shape", _sum_arrays_to_shape)


# What users call ----------------------------------------------------------------------------------------------------


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes by default)."""
    return Sum.apply(x, axis=reduced_axes("sum", x, axis), keepdims=flag("sum: keepdims", keepdims))


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes by default)."""
    return Mean.apply(x, axis=reduced_axes("mean", x, axis), keepdims=flag("mean: keepdims", keepdims))


def var(x: Any, axis: Axis = None, correction: float = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, divided by n - correction."""
    correction = correction if type(correction) is int else finite_number("var: correction", correction)
    return Var.apply(
        x, axis=reduced_axes("var", x, axis), correction=correction, keepdims=flag("var: keepdims", keepdims)
    )


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; equal ones share the gradient."""
    return Max.apply(x, axis=reduced_axes("max", x, axis), keepdims=flag("max: keepdims", keepdims))


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; equal ones share the gradient."""
    return Min.apply(x, axis=reduced_axes("min", x, axis), keepdims=flag("min: keepdims", keepdims))


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow; -inf where all are -inf."""
    return Logsumexp.apply(
        as_floating(x), axis=reduced_axes("logsumexp", x, axis), keepdims=flag("logsumexp: keepdims", keepdims)
    )


def cumsum(x: Any, axis: int | None = None) -> Tensor:
    """Running sums along `axis`; of the flattened tensor by default, as in NumPy."""
    if axis is None or reduced_axes("cumsum", x, axis) is None:  # of a scalar, as in NumPy, one sum
        return Cumsum.apply(reshape(x, -1), axis=0)
    return Cumsum.apply(x, axis=integer("cumsum: axis", axis))


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Tensor:
    """x repeated, without a copy, to a shape that it broadcasts to."""
    return BroadcastTo.apply(x, shape=integers("broadcast_to: shape", shape))


def sum_to_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x summed to a shape that broadcasts to its own."""
    try:
        shape = shape if type(shape) is tuple else integers("sum_to_shape: shape", shape)
        return x if x.shape == shape else SumToShape.apply(x, shape=shape)
    except AttributeError as error:
        refuse_arguments("sum_to_shape", error, {"x": x})
