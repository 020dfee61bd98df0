"""A trace as one document of plain data, which the page shows: values with their origins, and operations with steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..check.differences import Check, check
from ..record.records import Backward, Entry, Recording, whole
from ..record.values import Value
from ..rules.axes import axes_of
from ..rules.links import Link, link_of
from ..rules.mathml import docstring_parts, formulas, prose
from ..rules.narrate import Narration, Step, Told, gradient_names
from ..rules.statements import statements_of
from .pack import Packer, told_briefly, told_number

FORWARD, BACKWARD = 0, 1
FLOWS, NAMED, LEAF, UNNAMED = range(4)  # ranks of arrays, for pages on which not all fit


@dataclass
class Document:
    """What a page holds.

    Attributes
    ----------
    ops : one for each operation, in the order of the forward.
    values : [name, number of its array, letters of its axes, origin]; an origin is ["leaf"], ["seed"], ["hook"],
        ["untold"], ["sum", values], ["same", value], ["step", operation, direction, number] or
        ["kernel", operation, direction, value by the rule].
    checks : of the gradient rules, by number of the operation.
    """

    packer: Packer = field(default_factory=Packer)
    ops: list[dict[str, Any]] = field(default_factory=list)
    values: list[list[Any]] = field(default_factory=list)
    checks: dict[int, Check] = field(default_factory=dict)
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)  # of a trace's values, by id
    _kept: list[Any] = field(default_factory=list)  # alive, so that ids stay theirs

    def value(self, name: str, array: Any, axes: Any, origin: list[Any], rank: int = FLOWS) -> int:
        """The number of a new value; its array may be that of a trace's `Value`, kept whole or not."""
        whole = array.array if isinstance(array, Value) else array
        number = self.packer.add_statistics(array.statistics) if whole is None else self.packer.add(whole, rank)
        self.values.append([name, number, "".join(axes) if axes else None, origin])
        return len(self.values) - 1

    def number(self, value: Value) -> int:
        """The number of a trace's value; a leaf is added when it is first met."""
        if id(value) not in self._numbers:
            if value.origin.kind == "sum":
                origin: list[Any] = ["sum", [self.number(part) for part in value.origin.source]]
            else:
                origin = [value.origin.kind if value.origin.kind in ("leaf", "seed", "hook") else "leaf"]
            rank = LEAF if origin == ["leaf"] and value.statistics.shape else FLOWS
            self.put(value, self.value(value.name, value, None, origin, rank))
        return self._numbers[id(value)]

    def put(self, value: Value, number: int) -> None:
        self._numbers[id(value)] = number
        self._kept.append(value)


def document_of(trace: Recording) -> Document:
    """Narrate and check all of a trace.

    Operations whose arrays the trace did not keep are there without steps.
    """
    document = Document()
    with np.errstate(all="ignore"):  # what is not finite was recorded so, and is shown
        for entry in trace.entries:
            document.ops.append(_describe(entry))
            document.kinds.setdefault(entry.op.name, _kind(entry))
            _tell_forward(document, entry)
        for backward in trace.backwards:
            if backward is backward.entry.backward:  # the last one, if a rule ran more than once
                _tell_backward(document, backward)
    for entry, op, held in zip(trace.entries, document.ops, trace.held, strict=True):
        op["held"] = [held, entry.backward.held if entry.backward else None]
    return document


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "op": entry.op.name,
        "module": entry.module,
        "kernel": entry.kernel,
        "line": entry.line,
        "ms": [1e3 * entry.seconds, 1e3 * entry.backward.seconds if entry.backward else None],
        "saved": list(entry.saved.items()),
        "params": {k: _shown(v) for k, v in entry.params.items()},
        "in": [],
        "out": [],
        "din": [],
        "dout": [],
        "steps": [[], []],
        "lines": [[], []],
        "untold": ["", ""],
        "check": None,
    }


def _shown(parameter: Any) -> str:
    if isinstance(parameter, np.ndarray):
        return repr(parameter.tolist()) if parameter.size <= 8 else f"array {list(parameter.shape)}"
    return repr(parameter)


def _kind(entry: Entry) -> dict[str, str]:
    forward, backward, rest = docstring_parts(entry.op.__doc__)
    return {"f": formulas(forward), "b": formulas(backward), "t": forward, "u": backward,
            "doc": prose(rest)}  # fmt: skip


def _reference(document: Document, name: str, x: Any) -> dict[str, Any] | None:
    """How an operation refers to what goes in or out: the name it has there, and a value or a number."""
    if x is None:
        return None
    return {"n": name, "v": document.number(x)} if isinstance(x, Value) else {"n": name, "c": told_number(x)}


def _tell_forward(document: Document, entry: Entry) -> None:
    op = document.ops[entry.index]
    op["in"] = [_reference(document, entry.input_name(i), x) for i, x in enumerate(entry.inputs)]
    try:
        whole(entry.outputs)
        narration = entry.narration()
    except LookupError as reason:
        op["untold"][FORWARD] = str(reason)
        _only_put(document, entry.outputs)
    else:
        _name_axes(document, narration.inputs, [x for x in entry.inputs if isinstance(x, Value)])
        told = dict(
            zip(
                map(id, narration.inputs),
                (document.number(x) for x in entry.inputs if isinstance(x, Value)),
                strict=True,
            )
        )
        _steps(document, entry, FORWARD, narration, told, [v.name for v in entry.outputs])
        for value, result in zip(entry.outputs, narration.results, strict=True):
            _finish(document, entry, FORWARD, value, result, told)
    op["out"] = [_reference(document, v.name, v) for v in entry.outputs]


def _tell_backward(document: Document, backward: Backward) -> None:
    entry = backward.entry
    op = document.ops[entry.index]
    names = gradient_names(entry.op, len(backward.incoming))
    op["din"] = [_reference(document, name, x) for name, x in zip(names, backward.incoming, strict=True)]
    found = check(backward)
    if found is not None:
        document.checks[entry.index] = found
        op["check"] = _told_check(found)
    try:
        whole(backward.outgoing)
        narration = backward.narration()
    except LookupError as reason:
        op["untold"][BACKWARD] = str(reason)
        _only_put(document, backward.outgoing)
    else:
        told = _match(document, entry, backward, narration)
        names = [f"d{entry.input_name(i)}" for i in range(len(entry.inputs))]
        _steps(document, entry, BACKWARD, narration, told, names)
        for i, (value, result) in enumerate(zip(backward.outgoing, narration.results, strict=True)):
            if value is not None:
                _finish(document, entry, BACKWARD, value, result, told)
                row = document.values[document.number(value)]
                row[2] = row[2] or "".join(axes_of(entry.op.name, entry.input_name(i), value.array) or ()) or None
    op["dout"] = [_reference(document, f"d{entry.input_name(i)}", x) for i, x in enumerate(backward.outgoing)]


def _only_put(document: Document, values: Sequence[Value | None]) -> None:
    """Put values in without the steps that gave them."""
    for value in values:
        if value is not None:
            document.put(value, document.value(value.name, value, None, ["untold"]))


def _match(document: Document, entry: Entry, backward: Backward, narration: Narration) -> dict[int, int]:
    """The numbers of what a narrated gradient rule was given, by the id of what it was told as."""
    values = [v for v in (*entry.inputs, *entry.outputs, *backward.incoming) if isinstance(v, Value)]
    told: dict[int, int] = {}
    for given in narration.inputs:
        same = next(v for v in values if v.array is given.value)
        told[id(given)] = document.number(same)
        if document.values[told[id(given)]][2] is None and given.axes:
            document.values[told[id(given)]][2] = "".join(given.axes)
    return told


def _name_axes(document: Document, inputs: list[Told], values: list[Value]) -> None:
    for given, value in zip(inputs, values, strict=True):
        row = document.values[document.number(value)]
        if row[2] is None and given.axes:
            row[2] = "".join(given.axes)


def _steps(
    document: Document, entry: Entry, direction: int, narration: Narration, told: dict[int, int], results: list[str]
) -> None:
    """Add the steps of a narration to an operation, and their results to the values and to `told`."""
    op = document.ops[entry.index]
    lines = statements_of(entry.op, narration, results)
    line_of = {k: n for n, line in enumerate(lines) for k in line.steps}
    for k, step in enumerate(narration.steps):
        origin = ["step", entry.index, direction, k]
        number = document.value(step.name or "", step.value, step.axes, origin, _rank(entry, narration, step))
        told[id(step)] = number
        op["steps"][direction].append(
            {
                "v": number,
                "n": step.name,
                "s": step.source,
                "f": step.function,
                "o": _operands(document, step, told),
                "l": _told_link(document, link_of(step)),
                "t": line_of[k],
            }
        )
    op["lines"][direction] = [{"m": s.mathml, "s": s.source, "c": s.comment, "p": s.place} for s in lines]


def _rank(entry: Entry, narration: Narration, step: Step) -> int:
    """How much the result of a step is needed: what flows on most, the gradients of parameters less."""
    if any(step is result for result in narration.results):
        parameters = {i for i, x in enumerate(entry.inputs) if isinstance(x, Value) and x.origin.kind == "leaf"}
        is_for_leaf = all(i in parameters for i, result in enumerate(narration.results) if result is step)
        return LEAF if is_for_leaf and len(narration.results) == len(entry.inputs) else FLOWS
    return NAMED if step.name else UNNAMED


def _operands(document: Document, step: Step, told: dict[int, int]) -> list[dict[str, Any]]:
    """The operands, those within tuples too: arrays as {value, name}, numbers as {constant}; the rest left out."""
    out: list[dict[str, Any]] = []

    def add(x: Any) -> None:
        if isinstance(x, Told):
            if id(x) not in told:  # an array that the rule made without telling
                told[id(x)] = document.value(x.name or "constant", x.value, x.axes, ["leaf"])
            out.append({"v": told[id(x)], "n": x.local or x.name})
        elif isinstance(x, tuple):
            for y in x:
                add(y)
        elif isinstance(x, np.ndarray):
            out.append({"v": document.value("constant", x, None, ["leaf"]), "n": None})
        elif isinstance(x, (int, float)) and not isinstance(x, bool):
            out.append({"c": told_number(x)})

    for operand in step.operands:
        add(operand)
    return out


def _told_link(document: Document, link: Link) -> list[Any]:
    source = None if link.source is None else document.packer.add(link.source)
    return [link.kind, link.sign, list(link.axes), link.start, source]


def _finish(
    document: Document, entry: Entry, direction: int, value: Value, result: Told | None, told: dict[int, int]
) -> None:
    """Say of a recorded result which step gave it: the array itself, an input handed on, or another computation's."""
    assert value.array is not None
    if result is None or result.value is None:
        document.put(value, document.value(value.name, value.array, None, ["leaf"]))
        return
    number = told[id(result)]
    same = (
        value.array.shape == np.shape(result.value)
        and value.array.tobytes() == np.ascontiguousarray(result.value).tobytes()
    )
    if same and isinstance(result, Step):
        row = document.values[number]
        row[0] = row[0] or value.name
        document.put(value, number)
        return
    origin = ["same", number] if same else ["kernel", entry.index, direction, number]
    document.put(value, document.value(value.name, value.array, result.axes, origin))


def _told_check(found: Check) -> dict[str, Any]:
    rows = []
    for r in found.rows:
        numbers = [told_briefly(x) for x in (r.as_run, r.rule, r.numeric, r.tolerance)]
        rows.append([r.input, None if r.index is None else list(r.index), *numbers, r.verdict])
    curve = [[h, told_briefly(e)] for h, e in found.curve]
    return {
        "rows": rows,
        "curve": curve,
        "run": told_briefly(found.as_run_error),
        "verdict": found.verdict,
        "why": found.reason,
    }
