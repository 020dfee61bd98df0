"""Where values lie: views of other values, or buffers of one piece of memory, used again when they are free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import NUMPY
from .graph import Graph, Ref, Sizes, Step, at, leaves, mapped

ALIGNED = 64  # bytes; buffers begin on a cache line


@dataclass(eq=False)
class Buffer:
    """A part of the memory.

    Attributes
    ----------
    size : in bytes.  first, last : the steps between which something in it is needed, both included.
    offset : where it begins in the memory; set by `place`.
    """

    size: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class Spot:
    """Where a value is: which root it lies in, its first byte there, shape, strides and dtype.

    `root` is a Buffer, the number of an input, or None for a constant, whose `array` is given.
    """

    root: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    array: np.ndarray | None = None

    def view(self, memory: np.ndarray) -> np.ndarray:
        """Return the value as a view of the bytes of its root."""
        if self.array is not None:
            return self.array
        return np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides)


def dense(root: Any, shape: tuple[int, ...], dtype: np.dtype) -> Spot:
    """Return the place of a contiguous array that fills its root."""
    return Spot(root, 0, shape, np.empty(shape, dtype).strides if 0 in shape else _steps(shape, dtype), dtype)


def _steps(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    steps, step = [], dtype.itemsize
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


class Layout:
    """The places of the values of a graph for some sizes, filled step by step.

    Attributes
    ----------
    buffers : the parts of the memory.  bytes : how much memory they need together, after `place`.
    spots : the place of each value by number.
    """

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.graph, self.sizes = graph, sizes
        self.buffers: list[Buffer] = []
        self.bytes = 0
        self.spots: dict[int, Spot] = {}
        self.last_use: dict[int, int] = {}
        for i, step in enumerate(graph.steps):
            self.last_use.update(dict.fromkeys((*step.reads, *step.outputs), i))
        self.last_use.update(dict.fromkeys(graph.outputs, len(graph.steps)))
        for position, number in enumerate(graph.inputs):
            value = graph.values[number]
            self.spots[number] = dense(position, self.shape_of(number), value.dtype)
        for number, value in enumerate(graph.values):
            if value.array is not None and number not in self.spots:
                self.spots[number] = _constant(value.array)

    def shape_of(self, number: int) -> tuple[int, ...]:
        """Return the shape of a value for these sizes."""
        shape: tuple[int, ...] = at(self.graph.values[number].shape, self.sizes)
        return shape

    def arguments(self, step: Step) -> tuple[Any, Any]:
        """Return the inputs and params of a step for these sizes, with a `Spot` in the place of each array."""

        def spot(leaf: Any) -> Any:
            return self.spots[leaf.number] if isinstance(leaf, Ref) else leaf

        found: tuple[Any, Any] = mapped(at((step.inputs, step.params), self.sizes), spot)
        return found

    def new(self, i: int, shape: tuple[int, ...], dtype: np.dtype, order: Sequence[int] | None = None) -> Spot:
        """Return the place of a new value that step `i` writes; with `order`, its axes lie in memory in that order."""
        shape_in_memory = shape if order is None else tuple(shape[a] for a in order)
        buffer = Buffer(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, i, i)
        self.buffers.append(buffer)
        spot = dense(buffer, shape_in_memory, dtype)
        if order is None:
            return spot
        back = np.argsort(order)
        return Spot(buffer, 0, shape, tuple(spot.strides[int(a)] for a in back), dtype)

    def keep(self, number: int, spot: Spot) -> None:
        """Let `spot` be the place of a value."""
        self.spots[number] = spot
        if isinstance(spot.root, Buffer):
            spot.root.last = max(spot.root.last, self.last_use[number])

    def views(self, step: Step, inputs: Sequence[Any], params: Any) -> list[Spot] | None:
        """Return the places of what an operation gives, if these are views of its input.

        The operation's own rule is run on an array that lies like the input; nothing of it is read.
        """
        (x,) = inputs
        if x.array is not None:
            outputs = step.call.run(NUMPY, [x.array], params)
            return [_constant(y) for y in outputs]
        reach = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if n) if 0 not in x.shape else 0
        memory = np.empty(reach + x.dtype.itemsize, np.uint8)
        pretended = np.ndarray(x.shape, x.dtype, memory, 0, x.strides)
        outputs = step.call.run(NUMPY, [pretended], params)
        start = memory.__array_interface__["data"][0]
        found = []
        for y in outputs:
            offset = y.__array_interface__["data"][0] - start
            if y.size and not (0 <= offset < memory.size and np.may_share_memory(y, memory)):
                return None
            found.append(Spot(x.root, x.offset + (offset if y.size else 0), y.shape, y.strides, y.dtype))
        return found

    def place(self) -> None:
        """Choose the offsets of all buffers."""
        self.bytes = place(self.buffers)


def place(buffers: Sequence[Buffer]) -> int:
    """Choose the offsets of buffers, and return how many bytes they need together.

    Buffers that are needed at the same time never overlap. Larger ones are placed first, each at the lowest offset at
    which it fits (Pisarchyk and Lee, Efficient memory management for deep neural net inference, 2020).
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        offset = 0
        for other in sorted(placed, key=lambda b: b.offset):
            if other.first <= buffer.last and buffer.first <= other.last:
                if offset + buffer.size <= other.offset:
                    break
                offset = max(offset, -(-(other.offset + other.size) // ALIGNED) * ALIGNED)
        buffer.offset = offset
        placed.append(buffer)
    return max((b.offset + b.size for b in placed), default=0)


def _constant(array: np.ndarray) -> Spot:
    return Spot(None, 0, array.shape, array.strides, array.dtype, array)


def is_view(step: Step) -> bool:
    """Return whether an operation can give a view of its only input."""
    return (
        step.is_operation
        and step.call.view
        and len(step.inputs) == 1
        and not any(isinstance(leaf, Ref) for leaf in leaves(step.params))
    )


def planned(graph: Graph, sizes: Sizes) -> Layout:
    """Return a layout in which each step writes to buffers of its own, unless it gives views of its input."""
    layout = Layout(graph, sizes)
    for i, step in enumerate(graph.steps):
        inputs, params = layout.arguments(step)
        views = layout.views(step, inputs, params) if is_view(step) else None
        for k, number in enumerate(step.outputs):
            value = graph.values[number]
            layout.keep(number, views[k] if views else layout.new(i, layout.shape_of(number), value.dtype))
    layout.place()
    return layout
