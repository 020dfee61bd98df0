"""The recorder: while a trace is open, it runs every operation and gradient rule, and records arrays, memory and time.

While no trace is open, nothing here is used.
"""

import contextlib
import functools
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from ... import context, dispatch
from ...backend import to_host
from ...engine import Node, Op, Tensor, dtypes
from ...nn import Module
from ..rules.narrate import output_names
from .names import caller_outside, local_variables, variable_of
from .records import Backward, Entry, Recording
from .values import Archive, Origin, Value

MAX_ENTRIES = 100_000  # operations that a trace records; any further ones run unrecorded
_PACKAGE = str(Path(__file__).parents[2])
_WARM: set[Any] = set()  # what kernels have run for in this process: see `_first_use`


class Recorder:
    """Takes the place of `Op.apply` and `Op.gradients` while a trace is open: runs them, and records what they did.

    `planted` maps keys of operations to operations with a wrong gradient rule that run in their place, for exercises.
    """

    def __init__(
        self, recording: Recording, archive: Archive, names: dict[str, Tensor], planted: Mapping[str, type[Op]]
    ) -> None:
        self._recording, self._archive, self._planted = recording, archive, planted
        self._names = {id(tensor): name for name, tensor in names.items()}
        self._chosen = frozenset(self._names)  # ids of tensors that the user has named
        self._alive: list[Any] = list(names.values())  # keeps the ids in use, so that no other object gets one of them
        self._module_names: dict[int, str] = {}
        self._entries: dict[int, Entry] = {}  # by the sequence number of the tape's node
        self._leaf_values: dict[int, tuple[Any, Value]] = {}  # by id, with a weak reference to the tensor
        self._outputs: dict[tuple[int, int], Value] = {}  # by place on the tape
        self._sent: dict[Any, list[Value]] = {}  # gradients that were computed but not used yet, by destination
        self._leaves: dict[int, tuple[Any, str]] = {}
        self._key_counts: dict[str, int] = {}
        self._name_counts: dict[str, int] = {}
        self._unnamed: list[tuple[Any, Value]] = []  # outputs that no variable held when they were read, by reference
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
            module, is_layer, frame = self._caller(sys._getframe(2))
            names = (op.input_name(i) for i in range(len(inputs)))
            values = tuple(self._value_of(x, frame, name) for x, name in zip(inputs, names, strict=True))
            key = self._key(op, module)
            op = self._planted.get(key, op)
            result, seconds = _timed(op.apply, *inputs, **params)
            outputs = result if isinstance(result, tuple) else (result,)
            node = outputs[0].node
            kernel = _kernel(op, node, inputs, params)
            if _first_use("forward", op, kernel, inputs, params):
                with context.changed(recording=False):
                    _, seconds = _timed(op.apply, *inputs, **params)
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
                kernel=kernel,
                seconds=seconds,
                line=f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "",
                place=(frame.f_code, frame.f_lasti) if frame else None,
                is_usual=is_layer or _follows_layers(op, values),
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

    def _caller(self, frame: FrameType | None) -> tuple[str | None, bool, FrameType | None]:
        """The innermost module that runs: its name, and whether this package defines it; then the user's frame."""
        outside = caller_outside(frame, (_PACKAGE,))
        running: list[Module] = []
        while frame is not None:
            if frame.f_code.co_varnames[:1] == ("self",) and frame.f_code.co_argcount:
                owner = local_variables(frame).get("self")
                if isinstance(owner, Module):
                    running.append(owner)
            frame = frame.f_back
        if not running:
            return None, False, outside
        if id(running[0]) not in self._module_names:
            self._learn_names(running[-1])
        name = self._module_names.get(id(running[0]), type(running[0]).__name__)
        return name, type(running[0]).__module__.startswith(f"{__package__.partition('.')[0]}."), outside

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
            variable = variable_of(x, frame)
            value = self._archive.store(variable or parameter, Origin("leaf"), np.asarray(x))
            value.variable = variable
            return value
        output = None if x.place is None else self._outputs.get(x.place)
        if output is not None:
            return self._current(self._named(output, x, frame), x)
        known = self._leaf_values.get(id(x))
        if known is not None and known[0]() is x:
            return self._current(self._named(known[1], x, frame), x)
        variable = self._names.get(id(x)) if id(x) in self._chosen else None
        if id(x) not in self._names:
            variable = variable_of(x, frame)
        name = self._names.get(id(x)) or variable or parameter
        is_leaf = x.requires_grad and x.node is None
        if is_leaf or variable:  # `Recording.gradients` has the names of leaves as keys, so they must differ
            name = self._unique(name)
        if is_leaf:
            self._leaves[id(x)] = (weakref.ref(x), name)
        value = self._archive.store(name, Origin("leaf"), _host(x))
        value.variable = variable and name
        self._leaf_values[id(x)] = (weakref.ref(x), value)
        return value

    def _unique(self, name: str) -> str:
        self._name_counts[name] = self._name_counts.get(name, 0) + 1
        return name if self._name_counts[name] == 1 else f"{name}#{self._name_counts[name]}"

    def _named(self, value: Value, x: Tensor, frame: FrameType | None) -> Value:
        """The value of an output, with the name of the variable that holds it by now."""
        if value.variable is None and value.origin.kind == "output" and (name := variable_of(x, frame)):
            value.variable = self._unique(name)
        return value

    def name_outputs(self, frame: FrameType | None) -> None:
        """Name outputs that no operation has read, such as a loss, after variables of the user's frame."""
        frame = caller_outside(frame, (_PACKAGE, contextlib.__file__))
        waiting = self._unnamed
        self._unnamed = []
        for reference, value in waiting:
            x = reference()
            if x is not None and self._named(value, x, frame).variable is None:
                self._unnamed.append((reference, value))

    def _current(self, value: Value, x: Tensor) -> Value:
        """`value`, or a new one if the tensor has been modified in place since."""
        if value.array is None or np.array_equal(value.array, _host(x), equal_nan=value.array.dtype.kind == "f"):
            return value
        changed = self._archive.store(value.name, value.origin, _host(x))
        changed.variable = value.variable
        return changed

    def _output_value(self, entry: Entry, i: int, out: Tensor) -> Value:
        name = output_names(entry.op, max(i + 1, len(entry.op.outputs)))[i]
        value = self._archive.store(name, Origin("output", entry, i), _host(out))
        if out.place is not None:
            self._outputs[out.place] = value
        else:
            self._leaf_values[id(out)] = (weakref.ref(out), value)
        self._unnamed.append((weakref.ref(out), value))
        return value

    # Backward

    def gradients(self, node: Node, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        entry = self._entries.get(node.sequence)
        rule = node.op.gradients_of
        if create_graph:  # the rule runs on tensors, and is recorded as the operations that it consists of
            grads, seconds = _timed(rule, node, incoming, create_graph)
        else:
            with self._paused():
                grads, seconds = _timed(rule, node, incoming, create_graph)
                if entry is not None and _first_use("backward", node.op, entry.kernel, node.saved, node.params):
                    _, seconds = _timed(rule, node, incoming, create_graph)
        if entry is not None:
            with self._paused():
                self._record_backward(entry, node, incoming, grads, seconds)
        return grads

    def _record_backward(
        self, entry: Entry, node: Node, incoming: Sequence[Any], grads: Sequence[Any], seconds: float
    ) -> None:
        self._memory.release(node.sequence)
        received = tuple(
            None if g is None else self._total(entry.outputs[i], (node.sequence, i), _host(g))
            for i, g in enumerate(incoming)
        )
        backward = Backward(len(self._recording.backwards), entry, received, (), seconds, self._memory.held)
        outgoing: list[Value | None] = []
        for i, gradient in enumerate(grads):
            if gradient is None or not entry.needs[i]:
                outgoing.append(None)
                continue
            value = self._archive.store(f"d{entry.input_name(i)}", Origin("gradient", backward, i), _host(gradient))
            value.of = entry.inputs[i]
            outgoing.append(value)
            edge = (node.edges)[i]
            destination = (edge[0].sequence, edge[1]) if isinstance(edge, tuple) else id(edge)
            self._sent.setdefault(destination, []).append(value)
        backward.outgoing = tuple(outgoing)
        entry.backward = backward
        self._recording.backwards.append(backward)

    def _total(self, of: Value, destination: Any, array: np.ndarray) -> Value:
        """The complete gradient of a value: the only one sent to `destination`, their sum, or what a hook returned."""
        parts = self._sent.pop(destination, [])
        if not parts:
            return replace(self._archive.store(f"d{of.name}", Origin("seed"), array), of=of)
        arrays = [part.array for part in parts if part.array is not None]
        is_sum = len(arrays) < len(parts) or np.array_equal(functools.reduce(np.add, arrays), array, equal_nan=True)
        if is_sum and len(parts) == 1:
            return parts[0]
        origin = Origin("sum" if is_sum else "hook", tuple(parts))
        return replace(self._archive.store(f"d{of.name}", origin, array), of=of)

    def finished(self, gradients: dict[Tensor, Tensor]) -> None:
        """Record the gradients of the leaves that a backward reached, at its end."""
        self.name_outputs(sys._getframe(1))
        for leaf, gradient in gradients.items():
            known = self._leaves.get(id(leaf))
            if known is not None and known[0]() is leaf:
                of = self._leaf_values[id(leaf)][1]
                with self._paused():
                    self._recording.gradients[known[1]] = self._total(of, id(leaf), _host(gradient))
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
        outputs = output_names(node.op, len(node.op.outputs))
        for (source, _), array in zip(node.implementation.sources, node.saved, strict=True):
            arrays[node.op.input_name(source) if source >= 0 else outputs[~source]] = array
        if node.kept:
            own = dict(zip(node.op.outputs, outputs, strict=True))
            keeps = (own.get(name, name) for name in node.implementation.spec.keeps)
            arrays.update(zip(keeps, node.kept, strict=True))
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
    return np.asarray(to_host(_data(x)))


def _timed(function: Callable[..., Any], *arguments: Any, **params: Any) -> tuple[Any, float]:
    """The result of a call, and its duration in seconds."""
    began = time.perf_counter()
    result = function(*arguments, **params)
    return result, time.perf_counter() - began


def _first_use(way: str, op: type[Op], kernel: str, arrays: Sequence[Any], params: dict[str, Any]) -> bool:
    """Whether a kernel runs for the first time in this process on arrays and with parameters of these kinds.

    It is then compiled, or its code is loaded, and that is not the time of the operation.
    """
    if kernel == "plain":
        return False
    kinds = [(str(getattr(x, "dtype", None)), np.ndim(x)) for x in (_data(x) for x in arrays)]
    key = (way, op.name, kernel, tuple(kinds), tuple(sorted((k, type(v).__name__) for k, v in params.items())))
    is_first = key not in _WARM
    _WARM.add(key)
    return is_first


def _data(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _follows_layers(op: type[Op], inputs: Sequence[Any]) -> bool:
    """Whether an operation outside of a layer, such as a loss, reads outputs of layers only and states its letters."""
    values = [x for x in inputs if isinstance(x, Value)]
    return bool(op.letters and values) and all(x.origin.kind == "output" and x.origin.source.is_usual for x in values)


def _kernel(op: type[Op], node: Node | None, inputs: Sequence[Any], params: dict[str, Any]) -> str:
    """The kernel that served an operation: the tape's node knows it; without a node, dispatch is asked again."""
    if node is not None:
        served = node.implementation
    else:
        arrays, dtype = dtypes.unwrapped(op, inputs)
        served = dispatch.select(op, dtype, arrays, params, context.now().kernels)
    return "plain" if served.spec is None else f"{served.spec.technology} v{served.version}"
