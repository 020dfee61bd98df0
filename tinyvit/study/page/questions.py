"""Questions to a student, made from the numbers of a trace: predict first, then look."""

from typing import Any

import numpy as np

from ..record.records import Entry, Recording
from ..record.values import Value
from .document import Document

MOST = 14


def questions_of(trace: Recording, document: Document) -> list[dict[str, Any]]:
    """Questions with options, the number of the right one, why it is right, and where to look."""
    found: list[dict[str, Any]] = []
    asked: dict[str, int] = {}
    for entry in reversed(trace.entries):  # in the order of the way back
        ask = _ASKED.get(entry.op.name)
        if ask is None or asked.get(entry.op.name, 0) == 2 or entry.backward is None:
            continue
        if any(
            isinstance(v, Value) and v.array is None for v in (*entry.inputs, *entry.outputs, *entry.backward.outgoing)
        ):
            continue
        question = ask(entry, asked.get(entry.op.name, 0), document)
        if question is not None:
            asked[entry.op.name] = asked.get(entry.op.name, 0) + 1
            found.append({"op": entry.index, "dir": 1, **question})
    return found[:MOST]


def _question(text: str, options: list[str], answer: int, why: str, a: str, index: Any = None) -> dict[str, Any]:
    return {"text": text, "options": options, "answer": answer, "why": why, "a": a,
            "index": None if index is None else [int(i) for i in index]}  # fmt: skip


def _signs(value: float) -> int:
    return 0 if value > 0 else 1 if value < 0 else 2


_SIGN_OPTIONS = ["positive", "negative", "zero"]


def _cross_entropy(entry: Entry, times: int, document: Document) -> dict[str, Any] | None:
    ids, gradient = entry.params.get("ids"), _outgoing(entry, 0)
    if ids is None or gradient is None or gradient.ndim != 2:
        return None
    target = int(ids[0])
    return _question(
        f"The loss asks for class {target}. What sign has the gradient of that class's logit?",
        _SIGN_OPTIONS,
        _signs(float(gradient[0, target])),
        "dlogits is p - t: the probability less 1 at the right class, so the loss falls if that logit grows.",
        "dlogits",
        (0, target),
    )


def _attention(entry: Entry, times: int, document: Document) -> dict[str, Any] | None:
    steps = {s["n"]: s for s in document.ops[entry.index]["steps"][1] if s["n"]}
    if "ds" not in steps:
        return None
    if times == 0:
        return _question(
            f"{entry.module}: what is the sum of a row of ds, the gradient of the scores of one query?",
            ["1", "the sum of that row of dp", "0"],
            2,
            "ds = p (dp - r) with r = sum(p dp), and p sums to 1: what is added to all scores alike changes nothing.",
            "ds",
        )
    shape = list(_outgoing(entry, 2).shape)
    options = [[shape[0], shape[2], shape[1] * shape[3]], shape, [*shape[:2], shape[3], 3 * shape[2]]]
    return _question(
        f"{entry.module}: which shape has dv?",
        [str(option) for option in options],
        1,
        "A gradient has the shape of what it is the gradient of.",
        "dv",
    )


def _layer_norm(entry: Entry, times: int, document: Document) -> dict[str, Any] | None:
    a = "dtotal" if entry.op.name == "add_layer_norm" else "dx"
    if times == 0 and entry.op.name == "layer_norm":
        return _question(
            f"{entry.key}: what is the mean of a row of dx?",
            ["the mean of that row of dy", "0", "1"],
            1,
            "Layer norm does not see a number that is added to the whole row, so no gradient can point that way.",
            a,
        )
    return None


def _linear(entry: Entry, times: int, document: Document) -> dict[str, Any] | None:
    gradient = _outgoing(entry, 2)
    if gradient is None:
        return None
    i = int(np.abs(gradient).argmax())
    incoming = entry.backward.incoming[0].name if entry.backward and entry.backward.incoming[0] else "dy"
    return _question(
        f"{entry.key}: db[{i}] is the sum of column {i} of {incoming} over all rows. What sign has it?",
        _SIGN_OPTIONS,
        _signs(float(gradient[i])),
        f"db[{i}] = {gradient[i]:.4g}: the bias is added to every row, so every row's gradient comes back to it.",
        "dbias",
        (i,),
    )


def _relu(entry: Entry, times: int, document: Document) -> dict[str, Any] | None:
    y = entry.outputs[0].array
    assert y is not None
    dead = np.argwhere(y == 0)
    if not len(dead):
        return None
    at = tuple(int(i) for i in dead[len(dead) // 2])
    return _question(
        f"{entry.key}: the output at {list(at)} is 0. What gradient comes back there?",
        ["0", "that of the output", "half of it"],
        0,
        "Where relu gave 0, its input could move without changing anything.",
        "dx",
        at,
    )


def _outgoing(entry: Entry, i: int) -> Any:
    value = entry.backward.outgoing[i] if entry.backward and i < len(entry.backward.outgoing) else None
    return None if value is None else value.array


_ASKED: dict[str, Any] = {
    "cross_entropy": _cross_entropy,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "add_layer_norm": _layer_norm,
    "linear": _linear,
    "relu": _relu,
}
