"""Recording: every operation that runs, forward and backward, with its arrays, its memory, its time and its place.

Nothing here is consulted unless a trace is open.
"""

import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from .. import autograd, dispatch
from ..autograd import Op, Tensor
from ..backend import to_host
from ..nn import Module
from .narrate import Narration, narrate_backward, narrate_forward
from .values import Keeper, Origin, Value

MAX_ENTRIES = 100_000  # operations a trace records; the later ones run unrecorded
_PACKAGE = str(Path(__file__).parents[1])


def whole(values: Sequence[Any]) -> list[Any]:
    """The arrays of values; numbers and None as they are. Raises LookupError if one was not kept whole."""
    for value in values:
        if isinstance(value, Value) and value.array is None:
            raise LookupError(f"{value.name} {list(value.shape)} was not kept whole; give trace() more max_bytes")
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
        """The plain forward, step by step, on the recorded inputs. Raises LookupError if they were not kept."""
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
        """The plain gradient rule, step by step, on the recorded arrays. Raises LookupError if not kept."""
        e = self.entry
        return narrate_backward(e.op, whole(e.inputs), whole(e.outputs), e.params, e.needs, whole(self.incoming))

    def __repr__(self) -> str:
        return f"{self.index:3} {self.key} -> " + ", ".join(str(v) for v in self.outgoing if v is not None)


@dataclass(eq=False)
class Recording:
    """What was recorded: `entries` in the order of the forward, `backwards` in the order of the way back.

    `gradients` maps the names of leaves (parameters, inputs) to their gradients in the last pass that reached them;
    `held` is the memory that the tape held after each forward, in bytes; `complete` is False if the trace came to its
    limit of entries.
    """

    entries: list[Entry] = field(default_factory=list)
    backwards: list[Backward] = field(default_factory=list)
    gradients: dict[str, Value] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    model: Module | None = None
    complete: bool = True

    def __getitem__(self, key: str | int) -> Entry:
        if isinstance(key, int):
            return self.entries[key]
        for entry in self.entries:
            if entry.key == key:
                return entry
        near = [e.key for e in self.entries if key in e.key]
        raise KeyError(f"no operation {key!r} in this trace" + (f"; there is {', '.join(near[:8])}" if near else ""))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.entries)} operations, {len(self.backwards)} gradient rules"

    def first_not_finite(self) -> Entry | Backward | None:
        """What first gave a NaN or an infinity, in the order in which things ran; None if nothing did."""
        for entry in self.entries:
            if not all(v.statistics.is_finite for v in entry.outputs):
                return entry
        for backward in self.backwards:
            if not all(v.statistics.is_finite for v in backward.outgoing if v is not None):
                return backward
        return None


class Recorder:
    """Stands in for `Op.apply` and `Op.gradients` while a trace is open: runs them, and writes down what they did."""

    def __init__(self, recording: Recording, keeper: Keeper, names: dict[str, Tensor]) -> None:
        self.trace = recording
        self._keeper = keeper
        self._names = {id(tensor): name for name, tensor in names.items()}
        self._named = list(names.values())  # alive, so that no other tensor takes their id
        self._module_names: dict[int, str] = {}
        self._entries: dict[int, Entry] = {}  # by the sequence number of the entry on the tape
        self._values: dict[int, tuple[Any, Value]] = {}  # of tensors, by id, with a weak reference to the tensor
        self._made: dict[tuple[int, int], Value] = {}  # of what lies on the tape, by sequence number and output
        self._sent: dict[Any, list[Value]] = {}  # gradients on their way, by the place they go to
        self._leaves: dict[int, tuple[Any, str]] = {}
        self._last = 0  # the sequence number of the entry that backward was at last
        self._uses: dict[str, int] = {}  # how often a key was taken
        self._holds: dict[int, dict[int, int]] = {}  # bytes by memory block, for each entry of the tape

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within this block nothing is recorded."""
        before, autograd.recorder = autograd.recorder, None
        try:
            yield
        finally:
            autograd.recorder = before

    # Forward

    def apply(self, op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        with self._aside():
            if len(self.trace.entries) >= MAX_ENTRIES:
                self.trace.complete = False
                return op.apply(*inputs, **params)
            module, line, frame = self._whereabouts(sys._getframe(2))
            came_in = tuple(
                self._value_of(x, frame, op.inputs[min(i, len(op.inputs) - 1)]) for i, x in enumerate(inputs)
            )
            began = time.perf_counter()
            result = op.apply(*inputs, **params)
            seconds = time.perf_counter() - began
            outputs = result if isinstance(result, tuple) else (result,)
            node = outputs[0]._op
            entry = Entry(
                index=len(self.trace.entries),
                key=self._key(op, module),
                op=op,
                module=module,
                inputs=came_in,
                outputs=(),
                params=params,
                needs=node.needs if node else tuple(False for _ in inputs),
                saved={},
                kernel=_kernel(op, node, inputs, params),
                seconds=seconds,
                line=line,
            )
            entry.outputs = tuple(self._made_by(entry, i, out) for i, out in enumerate(outputs))
            if node is not None:
                self._entries[node.sequence] = entry
                entry.saved = self._saved(node)
            self.trace.entries.append(entry)
            self.trace.held.append(self._held())
        return result

    def _key(self, op: type[Op], module: str | None) -> str:
        key = f"{module}/{op.name}" if module else op.name
        self._uses[key] = self._uses.get(key, 0) + 1
        return key if self._uses[key] == 1 else f"{key}#{self._uses[key]}"

    def _whereabouts(self, frame: FrameType | None) -> tuple[str | None, str, FrameType | None]:
        """The innermost module that runs, and the caller's line and frame outside of this package."""
        running: list[Module] = []
        outside = None
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Module):
                running.append(owner)
            if outside is None and not frame.f_code.co_filename.startswith(_PACKAGE):
                outside = frame
            frame = frame.f_back
        line = f"{Path(outside.f_code.co_filename).name}:{outside.f_lineno}" if outside else ""
        if not running:
            return None, line, outside
        if id(running[0]) not in self._module_names:
            self._learn_names(running[-1])
        return self._module_names.get(id(running[0]), type(running[0]).__name__), line, outside

    def _learn_names(self, root: Module) -> None:
        """Call modules and parameters as the outermost module that runs calls them."""
        self.trace.model = self.trace.model or root
        for name, module in root.named_modules():
            self._module_names.setdefault(id(module), name)
        for name, parameter in root.named_parameters():
            self._names.setdefault(id(parameter), name)
            self._named.append(parameter)
        self._named.append(root)  # type: ignore[arg-type]

    def _value_of(self, x: Any, frame: FrameType | None, parameter: str) -> Any:
        """The value of something that goes into an operation; numbers and None stand for themselves."""
        if x is None or isinstance(x, (bool, int, float)):
            return x
        if not isinstance(x, Tensor):
            return self._keeper.keep(parameter, Origin("leaf"), np.asarray(x))
        if x._op is not None and (value := self._made.get((x._op.sequence, x._index))) is not None:
            return self._current(value, x)
        known = self._values.get(id(x))
        if known is not None and known[0]() is x:
            return self._current(known[1], x)
        value = self._keeper.keep(
            self._names.get(id(x)) or _local_name(x, frame) or parameter, Origin("leaf"), _host(x)
        )
        self._values[id(x)] = (weakref.ref(x), value)
        if x.requires_grad and x._op is None:
            self._leaves[id(x)] = (weakref.ref(x), value.name)
        return value

    def _current(self, value: Value, x: Tensor) -> Value:
        """`value`, or a new one if the tensor was modified in place since."""
        if value.array is None or np.array_equal(value.array, _host(x), equal_nan=value.array.dtype.kind == "f"):
            return value
        return self._keeper.keep(value.name, value.origin, _host(x))

    def _made_by(self, entry: Entry, i: int, out: Tensor) -> Value:
        names = entry.op.outputs
        name = names[i] if i < len(names) and len(names) > 1 else f"{names[0]}[{i}]" if i else names[0]
        value = self._keeper.keep(name, Origin("output", entry, i), _host(out))
        if out._op is not None:
            self._made[out._op.sequence, out._index] = value
        else:
            self._values[id(out)] = (weakref.ref(out), value)
        return value

    def _saved(self, node: Op) -> dict[str, int]:
        """Bytes that an entry of the tape holds on to, by name; parameters would live anyway, and count as 0."""
        arrays: dict[str, Any] = {}
        sources = node._sources if node.implementation is None else node.implementation.sources
        for (source, _), array in zip(sources, node.saved or (), strict=True):
            arrays[node._input(source) if source >= 0 else node.outputs[~source]] = array
        if node.extra:
            arrays.update(zip(node.implementation.spec.keeps, node.extra[0], strict=True))
        blocks, sizes = {}, {}
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                owner = array if array.base is None else array.base
                is_parameter = any(
                    e is not None and not isinstance(e, tuple) and e.data is array for e in node.edges or ()
                )
                sizes[name] = 0 if is_parameter else array.nbytes
                if not is_parameter:
                    blocks[id(owner)] = owner.nbytes
        self._holds[node.sequence] = blocks
        return sizes

    def _held(self) -> int:
        return sum({block: size for holds in self._holds.values() for block, size in holds.items()}.values())

    # Backward

    def gradients(self, node: Op, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        entry = self._entries.get(node.sequence)
        if create_graph:  # the rule runs on tensors, and is recorded as the operations that it is made of
            began = time.perf_counter()
            grads = node.gradients(incoming, create_graph)
        else:
            with self._aside():
                began = time.perf_counter()
                grads = node.gradients(incoming, create_graph)
        seconds = time.perf_counter() - began
        if entry is not None:
            with self._aside():
                self._write_down(entry, node, incoming, grads, seconds)
        return grads

    def _write_down(
        self, entry: Entry, node: Op, incoming: Sequence[Any], grads: Sequence[Any], seconds: float
    ) -> None:
        if node.sequence >= self._last:  # one pass goes strictly backwards: this is another
            self.finish()
        self._last = node.sequence
        self._holds.pop(node.sequence, None)
        came_in = tuple(
            None if g is None else self._arrived((node.sequence, i), f"d{entry.outputs[i].name}", _host(g))
            for i, g in enumerate(incoming)
        )
        backward = Backward(len(self.trace.backwards), entry, came_in, (), seconds, self._held())
        outgoing: list[Value | None] = []
        for i, gradient in enumerate(grads):
            if gradient is None or not entry.needs[i]:
                outgoing.append(None)
                continue
            value = self._keeper.keep(f"d{entry.input_name(i)}", Origin("gradient", backward, i), _host(gradient))
            outgoing.append(value)
            edge = (node.edges or ())[i]
            place = (edge[0].sequence, edge[1]) if isinstance(edge, tuple) else id(edge)
            self._sent.setdefault(place, []).append(value)
        backward.outgoing = tuple(outgoing)
        entry.backward = backward
        self.trace.backwards.append(backward)

    def _arrived(self, place: Any, name: str, array: np.ndarray) -> Value:
        """The value of a complete gradient: the one that was sent there, or the sum of several."""
        parts = self._sent.pop(place, [])
        if len(parts) == 1 and parts[0].array is not None and np.array_equal(parts[0].array, array, equal_nan=True):
            return parts[0]
        return self._keeper.keep(name, Origin("sum", tuple(parts)) if parts else Origin("seed"), array)

    def finish(self) -> None:
        """Add up what a pass sent to the leaves."""
        sent, self._sent = self._sent, {}
        for place, parts in sent.items():
            if isinstance(place, int) and place in self._leaves:
                name = self._leaves[place][1]
                whole = [p.array for p in parts if p.array is not None]
                if len(parts) == 1 or len(whole) < len(parts):
                    self.trace.gradients[name] = parts[0]
                else:
                    total = whole[0]
                    for array in whole[1:]:
                        total = total + array
                    self.trace.gradients[name] = self._keeper.keep(f"d{name}", Origin("sum", tuple(parts)), total)


def _host(x: Any) -> np.ndarray:
    return np.asarray(to_host(x.data if isinstance(x, Tensor) else x))


def _local_name(x: Tensor, frame: FrameType | None) -> str | None:
    """The name of the caller's variable that holds a tensor."""
    held: Callable[[Any], bool] = lambda value: value is x  # noqa: E731
    return next((name for name, value in frame.f_locals.items() if held(value)), None) if frame else None


def _kernel(op: type[Op], node: Op | None, inputs: Sequence[Any], params: dict[str, Any]) -> str:
    """What served an operation: the tape knows; where nothing was recorded, dispatch is asked again."""
    if node is not None:
        served = node.implementation
    else:
        arrays, dtype = autograd._arrays(op, inputs)
        served = dispatch.select(op, dtype, arrays, params) if op.kernel else None
    return "plain" if served is None else f"{served.spec.technology} v{served.version}"
