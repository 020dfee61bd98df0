"""Each step of a rule as one short equation: a name, and an operation on things that have names already.

The source of a rule nests steps, as in `y * (dy - xp.sum(dy * y))`. Here they are t1 = dy * y, t2 = sum(t1), and so on:
every array on a page or in a text has a name, and every name is given before it is used.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .functions import function_of
from .steps import Narration, Operand, Step

NUMBERED = (
    "x#2 is the second array that is called x, and softmax#2 the second softmax, in the order of the forward pass."
)
_FEW = 4  # elements of the largest constant array that is written out


def name_steps(narration: Narration, results: Sequence[str], returned: Iterable[tuple[Operand, str]]) -> None:
    """Name the steps that the rule binds to no variable.

    The last step of a result gets the name of the result. A step that a function of the module returns, such as
    `largest(xp, x, axis)`, gets the name of that function. All others keep no name, but a label: t1, t2 ...
    """
    taken = {operand.name for operand in (*narration.inputs, *narration.steps)}

    for result, name in zip(narration.results, results, strict=True):
        if isinstance(result, Step) and result.name is None:
            result.name = name  # also where a step before it has this name: dx = sum_to_shape(dx, (4,))
    for operand, function in returned:
        if operand.name is None:
            name = function.strip("_")
            operand.name = next(x for x in (name, *(f"{name}_{i}" for i in range(2, 99))) if x not in taken)
            taken.add(operand.name)
    count = 0
    for step in narration.steps:
        count += step.name is None
        step.label = step.name or f"t{count}"


def equation_of(step: Step, constants: dict[int, str]) -> str:
    """The right side of a step's equation: `dy - t2`, `sum(t1, axis=-1)`.

    `constants` has the names of arrays that are parameters of the operation, by id.
    """

    def text(x: Any) -> str:
        return _text(x, constants)

    operands, function = [text(x) for x in step.operands], step.function
    sign = function_of(function).sign
    if sign:
        return f" {sign} ".join(operands) if len(operands) == 2 else sign + operands[0]
    index = _index_text(step.params["index"], text) if "index" in step.params else ""
    if function == "index":
        return f"{operands[0]}[{index}]"
    if function in ("put", "add.at"):
        added = ", added up" if function == "add.at" else ""
        return f"{operands[0]} with {operands[1]} at [{index}]{added}"
    name, bracket, part = function.partition("[")
    keywords = [f"{k}={text(v)}" for k, v in step.params.items() if v is not None and k != "shape"]
    shape = step.params.get("shape")
    if shape is not None:
        keywords.append(text(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape))
    return f"{name}({', '.join([*operands, *keywords])}){bracket}{part}"


def explanations_of(narration: Narration) -> list[str]:
    """A line for each function among these steps that NumPy does not have under this name: the call, and what it is."""
    names = dict.fromkeys(step.function.partition("[")[0] for step in narration.steps)
    return [says for name in names if (says := function_of(name).says)]


def legend_of(narration: Narration, sources: Iterable[str]) -> list[str]:
    """Sentences on the names in these steps, and in the source of their statements, that nothing else explains."""
    lines = []
    if any(step.name is None for step in narration.steps):
        lines.append("t1, t2 ... are intermediate results to which the rule gives no name.")
    text = "\n".join(sources)
    words = {"xp": "the library of arrays, here NumPy", "ctx": "what the forward pass left for this rule"}
    if found := [f"{word} is {says}" for word, says in words.items() if re.search(rf"\b{word}\b", text)]:
        lines.append(f"In the source, {', and '.join(found)}.")
    return lines + explanations_of(narration)


def constants_of(params: dict[str, Any]) -> dict[int, str]:
    """Names of the arrays among an operation's parameters."""
    return {id(x): name for name, x in params.items() if isinstance(x, np.ndarray)}


def _index_text(index: Any, text: Callable[[Any], str]) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join(map(text, parts))


def _slice_text(x: slice) -> str:
    ends = "" if x.start is None else str(x.start), "" if x.stop is None else str(x.stop)
    return ":".join(ends if x.step is None else (*ends, str(x.step)))


def _text(x: Any, constants: dict[int, str]) -> str:
    if isinstance(x, Operand):
        label = x.label if isinstance(x, Step) else x.local or x.name
        return label or _array_text(np.asarray(x.value))
    if isinstance(x, np.ndarray):
        return constants.get(id(x)) or _array_text(x)
    if isinstance(x, (tuple, list)):
        inside = ", ".join(_text(part, constants) for part in x)
        return f"({inside},)" if len(x) == 1 else f"({inside})"
    if isinstance(x, slice):
        return _slice_text(x)
    if x is Ellipsis:
        return "..."
    if isinstance(x, np.dtype):
        return str(x.name)
    if isinstance(x, type):
        return x.__name__
    if isinstance(x, (float, np.floating)):
        return f"{x:.6g}" if x >= 0 else f"({x:.6g})"
    return str(x)


def _array_text(x: np.ndarray) -> str:
    """A few numbers as they are; the kind and shape of more: `mask[7x7]`, `constant[3x5]`."""
    if x.size <= _FEW:
        return str(x.tolist())
    kind = "mask" if x.dtype == bool else "constant"
    return f"{kind}[{'x'.join(map(str, x.shape))}]"
