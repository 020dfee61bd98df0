"""Graphs in words: the table of steps that `print(program)` shows."""

from typing import Any

import numpy as np

from .graph import Graph, Ref, Size, Step, Value, leaves, mapped


def shape_text(graph: Graph, value: Value) -> str:
    """Return the shape of a value, with letters for free sizes, and its dtype: "(B, 17, 32) float32"."""
    lengths = [n.text(graph.letters) if isinstance(n, Size) else str(n) for n in value.shape]
    return f"({', '.join(lengths)}{',' * (len(lengths) == 1)}) {value.dtype}"


def value_text(graph: Graph, number: int) -> str:
    """Return the name of a value: that of an argument or a parameter, else its number."""
    value = graph.values[number]
    if value.name:
        return value.name
    if value.array is not None and value.array.size == 1:
        return f"{value.array.item():.6g}"
    return f"constant {number}" if value.array is not None else f"%{number}"


def table(graph: Graph) -> list[tuple[str, str, str, str, str]]:
    """Return a row for each step: what it computes, the operation, its arguments and parameters, the result, where."""
    return [
        (
            ", ".join(f"%{number}" for number in step.outputs),
            step.name,
            _arguments(graph, step),
            _results(graph, step),
            step.scope,
        )
        for step in graph.steps
    ]


def _results(graph: Graph, step: Step) -> str:
    """Return the shapes of what a step computes; the dtype is left out where it is float32."""
    shapes = [shape_text(graph, graph.values[number]).removesuffix(" float32") for number in step.outputs]
    is_one = len(set(shapes)) == 1 < len(shapes)
    return f"{len(shapes)} of {shapes[0]}" if is_one else ", ".join(shapes)


def _arguments(graph: Graph, step: Step) -> str:
    given = [_shown(graph, x) for x in step.inputs if x is not None]
    given += [f"{name}={_shown(graph, x)}" for name, x in step.params.items() if not _is_usual(step, name, x)]
    return ", ".join(x.removeprefix(f"{step.scope}.") for x in given)


def _is_usual(step: Step, name: str, value: Any) -> bool:
    """Return whether a parameter has its default, which the table leaves out."""
    if any(isinstance(leaf, Ref | Size | np.ndarray) for leaf in leaves(value)):
        return False
    default = getattr(step.call, name, None)
    return value is None or (default is not None and type(default) is type(value) and default == value)


def _shown(graph: Graph, tree: Any) -> str:
    def words(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return _Word(value_text(graph, leaf.number))
        if isinstance(leaf, Size):
            return _Word(leaf.text(graph.letters))
        if isinstance(leaf, float):
            return _Word(f"{leaf:.6g}")
        return _Word("..." if leaf is Ellipsis else str(leaf))

    if isinstance(tree, slice):
        first, last = ("" if end is None else _shown(graph, end) for end in (tree.start, tree.stop))
        return f"{first}:{last}" + ("" if tree.step is None else f":{_shown(graph, tree.step)}")
    if isinstance(tree, tuple | list):
        return f"({', '.join(_shown(graph, part) for part in tree)}{',' * (len(tree) == 1)})"
    return str(mapped(tree, words))


class _Word(str):
    """A text whose `repr` has no quotes, for dictionaries and lists of them."""

    __slots__ = ()
    __repr__ = str.__str__


def describe(graph: Graph, title: str) -> str:
    """Return the table of a graph, with a title, its inputs and what it returns."""
    rows = [("value", "operation", "arguments", "result", "module"), *table(graph)]
    widths = [min(60, max(len(row[i]) for row in rows)) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in rows
    ]
    inputs = [f"{value_text(graph, n)} {shape_text(graph, graph.values[n])}" for n in graph.inputs]
    outputs = [f"{value_text(graph, n)} {shape_text(graph, graph.values[n])}" for n in graph.outputs]
    return "\n".join([title, f"takes {'; '.join(inputs)}", *lines, f"returns {'; '.join(outputs)}"])
