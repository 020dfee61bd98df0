"""The elements that each element of a result was computed from, so that the page can unfold any number into its terms.

Those of elementwise functions, matrix products and reductions follow from shapes. A function that only moves elements,
such as reshape, is run on an array of element numbers: the result says where each element came from.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...backend import NUMPY
from .axes import reduced_by
from .steps import Operand, Step


@dataclass(frozen=True)
class Link:
    """How the elements of a result depend on those of the operands (the arrays among them, in order).

    Attributes
    ----------
    kind : one of
        "each", elementwise with broadcasting: `sign` is + - * / neg, or the name of a function;
        "matmul";
        "reduce", over `axes`, by the function `sign`;
        "move": for each element of the result, `source` has the number of an element of the operands, counted through
        all of them, or -1 for a constant;
        "view", a move whose source is `start` plus, for each axis, its index times an increment in `axes`;
        "scatter": for each element of the operand, `source` has the number of the element of the result that it is
        added to, or -1 for none;
        "none", where the page cannot unfold the result.
    """

    kind: str
    sign: str = ""
    axes: tuple[int, ...] = ()
    start: int = 0
    source: np.ndarray | None = field(default=None, compare=False)


def no_link(step: Step) -> Link:
    return Link("none")


def elementwise(step: Step, sign: str = "") -> Link:
    return Link("each", sign or _name(step))


def product(step: Step) -> Link:
    return Link("matmul")


def reduction(step: Step) -> Link:
    return Link("reduce", _name(step), tuple(sorted(reduced_by(step))))


def sum_of_repeated(step: Step) -> Link:
    """`sum_to_shape`: a sum over the axes that broadcasting added or repeated."""
    before, after = np.shape(step.arrays[0].value), np.shape(step.value)
    extra = len(before) - len(after)
    repeated = (i + extra for i, n in enumerate(after) if n == 1 and before[i + extra] != 1)
    return Link("reduce", "sum", (*range(extra), *repeated))


def moved_by(run: Callable[..., Any]) -> Callable[[Step], Link]:
    """The link of a function that only moves elements: `run(step, *operands)` moves element numbers in the same way."""

    def link(step: Step) -> Link:
        moved = np.asarray(run(step, *_numbered(step.operands)[0]))
        return _as_view(moved) or Link("move", source=np.ascontiguousarray(moved, np.int32))

    return link


@moved_by
def move(step: Step, *operands: Any) -> Any:
    """The function itself moves the numbers."""
    return getattr(NUMPY, _name(step))(*operands, **step.params)


@moved_by
def hand_on(step: Step, x: np.ndarray, *_: Any) -> Any:
    """Every element stays where it is."""
    return x


@moved_by
def move_to_shape(step: Step, x: np.ndarray, *_: Any) -> Any:
    return x.reshape(np.shape(step.value))


@moved_by
def move_padded(step: Step, *operands: Any) -> Any:
    return NUMPY.pad(*operands, **(step.params | {"constant_values": -1}))


@moved_by
def move_split(step: Step, *operands: Any) -> Any:
    """The part that this step is, by the number at the end of its function's name, "split[1]"."""
    return NUMPY.split(*operands, **step.params)[int(step.function.partition("[")[2][:-1])]


@moved_by
def move_windows(step: Step, *operands: Any) -> Any:
    return NUMPY.im2col(*operands[:4], -1)


@moved_by
def pick(step: Step, x: np.ndarray) -> Any:
    """x[index]."""
    return x[_plain_index(step.params["index"])]


@moved_by
def put(step: Step, x: np.ndarray, value: Any) -> Any:
    """x with x[index] = value; a value that is not an array is a constant."""
    moved = x.copy()
    moved[_plain_index(step.params["index"])] = value if isinstance(value, np.ndarray) else -1
    return moved


def scatter_windows(step: Step) -> Link:
    """`col2im` adds to where its adjoint `im2col` reads from."""
    _, _, kernel, stride, padding = step.operands
    return _scatter(step, NUMPY.im2col(_result_numbers(step), kernel, stride, padding, -1))


def scatter_index(step: Step) -> Link:
    return _scatter(step, _result_numbers(step)[step.operands[1]])


def _scatter(step: Step, target: np.ndarray) -> Link:
    target = np.broadcast_to(target, step.arrays[0].value.shape)
    return Link("scatter", source=np.ascontiguousarray(target, np.int32))


def _result_numbers(step: Step) -> np.ndarray:
    return np.arange(np.size(step.value), dtype=np.int64).reshape(np.shape(step.value))


def _name(step: Step) -> str:
    return step.function.partition("[")[0]


def _numbered(operands: Any, start: int = 0) -> tuple[list[Any], int]:
    """The operands with arrays of element numbers, counted through, in place of arrays; and the next number."""
    out: list[Any] = []
    for x in operands:
        if isinstance(x, Operand):
            size = int(np.size(x.value))
            out.append(np.arange(start, start + size, dtype=np.int64).reshape(np.shape(x.value)))
            start += size
        elif isinstance(x, tuple):
            inner, start = _numbered(x, start)
            out.append(tuple(inner))
        else:
            out.append(x)
    return out, start


def _plain_index(index: Any) -> tuple[Any, ...]:
    """An index with arrays in place of operands."""
    return tuple(i.value if isinstance(i, Operand) else i for i in (index if isinstance(index, tuple) else (index,)))


def _as_view(source: np.ndarray) -> Link | None:
    """The element numbers as start + increments . index, if they have that form: it is much smaller on the page."""
    if source.size == 0:
        return None
    start = int(source.flat[0])
    increments = []
    for axis, n in enumerate(source.shape):
        one = [0] * source.ndim
        one[axis] = 1 if n > 1 else 0
        increments.append(int(source[tuple(one)]) - start)
    expected = np.full(source.shape, start)
    for axis, (n, increment) in enumerate(zip(source.shape, increments, strict=True)):
        expected += increment * np.arange(n).reshape([-1 if a == axis else 1 for a in range(source.ndim)])
    return Link("view", axes=tuple(increments), start=start) if np.array_equal(expected, source) else None
