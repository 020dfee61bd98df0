"""Simplify a graph: constants are computed once, and unused steps are left out."""

from collections.abc import Sequence
from dataclasses import replace

from .graph import Graph, Ref, Size, Step, leaves, mapped
from .plain import runner


def folded(graph: Graph, kernels: str) -> Graph:
    """Return the graph without steps that give the same for all inputs, and without those whose results are not used.

    Constants are computed by the implementations that `kernels` chooses. A step that takes a `Size` stays: what it
    gives depends on the batch.
    """
    values = list(graph.values)
    steps = []
    for step in graph.steps:
        varies = any(isinstance(leaf, Size) for leaf in leaves((step.inputs, step.params)))
        if varies or any(values[number].array is None for number in step.reads) or not step.outputs:
            steps.append(step)
            for number in step.outputs:
                values[number] = replace(values[number], array=None)
            continue
        made = runner(graph, step, (0,) * len(graph.letters), kernels)([value.array for value in values])
        sources = {values[number].name for number in step.reads} - {""}
        name = f"{step.name}({sources.pop()})" if len(sources) == 1 else ""
        for number, array in zip(step.outputs, made, strict=True):
            values[number] = replace(values[number], array=array, name=name)
    return compacted(graph.with_steps(_needed(graph, steps), values))


def _needed(graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """Return the steps that lead to an output of the graph, and checks."""
    wanted, kept = set(graph.outputs), []
    for step in reversed(steps):
        if not step.outputs or wanted & set(step.outputs):
            kept.append(step)
            wanted.update(step.reads)
    return kept[::-1]


def compacted(graph: Graph) -> Graph:
    """Return the graph without values that no step reads or writes, and with the others numbered from 0.

    Inputs come first, then constants, then what the steps compute.
    """
    read = {number for step in graph.steps for number in step.reads} | set(graph.outputs)
    made = [number for step in graph.steps for number in step.outputs]
    constants = sorted(read - set(made) - set(graph.inputs))
    order = [*graph.inputs, *constants, *made]
    place = {number: i for i, number in enumerate(order)}

    def moved(leaf: object) -> object:
        return Ref(place[leaf.number]) if isinstance(leaf, Ref) else leaf

    steps = [
        Step(s.call, mapped(s.inputs, moved), mapped(s.params, moved), tuple(place[n] for n in s.outputs), s.scope)
        for s in graph.steps
    ]
    values = tuple(graph.values[number] for number in order)
    inputs = tuple(place[number] for number in graph.inputs)
    return Graph(values, tuple(steps), inputs, mapped(graph.result, moved), graph.letters, graph.axes, graph.reason)
