"""The recorder: while a trace is open, it runs every operation and gradient rule, and records arrays, memory and time.

While no trace is open, nothing here is used.
"""

import functools
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from ... import context, dispatch
from ...backend import to_host
from ...engine import Node, Op, Tensor, dtypes
from ...nn import Module
from .records import Backward, Entry, Recording
from .values import Archive, Origin, Value

MAX_ENTRIES = 100_000  # operations that a trace records; any further ones run unrecorded
_PACKAGE = str(Path(__file__).parents[2])


class Recorder:
    """Takes the place of `Op.apply` and `Op.gradients` while a trace is open: runs them, and records what they did.

    `planted` maps keys of operations to operations with a wrong gradient rule that run in their place, for exercises.
    """

    def __init__(
        self, recording: Recording, archive: Archive, names: dict[str, Tensor], planted: Mapping[str, type[Op]]
    ) -> None:
        self._recording, self._archive, self._planted = recording, archive, planted
        self._names = {id(tensor): name for name, tensor in names.items()}
        self._alive: list[Any] = list(names.values())  # keeps the ids in use, so that no other object gets one of them
        self._module_names: dict[int, str] = {}
        self._entries: dict[int, Entry] = {}  # by the sequence number of the tape's node
        self._leaf_values: dict[int, tuple[Any, Value]] = {}  # by id, with a weak reference to the tensor
        self._outputs: dict[tuple[int, int], Value] = {}  # by sequence number and output index
        self._sent: dict[Any, list[Value]] = {}  # gradients that were computed but not used yet, by destination
        self._leaves: dict[int, tuple[Any, str]] = {}
        self._key_counts: dict[str, int] = {}
        self._leaf_counts: dict[str, int] = {}
        self._memory = _TapeMemory()

    @staticmethod
    def _paused() -> context.changed:
        """Record nothing within this block."""
        return context.changed(recorder=None)

    # Forward

    def apply(self, op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        with self._paused():
            if len(self._recording.entries) >= MAX_ENTRIES:
                self._recording.complete = False
                return op.apply(*inputs, **params)
            module, line, frame = self._caller(sys._getframe(2))
            names = (op.input_name(i) for i in range(len(inputs)))
            values = tuple(self._value_of(x, frame, name) for x, name in zip(inputs, names, strict=True))
            key = self._key(op, module)
            op = self._planted.get(key, op)
            began = time.perf_counter()
            result = op.apply(*inputs, **params)
            seconds = time.perf_counter() - began
            outputs = result if isinstance(result, tuple) else (result,)
            node = outputs[0].node
            entry = Entry(
                index=len(self._recording.entries),
                key=key,
                op=op,
                module=module,
                inputs=values,
                outputs=(),
                params=params,
                needs=node.needs if node else tuple(False for _ in inputs),
                saved={},
                kernel=_kernel(op, node, inputs, params),
                seconds=seconds,
                line=line,
            )
            entry.outputs = tuple(self._output_value(entry, i, out) for i, out in enumerate(outputs))
            if node is not None:
                self._entries[node.sequence] = entry
                entry.saved = self._memory.hold(node)
            self._recording.entries.append(entry)
            self._recording.held.append(self._memory.held)
        return result

    def _key(self, op: type[Op], module: str | None) -> str:
        key = f"{module}/{op.name}" if module else op.name
        self._key_counts[key] = self._key_counts.get(key, 0) + 1
        return key if self._key_counts[key] == 1 else f"{key}#{self._key_counts[key]}"

    def _caller(self, frame: FrameType | None) -> tuple[str | None, str, FrameType | None]:
        """The name of the innermost module that is running, and the caller's line and frame outside of this package."""
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
        """Name modules and parameters as the outermost module that is running does."""
        self._recording.model = self._recording.model or root
        for name, module in root.named_modules():
            self._module_names.setdefault(id(module), name)
        for name, parameter in root.named_parameters():
            self._names.setdefault(id(parameter), name)
            self._alive.append(parameter)
        self._alive.append(root)

    def _value_of(self, x: Any, frame: FrameType | None, parameter: str) -> Any:
        """The value of an operation's input; numbers and None stay as they are."""
        if x is None or isinstance(x, (bool, int, float)):
            return x
        if not isinstance(x, Tensor):
            return self._archive.store(parameter, Origin("leaf"), np.asarray(x))
        if x.node is not None and (value := self._outputs.get((x.node.sequence, x.output_index))) is not None:
            return self._current(value, x)
        known = self._leaf_values.get(id(x))
        if known is not None and known[0]() is x:
            return self._current(known[1], x)
        name = self._names.get(id(x)) or _local_name(x, frame) or parameter
        is_leaf = x.requires_grad and x.node is None
        if is_leaf:  # `Recording.gradients` has these names as keys, so they must differ
            self._leaf_counts[name] = self._leaf_counts.get(name, 0) + 1
            name = name if self._leaf_counts[name] == 1 else f"{name}#{self._leaf_counts[name]}"
            self._leaves[id(x)] = (weakref.ref(x), name)
        value = self._archive.store(name, Origin("leaf"), _host(x))
        self._leaf_values[id(x)] = (weakref.ref(x), value)
        return value

    def _current(self, value: Value, x: Tensor) -> Value:
        """`value`, or a new one if the tensor has been modified in place since."""
        if value.array is None or np.array_equal(value.array, _host(x), equal_nan=value.array.dtype.kind == "f"):
            return value
        return self._archive.store(value.name, value.origin, _host(x))

    def _output_value(self, entry: Entry, i: int, out: Tensor) -> Value:
        names = entry.op.outputs
        name = names[i] if i < len(names) and len(names) > 1 else f"{names[0]}[{i}]" if i else names[0]
        value = self._archive.store(name, Origin("output", entry, i), _host(out))
        if out.node is not None:
            self._outputs[out.node.sequence, out.output_index] = value
        else:
            self._leaf_values[id(out)] = (weakref.ref(out), value)
        return value

    # Backward

    def gradients(self, node: Node, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        entry = self._entries.get(node.sequence)
        if create_graph:  # the rule runs on tensors, and is recorded as the operations that it consists of
            began = time.perf_counter()
            grads = node.op.gradients_of(node, incoming, create_graph)
        else:
            with self._paused():
                began = time.perf_counter()
                grads = node.op.gradients_of(node, incoming, create_graph)
        seconds = time.perf_counter() - began
        if entry is not None:
            with self._paused():
                self._record_backward(entry, node, incoming, grads, seconds)
        return grads

    def _record_backward(
        self, entry: Entry, node: Node, incoming: Sequence[Any], grads: Sequence[Any], seconds: float
    ) -> None:
        self._memory.release(node.sequence)
        received = tuple(
            None if g is None else self._total(f"d{entry.outputs[i].name}", (node.sequence, i), _host(g))
            for i, g in enumerate(incoming)
        )
        backward = Backward(len(self._recording.backwards), entry, received, (), seconds, self._memory.held)
        outgoing: list[Value | None] = []
        for i, gradient in enumerate(grads):
            if gradient is None or not entry.needs[i]:
                outgoing.append(None)
                continue
            value = self._archive.store(f"d{entry.input_name(i)}", Origin("gradient", backward, i), _host(gradient))
            outgoing.append(value)
            edge = (node.edges)[i]
            destination = (edge[0].sequence, edge[1]) if isinstance(edge, tuple) else id(edge)
            self._sent.setdefault(destination, []).append(value)
        backward.outgoing = tuple(outgoing)
        entry.backward = backward
        self._recording.backwards.append(backward)

    def _total(self, name: str, destination: Any, array: np.ndarray) -> Value:
        """The value of a complete gradient: the only one sent to `destination`, their sum, or what a hook returned."""
        parts = self._sent.pop(destination, [])
        if not parts:
            return self._archive.store(name, Origin("seed"), array)
        arrays = [part.array for part in parts if part.array is not None]
        is_sum = len(arrays) < len(parts) or np.array_equal(functools.reduce(np.add, arrays), array, equal_nan=True)
        if is_sum and len(parts) == 1:
            return parts[0]
        return self._archive.store(name, Origin("sum" if is_sum else "hook", tuple(parts)), array)

    def finished(self, gradients: dict[Tensor, Tensor]) -> None:
        """Record the gradients of the leaves that a backward reached, at its end."""
        for leaf, gradient in gradients.items():
            known = self._leaves.get(id(leaf))
            if known is not None and known[0]() is leaf:
                with self._paused():
                    self._recording.gradients[known[1]] = self._total(f"d{known[1]}", id(leaf), _host(gradient))
        self._sent.clear()


class _TapeMemory:
    """Counts the bytes that the tape holds for backward; memory that several nodes share counts once."""

    def __init__(self) -> None:
        self.held = 0  # bytes
        self._blocks: dict[int, dict[int, int]] = {}  # by sequence number: bytes by memory block
        self._holders: dict[int, int] = {}  # how many nodes hold each memory block

    def hold(self, node: Node) -> dict[str, int]:
        """Add a node; the bytes it holds, by name. A parameter counts as 0: it exists anyway."""
        arrays: dict[str, Any] = {}
        for (source, _), array in zip(node.implementation.sources, node.saved, strict=True):
            arrays[node.op.input_name(source) if source >= 0 else node.op.outputs[~source]] = array
        if node.kept:
            arrays.update(zip(node.implementation.spec.keeps, node.kept, strict=True))
        blocks, sizes = {}, {}
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                owner = array if array.base is None else array.base
                is_parameter = any(e is not None and not isinstance(e, tuple) and e.data is array for e in node.edges)
                sizes[name] = 0 if is_parameter else array.nbytes
                if not is_parameter:
                    blocks[id(owner)] = owner.nbytes
        self._blocks[node.sequence] = blocks
        for block, size in blocks.items():
            self._holders[block] = self._holders.get(block, 0) + 1
            self.held += size if self._holders[block] == 1 else 0
        return sizes

    def release(self, sequence: int) -> None:
        """Remove the node of this sequence number, whose gradient rule has run."""
        for block, size in self._blocks.pop(sequence, {}).items():
            self._holders[block] -= 1
            self.held -= size if self._holders[block] == 0 else 0


def _host(x: Any) -> np.ndarray:
    return np.asarray(to_host(x.data if isinstance(x, Tensor) else x))


def _local_name(x: Tensor, frame: FrameType | None) -> str | None:
    """The name of the caller's variable that holds a tensor."""
    return next((name for name, value in frame.f_locals.items() if value is x), None) if frame else None


def _kernel(op: type[Op], node: Node | None, inputs: Sequence[Any], params: dict[str, Any]) -> str:
    """The kernel that served an operation: the tape's node knows it; without a node, dispatch is asked again."""
    if node is not None:
        served = node.implementation
    else:
        arrays, dtype = dtypes.unwrapped(op, inputs)
        served = dispatch.select(op, dtype, arrays, params, context.now().kernels)
    return "plain" if served.spec is None else f"{served.spec.technology} v{served.version}"
