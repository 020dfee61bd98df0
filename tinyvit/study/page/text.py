"""A trace as text, for a terminal."""

import numpy as np

from ..check.differences import check
from ..record.records import Backward, Entry, Recording
from ..record.values import Value
from ..rules.docstrings import docstring_parts
from ..rules.narrate import gradient_names
from ..rules.steps import Narration

_MARKS = {"agrees": "ok", "wrong": "WRONG", "unclear": "unclear"}


def overview_of(recording: Recording) -> str:
    """One line for each operation, first forward, then backward."""
    width = max([len(e.key) for e in recording.entries], default=0)
    lines = ["forward", ""]
    for e in recording.entries:
        saved = sum(e.saved.values())
        lines.append(f"{e.index:4}  {e.key:{width}}  {_brief(e.outputs):44} saves {saved:,} B, {e.kernel}".rstrip())
    lines += ["", "backward", ""]
    for b in recording.backwards:
        found = check(b)
        verdict = _MARKS[found.verdict] if found else "not stored"
        outgoing = tuple(v for v in b.outgoing if v is not None)
        lines.append(f"{b.entry.index:4}  {b.entry.key:{width}}  {_brief(outgoing):44} check: {verdict}")
        if found and found.reason:
            lines.append(f"      {found.reason}")
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
    return "\n\n".join(_entry_text(entry) for entry in found)


def _entry_text(entry: Entry) -> str:
    forward, backward, rest = docstring_parts(entry.op.__doc__)
    lines = [f"== {entry.key}, forward ({entry.kernel})", "", f"   {forward}"]
    lines += [f"   {entry.input_name(i)}: {_value(x)}" for i, x in enumerate(entry.inputs) if x is not None]
    lines += [f"   {name} = {value}" for name, value in entry.params.items() if value is not None] + [""]
    try:
        lines += _steps(entry.narration())
    except LookupError as error:
        lines.append(f"   {error.args[0]}")
    if entry.backward is not None:
        lines += ["", f"== {entry.key}, backward", "", f"   {backward or rest}", *_backward_text(entry.backward)]
    return "\n".join(lines)


def _backward_text(backward: Backward) -> list[str]:
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
    lines += ["", f"   numeric check: {_MARKS[found.verdict]}" + (f": {found.reason}" if found.reason else "")]
    for row in found.rows:
        place = "along a random direction" if row.index is None else str(list(row.index))
        lines.append(
            f"     d{row.input} {place:26} rule {row.rule:+.7e}  difference {row.numeric:+.7e}  {_MARKS[row.verdict]}"
        )
    return lines


def _steps(narration: Narration) -> list[str]:
    if not narration.steps:
        return ["   passed on unchanged"]
    lines = []
    for k, step in enumerate(narration.steps, 1):
        name = step.name or f"[{k}]"
        axes = " ".join(step.axes) if step.axes else "x".join(map(str, np.shape(step.value)))
        lines.append(f"   {name:10} = {step.source}")
        lines.append(f"   {'':12} {axes}: {_numbers(step.value)}")
    return lines


def _numbers(array: object) -> str:
    """The first elements of an array on one line."""
    flat = np.asarray(array).ravel()
    shown = " ".join(f"{x:.4g}" if flat.dtype.kind == "f" else str(x) for x in flat[:6])
    return shown + (f" ... ({flat.size} in all)" if flat.size > 6 else "")


def _brief(values: tuple[Value, ...]) -> str:
    return ", ".join(f"{v.name} {'x'.join(map(str, v.shape)) or 'scalar'}" for v in values)


def _value(x: object, name: str | None = None) -> str:
    if not isinstance(x, Value):
        return repr(x)
    text = f"{name} = {x!r}" if name not in (None, x.name) else repr(x)
    return text if x.array is None else f"{text}: {_numbers(x.array)}"
