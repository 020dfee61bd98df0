"""The questions of operations (`Op.questions`), asked with the numbers of a trace."""

from typing import Any

from ...functional.teaching import SHAPE, SIGN, Question
from ..record.records import Entry, Recording
from ..record.values import Value
from .document import BACKWARD, Document

MOST = 14  # questions on a page


def questions_of(trace: Recording, document: Document) -> list[dict[str, Any]]:
    """Questions with their options, the number of the right one, the reason, and the array that shows it."""
    found: list[dict[str, Any]] = []
    asked: dict[str, int] = {}
    for entry in reversed(trace.entries):  # in the order of the backward
        k = asked.get(entry.op.name, 0)
        if k == len(entry.op.questions) or not _is_stored(entry):
            continue
        question = _asked(entry.op.questions[k], entry, document)
        if question is not None:
            asked[entry.op.name] = k + 1
            found.append({"op": entry.index, "dir": BACKWARD, **question})
    return found[:MOST]


def _is_stored(entry: Entry) -> bool:
    """Whether the gradient rule ran, and the trace has all its arrays."""
    if entry.backward is None:
        return False
    values = [*entry.inputs, *entry.outputs, *entry.backward.outgoing]
    return all(v.array is not None for v in values if isinstance(v, Value))


def _asked(question: Question, entry: Entry, document: Document) -> dict[str, Any] | None:
    """The question about one application of its operation; None if it does not apply."""
    assert entry.backward is not None
    gradients = {f"d{entry.input_name(i)}": value for i, value in enumerate(entry.backward.outgoing)}
    variables = {step["n"] for step in document.ops[entry.index]["steps"][BACKWARD]}
    value = gradients.get(question.array)
    if value is None and question.array not in variables:
        return None
    words: dict[str, Any] = {}
    index = None
    if question.element is not None:
        assert value is not None
        assert value.array is not None
        found = question.element(entry.application(), value.array)
        if found is None:
            return None
        index = [int(i) for i in found]
        words = {"index": index, "value": value.array[tuple(index)]}
    incoming = next(v for v in entry.backward.incoming if v is not None)
    options, answer = _options(question, value, words.get("value"))
    return {
        "text": f"{entry.key}: {question.text.format(incoming=incoming.name, **words)}",
        "options": options,
        "answer": answer,
        "why": question.reason.format(incoming=incoming.name, **words),
        "a": question.array,
        "index": index,
    }


def _options(question: Question, gradient: Value | None, element: Any) -> tuple[list[str], int]:
    """The options, and the number of the right one."""
    if question.options == SIGN:
        return ["positive", "negative", "zero"], 0 if element > 0 else 1 if element < 0 else 2
    if question.options == SHAPE:
        assert gradient is not None
        *leading, rows, columns = gradient.shape
        wrong = [[*leading, columns, 3 * rows], [*leading, rows * columns]]
        return [str(wrong[0]), str(list(gradient.shape)), str(wrong[1])], 1
    return list(question.options), question.answer
