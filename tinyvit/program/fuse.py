"""Join steps that one kernel computes: a linear map and GELU, a residual sum and the layer norm after it.

Splitting the output of a packed projection into heads needs no kernel: the parts are views.
"""

from collections import Counter
from dataclasses import dataclass, replace

from ..functional.activation import Gelu
from ..functional.elementwise import Add
from ..functional.linalg import Linear
from ..functional.normalization import LayerNorm
from .graph import Graph, Ref, Step


@dataclass(frozen=True, eq=False)
class Fused:
    """Several steps as one: what stands for an operation in `Step.call`. `name` is that of the kernel's operation."""

    name: str
    parts: tuple[Step, ...]


def fused(graph: Graph) -> Graph:
    """Return the graph with pairs of steps joined. A step that is joined to an earlier one runs in that one's place."""
    readers: dict[int, list[Step]] = {}
    for step in graph.steps:
        for number in step.reads:
            readers.setdefault(number, []).append(step)
    counts = Counter(graph.outputs)
    joined: dict[int, Step] = {}  # by the id of the first step
    gone: set[int] = set()
    for step in graph.steps:
        if id(step) in gone or len(step.outputs) != 1:
            continue
        later = [other for other in readers.get(step.outputs[0], []) if id(other) not in gone]
        pair = _linear_gelu(step, later, counts) or _add_layer_norm(graph, step, later)
        if pair is not None:
            joined[id(step)] = pair
            gone.add(id(pair.call.parts[1]))
    return graph.with_steps([joined.get(id(step), step) for step in graph.steps if id(step) not in gone])


def _linear_gelu(step: Step, later: list[Step], counts: Counter[int]) -> Step | None:
    """Return a linear map and the GELU that alone reads it as one step."""
    if step.call is not Linear or len(later) != 1 or later[0].call is not Gelu or counts[step.outputs[0]]:
        return None
    gelu = later[0]
    return replace(gelu, call=Fused("linear_gelu", (step, gelu)), inputs=step.inputs)


def _add_layer_norm(graph: Graph, step: Step, later: list[Step]) -> Step | None:
    """Return a sum and the first layer norm that reads it as one step, whose first input has the shape of the sum."""
    norm = next((s for s in later if s.call is LayerNorm and s.inputs[0] == Ref(step.outputs[0])), None)
    if step.call is not Add or norm is None or not all(isinstance(x, Ref) for x in step.inputs):
        return None
    x, y = step.inputs
    shape = graph.values[step.outputs[0]].shape
    if graph.values[x.number].shape != shape:
        x, y = y, x
    if graph.values[x.number].shape != shape or any(graph.values[r.number].array is None for r in norm.inputs[1:]):
        return None
    inputs = (x, y, *norm.inputs[1:])
    return replace(norm, call=Fused("add_layer_norm", (step, norm)), inputs=inputs, outputs=step.outputs + norm.outputs)
