"""Record the gradients of a training step once, as rows of work on fixed arrays.

The loss is computed and walked back with real arrays, by the operations and the tape of the engine. What is noted is
which compiled functions the kernels call, on which arrays; what is not done by kernels becomes a row for Python.
Arrays that depend on the batch are stand-ins for the code of the model, so a step that reads their values is refused.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import context, dispatch
from ..backend import default_generator
from ..engine import Op, Tensor
from ..engine.dtypes import unwrapped
from ..functional.elementwise import Add
from ..functional.indexing import BasicIndex
from ..functional.reduction import BroadcastTo
from ..functional.shape import Concatenate
from .graph import ArrayFunction, leaves, mapped
from .rows import ADD, COPY, SUM, Row, root_of, run_rows, without_repeats
from .stand_in import StandIn, TraceError


class StepTrace:
    """The record of a step.

    Attributes
    ----------
    rows : what was done.
    inner : the arrays, each with its own memory, that only rows write. Until the end of the record all of them live; if
        they need more than `limit` bytes, TraceError is raised.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self.rows: list[Row] = []
        self.inner: list[np.ndarray] = []
        self._known: dict[int, np.ndarray] = {}  # arrays that own memory whose values are defined, by id
        self._values: list[np.ndarray] = []  # of stand-ins, by number
        self._tensors: dict[int, Tensor] = {}  # of stand-ins that are on the tape, by number
        self._numbers: dict[int, tuple[Any, np.ndarray]] = {}  # places of numbers that NumPy returned, by id
        self._arrived: dict[tuple[int, int], list[Any]] = {}  # gradients by entry of the tape and output
        self._at_leaves: dict[int, list[Any]] = {}
        self._found: dict[int, Any] = {}  # the complete gradient of each leaf
        self._nodes: list[Any] = []  # kept, so that no id is used twice

    # Stand-ins --------------------------------------------------------------------------------------------------------

    def stand_in(self, array: np.ndarray, tensor: Tensor | None = None) -> StandIn:
        """Return what stands for an array, and for the tensor on the tape that it belongs to."""
        self._define(array)
        self._values.append(array)
        number = len(self._values) - 1
        if tensor is not None:
            self._tensors[number] = tensor
        return StandIn(self, number, array.shape, array.dtype)

    def release(self, number: int) -> None:
        """Keep the array, though its stand-in is gone: the rows of the step read and write it."""

    def value(self, x: Any) -> Any:
        """Return an array for a stand-in, the tensor on the tape for one with a stand-in, and all else as it is."""
        if isinstance(x, StandIn):
            return self._values[x.number]
        if not isinstance(x, Tensor) or not isinstance(x.data, StandIn):
            return x
        if x.hooks:
            raise TraceError("a hook is registered on a tensor of the model")
        tensor = self._tensors.get(x.data.number)
        return tensor if x.requires_grad and tensor is not None else Tensor(self._values[x.data.number])

    # Applications of operations ---------------------------------------------------------------------------------------

    def apply(self, op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        """Apply an operation in the place of `Op.apply`, and record it."""
        if op.draws and params.get(op.draws):
            raise TraceError(f"the model draws random numbers ({op.name} with {op.draws}={params[op.draws]})")
        real: tuple[Any, ...] = mapped(tuple(inputs), self.value)
        given = [Tensor(x) if isinstance(x, np.ndarray) else x for x in real]
        named: dict[str, Any] = mapped(params, self.value)
        arrays, dtype = unwrapped(op, given)
        for i, (x, array) in enumerate(zip(given, arrays, strict=True)):
            if isinstance(x, Tensor) and array is not x.data:  # integers, which an operation with floats converts
                given[i] = Tensor(array)
                self._python(lambda x, dtype: (x.astype(dtype),), (x.data, array.dtype), [array])
        self._define(*_arrays((arrays, named)))
        with context.changed(recorder=None), self._watched() as rows:
            returned: Any = op.apply(*given, **named)
        outputs: Any = returned if isinstance(returned, tuple) else (returned,)
        node = next((y.node for y in outputs if y.node is not None), None)
        if node is None:
            implementation, kept = dispatch.select(op, dtype, arrays, named, context.now().kernels), None
        else:
            node.params = named  # not copies of arrays among them
            implementation, kept = node.implementation, node.kept
        targets, has_kept = [y.data for y in outputs] + list(kept or ()), bool(kept)
        done = self._special_forward(op, arrays, named, [y.data for y in outputs]) or rows

        def again(arrays: Any, params: Any) -> list[Any]:
            returned = implementation.forward(arrays, params, dtype)
            results = returned if op.is_sequence else returned[: len(op.outputs)]
            more: Any = implementation.kept(arrays, returned) if has_kept else ()
            return [*results, *more]

        self._add(done, targets, again, (arrays, named))
        tensors = []
        for y in outputs:
            tensors.append(Tensor(self.stand_in(y.data, y)))
            tensors[-1].requires_grad = y.requires_grad
        return tuple(tensors) if isinstance(returned, tuple) else tensors[0]

    def call(self, function: ArrayFunction, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of NumPy on arrays among which are stand-ins, and record it."""
        if function.function is operator.getitem and any(
            isinstance(x, StandIn) and x.dtype == bool for x in leaves(args[1])
        ):
            raise TraceError("the model picks elements by a mask that depends on the batch")
        given, named = mapped((tuple(args), dict(kwargs)), self.value)
        with context.changed(recorder=None):
            returned = function.function(*given, **named)
        outputs = () if returned is None else returned if isinstance(returned, tuple | list) else (returned,)
        made = [np.asarray(y) for y in outputs]
        self._define(*_arrays((given, named)))

        def again(args: Any, kwargs: Any) -> Sequence[Any]:
            returned = function.function(*args, **kwargs)
            return () if returned is None else returned if isinstance(returned, tuple | list) else (returned,)

        if returned is None or any(not self._is_known(y) for y in made):
            self._add(None, made, again, (given, named))
        stand_ins = [self.stand_in(y) for y in made]
        return None if returned is None else type(returned)(stand_ins) if len(outputs) > 1 else stand_ins[0]

    # The walk back ----------------------------------------------------------------------------------------------------

    def gradients(self, node: Any, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        """Run the gradient rule of an entry of the tape in the place of the walk, and record it."""
        if node.hooks or create_graph:
            raise TraceError("a hook is registered on a tensor of the model")
        self._nodes.append(node)
        arriving = [
            None if g is None else self._complete(self._arrived.get((id(node), i), [g]), g)
            for i, g in enumerate(incoming)
        ]
        op, implementation = node.op, node.implementation
        kept = list(node.kept or ())
        entry = {name: getattr(node, name) for name in ("op", "arity", "dtype", "dtypes", "needs", "shapes")}
        saved, params = list(node.saved), node.params
        self._define(*_arrays((arriving, saved, kept, params)))
        with context.changed(recorder=None), self._watched() as rows:
            outgoing = op.gradients_of(node, arriving, False)  # arrays in the place of NumPy's numbers
        targets = [None if g is None else self._as_array(g) for g in outgoing]
        done = self._special_backward(node, arriving, targets) or rows

        def again(saved: Any, kept: Any, params: Any, incoming: Any) -> Any:
            return implementation.backward(SimpleNamespace(saved=saved, kept=kept, params=params, **entry), incoming)

        self._add(done, targets, again, (saved, kept, params, arriving))
        for edge, g in zip(node.edges, outgoing, strict=True):
            if type(edge) is tuple:
                self._nodes.append(edge[0])
                self._arrived.setdefault((id(edge[0]), edge[1]), []).append(g)
            elif edge is not None:
                self._at_leaves.setdefault(id(edge), []).append(g)
        return outgoing

    def finished(self, leaves: Mapping[Any, Any]) -> None:
        """Note the complete gradients of the leaves."""
        self._found = {id(leaf): self._complete(self._at_leaves[id(leaf)], g) for leaf, g in leaves.items()}
        self._arrived, self._at_leaves = {}, {}

    def backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """Walk back from a loss that this trace has seen, and record how `.grad` of each parameter gets its values."""
        before = [None if p.grad is None else p.grad.data for p in parameters]
        start: Any = self.value(loss)
        if not isinstance(start, Tensor) or start.node is None:
            raise TraceError("the loss does not depend on any parameter")
        with context.changed(recorder=self):
            start.backward()
        for p, old in zip(parameters, before, strict=True):
            found = self._found.pop(id(p), None)
            if found is None or p.grad is None:
                continue
            if old is not None:
                self._add_row(Row(ADD, (old, found, old)))
            elif p.grad.data is not found:
                self._inner(p.grad.data)
                self._add_row(Row(COPY, (found, p.grad.data)))
        if self._found:
            raise TraceError("a tensor that is no parameter of the run gets a gradient")

    def _complete(self, arrived: Sequence[Any], total: Any) -> np.ndarray:
        """Return the sum of the gradients that arrived at one place, which the engine has added to `total`."""
        place = self._as_array(total)
        if len(arrived) > 1:
            partial = self._as_array(arrived[0])
            for i, g in enumerate(arrived[1:]):
                last = i == len(arrived) - 2
                into = place if last else np.empty_like(place)
                self._inner(into)
                self._add_row(Row(ADD, (partial, self._as_array(g), into)))
                partial = into
        return place

    # Rows -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _watched(self) -> Iterator[list[Row]]:
        from ..kernels.cpu.compiler import watched

        rows: list[Row] = []

        def after(function: Any, arguments: tuple[Any, ...]) -> None:
            if function is np.copyto:
                rows.append(Row(COPY, (arguments[1], arguments[0])))
            else:
                rows.append(Row(function, arguments, is_compiled=True))

        with watched(after):
            yield rows

    def _add(self, rows: Sequence[Row] | None, targets: Sequence[Any], again: Callable[..., Any], given: Any) -> None:
        """Add `rows` if they compute the targets; else a row that calls `again(*given)`, which returns the targets."""
        wanted = [y for y in targets if isinstance(y, np.ndarray) and not self._is_known(y)]
        if not wanted and targets:
            return  # views, or nothing at all
        if rows and self._compute(rows, wanted):
            for row in rows:
                self._add_row(row)
            self._define(*wanted)
            return
        places = [i for i, y in enumerate(targets) if isinstance(y, np.ndarray) and not self._is_known(y)]

        def function(*arguments: Any) -> list[Any]:
            results = again(*arguments)
            return [results[i] for i in places]

        self._python(function, given, wanted)

    def _python(self, function: Callable[..., Any], arguments: tuple[Any, ...], outputs: list[np.ndarray]) -> None:
        for y in outputs:
            self._inner(y)
        self._add_row(Row(function, arguments, [without_repeats(y) for y in outputs]))

    def _add_row(self, row: Row) -> None:
        self.rows.append(row)

    def _compute(self, rows: Sequence[Row], wanted: Sequence[np.ndarray]) -> bool:
        """Return whether rows compute what is wanted from known arrays alone.

        All other memory that they use is filled with ones for the trial: what something else than these rows has
        written, as NumPy in a function that calls a kernel, is lost then.
        """
        fresh = {id(root_of(a)): root_of(a) for row in rows for a in row.arrays() if not self._is_known(a)}
        fresh |= {id(root_of(a)): root_of(a) for a in wanted}
        expected = [y.tobytes() for y in wanted]
        flags = {key: root.flags.writeable for key, root in fresh.items()}
        before = {key: root.copy() for key, root in fresh.items()}
        try:
            for root in fresh.values():
                if not root.flags.writeable or not root.flags.forc:
                    return False
                root.reshape(-1, order="A").view(np.uint8)[:] = 0xFF
            run_rows(rows)
            is_equal = [y.tobytes() for y in wanted] == expected
        finally:
            for key, root in fresh.items():
                if flags[key]:
                    root[...] = before[key]
        if is_equal:
            for root in fresh.values():
                self._inner(root)
        return is_equal

    def _special_forward(self, op: Any, arrays: Any, params: Any, outputs: Sequence[Any]) -> list[Row] | None:
        """Return rows for operations that only move or add elements; None for others."""
        if not all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in arrays):
            return None
        (y,) = outputs if len(outputs) == 1 else (None,)
        if op is Add:
            return [Row(ADD, (*arrays, y))]
        if op is Concatenate and y is not None and arrays:
            rows, start = [], 0
            axis: int = params["axis"] % y.ndim
            for x in arrays:
                rows.append(Row(COPY, (x, y[(*(slice(None),) * axis, slice(start, start + x.shape[axis]))])))
                start += x.shape[axis]
            return rows
        return None

    def _special_backward(self, node: Any, incoming: Sequence[Any], outgoing: Sequence[Any]) -> list[Row] | None:
        if node.op is BasicIndex and all(g.dtype == np.float32 for g in (*incoming, *outgoing)):
            (dx,), (dy,) = outgoing, incoming
            zero = np.zeros((), np.float32)
            self._define(zero)
            return [Row(COPY, (zero, dx)), Row(COPY, (dy, dx[node.params["index"]]))]
        if node.op in (Add, BroadcastTo):
            (dz,) = incoming
            smaller = [g for g in outgoing if g is not None and g.shape != dz.shape]
            is_summed = all(g.shape in (dz.shape[1:], (1, *dz.shape[1:])) for g in smaller)
            if is_summed and all(g.dtype == np.float32 for g in (dz, *smaller)):
                return [Row(SUM, (dz, g)) for g in smaller]
        return None

    # Known memory -----------------------------------------------------------------------------------------------------

    def _as_array(self, x: Any) -> np.ndarray:
        """Return the place of a gradient, which NumPy may have returned as a number."""
        if isinstance(x, np.ndarray):
            return x
        if id(x) not in self._numbers:
            self._numbers[id(x)] = x, np.array(x)
        return self._numbers[id(x)][1]

    def _is_known(self, array: np.ndarray) -> bool:
        return id(root_of(array)) in self._known

    def _define(self, *arrays: np.ndarray) -> None:
        """Note that the memory of arrays has values."""
        for array in arrays:
            root = root_of(array)
            self._known.setdefault(id(root), root)

    def _inner(self, array: np.ndarray) -> None:
        """Note that rows write the memory of an array."""
        root = root_of(array)
        if id(root) not in self._known:
            self._known[id(root)] = root
            self.inner.append(root)
            self._bytes += root.nbytes
            if self._bytes > self._limit:
                raise TraceError(
                    f"it computes more than {self._limit / 2**20:,.0f} MB, so Python is a small part of it"
                )


def _arrays(tree: Any) -> list[np.ndarray]:
    return [x for x in leaves(tree) if isinstance(x, np.ndarray)]


@contextmanager
def undrawn() -> Iterator[None]:
    """Raise TraceError, and put the random stream back, if something is drawn from it within this block."""
    drawn = default_generator.seed, default_generator.offset
    try:
        yield
        if (default_generator.seed, default_generator.offset) != drawn:
            raise TraceError("the model draws random numbers")
    finally:
        default_generator.seed, default_generator.offset = drawn
