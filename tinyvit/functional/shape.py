"""Operations that move elements about: reshape, transpose, join, part, pad, flip."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend.checks import integer, number
from ..engine import Op, Tensor
from .arguments import (
    axis_index,
    integers,
    is_array,
    is_sequence,
    reduced_axes,
    refuse_arguments,
)
from .constants import constant
from .samples import sample


class Reshape(Op):
    """y = x in another shape        dx = dy in x's shape"""

    view = True

    @staticmethod
    def forward(xp, x, *, shape):
        return xp.reshape(x, shape)

    def backward(ctx, xp, dy):
        return xp.reshape(dy, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((3, 4), shape=(2, 6))
        yield sample((2, 3), shape=(-1,))


class Transpose(Op):
    """y = x with its axes permuted        dx = dy permuted back"""

    view = True

    @staticmethod
    def forward(xp, x, *, axes):
        return xp.transpose(x, axes)

    def backward(ctx, xp, dy):
        # y[..., i, ...] = x axis axes[i]
        return xp.transpose(dy, tuple(int(i) for i in np.argsort(ctx.axes)))

    @staticmethod
    def samples():
        yield sample((2, 3, 4), axes=(2, 0, 1))


class Concatenate(Op):
    """y = the inputs one after the other along an axis        each gets its part of dy"""

    @staticmethod
    def forward(xp, *parts, axis):
        return xp.concatenate(parts, axis=axis)

    def backward(ctx, xp, dy):
        axis = ctx.axis % dy.ndim
        stops = list(itertools.accumulate(shape[axis] for shape in ctx.shapes))
        before = (slice(None),) * axis
        return tuple(
            dy[(*before, slice(stop - shape[axis], stop))] for stop, shape in zip(stops, ctx.shapes, strict=True)
        )

    @staticmethod
    def samples():
        yield sample((2, 3), (1, 3), (4, 3), axis=0)
        yield sample((2, 3, 1), (2, 3, 2), axis=-1)


class Stack(Op):
    """y = the inputs side by side along a new axis        each gets its slice of dy"""

    @staticmethod
    def forward(xp, *parts, axis):
        return xp.stack(parts, axis=axis)

    def backward(ctx, xp, dy):
        before = (slice(None),) * (ctx.axis % dy.ndim)
        return tuple(dy[(*before, i)] for i in range(len(ctx.shapes)))

    @staticmethod
    def samples():
        yield sample((2, 3), (2, 3), axis=0)
        yield sample((2, 3), (2, 3), (2, 3), axis=-1)


class Unbind(Op):
    """y_0, y_1, ... = the slices of x along an axis        dx = their gradients, stacked into one packed array"""

    view = True
    is_sequence = True

    @staticmethod
    def forward(xp, x, *, axis):
        before = (slice(None),) * (axis % x.ndim)
        return tuple(x[(*before, i)] for i in range(x.shape[axis]))

    def backward(ctx, xp, *dys):
        some = next(dy for dy in dys if dy is not None)
        return xp.stack([xp.zeros_like(some) if dy is None else dy for dy in dys], axis=ctx.axis)

    @staticmethod
    def samples():
        yield sample((3, 4), axis=0)
        yield sample((2, 3, 4), axis=-2)


class Split(Op):
    """y_0, y_1, ... = consecutive parts of x along an axis        dx = their gradients, concatenated"""

    view = True
    is_sequence = True

    @staticmethod
    def forward(xp, x, *, stops, axis):
        return tuple(xp.split(x, stops, axis=axis))

    def backward(ctx, xp, *dys):
        some = next(dy for dy in dys if dy is not None)
        axis = ctx.axis % some.ndim
        lengths = np.diff([0, *ctx.stops, ctx.shapes[0][axis]]).tolist()
        parts = [
            xp.zeros((*some.shape[:axis], n, *some.shape[axis + 1 :]), some.dtype) if dy is None else dy
            for dy, n in zip(dys, lengths, strict=True)
        ]
        return xp.concatenate(parts, axis=ctx.axis)

    @staticmethod
    def samples():
        yield sample((6, 2), stops=(2, 5), axis=0)
        yield sample((2, 6), stops=(3,), axis=-1)


class Pad(Op):
    """y = x with `value` around it        dx = dy without the border"""

    @staticmethod
    def forward(xp, x, *, width, value=0.0):
        return xp.pad(x, width, mode="constant", constant_values=value) if width else x.copy()  # a scalar has no axes

    def backward(ctx, xp, dy):
        return dy[tuple(slice(before, before + n) for (before, _), n in zip(ctx.width, ctx.shapes[0], strict=True))]

    @staticmethod
    def samples():
        yield sample((2, 3), width=((1, 0), (2, 3)), value=1.5)
        yield sample((3,), width=((0, 2),))


class Flip(Op):
    """y = x in reverse order along axes        dx = dy reversed"""

    view = True

    @staticmethod
    def forward(xp, x, *, axis):
        return xp.flip(x, axis=axis)

    def backward(ctx, xp, dy):
        return xp.flip(dy, axis=ctx.axis)

    @staticmethod
    def samples():
        yield sample((3, 4), axis=1)
        yield sample((2, 3, 4), axis=(0, -1))


# What users call ----------------------------------------------------------------------------------------------------


def reshape(x: Any, shape: int | Sequence[int]) -> Tensor:
    """x in another shape of the same size; one length may be -1."""
    return Reshape.apply(x, shape=integers("reshape: shape", shape))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """x with its axes permuted, reversed by default: y's axis i is x's axis axes[i]."""
    try:
        axes = range(x.ndim)[::-1] if axes is None else integers("transpose: axes", axes)
        if sorted(a + x.ndim if a < 0 else a for a in axes) != list(range(x.ndim)):
            raise ValueError(f"transpose: axes {tuple(axes)} is not a permutation of the {x.ndim} axes of x")
        return Transpose.apply(x, axes=tuple(a % x.ndim for a in axes))
    except AttributeError as error:
        refuse_arguments("transpose", error, {"x": x})


def swapaxes(x: Any, axis1: int, axis2: int) -> Tensor:
    """x with two axes exchanged."""
    try:
        axes = list(range(x.ndim))
    except (AttributeError, TypeError) as error:
        refuse_arguments("swapaxes", error, {"x": x})
    i, j = (axis_index("swapaxes", a, x.ndim, name) for a, name in ((axis1, "axis1"), (axis2, "axis2")))
    axes[i], axes[j] = axes[j], axes[i]
    return Transpose.apply(x, axes=tuple(axes))


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after the other along an existing axis."""
    return Concatenate.apply(*_some("concatenate", tensors), axis=integer("concatenate: axis", axis))


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors, all of one shape, side by side along a new axis."""
    return Stack.apply(*_some("stack", tensors), axis=integer("stack: axis", axis))


def _some(name: str, tensors: Sequence[Any]) -> Sequence[Any]:
    if isinstance(tensors, str | bytes) or not (isinstance(tensors, Sequence | Tensor) or is_array(tensors)):
        raise TypeError(f"{name}: tensors is {tensors!r}; give a list or a tuple of tensors")
    if not is_sequence(tensors):
        raise TypeError(f"{name}: tensors has no axes; give a list or a tuple of tensors")
    if len(tensors) == 0:
        raise ValueError(f"{name}: tensors is empty; give at least one")
    return tensors


def unbind(x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of x along an axis, as views; their gradient is one packed array."""
    try:
        return Unbind.apply(x, axis=axis_index("unbind", axis, x.ndim))
    except AttributeError as error:
        refuse_arguments("unbind", error, {"x": x})


def split(x: Tensor, indices_or_sections: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """x cut along an axis, into equal sections or before each of the given indices, as views."""
    try:
        axis = axis_index("split", axis, x.ndim)
        length = x.shape[axis]
    except AttributeError as error:
        refuse_arguments("split", error, {"x": x})
    numbers = integers("split: indices_or_sections", indices_or_sections)
    if not is_sequence(indices_or_sections):
        (sections,) = numbers
        if sections < 1 or length % sections:
            raise ValueError(f"split: an axis of length {length} cannot be cut into {sections} equal parts")
        step = length // sections
        stops = tuple(step * i for i in range(1, sections))
    else:
        stops = tuple(slice(None, i).indices(length)[1] for i in numbers)
        if list(stops) != sorted(stops):
            raise ValueError(f"split: indices {numbers} are not in order on an axis of length {length}")
    return Split.apply(x, stops=stops, axis=axis)


def pad(x: Tensor, pad_width: Any, value: float = 0.0) -> Tensor:
    """x with `value` around it; `pad_width` as in NumPy: a number, (before, after), or one such pair for each axis."""
    given = constant(pad_width, "pad: pad_width")
    if given.dtype.kind not in "iu":
        raise TypeError(f"pad: pad_width is {pad_width!r}; it must hold integers")
    try:
        width = np.broadcast_to(given, (x.ndim, 2))
    except AttributeError as error:
        refuse_arguments("pad", error, {"x": x})
    except ValueError:
        raise ValueError(f"pad: pad_width has shape {given.shape}; for x of shape {x.shape} it must be a number, a "
                         f"pair, or of shape {(x.ndim, 2)}") from None  # fmt: skip
    return Pad.apply(x, width=tuple((int(a), int(b)) for a, b in width), value=number("pad: value", value))


def flip(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """x in reverse order along `axis` (all axes by default)."""
    return Flip.apply(x, axis=reduced_axes("flip", x, axis))
