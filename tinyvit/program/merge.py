"""Make a graph of several traces: where traces at different batch sizes differ tells what depends on the batch.

A number that occurs at the same place of all traces, such as a length in a shape, is a linear function of the batch
size. Two traces give that function, and a third one, at another size, confirms it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import ArrayFunction, Graph, Ref, Size, Sizes, Step, Value
from .trace import Trace


class Differs(Exception):
    """Traces differ in more than numbers that are linear functions of the batch size."""


def merged(traces: Sequence[Trace], sizes: Sequence[Sizes], letters: Sequence[str], axes: Any) -> Graph:
    """Return the graph whose steps are those of all `traces`, constants that do not differ included.

    Parameters
    ----------
    traces : the first at `sizes[0]`, then one for each free size, in which only that one differs, then others.
    letters, axes : see `Graph`.

    Raises Differs if the traces are not the same but for numbers that depend on the sizes.
    """
    first = traces[0]
    if len({(len(t.steps), len(t.arrays)) for t in traces}) > 1:
        raise Differs("the number of operations depends on the batch size")
    whole = _Numbers(sizes, len(letters))
    steps = []
    for together in zip(*[t.steps for t in traces], strict=True):
        kept = together[0]
        if any(_kind(step) != _kind(kept) or step.outputs != kept.outputs for step in together):
            raise Differs(f"the operations depend on the batch size, as at {kept.name}")
        inputs, params = whole.tree([(s.inputs, s.params) for s in together], kept.name)
        steps.append(Step(kept.call, inputs, params, kept.outputs, kept.scope))
    made = {number for step in steps for number in step.outputs}
    values = []
    for number, array in enumerate(first.arrays):
        others = [t.arrays[number] for t in traces]
        if any(x.dtype != array.dtype or x.ndim != array.ndim for x in others):
            raise Differs("the dtype or the number of axes of a value depends on the batch size")
        shape = whole.tree([x.shape for x in others], "a shape")
        is_given = not first.depends[number] and number not in made
        if is_given and not all(_equal(array, x) for x in others[1:]):
            name = first.names.get(number, "an array that the model makes in Python")
            raise Differs(f"{name} is not the same in each forward pass")
        constant = None if first.depends[number] else array
        values.append(Value(shape, array.dtype, first.names.get(number, ""), constant))
    result = whole.tree([t.result for t in traces], "the result")
    return Graph(tuple(values), tuple(steps), tuple(first.inputs), result, tuple(letters), axes)


def _kind(step: Step) -> Any:
    return step.call.name if isinstance(step.call, ArrayFunction) else step.call


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x is y or (x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes())


class _Numbers:
    """Finds for numbers of several traces the `Size` that they are all values of."""

    def __init__(self, sizes: Sequence[Sizes], free: int) -> None:
        self._sizes, self._free = sizes, free

    def tree(self, trees: Sequence[Any], where: str) -> Any:
        """Return one tree for those of all traces, with a `Size` where whole numbers differ."""
        first = trees[0]
        if any(type(tree) is not type(first) for tree in trees):
            raise Differs(f"the arguments of {where} depend on the batch size")
        if isinstance(first, tuple | list):
            if len({len(tree) for tree in trees}) > 1:
                raise Differs(f"the number of arguments of {where} depends on the batch size")
            parts = [self.tree(together, where) for together in zip(*trees, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
        if isinstance(first, dict):
            if any(list(tree) != list(first) for tree in trees):
                raise Differs(f"the arguments of {where} depend on the batch size")
            return {key: self.tree([tree[key] for tree in trees], where) for key in first}
        if isinstance(first, slice):
            parts = [self.tree([getattr(t, end) for t in trees], where) for end in ("start", "stop", "step")]
            return slice(*parts)
        if isinstance(first, Ref) or not isinstance(first, int | np.integer) or isinstance(first, bool):
            if any(not (tree is first or tree == first or (tree != tree and first != first)) for tree in trees):
                raise Differs(f"an argument of {where} depends on the batch size: {first!r} and others")
            return first
        return self._number([int(tree) for tree in trees], where)

    def _number(self, numbers: Sequence[int], where: str) -> Any:
        if len(set(numbers)) == 1:
            return numbers[0]
        per = []
        for i in range(self._free):
            step = self._sizes[1 + i][i] - self._sizes[0][i]
            grown = numbers[1 + i] - numbers[0]
            if grown % step:
                raise Differs(f"a number of {where} depends on the batch size in a way that is not linear")
            per.append(grown // step)
        base = numbers[0] - sum(a * n for a, n in zip(per, self._sizes[0], strict=True))
        found = Size(base, tuple(per))
        if any(found.at(sizes) != n for sizes, n in zip(self._sizes, numbers, strict=True)):
            raise Differs(f"a number of {where} depends on the batch size in a way that is not linear")
        return found
