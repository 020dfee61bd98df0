"""What a trace holds: operations that ran, gradient rules that ran, and all of them together."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...engine import Op
from ...nn import Module
from ..rules.narrate import Narration, narrate_backward, narrate_forward
from .values import Value


def whole(values: Sequence[Any]) -> list[Any]:
    """The arrays of values; numbers and None as they are. Raises LookupError if one was not kept whole."""
    for value in values:
        if isinstance(value, Value) and value.array is None:
            raise LookupError(f"{value.name} {list(value.shape)} was not kept whole; trace() had too few max_bytes")
    return [v.array if isinstance(v, Value) else v for v in values]


@dataclass(eq=False)
class Entry:
    """One operation that ran.

    Attributes
    ----------
    index, key : its number in the trace; its place and name, "blocks.0.attn/attention" ("#2" if not the first such).
    op : the class of the operation.  module : dotted name of the innermost module that ran it; None outside of models.
    inputs, outputs : values; a missing input is None, a number that is no array stands for itself.
    params, needs : as on the tape.
    saved : bytes of what the tape holds on to for backward, by name.
    kernel : "plain", or technology and version of the kernel that served it.
    seconds : of the forward.  line : "file.py:12", the line of the caller outside of this package.
    backward : what its gradient rule did; None if it has not run.
    """

    index: int
    key: str
    op: type[Op]
    module: str | None
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    params: dict[str, Any]
    needs: tuple[bool, ...]
    saved: dict[str, int]
    kernel: str
    seconds: float
    line: str
    backward: "Backward | None" = None

    @property
    def formula(self) -> str:
        """The first paragraph of the operation's docstring."""
        return " ".join((self.op.__doc__ or "").strip().partition("\n\n")[0].split("\n"))

    def input_name(self, i: int) -> str:
        names = self.op.inputs
        return names[i] if len(self.inputs) <= len(names) and i < len(names) else f"{names[-1]}[{i}]"

    def narration(self) -> Narration:
        """The plain forward, step by step, on the recorded inputs. Raises LookupError: not kept, not to be told."""
        return narrate_forward(self.op, whole(self.inputs), self.params)

    def __repr__(self) -> str:
        shapes = ", ".join(str(v) for v in self.outputs)
        return f"{self.index:3} {self.key} -> {shapes} ({self.kernel})"


@dataclass(eq=False)
class Backward:
    """One gradient rule that ran: of which entry, from which gradients of its outputs, to which of its inputs.

    `held` is how many bytes the tape still holds after it; `seconds` its time.
    """

    index: int
    entry: Entry
    incoming: tuple[Value | None, ...]
    outgoing: tuple[Value | None, ...]
    seconds: float
    held: int

    @property
    def key(self) -> str:
        return f"{self.entry.key}/backward"

    def narration(self) -> Narration:
        """The plain gradient rule, step by step, on what was recorded. Raises LookupError, as there."""
        e = self.entry
        return narrate_backward(e.op, whole(e.inputs), whole(e.outputs), e.params, e.needs, whole(self.incoming))

    def __repr__(self) -> str:
        return f"{self.index:3} {self.key} -> " + ", ".join(str(v) for v in self.outgoing if v is not None)


@dataclass(eq=False)
class Recording:
    """What was recorded: `entries` in the order of the forward, `backwards` in the order of the way back.

    `gradients` maps the names of leaves (parameters, inputs) to their gradients in the last pass that reached them;
    `held` is the memory that the tape held after each forward, in bytes; `complete` is False if the trace came to its
    limit of entries; `mistake` says what is wrong if a wrong rule was planted.
    """

    entries: list[Entry] = field(default_factory=list)
    backwards: list[Backward] = field(default_factory=list)
    gradients: dict[str, Value] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    model: Module | None = None
    complete: bool = True
    mistake: str | None = None

    def __getitem__(self, key: str | int) -> Entry:
        if isinstance(key, int):
            return self.entries[key]
        for entry in self.entries:
            if entry.key == key:
                return entry
        keys = [e.key for e in self.entries]
        near = [k for k in keys if key in k] or difflib.get_close_matches(key, keys) or keys
        more = f" ... ({len(near)} in all)" if len(near) > 8 else ""
        raise KeyError(f"no operation {key!r} in this trace; there is {', '.join(near[:8]) or 'none'}{more}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.entries)} operations, {len(self.backwards)} gradient rules"

    def first_not_finite(self) -> "NotFinite | None":
        """Where a NaN or an infinity first came up, in the order in which things ran; None if nowhere."""
        places: list[Entry | Backward] = [*self.entries, *self.backwards]
        for place in places:
            made = place.outputs if isinstance(place, Entry) else place.outgoing
            if found := _not_finite(made):
                went_in = place.inputs if isinstance(place, Entry) else (*place.entry.inputs, *place.incoming)
                given = _not_finite(went_in)  # all that was computed before is finite: it came from outside
                return NotFinite(place, given or found, was_given=given is not None)
        return None


@dataclass(frozen=True, eq=False)
class NotFinite:
    """The first NaN or infinity: in `value`, which the operation or rule `place` gave, or was given from outside."""

    place: Entry | Backward
    value: Value
    was_given: bool

    def __str__(self) -> str:
        return f"{self.place.key}, which was given it in {self.value.name}" if self.was_given else self.place.key


def _not_finite(values: Sequence[Any]) -> Value | None:
    return next((v for v in values if isinstance(v, Value) and not v.statistics.is_finite), None)
