"""Rows of work on fixed arrays: a call of compiled code, a copy, a sum, or a function that Python calls.

A training step is a list of such rows (see `step_trace`). `Replay` moves the arrays that only rows use into one piece
of memory, where arrays that are not needed at the same time share a place, and runs all neighbouring rows of compiled
code in one call.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels.sums import total
from .graph import leaves, mapped
from .layout import ALIGNED, Buffer, place


@dataclass(eq=False)
class Row:
    """One thing to do, with the arrays that it reads and writes.

    Attributes
    ----------
    call : COPY, ADD, SUM, a function of Numba, or a function that Python calls.
    arguments : its arguments, with arrays anywhere in them. COPY takes x and y, and sets y to x; ADD takes x, y and z,
        and sets z to x + y; SUM takes x and y, and sets y to the sum of x over its first axis.
    outputs : for a function that Python calls, the arrays into which its results are copied, in order; of a result
        that repeats elements only the first of them, see `without_repeats`.
    is_compiled : whether `call` is a function of Numba.
    """

    call: Any
    arguments: tuple[Any, ...]
    outputs: list[np.ndarray] = field(default_factory=list)
    is_compiled: bool = False

    def arrays(self) -> Iterable[np.ndarray]:
        """Yield all arrays of the row."""
        yield from (x for x in leaves(self.arguments) if isinstance(x, np.ndarray))
        yield from self.outputs

    def mapped(self, function: Callable[[Any], Any]) -> "Row":
        """Return the row with `function` applied to all that its arguments hold, and to its outputs."""
        return Row(self.call, mapped(self.arguments, function), [function(y) for y in self.outputs], self.is_compiled)

    def lowered(self) -> Any:
        """Return a call of compiled code and its arguments; None if Python has to call it."""
        from ..kernels.program import moves

        if self.is_compiled:
            return self.call, self.arguments
        if any(0 in x.shape for x in self.arrays()):
            return None
        if self.call is COPY:
            return moves.copy(*self.arguments)
        if self.call is SUM:
            return moves.sum_first(*self.arguments)
        return moves.add(*self.arguments) if self.call is ADD else None

    def run(self) -> None:
        """Do it from Python."""
        results = self.call(*self.arguments)
        for y, result in zip(self.outputs, results if self.outputs else (), strict=True):
            y[...] = result if y.shape == np.shape(result) else result[tuple([slice(n) for n in y.shape])]


def COPY(x: np.ndarray, y: np.ndarray) -> None:
    """Set y to x."""
    np.copyto(y, x)


def ADD(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Set z to x + y."""
    np.add(x, y, out=z)


def SUM(x: np.ndarray, y: np.ndarray) -> None:
    """Set y, which may have a first axis of length 1, to the sum of x over its first axis."""
    y[...] = total(x, 0).reshape(y.shape)


def root_of(array: np.ndarray) -> np.ndarray:
    """Return the array that owns the memory of `array`."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def without_repeats(array: np.ndarray) -> np.ndarray:
    """Return a view that can be written to, with one element in the place of those that NumPy repeats along an axis."""
    if array.flags.writeable:
        return array
    root = root_of(array)
    shape = [1 if step == 0 else n for n, step in zip(array.shape, array.strides, strict=True)]
    return np.ndarray(shape, array.dtype, root, address(array) - address(root), array.strides)


def address(array: np.ndarray) -> int:
    """Return where an array begins in memory."""
    place: int = array.__array_interface__["data"][0]
    return place


def run_rows(rows: Sequence[Row]) -> None:
    """Run rows one after the other, on the arrays that they name."""
    for row in rows:
        lowered = row.lowered()
        if lowered is None:
            row.run()
        else:
            compiled, arguments = lowered
            compiled(*arguments)


class Replay:
    """Rows that run again and again.

    Attributes
    ----------
    bytes : the size of the memory that they work in.
    results : the arrays whose values are wanted at the end, as they lie in that memory.
    """

    def __init__(self, rows: Sequence[Row], inner: Iterable[np.ndarray], results: Sequence[np.ndarray]) -> None:
        """Prepare rows.

        Parameters
        ----------
        inner : the arrays whose memory only the rows use.
        results : those whose values are wanted at the end.
        """
        buffers = {id(root): Buffer(root.nbytes, len(rows), -1) for root in inner}
        for i, row in enumerate(rows):
            for array in row.arrays():
                if buffer := buffers.get(id(root_of(array))):
                    buffer.first, buffer.last = min(buffer.first, i), max(buffer.last, i)
        for array in results:
            if buffer := buffers.get(id(root_of(array))):
                buffer.first, buffer.last = min(buffer.first, len(rows)), len(rows)
        self.bytes = place(list(buffers.values()))
        memory = np.zeros(self.bytes + ALIGNED, np.uint8)
        start = -address(memory) % ALIGNED
        self._memory, self._buffers = memory[start : start + self.bytes], buffers
        self._prepare([row.mapped(self._moved) for row in rows])
        self.results = [self._moved(array) for array in results]
        self._buffers = {}  # the ids in it mean nothing any more when the recorded arrays are gone

    def _moved(self, x: Any) -> Any:
        """Return an array of the rows as it lies in the memory; everything else as it is."""
        if not isinstance(x, np.ndarray):
            return x
        root = root_of(x)
        buffer = self._buffers.get(id(root))
        if buffer is None:
            return x
        made = np.ndarray(x.shape, x.dtype, self._memory, buffer.offset + address(x) - address(root), x.strides)
        made.flags.writeable = x.flags.writeable
        return made

    def _prepare(self, rows: Sequence[Row]) -> None:
        from ..kernels.program.calls import Calls

        self._rows = rows  # calls hold addresses, so the arrays have to live
        calls: list[Any] = []
        self._parts: list[tuple[int, int, Row | None]] = []  # calls from the first up to the last, or a row for Python
        for row in rows:
            lowered = row.lowered()
            if lowered is None:
                self._parts.append((0, 0, row))
                continue
            calls.append(lowered)
            if self._parts and self._parts[-1][2] is None:
                self._parts[-1] = (self._parts[-1][0], len(calls), None)
            else:
                self._parts.append((len(calls) - 1, len(calls), None))
        self._calls = Calls(calls)

    @property
    def python_calls(self) -> list[Row]:
        """The rows that Python calls."""
        return [row for *_, row in self._parts if row is not None]

    def run(self) -> None:
        """Do all rows once. Raises MemoryError if a kernel raises an error."""
        run = self._calls.run
        for first, last, row in self._parts:
            if row is None:
                run(first, last)
            else:
                row.run()
