"""The contents of a trace: the operations that ran, the gradient rules that ran, and all of them together."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from ...backend.words import counted
from ...engine import Op
from ...nn import Module
from ..rules.narrate import narrate_backward, narrate_forward
from ..rules.steps import Narration
from .names import expression_at
from .values import Value


def arrays_of(values: Sequence[Any]) -> list[Any]:
    """The arrays of values; numbers and None stay as they are. Raises LookupError if an array was not stored."""
    for value in values:
        if isinstance(value, Value) and value.array is None:
            raise LookupError(
                f"{value.name} {list(value.shape)} was not stored completely; trace() needs a larger max_bytes"
            )
    return [v.array if isinstance(v, Value) else v for v in values]


@dataclass(eq=False)
class Entry:
    """One operation that ran.

    Attributes
    ----------
    index, key : its number in the trace; its place and name, "blocks.0.attn/attention" ("#2" for a second one).
    op : the class of the operation.  module : dotted name of the innermost module that ran it; None outside of models.
    inputs, outputs : values. A missing input is None; an input that is a number stays a number.
    params, needs : the operation's parameters; for each input, whether its gradient is wanted.
    saved : the bytes that the tape holds for backward, by name.
    kernel : "plain", or technology and version of the kernel that served it.
    seconds : duration of the forward, without compilation.  line : "file.py:12", the caller's line outside of this
        package.  place : its code, and the instruction there.
    is_usual : whether axes without a stated meaning are those of the model's layers: B, N, C.
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
    place: tuple[CodeType, int] | None = None
    is_usual: bool = False
    backward: "Backward | None" = None

    @property
    def formula(self) -> str:
        """The first paragraph of the operation's docstring."""
        return " ".join((self.op.__doc__ or "").strip().partition("\n\n")[0].split("\n"))

    @property
    def computed_by(self) -> str:
        """What computed the outputs, in words for the reader of a page or a text."""
        return "computed by the plain rule" if self.kernel == "plain" else f"computed by the kernel {self.kernel}"

    @property
    def expression(self) -> str:
        """The user's expression that ran it, such as "x @ weight"; empty if it is not known, or if a layer ran it."""
        is_direct = self.module is None or not self.is_usual
        return expression_at(*self.place) if self.place and is_direct else ""

    def input_name(self, i: int) -> str:
        names = self.op.inputs
        return names[i] if len(self.inputs) <= len(names) and i < len(names) else f"{names[-1]}[{i}]"

    def application(self) -> Any:
        """The application of the operation to the recorded arrays. Raises LookupError if an array was not stored."""
        return self.op.application(arrays_of(self.inputs), arrays_of(self.outputs), self.params, self.needs)

    def narration(self) -> Narration:
        """The steps of the plain forward on the recorded inputs.

        Raises LookupError if an array was not stored, or if the rule cannot be narrated.
        """
        return narrate_forward(self.op, arrays_of(self.inputs), self.params, self.is_usual)

    def __repr__(self) -> str:
        shapes = ", ".join(str(v) for v in self.outputs)
        return f"{self.index:3} {self.key} -> {shapes} ({self.kernel})"


@dataclass(eq=False)
class Backward:
    """One gradient rule that ran.

    Attributes
    ----------
    index, entry : its number among the gradient rules, in the order in which they ran; its operation.
    incoming, outgoing : gradients of the outputs and of the inputs; None where there is none.
    seconds : duration.  held : the bytes that the tape still holds afterwards.
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
        """The steps of the plain gradient rule on the recorded arrays. Raises LookupError, as for an entry."""
        e = self.entry
        inputs, outputs, incoming = (arrays_of(values) for values in (e.inputs, e.outputs, self.incoming))
        return narrate_backward(e.op, inputs, outputs, e.params, e.needs, incoming, e.is_usual)

    def __repr__(self) -> str:
        return f"{self.index:3} {self.key} -> " + ", ".join(str(v) for v in self.outgoing if v is not None)


@dataclass(eq=False)
class Recording:
    """Everything that a trace recorded.

    Attributes
    ----------
    entries, backwards : the operations in the order of the forward; the gradient rules in the order of the backward.
    gradients : the gradients of leaves (parameters, inputs) by name, from the last backward that reached them.
    held : the bytes that the tape held after each operation.
    model : the outermost module that ran, if any.
    complete : False if the trace reached its limit of entries.
    mistake : for an exercise, the mistake that was planted in one gradient rule.
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
        raise KeyError(f"no operation {key!r} in this trace; available: {', '.join(near[:8]) or 'none'}{more}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __repr__(self) -> str:
        rules = counted(len(self.backwards), "gradient rules")
        return f"{type(self).__name__} of {counted(len(self.entries), 'operations')}, {rules}"

    def first_not_finite(self) -> "NotFinite | None":
        """The first NaN or infinity, in the order in which things ran; None if everything is finite."""
        places: list[Entry | Backward] = [*self.entries, *self.backwards]
        for place in places:
            results = place.outputs if isinstance(place, Entry) else place.outgoing
            if found := _not_finite(results):
                operands = place.inputs if isinstance(place, Entry) else (*place.entry.inputs, *place.incoming)
                given = _not_finite(operands)  # every earlier result is finite, so this came from outside
                return NotFinite(place, given or found, is_input=given is not None)
        return None


@dataclass(frozen=True, eq=False)
class NotFinite:
    """The first NaN or infinity: the operation or rule that produced it, or that received it from outside.

    `value` contains it; `is_input` says that `value` is an input of `place`, not a result.
    """

    place: Entry | Backward
    value: Value
    is_input: bool

    def __str__(self) -> str:
        return f"{self.place.key}, whose input {self.value.name} contains it" if self.is_input else self.place.key


def _not_finite(values: Sequence[Any]) -> Value | None:
    return next((v for v in values if isinstance(v, Value) and not v.statistics.is_finite), None)
