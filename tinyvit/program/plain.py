"""Run steps one after the other from Python, each by the implementation that serves its operation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dispatch
from ..backend import is_floating
from ..engine import Op
from ..engine.dtypes import unwrapped
from .graph import Graph, Ref, Sizes, Step, at, leaves

Values = Any  # a list of all values, or a dictionary with some, by number
Run = Callable[[Values], Any]


def runner(graph: Graph, step: Step, sizes: Sizes, kernels: str) -> Run:
    """Return a function that runs a step on a list of all values, and returns its outputs in a sequence."""
    inputs, params = at((step.inputs, step.params), sizes)
    if not step.is_operation:
        return _function(step.call.function, inputs, params)
    op: type[Op] = step.call
    dtypes = {graph.values[x.number].dtype for x in inputs if isinstance(x, Ref)}
    is_regular = len(dtypes) == 1 and all(x is None or isinstance(x, Ref) for x in inputs)
    dtype = next(iter(dtypes)) if is_regular and is_floating(np.empty(0, next(iter(dtypes)))) else None
    given, named, count = _reader(list(inputs)), _reader(params), len(op.outputs)

    def run(values: Values) -> Any:
        arrays, options = given(values), named(values)
        arrays, kind = (arrays, dtype) if dtype is not None else unwrapped(op, arrays)
        served = dispatch.select(op, kind, arrays, options, kernels)
        returned = served.forward(arrays, options, kind)
        return returned if op.is_sequence else returned[:count]

    return run


def _function(function: Callable[..., Any], inputs: Any, params: Any) -> Run:
    given, named = _reader(inputs), _reader(params)

    def run(values: Values) -> Any:
        returned = function(*given(values), **named(values))
        return () if returned is None else returned if isinstance(returned, tuple | list) else (np.asarray(returned),)

    return run


def _reader(tree: Any) -> Callable[[Values], Any]:
    """Return a function that gives nested arguments with values in the place of references."""
    if not any(isinstance(leaf, Ref) for leaf in leaves(tree)):
        return lambda values: tree
    if isinstance(tree, Ref):
        number = tree.number
        return lambda values: values[number]
    if isinstance(tree, dict):
        named = [(key, _reader(part)) for key, part in tree.items()]
        return lambda values: {key: read(values) for key, read in named}
    if isinstance(tree, slice):
        ends = [_reader(end) for end in (tree.start, tree.stop, tree.step)]
        return lambda values: slice(*[read(values) for read in ends])
    parts = [_reader(part) for part in tree]
    return lambda values: type(tree)([read(values) for read in parts])


class PlainSteps:
    """All steps of a graph for some sizes, run one by one; a value is let go when no later step reads it."""

    def __init__(self, graph: Graph, sizes: Sizes, kernels: str) -> None:
        self._inputs = graph.inputs
        self._constants = [value.array for value in graph.values]
        last = {number: i for i, step in enumerate(graph.steps) for number in (*step.reads, *step.outputs)}
        kept = set(graph.outputs)
        self._steps = [
            (
                runner(graph, step, sizes, kernels),
                step.outputs,
                [n for n in {*step.reads, *step.outputs} if last[n] == i and n not in kept],
            )
            for i, step in enumerate(graph.steps)
        ]

    def run(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Return all values that are left at the end; those of the outputs are."""
        values: list[Any] = list(self._constants)
        for number, array in zip(self._inputs, arrays, strict=True):
            values[number] = array
        for run, outputs, done in self._steps:
            for number, array in zip(outputs, run(values), strict=True):
                values[number] = array
            for number in done:
                values[number] = None
        return values
