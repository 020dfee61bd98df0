"""The tape: entries that lead from outputs back to inputs, and the walk back along them.

Gradients are arrays here, or tensors while a gradient is itself recorded (`create_graph`); the walk only adds them.
"""

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .. import context, dispatch
from ..backend.memory import Memory

# Where the gradient of an input goes: to an output of an earlier entry, to a leaf tensor, or nowhere.
Edge: TypeAlias = "tuple[Node, int] | Any | None"


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Node:
    """One application of an operation, as an entry of the tape."""

    op: Any  #: the operation, a subclass of `Op`
    params: dict[str, Any]  #: of the operation
    dtype: Any  #: the common floating dtype of the inputs
    edges: list[Edge]  #: for each input, where its gradient goes; None where it is not wanted
    needs: tuple[bool, ...]  #: for each input, whether its gradient is wanted
    arity: int  #: the number of outputs
    implementation: Any  #: the rule or kernel that computed the outputs (see `dispatch`)
    kept: list[Any] | None  #: what `implementation` has kept for its backward
    dtypes: list[Any] | None = None  #: of each input; None where all have `dtype`
    shapes: list[tuple[int, ...]] = field(init=False)  #: of each input
    saved: list[Any] = field(default_factory=list)  #: what the rule needs, in the order of `implementation.sources`
    guards: list[tuple[int, Memory, int]] = field(default_factory=list)  #: of `saved`: place, memory, its version then
    hooks: dict[int, list[Callable[[Any], Any]]] | None = None  #: by output: what is called with its complete gradient
    is_freed: bool = False  #: whether an earlier backward freed it
    sequence: int = field(default_factory=itertools.count().__next__)  #: larger than those of the entries before it

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
    outputs : for entries that a gradient has reached, the sum for each output, None where none has arrived.
    found : by leaf or wanted edge, the sum of the gradients that have arrived there.
    own : the leaves whose sum is an array that nobody else holds.
    hooked : the leaves that a gradient has reached and whose hooks have not been called yet.
    """

    def __init__(self, starts: Sequence[tuple[Edge, Any]], wanted: Collection[Edge] | None) -> None:
        self.order = _reached_from([edge for edge, _ in starts])
        self.outputs: dict[Node, list[Any]] = {}
        self.found: dict[Any, Any] = {}
        self.own: set[Edge] = set()
        self.hooked: list[Any] = []
        self._last_uses: dict[Edge, Node] | None = None  # by leaf: the last entry that adds to it, if there are hooks
        self._wanted, self._leading = wanted, set[Node]()
        for node in () if wanted is None else self.order:
            if any(map(self.needs, node.edges)):
                self._leading.add(node)
        for edge, gradient in starts:
            if self.needs(edge):
                self.add(edge, gradient, False)

    def needs(self, edge: Edge) -> bool:
        """Return whether a gradient that goes along `edge` is wanted, or leads to one that is."""
        return self._wanted is None or edge in self._wanted or (type(edge) is tuple and edge[0] in self._leading)

    def add(self, edge: Any, gradient: Any, is_new: bool) -> None:
        """Add a gradient that arrives along `edge`. `is_new` says that nobody else holds its array."""
        if type(edge) is tuple:
            node, i = edge
            slots = self.outputs.get(node)
            if slots is None:
                slots = self.outputs[node] = [None] * node.arity
            slots[i] = gradient if slots[i] is None else dispatch.sum_of(slots[i], gradient)
            return
        if edge in self.found:
            gradient, is_new = dispatch.sum_of(self.found[edge], gradient), True
        elif edge.hooks:
            self.hooked.append(edge)
        self.found[edge] = gradient
        if is_new:
            self.own.add(edge)

    def complete(self, node: Node) -> list[Any] | None:
        """Return the complete gradients of the outputs of an entry, as hooks leave them; None if it leads nowhere."""
        incoming = self.outputs.pop(node, None)
        if incoming is None:
            return None
        for i, hooks in node.hooks.items() if node.hooks else ():
            incoming[i] = _through(hooks, incoming[i])
        if self._wanted is None:
            return incoming
        self.found.update(((node, i), gradient) for i, gradient in enumerate(incoming) if (node, i) in self._wanted)
        return incoming if node in self._leading else None

    def call_hooks(self, node: Node | None) -> None:
        """Call the hooks of the leaves whose gradients are complete once entry `node` was visited; None for the end."""
        if self._last_uses is None:
            left = self.order if node is None else [*self.order, node]
            self._last_uses = {edge: n for n in reversed(left) for edge in n.edges if type(edge) is not tuple}
        hooked, self.hooked = self.hooked, []
        for leaf in hooked:
            if node is not None and self._last_uses.get(leaf, node) is not node:
                self.hooked.append(leaf)
            else:
                self.found[leaf] = _through(leaf.hooks, self.found[leaf])
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
    return sorted(reached, key=operator.attrgetter("sequence"))


def walk_back(
    starts: Sequence[tuple[Edge, Any]], wanted: Collection[Edge] | None, retain_graph: bool, create_graph: bool
) -> Walk:
    """Walk the tape back from `starts`, edges with their gradients; the result has the gradients in `found`.

    They are those of every leaf or, if `wanted` edges are given, of these, and then only what leads to one of them is
    computed. The hooks of a leaf are called as soon as its gradient is complete, so that something can be done with it
    while the walk continues.
    """
    walk = Walk(starts, wanted)
    with context.changed(recording=create_graph):
        recorder = context.now().recorder
        while walk.order:
            node = walk.order.pop()
            incoming = walk.complete(node)
            if incoming is None:
                continue
            run = node.op.gradients_of if recorder is None else recorder.gradients
            outgoing = run(node, incoming, create_graph)
            # A leaf takes an array as its `.grad`, without a copy, if nobody else holds it: a kernel has made it, it is
            # no view, and it was neither handed in nor handed out twice.
            may_take = not create_graph and node.implementation.spec is not None
            known = [*map(id, incoming), *map(id, outgoing)] if may_take else []
            for edge, gradient in zip(node.edges, outgoing):  # noqa: B905 - `gradients_of` checked their number
                if edge is not None and (wanted is None or walk.needs(edge)):
                    walk.add(edge, gradient, known.count(id(gradient)) == 1 and gradient.base is None)
            if walk.hooked:
                walk.call_hooks(node)
            if not (retain_graph or create_graph):
                node.free()
        walk.call_hooks(None)
        if recorder is not None:
            recorder.finished({edge: gradient for edge, gradient in walk.found.items() if type(edge) is not tuple})
    return walk


def _through(hooks: Iterable[Callable[[Any], Any]], gradient: Any) -> Any:
    """Return a complete gradient as its hooks leave it."""
    if gradient is not None:
        for hook in list(hooks):
            gradient = hook(gradient)
    return gradient
