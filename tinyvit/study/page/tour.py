"""Places to start from on the page of any trace: from the loss back to the parameters."""

from typing import Any

from ..record.records import Backward, Entry, Recording
from ..record.values import Value
from .document import BACKWARD, FORWARD

MOST = 6  # places


def tour_of(trace: Recording) -> list[dict[str, Any]]:
    """The loss, its gradient rule, then the rules that give gradients of parameters or inputs, in the order they ran.

    Empty if no backward ran, or if several did, since there is no single path then.
    """
    starts = [b for b in trace.backwards if any(v is not None and v.origin.kind == "seed" for v in b.incoming)]
    if len(starts) != 1:
        return []
    loss = starts[0].entry
    is_number = loss.outputs[0].statistics.shape == ()
    called = loss.outputs[0].title or ("the loss" if is_number else "the output")
    seed = starts[0].incoming[0]
    is_usual = is_number and seed is not None and seed.array is not None and seed.array == 1
    begins = (
        f"The slope of {called} with respect to itself is 1" if is_usual else "Backward began with a given gradient"
    )
    first = next((i for i, v in enumerate(starts[0].outgoing) if v is not None), None)
    places = [
        _place(loss, FORWARD, None, f"Start here: {called}", f"The last operation computes {called} from its inputs."),
        _place(
            loss,
            BACKWARD,
            None if first is None else f"d{loss.input_name(first)}",
            "Where the backward pass starts",
            f"{begins}. This rule turns it into gradients of its inputs.",
        ),
    ]
    for backward in trace.backwards:
        for i, value in _leaf_gradients(backward):
            title = value.title or value.name
            text = f"It has the shape of {title}, and says how {called} would change with each of its elements."
            if len(places) < MOST:
                argument = f"d{backward.entry.input_name(i)}"
                places.append(_place(backward.entry, BACKWARD, argument, f"The gradient of {title}", text))
    return places


def _leaf_gradients(backward: Backward) -> list[tuple[int, Value]]:
    """The inputs of a rule's operation, by number, that are leaves and have a gradient."""
    pairs = zip(backward.entry.inputs, backward.outgoing, strict=True)
    return [(i, x) for i, (x, gradient) in enumerate(pairs) if gradient is not None and x.origin.kind == "leaf"]


def _place(entry: Entry, direction: int, array: str | None, title: str, text: str) -> dict[str, Any]:
    return {"op": entry.index, "dir": direction, "a": array, "index": None, "title": title, "text": text}
