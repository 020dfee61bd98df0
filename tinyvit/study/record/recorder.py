"""Recording: every operation that runs, forward and backward, with its arrays, its memory, its time and its place.

Nothing here is consulted unless a trace is open.
"""

import functools
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from ... import context, dispatch
from ...backend import to_host
from ...engine import Node, Op, Tensor, dtypes
from ...nn import Module
from .records import Backward, Entry, Recording
from .values import Keeper, Origin, Value

MAX_ENTRIES = 100_000  # operations a trace records; the later ones run unrecorded
_PACKAGE = str(Path(__file__).parents[2])


class Recorder:
    """Stands in for `Op.apply` and `Op.gradients` while a trace is open: runs them, and writes down what they did.

    `instead` has operations to run in place of those of these keys.
    """

    def __init__(self, recording: Recording, keeper: Keeper, names: dict[str, Tensor]) -> None:
        self.trace = recording
        self.instead: dict[str, type[Op]] = {}
        self._keeper = keeper
        self._names = {id(tensor): name for name, tensor in names.items()}
        self._alive: list[Any] = list(names.values())  # so that nothing else takes their id
        self._module_names: dict[int, str] = {}
        self._entries: dict[int, Entry] = {}  # by the sequence number of the entry on the tape
        self._values: dict[int, tuple[Any, Value]] = {}  # of tensors, by id, with a weak reference to the tensor
        self._made: dict[tuple[int, int], Value] = {}  # of what lies on the tape, by sequence number and output
        self._sent: dict[Any, list[Value]] = {}  # gradients on their way, by the place they go to
        self._leaves: dict[int, tuple[Any, str]] = {}
        self._uses: dict[str, int] = {}  # how often a key was taken
        self._leaf_uses: dict[str, int] = {}  # how often a name was
        self._holds: dict[int, dict[int, int]] = {}  # bytes by memory block, for each entry of the tape
        self._holders: dict[int, int] = {}  # of each memory block, how many entries of the tape hold it
        self._held = 0  # bytes of all of them

    @staticmethod
    def _aside() -> context.changed:
        """Within this block nothing is recorded."""
        return context.changed(recorder=None)

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
            key = self._key(op, module)
            op = self.instead.get(key, op)
            began = time.perf_counter()
            result = op.apply(*inputs, **params)
            seconds = time.perf_counter() - began
            outputs = result if isinstance(result, tuple) else (result,)
            node = outputs[0].node
            entry = Entry(
                index=len(self.trace.entries),
                key=key,
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
            self.trace.held.append(self._held)
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
            self._alive.append(parameter)
        self._alive.append(root)

    def _value_of(self, x: Any, frame: FrameType | None, parameter: str) -> Any:
        """The value of something that goes into an operation; numbers and None stand for themselves."""
        if x is None or isinstance(x, (bool, int, float)):
            return x
        if not isinstance(x, Tensor):
            return self._keeper.keep(parameter, Origin("leaf"), np.asarray(x))
        if x.node is not None and (value := self._made.get((x.node.sequence, x.output_index))) is not None:
            return self._current(value, x)
        known = self._values.get(id(x))
        if known is not None and known[0]() is x:
            return self._current(known[1], x)
        name = self._names.get(id(x)) or _local_name(x, frame) or parameter
        is_leaf = x.requires_grad and x.node is None
        if is_leaf:  # gradients are told by these names: two may not have the same
            self._leaf_uses[name] = self._leaf_uses.get(name, 0) + 1
            name = name if self._leaf_uses[name] == 1 else f"{name}#{self._leaf_uses[name]}"
            self._leaves[id(x)] = (weakref.ref(x), name)
        value = self._keeper.keep(name, Origin("leaf"), _host(x))
        self._values[id(x)] = (weakref.ref(x), value)
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
        if out.node is not None:
            self._made[out.node.sequence, out.output_index] = value
        else:
            self._values[id(out)] = (weakref.ref(out), value)
        return value

    def _saved(self, node: Node) -> dict[str, int]:
        """Bytes that an entry of the tape holds on to, by name; parameters would live anyway, and count as 0."""
        arrays: dict[str, Any] = {}
        sources = node.implementation.sources
        for (source, _), array in zip(sources, node.saved or (), strict=True):
            arrays[node.op.input_name(source) if source >= 0 else node.op.outputs[~source]] = array
        if node.kept:
            arrays.update(zip(node.implementation.spec.keeps, node.kept, strict=True))
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
        for block, size in blocks.items():
            self._holders[block] = self._holders.get(block, 0) + 1
            self._held += size if self._holders[block] == 1 else 0
        return sizes

    def _release(self, sequence: int) -> None:
        for block, size in self._holds.pop(sequence, {}).items():
            self._holders[block] -= 1
            self._held -= size if self._holders[block] == 0 else 0

    # Backward

    def gradients(self, node: Node, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        entry = self._entries.get(node.sequence)
        if create_graph:  # the rule runs on tensors, and is recorded as the operations that it is made of
            began = time.perf_counter()
            grads = node.op.gradients_of(node, incoming, create_graph)
        else:
            with self._aside():
                began = time.perf_counter()
                grads = node.op.gradients_of(node, incoming, create_graph)
        seconds = time.perf_counter() - began
        if entry is not None:
            with self._aside():
                self._write_down(entry, node, incoming, grads, seconds)
        return grads

    def _write_down(
        self, entry: Entry, node: Node, incoming: Sequence[Any], grads: Sequence[Any], seconds: float
    ) -> None:
        self._release(node.sequence)
        came_in = tuple(
            None if g is None else self._total(f"d{entry.outputs[i].name}", (node.sequence, i), _host(g))
            for i, g in enumerate(incoming)
        )
        backward = Backward(len(self.trace.backwards), entry, came_in, (), seconds, self._held)
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

    def _total(self, name: str, place: Any, array: np.ndarray) -> Value:
        """The value of a complete gradient: what was sent to that place, the sum of it, or what a hook made of it."""
        parts = self._sent.pop(place, [])
        if not parts:
            return self._keeper.keep(name, Origin("seed"), array)
        whole = [part.array for part in parts if part.array is not None]
        is_sum = len(whole) < len(parts) or np.array_equal(functools.reduce(np.add, whole), array, equal_nan=True)
        if is_sum and len(parts) == 1:
            return parts[0]
        return self._keeper.keep(name, Origin("sum" if is_sum else "hook", tuple(parts)), array)

    def finished(self, gradients: dict[Tensor, Tensor]) -> None:
        """A pass is over, and these are the gradients of the leaves it reached."""
        for leaf, gradient in gradients.items():
            known = self._leaves.get(id(leaf))
            if known is not None and known[0]() is leaf:
                with self._aside():
                    self.trace.gradients[known[1]] = self._total(f"d{known[1]}", id(leaf), _host(gradient))
        self._sent.clear()


def _host(x: Any) -> np.ndarray:
    return np.asarray(to_host(x.data if isinstance(x, Tensor) else x))


def _local_name(x: Tensor, frame: FrameType | None) -> str | None:
    """The name of the caller's variable that holds a tensor."""
    return next((name for name, value in frame.f_locals.items() if value is x), None) if frame else None


def _kernel(op: type[Op], node: Node | None, inputs: Sequence[Any], params: dict[str, Any]) -> str:
    """What served an operation: the tape knows; where nothing was recorded, dispatch is asked again."""
    if node is not None:
        served = node.implementation
    else:
        arrays, dtype = dtypes.unwrapped(op, inputs)
        served = dispatch.select(op, dtype, arrays, params)
    return "plain" if served.spec is None else f"{served.spec.technology} v{served.version}"
