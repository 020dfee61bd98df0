"""A trace as one document of plain data for the page: values with their origins, and operations with their steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..check.differences import Check, check
from ..record.records import Backward, Entry, Recording, arrays_of
from ..record.values import Value
from ..rules.axes import axes_of
from ..rules.docstrings import docstring_parts, formulas, prose
from ..rules.functions import function_of
from ..rules.links import Link
from ..rules.narrate import gradient_names
from ..rules.statements import statements_of
from ..rules.steps import Narration, Operand, Step
from ..rules.written import NUMBERED, constants_of, equation_of, legend_of
from .pack import Packer, json_number

FORWARD, BACKWARD = 0, 1
DATA_FLOW, NAMED, LEAF, UNNAMED = range(4)  # ranks of arrays, for pages on which not all fit


@dataclass
class Document:
    """The contents of a page.

    Attributes
    ----------
    ops : one row an operation, in the order of the forward.
    values : [name, number of its array, letters of its axes, origin]. An origin is ["leaf"], ["seed"], ["hook"],
        ["unexplained"], ["sum", values], ["same", value], ["step", operation, direction, number] or
        ["kernel", operation, direction, value by the rule].
    checks : of the gradient rules, by number of the operation.
    kinds : formulas and text of each operation that ran, by its name.
    """

    packer: Packer = field(default_factory=Packer)
    ops: list[dict[str, Any]] = field(default_factory=list)
    values: list[list[Any]] = field(default_factory=list)
    checks: dict[int, Check] = field(default_factory=dict)
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)  # of a trace's values, by id
    _alive: list[Any] = field(default_factory=list)  # those values, so that no other object gets one of their ids

    def value(self, name: str, array: Any, axes: Any, origin: list[Any], rank: int = DATA_FLOW) -> int:
        """The number of a new value, from an array or from a trace's `Value`, which may have statistics only."""
        stored = array.array if isinstance(array, Value) else array
        number = self.packer.add_statistics(array.statistics) if stored is None else self.packer.add(stored, rank)
        self.values.append([name, number, "".join(axes) if axes else None, origin])
        return len(self.values) - 1

    def number(self, value: Value) -> int:
        """The number of a trace's value; a leaf is added when it first occurs."""
        if id(value) not in self._numbers:
            if value.origin.kind == "sum":
                origin: list[Any] = ["sum", [self.number(part) for part in value.origin.source]]
            else:
                origin = [value.origin.kind if value.origin.kind in ("leaf", "seed", "hook") else "leaf"]
            rank = LEAF if origin == ["leaf"] and value.statistics.shape else DATA_FLOW
            self.enter(value, self.value(value.name, value, None, origin, rank))
        return self._numbers[id(value)]

    def enter(self, value: Value, number: int) -> None:
        """Note that a trace's value has this number."""
        self._numbers[id(value)] = number
        self._alive.append(value)

    def name_axes(self, value: Value, axes: Any) -> None:
        """Give the axes of a trace's value these letters, unless they have some."""
        row = self.values[self.number(value)]
        row[2] = row[2] or "".join(axes or ()) or None


def document_of(trace: Recording) -> Document:
    """Narrate and check all of a trace.

    Operations whose arrays the trace did not store are included without steps.
    """
    document = Document()
    with np.errstate(all="ignore"):  # values that are not finite were recorded as such, and are shown
        for entry in trace.entries:
            document.ops.append(_describe(entry))
            document.kinds.setdefault(entry.op.name, _kind(entry))
            _explain_forward(document, entry)
        for backward in trace.backwards:
            if backward is backward.entry.backward:  # the last run, if a rule ran more than once
                _explain_backward(document, backward)
    for entry, op, held in zip(trace.entries, document.ops, trace.held, strict=True):
        op["held"] = [held, entry.backward.held if entry.backward else None]
    return document


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "op": entry.op.name,
        "module": entry.module,
        "kernel": entry.kernel,
        "by": entry.computed_by,
        "line": entry.line,
        "code": entry.expression,
        "ms": [1e3 * entry.seconds, 1e3 * entry.backward.seconds if entry.backward else None],
        "saved": list(entry.saved.items()),
        "params": {k: _parameter(v) for k, v in entry.params.items()},
        "in": [],
        "out": [],
        "din": [],
        "dout": [],
        "steps": [[], []],
        "lines": [[], []],
        "says": [[], []],
        "unexplained": ["", ""],
        "check": None,
    }


def _parameter(parameter: Any) -> str:
    if isinstance(parameter, np.ndarray):
        return repr(parameter.tolist()) if parameter.size <= 8 else f"array {list(parameter.shape)}"
    return repr(parameter)


def _kind(entry: Entry) -> dict[str, str]:
    forward, backward, rest = docstring_parts(entry.op.__doc__)
    return {"f": formulas(forward), "b": formulas(backward), "t": forward, "u": backward, "doc": prose(rest)}


def _reference(document: Document, name: str, x: Any) -> dict[str, Any] | None:
    """An operation's reference to an input or output: the name it has there, a value or a number, the user's name."""
    if x is None:
        return None
    if not isinstance(x, Value):
        return {"n": name, "c": json_number(x)}
    own = {} if x.title in (None, name) else {"u": x.title}
    return {"n": name, "v": document.number(x), **own}


def _explain_forward(document: Document, entry: Entry) -> None:
    op = document.ops[entry.index]
    op["in"] = [_reference(document, entry.input_name(i), x) for i, x in enumerate(entry.inputs)]
    try:
        arrays_of(entry.outputs)
        narration = entry.narration()
    except LookupError as reason:
        op["unexplained"][FORWARD] = str(reason)
        _enter_unexplained(document, entry.outputs)
    else:
        inputs = [x for x in entry.inputs if isinstance(x, Value)]
        numbers = _numbers_of_inputs(document, narration.inputs, inputs)
        _add_steps(document, entry, FORWARD, narration, numbers, [v.name for v in entry.outputs])
        for value, result in zip(entry.outputs, narration.results, strict=True):
            _enter_result(document, entry, FORWARD, value, result, numbers)
    op["out"] = [_reference(document, v.name, v) for v in entry.outputs]


def _explain_backward(document: Document, backward: Backward) -> None:
    entry = backward.entry
    op = document.ops[entry.index]
    names = gradient_names(entry.op, len(backward.incoming))
    op["din"] = [_reference(document, name, x) for name, x in zip(names, backward.incoming, strict=True)]
    found = check(backward)
    if found is not None:
        document.checks[entry.index] = found
        op["check"] = _check_row(found)
    try:
        arrays_of(backward.outgoing)
        narration = backward.narration()
    except LookupError as reason:
        op["unexplained"][BACKWARD] = str(reason)
        _enter_unexplained(document, backward.outgoing)
    else:
        values = [v for v in (*entry.inputs, *entry.outputs, *backward.incoming) if isinstance(v, Value)]
        given = [next(v for v in values if v.array is x.value) for x in narration.inputs]
        numbers = _numbers_of_inputs(document, narration.inputs, given)
        names = [f"d{entry.input_name(i)}" for i in range(len(entry.inputs))]
        _add_steps(document, entry, BACKWARD, narration, numbers, names)
        for i, (value, result) in enumerate(zip(backward.outgoing, narration.results, strict=True)):
            if value is not None:
                _enter_result(document, entry, BACKWARD, value, result, numbers)
                axes = axes_of(entry.op, entry.input_name(i), value.array, entry.is_usual)
                document.name_axes(value, axes)
    op["dout"] = [_reference(document, f"d{entry.input_name(i)}", x) for i, x in enumerate(backward.outgoing)]


def _enter_unexplained(document: Document, values: Sequence[Value | None]) -> None:
    """Add results without the steps that computed them."""
    for value in values:
        if value is not None:
            document.enter(value, document.value(value.name, value, None, ["unexplained"]))


def _numbers_of_inputs(document: Document, inputs: Sequence[Operand], values: Sequence[Value]) -> dict[int, int]:
    """The numbers of the values that a narrated rule got as inputs, by id of the operand; they also get its letters."""
    for operand, value in zip(inputs, values, strict=True):
        document.name_axes(value, operand.axes)
    return {id(operand): document.number(value) for operand, value in zip(inputs, values, strict=True)}


def _add_steps(
    document: Document, entry: Entry, direction: int, narration: Narration, numbers: dict[int, int], results: list[str]
) -> None:
    """Add the steps of a narration to an operation, and the numbers of their results to `numbers`."""
    op = document.ops[entry.index]
    lines = statements_of(entry.op, narration, results)
    constants = constants_of(entry.params)
    line_of = {k: n for n, line in enumerate(lines) for k in line.steps}
    for k, step in enumerate(narration.steps):
        origin = ["step", entry.index, direction, k]
        number = document.value(step.name or "", step.value, step.axes, origin, _rank(entry, narration, step))
        numbers[id(step)] = number
        op["steps"][direction].append(
            {
                "v": number,
                "n": step.name,
                "s": step.source,
                "i": step.label,
                "w": equation_of(step, constants),
                "f": step.function,
                "o": _operands(document, step, numbers),
                "l": _link_row(document, function_of(step.function).link(step)),
                "t": line_of[k],
            }
        )
    named = (entry.key, *(v.title or "" for v in (*entry.inputs, *entry.outputs) if isinstance(v, Value)))
    numbered = [NUMBERED] if any("#" in name for name in named) else []
    op["says"][direction] = [*legend_of(narration, [line.source for line in lines]), *numbered]
    op["lines"][direction] = [{"m": s.mathml, "s": s.source, "c": s.comment, "p": s.place} for s in lines]


def _rank(entry: Entry, narration: Narration, step: Step) -> int:
    """The rank of a step's result: results that other operations read come first, gradients of parameters later."""
    if any(step is result for result in narration.results):
        leaves = {i for i, x in enumerate(entry.inputs) if isinstance(x, Value) and x.origin.kind == "leaf"}
        is_for_leaf = all(i in leaves for i, result in enumerate(narration.results) if result is step)
        return LEAF if is_for_leaf and len(narration.results) == len(entry.inputs) else DATA_FLOW
    return NAMED if step.name else UNNAMED


def _operands(document: Document, step: Step, numbers: dict[int, int]) -> list[dict[str, Any]]:
    """A step's operands, those within tuples too: arrays as {value, name}, numbers as {constant}, and no others."""
    out: list[dict[str, Any]] = []

    def add(x: Any) -> None:
        if isinstance(x, Operand):
            if id(x) not in numbers:  # an array that the rule made by other means than `xp`
                numbers[id(x)] = document.value(x.name or "constant", x.value, x.axes, ["leaf"])
            out.append({"v": numbers[id(x)], "n": x.local or x.name})
        elif isinstance(x, tuple):
            for y in x:
                add(y)
        elif isinstance(x, np.ndarray):
            out.append({"v": document.value("constant", x, None, ["leaf"]), "n": None})
        elif isinstance(x, (int, float)) and not isinstance(x, bool):
            out.append({"c": json_number(x)})

    for operand in step.operands:
        add(operand)
    return out


def _link_row(document: Document, link: Link) -> list[Any]:
    source = None if link.source is None else document.packer.add(link.source)
    return [link.kind, link.sign, list(link.axes), link.start, source]


def _enter_result(
    document: Document, entry: Entry, direction: int, value: Value, result: Operand | None, numbers: dict[int, int]
) -> None:
    """Add a recorded result: the result of a step, an input that was passed on, or the result of a kernel."""
    assert value.array is not None
    if result is None or result.value is None:
        document.enter(value, document.value(value.name, value.array, None, ["leaf"]))
        return
    number = numbers[id(result)]
    same = (
        value.array.shape == np.shape(result.value)
        and value.array.tobytes() == np.ascontiguousarray(result.value).tobytes()
    )
    if same and isinstance(result, Step):
        row = document.values[number]
        row[0] = row[0] or value.name
        document.enter(value, number)
        return
    origin = ["same", number] if same else ["kernel", entry.index, direction, number]
    document.enter(value, document.value(value.name, value.array, result.axes, origin))


def _check_row(found: Check) -> dict[str, Any]:
    rows = []
    for r in found.rows:
        numbers = [json_number(x, brief=True) for x in (r.as_run, r.rule, r.numeric, r.tolerance)]
        rows.append([r.input, None if r.index is None else list(r.index), *numbers, r.verdict])
    return {
        "rows": rows,
        "curve": [[h, json_number(e, brief=True)] for h, e in found.curve],
        "run": json_number(found.as_run_error, brief=True),
        "verdict": found.verdict,
        "why": found.reason,
    }
