"""Run a program by compiled calls: a table of kernels, and plain steps from Python where there is no kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..dispatch import is_served
from ..functional.attention import Attention
from .fuse import Fused, fused
from .graph import Graph, Sizes, Step
from .layout import Buffer, Layout, Spot, is_view
from .plain import Run, runner

FLOAT = np.dtype(np.float32)


def is_compilable(graph: Graph, kernels: str) -> bool:
    """Return whether the kernels of a table compute what the model does, bit for bit."""
    if kernels not in ("auto", "numba") or not is_served("linear", FLOAT, "cpu"):
        return False
    from ..kernels.program import descriptors

    return any(descriptors.computes(step.name) for step in graph.steps)


class Weights:
    """Weights in the form in which the kernels take them, made once for all batch sizes."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def packed(self, weight: np.ndarray) -> Any:
        """Return the panels of a weight."""
        from ..kernels.program import descriptors

        found = self._made.get(id(weight))
        if found is None:
            found = self._made[id(weight)] = weight, descriptors.packed(weight)
        return found[1]


class CompiledSteps:
    """All steps of a graph for some sizes, as a table and a list of calls.

    Attributes
    ----------
    layout : where the values are in the memory that a call works in.
    """

    def __init__(self, graph: Graph, sizes: Sizes, kernels: str, weights: Weights) -> None:
        from ..kernels.cpu import threads
        from ..kernels.program import descriptors, numba_cpu

        self._run, self._team, self._describe = numba_cpu.run, threads.team, descriptors
        self.graph = fused(graph)
        self._sizes, self._kernels, self._weights = sizes, kernels, weights
        self.layout = Layout(self.graph, sizes)
        self._rows: list[Any] = []
        self.calls: list[tuple[int, int, Run | None, Step | None]] = []  # rows, or a plain step
        self._steps_of_rows: list[int] = []
        for i, step in enumerate(self.graph.steps):
            self._add(i, step)
        self.layout.place()
        self._table, self._reals = descriptors.assembled(self._rows)
        self._is_shared = any(row.is_shared for row in self._rows)
        self._outputs = list(dict.fromkeys(self.graph.outputs))
        plain = [step for *_, step in self.calls if step is not None]
        seen = {number for step in plain for number in (*step.reads, *step.outputs)} | set(self._outputs)
        self.seen = sorted(seen)
        self._free: list[_Workspace] = []

    # Making the table -------------------------------------------------------------------------------------------------

    def _add(self, i: int, step: Step) -> None:
        inputs, params = self.layout.arguments(step)
        if is_view(step) and not self._describe.computes(step.name):
            spots = self.layout.views(step, inputs, params)
            if spots is None and (copied := self._copied(i, inputs[0])) is not None:
                spots = self.layout.views(step, [copied], params)
            if spots is not None:
                for number, spot in zip(step.outputs, spots, strict=True):
                    self.layout.keep(number, spot)
                return
        if not self._add_rows(i, step, inputs, params):
            self._add_plain(i, step)

    def _copied(self, i: int, x: Spot) -> Spot | None:
        """Add a row that copies a value to memory in which its elements lie one after the other."""
        y = self.layout.new(i, x.shape, x.dtype)
        rows = self._describe.copy(self._place(x), self._place(y))
        if rows is None:
            return None
        self._extend(i, rows)
        return y

    def _extend(self, i: int, rows: Sequence[Any]) -> None:
        first = len(self._rows)
        self._rows += rows
        self._steps_of_rows += [i] * len(rows)
        if self.calls and self.calls[-1][2] is None:
            first = self.calls.pop()[0]
        self.calls.append((first, len(self._rows), None, None))

    def _add_rows(self, i: int, step: Step, inputs: Any, params: Any) -> bool:
        """Add what computes a step to the table; return False where no kernel does."""
        if not self._describe.computes(step.name):
            return False
        before = len(self.layout.buffers)
        outputs = [self._new_output(i, step, number) for number in step.outputs]
        places = [self._place(spot) for spot in outputs]
        if step.call is Attention:  # and what it returns beside its output
            places.append(self._place(self.layout.new(i, outputs[0].shape[:3], FLOAT)))
        given = [self._place(x) if isinstance(x, Spot) else x for x in inputs]
        given = [self._number(x) if isinstance(x, int | float) else x for x in given]
        named = {key: self._place(x) if isinstance(x, Spot) else x for key, x in params.items()}
        rows = self._describe.describe(step.name, given, named, places, self._weights.packed)
        if rows is None:
            del self.layout.buffers[before:]
            return False
        self._extend(i, rows)
        for number, spot in zip(step.outputs, outputs, strict=True):
            self.layout.keep(number, spot)
        return True

    def _number(self, x: float) -> Any:
        """Return the place of a number, which takes the dtype of the array that it meets."""
        return self._describe.of_array(np.full((), x, FLOAT))

    def _new_output(self, i: int, step: Step, number: int) -> Spot:
        """Return the place of an output; that of attention lies in memory so that merging the heads is a view."""
        shape = self.layout.shape_of(number)
        order = (0, 2, 1, 3) if step.call is Attention and len(shape) == 4 else None
        return self.layout.new(i, shape, self.graph.values[number].dtype, order)

    def _add_plain(self, i: int, step: Step) -> None:
        for part in step.call.parts if isinstance(step.call, Fused) else (step,):
            for number in part.outputs:
                self.layout.last_use.setdefault(number, i)
                self.layout.keep(number, self.layout.new(i, self.layout.shape_of(number), _dtype(self.graph, number)))
            self.calls.append((i, i, runner(self.graph, part, self._sizes, self._kernels), part))

    def _place(self, spot: Spot) -> Any:
        """Return a `Spot` as the kernels take it. Bases are 0 for addresses, then the inputs, then the buffers."""
        offset = spot.offset
        if spot.array is not None:
            base, offset = 0, spot.array.__array_interface__["data"][0]
        elif isinstance(spot.root, Buffer):
            base = 1 + len(self.graph.inputs) + self.layout.buffers.index(spot.root)
        else:
            base = 1 + spot.root
        return self._describe.Place(base, offset, spot.shape, spot.strides, spot.dtype, spot.array)

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self, arrays: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """Return the outputs by number, in memory of their own."""
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = _Workspace(self)
        try:
            values, team = workspace.values, self._team() if self._is_shared else 0
            workspace.take(arrays)
            for first, last, run, step in self.calls:
                if run is None:
                    self._run(self._table, self._reals, workspace.bases, first, last, team)
                    continue
                assert step is not None
                for number, array in zip(step.outputs, run(values), strict=True):
                    values[number][...] = array
            return {number: values[number].copy() for number in self._outputs}
        finally:
            workspace.let_go()
            self._free.append(workspace)

    def run_in_turn(self, arrays: Sequence[np.ndarray], after: Callable[[int, np.ndarray], None]) -> None:
        """Run one step after the other, and call `after(step, memory)` after each; for tests and for timing."""
        workspace = _Workspace(self)
        workspace.take(arrays)
        for first, last, run, step in self.calls:
            for row in range(first, last):
                self._run(self._table, self._reals, workspace.bases, row, row + 1, 0)
                step_of = self._steps_of_rows
                if row + 1 == len(step_of) or step_of[row + 1] != step_of[row]:
                    after(step_of[row], workspace.memory)
            if run is not None and step is not None:
                for number, array in zip(step.outputs, run(workspace.values), strict=True):
                    workspace.values[number][...] = array
                after(first, workspace.memory)

    def new_views(self, memory: np.ndarray) -> dict[int, Any]:
        """Return the values that plain steps and the caller see, as views of the memory of a workspace."""
        found: dict[int, Any] = {}
        for number in self.seen:
            spot = self.layout.spots[number]
            if isinstance(spot.root, Buffer):
                found[number] = spot.view(memory[spot.root.offset : spot.root.offset + spot.root.size])
            elif spot.array is not None:
                found[number] = spot.array
        return found


class _Workspace:
    """The memory that one call works in, at a time."""

    def __init__(self, steps: CompiledSteps) -> None:
        layout, self._inputs = steps.layout, steps.graph.inputs
        room = np.empty(layout.bytes + 64, np.uint8)
        start = -room.__array_interface__["data"][0] % 64
        self.memory = room[start : start + layout.bytes]
        address = room.__array_interface__["data"][0] + start
        self.bases = np.zeros(1 + len(self._inputs) + len(layout.buffers), np.int64)
        self.bases[1 + len(self._inputs) :] = [address + buffer.offset for buffer in layout.buffers]
        self.values = steps.new_views(self.memory)
        self._of_inputs = [
            (number, spot)
            for number, spot in layout.spots.items()
            if isinstance(spot.root, int) and number in steps.seen
        ]

    def take(self, arrays: Sequence[np.ndarray]) -> None:
        """Set the addresses of the inputs."""
        for i, array in enumerate(arrays):
            self.bases[1 + i] = array.__array_interface__["data"][0]
        for number, spot in self._of_inputs:
            self.values[number] = spot.view(arrays[spot.root].reshape(-1).view(np.uint8))

    def let_go(self) -> None:
        """Forget the inputs."""
        for number, _ in self._of_inputs:
            self.values[number] = None


def _dtype(graph: Graph, number: int) -> np.dtype:
    return graph.values[number].dtype
