"""A trace as text, for a terminal. The text of an exercise has the numbers of the checks, and no verdict."""

import numpy as np

from ..check.differences import check
from ..record.records import Backward, Entry, Recording
from ..record.values import Value
from ..rules.axes import UNKNOWN
from ..rules.docstrings import docstring_parts
from ..rules.narrate import gradient_names
from ..rules.steps import Narration, Step

_WHOLE, _ACROSS = 60, 10  # numbers, and columns, of the largest matrix that is printed whole
_MARKS = {"agrees": "ok", "wrong": "WRONG", "unclear": "unclear"}
_EXERCISE = "One gradient rule is wrong. Compare rules and differences; the page, without --text, takes your claim."


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
        names = ", ".join(dict.fromkeys(entry.op.name for entry in recording.entries))
        raise KeyError(f"no operation of this trace has {operation!r} in its name; available: {names}")
    is_exercise = recording.mistake is not None
    return "\n\n".join([*(_entry_text(entry, is_exercise) for entry in found), *([_EXERCISE] if is_exercise else [])])


def _entry_text(entry: Entry, is_exercise: bool) -> str:
    forward, backward, rest = docstring_parts(entry.op.__doc__)
    lines = [f"== {entry.key}, forward ({entry.kernel})", "", f"   {forward}"]
    if entry.expression:
        results = ", ".join(v.title or v.name for v in entry.outputs)
        lines.append(f"   {entry.line}: {results} = {entry.expression}")
    lines += [f"   {entry.input_name(i)}: {_value(x)}" for i, x in enumerate(entry.inputs) if x is not None]
    lines += [f"   {name} = {value}" for name, value in entry.params.items() if value is not None] + [""]
    try:
        lines += _steps(entry.narration())
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
    lines = [f"   given {_value(v, name)}" for name, v in given] + [""]
    try:
        lines += _steps(backward.narration())
    except LookupError as error:
        return [*lines, f"   {error.args[0]}"]
    found = check(backward)
    if found is None:
        return lines
    verdict = _MARKS[found.verdict] + (f": {found.reason}" if found.reason else "")
    lines += ["", "   numeric check:" + ("" if is_exercise else f" {verdict}")]
    for row in found.rows:
        place = "along a random direction" if row.index is None else str(list(row.index))
        mark = "" if is_exercise else f"  {_MARKS[row.verdict]}"
        lines.append(f"     d{row.input} {place:26} rule {row.rule:+.7e}  difference {row.numeric:+.7e}{mark}")
    return lines


def _steps(narration: Narration) -> list[str]:
    if not narration.steps:
        return ["   passed on unchanged"]
    lines = []
    for k, step in enumerate(narration.steps, 1):
        name = step.name or f"[{k}]"
        axes = _axes(step)
        lines.append(f"   {name:10} = {step.source}")
        lines.append(f"   {'':12} {axes}:{_numbers(step.value)}")
    return lines


def _axes(step: Step) -> str:
    """The letters of a step's result, and sizes in place of unknown ones."""
    shape = np.shape(step.value)
    if not step.axes or set(step.axes) <= {UNKNOWN, "1"}:
        return "x".join(map(str, shape))
    return " ".join(str(n) if letter == UNKNOWN else letter for letter, n in zip(step.axes, shape, strict=True))


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
    return ", ".join(f"{v.title or v.name} {'x'.join(map(str, v.shape)) or 'scalar'}" for v in values)


def _value(x: object, name: str | None = None) -> str:
    if not isinstance(x, Value):
        return repr(x)
    text = f"{name} = {x!r}" if name not in (None, x.title or x.name) else repr(x)
    return text if x.array is None else f"{text}:{_numbers(x.array)}"
