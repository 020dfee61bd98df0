"""The tape: entries that lead from outputs back to inputs, and the walk back along them.

Gradients are arrays here, or tensors while a gradient is itself recorded (`create_graph`); the walk only adds them.
"""

import heapq
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from .. import context, dispatch

_sequence = itertools.count()

# Where the gradient of an input goes: to an output of an earlier entry, to a leaf tensor, or nowhere.
Edge: TypeAlias = "tuple[Node, int] | Any | None"


class Memory:
    """State shared by tensors that view one array: its version counter and, if there are several, the tensors."""

    __slots__ = ("sharers", "version")

    def __init__(self) -> None:
        self.version = 0
        self.sharers: list[weakref.ref[Any]] = []

    def join(self, first: Any, other: Any) -> None:
        """Add `other` to the tensors that view the array, and `first` too if it is the only one so far."""
        for tensor in (other,) if self.sharers else (first, other):
            self.sharers.append(weakref.ref(tensor))
        if len(self.sharers) % 64 == 0:  # drop the dead ones now and then, so that the list stays short
            self.sharers = [ref for ref in self.sharers if ref() is not None]

    def is_seen_by_others(self, tensor: Any) -> bool:
        """Return whether another tensor is alive whose values would change with those of `tensor`."""
        return any((other := ref()) is not None and other is not tensor for ref in self.sharers)


class Node:
    """One application of an operation, as an entry of the tape.

    Attributes
    ----------
    op, params : the operation and its parameters.  arity : the number of its outputs.
    needs, shapes : for each input, whether its gradient is wanted, and its shape.
    saved : the arrays that the gradient rule needs, in the order of `implementation.sources`.
    guards : (place, memory, version when it was saved) of each saved array, to notice in-place changes.
    edges : for each input, where its gradient goes.
    dtype, dtypes : the floating dtype of the inputs together; and of each, None where it is the same.
    implementation, kept : the rule or kernel that computed the outputs (see `dispatch`), and what it has kept.
    hooks : for each output, the functions that are called with its complete gradient.
    sequence : the number of this entry; an entry that uses another's output has a larger one.
    """

    __slots__ = ("__weakref__", "arity", "dtype", "dtypes", "edges", "guards", "hooks", "implementation", "is_freed",
                 "kept", "needs", "op", "params", "saved", "sequence", "shapes")  # fmt: skip

    shapes: list[tuple[int, ...]]
    implementation: Any
    kept: list[Any] | None

    def __init__(self, op: Any, params: dict[str, Any], dtype: Any, edges: list[Edge], arity: int) -> None:
        self.op, self.params, self.dtype, self.edges, self.arity = op, params, dtype, edges, arity
        self.needs = tuple([edge is not None for edge in edges])
        self.dtypes: list[Any] | None = None
        self.sequence = next(_sequence)
        self.is_freed = False
        self.saved: list[Any] = []
        self.guards: list[tuple[int, Memory, int]] = []
        self.hooks: dict[int, list[Callable[[Any], Any]]] | None = None

    def check_alive(self) -> None:
        """Raise RuntimeError if an earlier backward freed this entry."""
        if self.is_freed:
            raise RuntimeError(
                f"the saved arrays of {self.op.name} were freed by an earlier backward; "
                "pass retain_graph=True to that one to go through the graph again"
            )

    def check_usable(self) -> None:
        """Raise RuntimeError if this entry was freed, or something that it saved was modified in place since."""
        self.check_alive()
        for source, memory, version in self.guards:
            if memory.version != version:
                name = self.op.input_name(source) if source >= 0 else self.op.outputs[~source]
                raise RuntimeError(
                    f"{name!r}, saved for the backward of {self.op.name}, was modified in place after it was used; "
                    "modify a copy, or write x = x + y instead of x += y"
                )

    def free(self) -> None:
        """Let go of what was saved and of the entries before this one."""
        self.is_freed = True
        self.saved, self.edges, self.guards, self.kept = [], [], [], None


class Arrivals:
    """The sums of the gradients that have arrived so far, by output and leaf; and a queue of the entries to visit."""

    def __init__(self) -> None:
        self.leaves: dict[Any, tuple[Any, bool]] = {}  # the gradient, and whether nobody else holds its array
        self.hooked: list[Any] = []  # leaves with hooks that have not been called yet
        self._last_uses: dict[Any, int] | None = None  # by leaf with hooks: the last entry that will add to it
        self._outputs: dict[Node, list[Any]] = {}
        self._queue: list[tuple[int, Node]] = []

    def add(self, edge: Edge, gradient: Any, is_new: bool) -> None:
        """Add a gradient that arrives along `edge`. `is_new` says that nobody else holds its array."""
        if type(edge) is not tuple:
            leaf: Any = edge
            if leaf in self.leaves:
                self.leaves[leaf] = dispatch.sum_of(self.leaves[leaf][0], gradient), True
                return
            self.leaves[leaf] = gradient, is_new
            if leaf.hooks:
                self.hooked.append(leaf)
            return
        node, index = edge
        slots = self._outputs.get(node)
        if slots is None:
            slots = self._outputs[node] = [None] * node.arity
            heapq.heappush(self._queue, (-node.sequence, node))
        slots[index] = gradient if slots[index] is None else dispatch.sum_of(slots[index], gradient)

    def call_hooks(self, sequence: int) -> None:
        """Call the hooks of leaves with complete gradients: all entries from number `sequence` on have been visited."""
        if self._last_uses is None:
            self._last_uses = {}
            for node in _reached_from([(node, 0) for _, node in self._queue]):
                for edge in node.edges:
                    leaf: Any = None if type(edge) is tuple else edge
                    if leaf is not None and leaf.hooks:
                        self._last_uses[leaf] = min(node.sequence, self._last_uses.get(leaf, node.sequence))
        hooked, self.hooked = self.hooked, []
        for leaf in hooked:
            if self._last_uses.get(leaf, sequence) < sequence:
                self.hooked.append(leaf)
            else:
                self.leaves[leaf] = _through(leaf.hooks, self.leaves[leaf][0]), False

    def visit(self) -> Iterator[tuple[Node, list[Any]]]:
        """Yield each entry with the gradients of its outputs, latest first, so that no more of them can arrive."""
        while self._queue:
            node = heapq.heappop(self._queue)[1]
            yield node, self._outputs.pop(node)


class Targets:
    """The places whose gradients were asked for, as edges; the walk visits only what leads to one of them."""

    def __init__(self, edges: Iterable[Edge], starts: Iterable[Edge]) -> None:
        self.found: dict[Edge, Any] = dict.fromkeys(edges)
        self.leading: set[Node] = set()
        for node in sorted(_reached_from(starts), key=lambda node: node.sequence):
            if any(map(self.lie_behind, node.edges)):
                self.leading.add(node)

    def lie_behind(self, edge: Edge) -> bool:
        """Return whether a gradient that goes along `edge` reaches a target."""
        return edge in self.found or (type(edge) is tuple and edge[0] in self.leading)

    def note(self, edge: Edge, gradient: Any) -> None:
        """Keep a complete gradient if it was asked for."""
        if gradient is not None and edge in self.found:
            self.found[edge] = gradient


def _reached_from(starts: Iterable[Edge]) -> set[Node]:
    """Return the entries of the tape that the walk back from `starts` would visit."""
    stack = [edge[0] for edge in starts if type(edge) is tuple]
    seen = set(stack)
    while stack:
        node = stack.pop()
        node.check_alive()
        before = {edge[0] for edge in node.edges if type(edge) is tuple} - seen
        seen |= before
        stack += before
    return seen


def walk_back(
    starts: Sequence[tuple[Edge, Any]], targets: Targets | None, retain_graph: bool, create_graph: bool
) -> dict[Any, tuple[Any, bool]]:
    """Walk the tape back from `starts`, edges with their gradients, and return the gradient of every leaf reached.

    The flag beside a leaf's gradient says that nobody else holds its array. The gradients of `targets`, if given, are
    noted there, and only what leads to one of them is visited. The hooks of a leaf are called as soon as its gradient
    is complete, so that something can be done with it while the walk continues.
    """
    arrivals = Arrivals()
    for edge, gradient in starts:
        if targets is None or targets.lie_behind(edge):
            arrivals.add(edge, gradient, False)
    with context.changed(recording=create_graph):
        recorder = context.now().recorder
        for node, incoming in arrivals.visit():
            if node.hooks:
                for i, hooks in node.hooks.items():
                    incoming[i] = _through(hooks, incoming[i])
            if targets is not None:
                for i, gradient in enumerate(incoming):
                    targets.note((node, i), gradient)
                if node not in targets.leading:
                    continue
            run = node.op.gradients_of if recorder is None else recorder.gradients
            outgoing = run(node, incoming, create_graph)
            # A rule may return an array that somebody else holds; a kernel returns new ones.
            may_take = not create_graph and node.implementation.spec is not None
            for edge, gradient in zip(node.edges, outgoing):  # noqa: B905 - `gradients_of` checked their number
                if edge is not None and (targets is None or targets.lie_behind(edge)):
                    is_taken = may_take and type(edge) is not tuple  # by a leaf, as its `.grad`
                    arrivals.add(edge, gradient, is_taken and _is_new(gradient, incoming, outgoing))
            if not (retain_graph or create_graph):
                node.free()
            if arrivals.hooked and targets is None:  # with targets, entries are left out
                arrivals.call_hooks(node.sequence)
        arrivals.call_hooks(0)
        leaves = arrivals.leaves
        for leaf, (gradient, _) in leaves.items():
            if targets is not None:
                targets.note(leaf, gradient)
        if recorder is not None:
            recorder.finished({leaf: gradient for leaf, (gradient, _) in leaves.items()})
    return leaves


def _through(hooks: Iterable[Callable[[Any], Any]], gradient: Any) -> Any:
    """Return a complete gradient as its hooks leave it."""
    if gradient is not None:
        for hook in list(hooks):
            gradient = hook(gradient)
    return gradient


def _is_new(gradient: Any, incoming: Sequence[Any], outgoing: Sequence[Any]) -> bool:
    """Return whether nobody else can hold this array: it is no view, was not handed in, nor handed out twice."""
    if gradient.base is not None:
        return False
    holders = 0
    for other in (*incoming, *outgoing):
        holders += other is gradient
    return holders == 1
