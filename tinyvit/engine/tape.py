"""The tape: entries that lead from outputs back to inputs, and the walk back along them.

Gradients are arrays here, or tensors while a gradient is itself recorded (`create_graph`); the walk only adds them.
"""

import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
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


class Walk:
    """One walk back along the tape: the entries still to visit, and the gradients that have arrived so far.

    Attributes
    ----------
    order : the entries still to visit, the next one last: by then all that send gradients to it have been visited.
    leading : the entries whose rule runs, because a gradient that is wanted can be reached from them.
    sums : by edge, the sum of the gradients that have arrived there; at the end, those of leaves and wanted edges.
    own : the edges whose sum is an array that nobody else holds.
    """

    def __init__(self, starts: Sequence[tuple[Edge, Any]], wanted: Collection[Edge] | None) -> None:
        self.order = _reached_from([edge for edge, _ in starts])
        self.leading: set[Node] = set()
        self.sums: dict[Edge, Any] = {}
        self.own: set[Edge] = set()
        self._wanted = wanted
        self._last_uses: dict[Edge, Node | None] = {}  # by leaf: the last entry that adds to it, None without one
        for node in self.order:
            edges = [edge for edge in node.edges if edge is not None and self._needs(edge)]
            if edges:
                self.leading.add(node)
            for edge in edges:
                if type(edge) is not tuple:
                    self._last_uses.setdefault(edge, node)
        for edge, gradient in starts:
            self.add(edge, gradient)
            self._last_uses.setdefault(edge, None)

    def _needs(self, edge: Edge) -> bool:
        """Return whether a gradient that goes along `edge` is wanted, or leads to one that is."""
        return self._wanted is None or edge in self._wanted or (type(edge) is tuple and edge[0] in self.leading)

    def add(self, edge: Edge, gradient: Any, is_new: bool = False) -> None:
        """Add a gradient that arrives along `edge`, if it is needed. `is_new` says that nobody else holds its array."""
        if not self._needs(edge):
            return
        if edge in self.sums:
            gradient, is_new = dispatch.sum_of(self.sums[edge], gradient), True
        self.sums[edge] = gradient
        if is_new:
            self.own.add(edge)

    def arrived_at(self, node: Node) -> list[Any]:
        """Return the complete gradients of the outputs of an entry, None where none arrived, as hooks leave them."""
        incoming = [self.sums.pop((node, i), None) for i in range(node.arity)]
        for i, hooks in (node.hooks or {}).items():
            incoming[i] = _through(hooks, incoming[i])
        if self._wanted is not None:
            self.sums.update(((node, i), gradient) for i, gradient in enumerate(incoming) if (node, i) in self._wanted)
        return incoming

    def call_hooks(self, edges: Iterable[Edge], node: Node | None) -> None:
        """Call the hooks of those leaves among `edges` whose gradients are complete after `node` was visited."""
        for leaf in dict.fromkeys(edges):
            if type(leaf) is not tuple and leaf is not None and leaf.hooks and self._last_uses.get(leaf, self) is node:
                self.sums[leaf] = _through(leaf.hooks, self.sums[leaf])
                self.own.discard(leaf)


def _reached_from(starts: Iterable[Edge]) -> list[Node]:
    """Return the entries of the tape that can be reached on the way back from `starts`, the earliest first."""
    stack = [edge[0] for edge in starts if type(edge) is tuple]
    reached = set(stack)
    while stack:
        node = stack.pop()
        node.check_alive()
        for edge in node.edges:
            if type(edge) is tuple and edge[0] not in reached:
                reached.add(edge[0])
                stack.append(edge[0])
    return sorted(reached, key=lambda node: node.sequence)


def walk_back(
    starts: Sequence[tuple[Edge, Any]], wanted: Collection[Edge] | None, retain_graph: bool, create_graph: bool
) -> Walk:
    """Walk the tape back from `starts`, edges with their gradients; the result has the gradients in `sums`.

    They are those of every leaf or, if `wanted` edges are given, of these, and then only what leads to one of them is
    computed. The hooks of a leaf are called as soon as its gradient is complete, so that something can be done with it
    while the walk continues.
    """
    walk = Walk(starts, wanted)
    with context.changed(recording=create_graph):
        recorder = context.now().recorder
        while walk.order:
            node = walk.order.pop()
            incoming, edges = walk.arrived_at(node), node.edges
            if node not in walk.leading:
                continue
            run = node.op.gradients_of if recorder is None else recorder.gradients
            outgoing = run(node, incoming, create_graph)
            # A rule may return an array that somebody else holds; a kernel returns new ones.
            may_take = not create_graph and node.implementation.spec is not None
            for edge, gradient in zip(edges, outgoing):  # noqa: B905 - `gradients_of` checked their number
                if edge is not None:
                    is_taken = may_take and type(edge) is not tuple  # by a leaf, as its `.grad`
                    walk.add(edge, gradient, is_taken and _is_new(gradient, incoming, outgoing))
            if not (retain_graph or create_graph):
                node.free()
            walk.call_hooks(edges, node)
        walk.call_hooks(list(walk.sums), None)
        if recorder is not None:
            recorder.finished({edge: gradient for edge, gradient in walk.sums.items() if type(edge) is not tuple})
    return walk


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
