"""A trace as text, for a terminal. The text of an exercise has the numbers of the checks, and no verdict."""

import numpy as np

from ...backend.words import did_you_mean
from ..check.differences import check
from ..record.records import Backward, Entry, Recording
from ..record.values import Value
from ..rules.axes import UNKNOWN
from ..rules.docstrings import docstring_parts
from ..rules.narrate import gradient_names
from ..rules.statements import statements_of
from ..rules.steps import Narration, Operand, Step
from ..rules.written import NUMBERED, constants_of, equation_of, explanations_of

_WHOLE, _ACROSS = 60, 10  # numbers, and columns, of the largest matrix that is printed whole
_MARKS = {"agrees": "ok", "wrong": "WRONG", "unclear": "unclear"}
_LEGEND = f"""\
Lines with a place, such as activation.py:12, are the rule's own source, and the equations below each are its steps, one
operation at a time. t1, t2 ... are intermediate results without a name of their own. In the source, xp is the library
of arrays, here NumPy, and ctx holds what the forward pass saved. * is elementwise, @ a product of matrices.
{NUMBERED}"""
_EXERCISE = (
    "One gradient rule is wrong. Compare rules and finite differences; the page, without --text, takes your claim."
)


def overview_of(recording: Recording) -> str:
    """One line for each operation, first forward, then backward."""
    width = max([len(e.key) for e in recording.entries], default=0)
    lines = ["forward", ""]
    for e in recording.entries:
        saved = sum(e.saved.values())
        lines.append(f"{e.index:4}  {e.key:{width}}  {_brief(e.outputs):44} saves {saved:,} B, {e.kernel}".rstrip())
    lines += ["", "backward", ""]
    for b in recording.backwards:
        outgoing = tuple(v for v in b.outgoing if v is not None)
        line = f"{b.entry.index:4}  {b.entry.key:{width}}  {_brief(outgoing):44}"
        if recording.mistake is not None:
            lines.append(line.rstrip())
            continue
        found = check(b)
        verdict = _MARKS[found.verdict] if found else "not stored"
        lines.append(f"{line} check: {verdict}")
        if found and found.reason:
            lines.append(f"      {found.reason}")
    lines += ["", _EXERCISE] if recording.mistake is not None else []
    bad = recording.first_not_finite()
    return "\n".join([*lines, *(["", f"first NaN or infinity: {bad}"] if bad else [])])


def text_of(recording: Recording, operation: str) -> str:
    """Forward, gradient rule and check, step by step, of every operation whose key contains `operation`.

    Raises KeyError if there is none; the message names the operations of the trace.
    """
    found = [entry for entry in recording.entries if operation in entry.key]
    if not found:
        names = dict.fromkeys(entry.op.name for entry in recording.entries)
        near = did_you_mean(operation, names)
        raise KeyError(f"no operation of this trace has {operation!r} in its name{near}; available: {', '.join(names)}")
    is_exercise = recording.mistake is not None
    texts = [_entry_text(entry, is_exercise) for entry in found]
    return "\n\n".join([_LEGEND, *texts, *([_EXERCISE] if is_exercise else [])])


def _entry_text(entry: Entry, is_exercise: bool) -> str:
    forward, backward, rest = docstring_parts(entry.op.__doc__)
    steps = "" if entry.kernel == "plain" else "; these are the steps of the plain rule, which computes the same"
    lines = [f"== {entry.key}, forward", "", f"   {forward}", f"   {entry.computed_by}{steps}"]
    if entry.expression:
        results = ", ".join(v.title or v.name for v in entry.outputs)
        lines.append(f"   {entry.line}: {results} = {entry.expression}")
    lines += [f"   {_value(entry.input_name(i), x)}" for i, x in enumerate(entry.inputs) if x is not None]
    lines += [f"   {name} = {value}" for name, value in entry.params.items() if value is not None] + [""]
    try:
        lines += _steps(entry, entry.narration(), [v.name for v in entry.outputs])
    except LookupError as error:
        lines.append(f"   {error.args[0]}")
    if entry.backward is not None:
        lines += [
            "",
            f"== {entry.key}, backward",
            "",
            f"   {backward or rest}",
            *_backward_text(entry.backward, is_exercise),
        ]
    return "\n".join(lines)


def _backward_text(backward: Backward, is_exercise: bool) -> list[str]:
    names = gradient_names(backward.entry.op, len(backward.incoming))
    given = [(name, v) for name, v in zip(names, backward.incoming, strict=True) if v is not None]
    lines = [f"   given {_value(name, v)}" for name, v in given]
    try:
        narration = backward.narration()
    except LookupError as error:
        return [*lines, "", f"   {error.args[0]}"]
    saved = [x for x in narration.inputs if x.name not in names]
    if saved:
        lines.append(f"   saved by the forward pass: {', '.join(map(_saved, saved))}")
    results = [f"d{backward.entry.input_name(i)}" for i in range(len(backward.outgoing))]
    lines += ["", *_steps(backward.entry, narration, results)]
    found = check(backward)
    if found is None:
        return lines
    verdict = _MARKS[found.verdict] + (f": {found.reason}" if found.reason else "")
    lines += ["", "   numeric check:" + ("" if is_exercise else f" {verdict}")]
    width = max(len(row.input) for row in found.rows) + 28 if found.rows else 0
    head = f"     {'gradient':{width}}" + "".join(f"{name:20}" for name in ("rule, float64", "finite difference"))
    lines += [head.rstrip()] if found.rows else []
    for row in found.rows:
        place = "along a random direction" if row.index is None else str(list(row.index))
        mark = "" if is_exercise else _MARKS[row.verdict]
        line = f"     {f'd{row.input} {place}':{width}}{row.rule:<+20.7e}{row.numeric:<+20.7e}{mark}"
        lines.append(line.rstrip())
    return lines


def _saved(operand: Operand) -> str:
    """The name that the rule gives to a saved array, and its name in the forward pass if that is another."""
    own = operand.local or operand.name or ""
    return own if own == operand.name else f"{own} (its name there is {operand.name})"


def _steps(entry: Entry, narration: Narration, results: list[str]) -> list[str]:
    """The statements of a rule that ran, each with its steps as equations, their results, and words on functions."""
    if not narration.steps:
        return ["   passed on unchanged"]
    lines, constants = [], constants_of(entry.params)
    for statement in statements_of(entry.op, narration, results):
        lines += [f"   # {statement.comment}"] if statement.comment else []
        lines.append(f"   {statement.place.rpartition('/')[2]}  {statement.source}")
        for k in statement.steps:
            step = narration.steps[k]
            ends = [name for name, x in zip(results, narration.results, strict=True) if x is step]
            name = " = ".join(dict.fromkeys([*ends, step.label]))
            lines.append(f"     {name:8} = {equation_of(step, constants)}")
            lines.append(f"   {'':12} {_axes(step)}:{_numbers(step.value)}")
    return [*lines, *(f"   {line}" for line in explanations_of(narration))]


def _axes(step: Step) -> str:
    """The shape of a step's result, with letters where they are known: `3x5`, `5 x K=4`."""
    shape = np.shape(step.value)
    if not shape:
        return "scalar"
    if not step.axes or set(step.axes) <= {UNKNOWN, "1"}:
        return "x".join(map(str, shape))
    named = zip(step.axes, shape, strict=True)
    return " x ".join(str(n) if letter in (UNKNOWN, "1") else f"{letter}={n}" for letter, n in named)


def _numbers(array: object) -> str:
    """A small matrix as its rows, each on a line of its own; of other arrays the first elements on one line."""
    values = np.asarray(array)
    flat = values.ravel()
    words = [f"{x:.4g}" if flat.dtype.kind == "f" else str(x) for x in flat[:_WHOLE]]
    if values.ndim == 2 and len(values) > 1 and 0 < flat.size <= _WHOLE and values.shape[1] <= _ACROSS:
        width = max(map(len, words))
        rows = (words[i : i + values.shape[1]] for i in range(0, flat.size, values.shape[1]))
        return "".join(f"\n{'':16}" + "  ".join(f"{word:>{width}}" for word in row) for row in rows)
    return " " + " ".join(words[:6]) + (f" ... ({flat.size} in all)" if flat.size > 6 else "")


def _brief(values: tuple[Value, ...]) -> str:
    """The names and shapes of values; where two have one name, those of gradients say of which output they are."""
    names = [v.title or v.name for v in values]
    for i, v in enumerate(values):
        if names.count(names[i]) > 1 and v.title is None and v.of is not None:
            names[i] = f"d{v.of.place}"
    shapes = ("x".join(map(str, v.shape)) or "scalar" for v in values)
    return ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))


def _value(name: str, x: object) -> str:
    """What a rule calls `name`: a number, or the user's name and the origin of an array, its facts and numbers."""
    if not isinstance(x, Value):
        return f"{name} = {x!r}"
    is_gradient = x.of is not None and x.title is None  # its name there is that of an input of another operation
    text = f"{name} {x.facts}" if is_gradient or x.place == name else f"{name} = {x.place} {x.facts}"
    return text if x.array is None else f"{text}:{_numbers(x.array)}"
