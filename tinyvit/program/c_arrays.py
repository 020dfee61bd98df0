"""Functions under NumPy's names that write loops in C99, for inputs of fixed sizes.

All values are float in one static piece of memory: whole numbers are exact up to 2^24, and a condition is 0 or 1.
Where a value lies in the memory is decided at the end, when it is known how long each one is needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .c_pieces import Weight, base, literal, loops, pieces
from .graph import Graph
from .layout import Buffer, Layout
from .lower import ExportError, Language, Symbol, spelled

FLOAT = np.dtype(np.float32)
LEAST_NARROW = 16  # numbers of a constant for which 8 bits pay


class CArray(Symbol):
    """A value: a strided view of a root, which is a `Buffer`, the name of an input, or None for a constant.

    `cells` is a view of bytes, one for each element of the root, whose strides are those of the value.
    """

    __hash__ = object.__hash__

    def __init__(self, xp: "C", root: Any, cells: np.ndarray, dtype: Any, array: Any = None, name: str = "") -> None:
        self.xp, self.root, self.cells, self.dtype, self.array, self.name = (
            xp,
            root,
            cells,
            np.dtype(dtype),
            array,
            name,
        )

    shape = property(lambda self: self.cells.shape)
    size = property(lambda self: self.cells.size)


class C(Language):
    """Collects statements, weights and buffers.

    Attributes
    ----------
    used : the names of the functions of `BODIES` that statements call.
    weights : by name.  memory : floats that the buffers need, after `finish`.
    """

    title = "C"

    def __init__(self, is_int8: bool) -> None:
        self.is_int8 = is_int8
        self.used: set[str] = set()
        self.weights: dict[str, Weight] = {}
        self.memory = 0
        self._kept: dict[Any, tuple[str, Any]] = {}  # names of weights by ids of arrays, which must live, and forms
        self._lines: list[list[Any]] = []  # texts, and pairs of a root and an offset in the place of addresses
        self._buffers: list[Buffer] = []

    # Values -----------------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> CArray:
        return CArray(self, name, np.empty(tuple(shape), np.int8), dtype)

    def constant(self, array: np.ndarray, name: str = "") -> CArray:
        return CArray(self, None, np.empty(array.shape, np.int8), array.dtype, array, name)

    def array(self, x: Any) -> CArray:
        return x if isinstance(x, CArray) else self.constant(np.asarray(x))

    def new(self, shape: Sequence[int], dtype: Any = FLOAT) -> CArray:
        """Return a value in a buffer of its own, which the next statement writes."""
        cells = np.empty(tuple(int(n) for n in shape), np.int8)
        buffer = Buffer(4 * max(1, cells.size), len(self._lines), len(self._lines))
        self._buffers.append(buffer)
        return CArray(self, buffer, cells, dtype)

    def view(self, x: CArray, cells: np.ndarray) -> CArray | None:
        """Return a value whose cells are a view of those of `x`; None if they are not."""
        is_view = cells.size == 0 or np.may_share_memory(cells, base(x.cells))
        return CArray(self, x.root, cells, x.dtype, None, x.name) if is_view else None

    def place(self, x: CArray) -> Any:
        """Return what stands for the address of a value in a statement."""
        if x.array is not None:
            return self.weight(x, "float").name
        if isinstance(x.root, Buffer):
            x.root.last = max(x.root.last, len(self._lines))
        root = base(x.cells)
        offset = x.cells.__array_interface__["data"][0] - root.__array_interface__["data"][0] if x.size else 0
        return (x.root, offset)

    def weight(self, x: CArray, form: str) -> Weight:
        """Return a constant as it is stored; one that is read in several ways is stored in each form."""
        key = id(x.array), form
        if key not in self._kept:
            name = "w_" + "".join(c if c.isalnum() and c.isascii() else "_" for c in x.name or "constant")
            number, wanted = 1, name
            while name in self.weights:
                name, number = f"{wanted}_{number}", number + 1
            self.weights[name] = Weight(name, x.array, form)
            self._kept[key] = name, x.array
        return self.weights[self._kept[key][0]]

    def say(self, *parts: Any) -> None:
        """Add a statement; a `CArray` among its parts becomes an address."""
        read = {id(x.array): self._widened(x) for x in parts if isinstance(x, CArray) and self._is_narrow(x)}
        line = [read.get(id(part.array), part) if isinstance(part, CArray) else part for part in parts]
        self._lines.append([self.place(part) if isinstance(part, CArray) else part for part in line])

    def _is_narrow(self, x: CArray) -> bool:
        """Return whether a constant that is read as floats is stored in 8 bits: a bias, or positions."""
        if not self.is_int8 or x.array is None:
            return False
        return x.dtype.kind == "f" and x.size >= LEAST_NARROW and bool(np.isfinite(x.array).all())

    def _widened(self, x: CArray) -> CArray:
        """Return a constant of 8 bits as floats in a buffer, which a statement fills just before they are read."""
        stored, out = self.weight(x, "groups"), self.new(x.shape)
        self.used.add("widen")
        start = f"widen({stored.name}, {stored.name}_scale, {literal(stored.unit)}, "
        self._lines.append([start, self.place(out), f", {x.size});"])
        return out

    def call(self, function: str, *arguments: Any) -> None:
        """Add a call of a function of `BODIES`."""
        self.used.add(function)
        parts: list[Any] = []
        for argument in arguments:
            parts += [", ", argument if isinstance(argument, CArray | tuple) else literal(argument)]
        self.say(f"{function}(", *parts[1:], ");")

    def write_output(self, x: CArray, name: str) -> None:
        """Copy a value to the array `name` of the caller."""
        self._copy(x, CArray(self, name, np.empty(x.shape, np.int8), x.dtype))

    def finish(self) -> list[str]:
        """Place the buffers, and return the statements."""
        layout = Layout(Graph((), (), (), None), ())
        layout.buffers = self._buffers
        layout.place()
        self.memory = layout.bytes // 4

        def text(part: Any) -> str:
            if not isinstance(part, tuple):
                return str(part)
            root, offset = part
            start = offset + (root.offset // 4 if isinstance(root, Buffer) else 0)
            return f"{'memory' if isinstance(root, Buffer) else root} + {start}"

        return ["".join(text(part) for part in line) for line in self._lines]

    # Loops ------------------------------------------------------------------------------------------------------------

    def each(self, formula: str, *given: Any, dtype: Any = FLOAT, shape: Any = None) -> CArray:
        """Return a new value computed element by element; {0}, {1} ... in the formula are the elements of `given`."""
        arrays = [self.array(x) for x in given]
        if all(x.array is not None and x.size == 1 for x in arrays) and not arrays:
            raise ExportError("export to C: an operation without inputs")
        shape = np.broadcast_shapes(*[x.shape for x in arrays]) if shape is None else shape
        out = self.new(shape, dtype)
        nest = loops([out.cells, *[np.broadcast_to(x.cells, shape) for x in arrays]])
        parts: list[Any] = ["".join(f"for (int i{a} = 0; i{a} < {n}; i{a}++) " for a, (n, _) in enumerate(nest))]
        elements: list[list[Any]] = []
        for k, x in enumerate((out, *arrays)):
            if x.array is not None and x.size == 1:
                elements.append(
                    [literal(float(x.array.reshape(())) if x.array.ndim == 0 else float(x.array.ravel()[0]))]
                )
                continue
            steps = [f"{s[k]} * i{a}" for a, (_, s) in enumerate(nest) if s[k]]
            elements.append(["(", x, ")[", " + ".join(steps) or "0", "]"])
        parts += [*elements[0], " = "]
        for piece in pieces(formula):
            parts += elements[1 + piece] if isinstance(piece, int) else [piece]
        self.say(*parts, ";")
        return out

    def dense(self, x: CArray) -> CArray:
        """Return a value whose elements lie one after the other: `x`, or a copy."""
        return x if x.array is not None or x.cells.flags.c_contiguous else self.each("{0}", x, dtype=x.dtype)

    def add(self, x: Any, y: Any) -> CArray:
        return self.each("{0} + {1}", x, y)

    def subtract(self, x: Any, y: Any) -> CArray:
        return self.each("{0} - {1}", x, y)

    def multiply(self, x: Any, y: Any) -> CArray:
        return self.each("{0} * {1}", x, y)

    def divide(self, x: Any, y: Any) -> CArray:
        return self.each("{0} / {1}", x, y)

    true_divide = divide

    def power(self, x: Any, y: Any) -> CArray:
        return self.each("powf({0}, {1})", x, y)

    def maximum(self, x: Any, y: Any) -> CArray:
        return self.each("({0} > {1} || {0} != {0} ? {0} : {1})", x, y)  # also NaN, as in NumPy

    def minimum(self, x: Any, y: Any) -> CArray:
        return self.each("({0} < {1} || {0} != {0} ? {0} : {1})", x, y)

    def equal(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} == {1})", x, y, dtype=bool)

    def not_equal(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} != {1})", x, y, dtype=bool)

    def less(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} < {1})", x, y, dtype=bool)

    def less_equal(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} <= {1})", x, y, dtype=bool)

    def greater(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} > {1})", x, y, dtype=bool)

    def greater_equal(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} >= {1})", x, y, dtype=bool)

    def logical_and(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} != 0 && {1} != 0)", x, y, dtype=bool)

    def logical_or(self, x: Any, y: Any) -> CArray:
        return self.each("(float)({0} != 0 || {1} != 0)", x, y, dtype=bool)

    def logical_not(self, x: Any) -> CArray:
        return self.each("(float)({0} == 0)", x, dtype=bool)

    bitwise_and, bitwise_or, invert = logical_and, logical_or, logical_not

    def negative(self, x: Any) -> CArray:
        return self.each("-{0}", x)

    def abs(self, x: Any) -> CArray:
        return self.each("fabsf({0})", x)

    def exp(self, x: Any) -> CArray:
        return self.each("expf({0})", x)

    def log(self, x: Any) -> CArray:
        return self.each("logf({0})", x)

    def sqrt(self, x: Any) -> CArray:
        return self.each("sqrtf({0})", x)

    def tanh(self, x: Any) -> CArray:
        return self.each("tanhf({0})", x)

    def erf(self, x: Any) -> CArray:
        return self.each("erff({0})", x)

    def sigmoid(self, x: Any) -> CArray:
        return self.each("(1.0f / (1.0f + expf(-{0})))", x)

    def where(self, condition: Any, x: Any, y: Any) -> CArray:
        return self.each("({0} != 0 ? {1} : {2})", condition, x, y)

    def astype(self, x: Any, dtype: Any) -> CArray:
        x, dtype = self.array(x), np.dtype(dtype)
        if dtype.kind == "b":
            return self.not_equal(x, 0)
        if dtype.kind in "iu" and x.dtype.kind not in "iub":
            return self.each("truncf({0})", x, dtype=dtype)
        return CArray(self, x.root, x.cells, dtype, x.array, x.name)

    # Shapes -----------------------------------------------------------------------------------------------------------

    def reshape(self, x: Any, shape: Any) -> CArray:
        x = self.array(x)
        if x.array is not None:
            return self.constant(x.array.reshape(shape), x.name)
        found = self.view(x, x.cells.reshape(shape))
        return found or self.reshape(self.dense(x), shape)

    def transpose(self, x: Any, axes: Any = None) -> CArray:
        x = self.array(x)
        if x.array is not None:
            return self.constant(np.ascontiguousarray(x.array.transpose(axes)), x.name)
        return self._seen(x, x.cells.transpose(axes))

    def broadcast_to(self, x: Any, shape: Any) -> CArray:
        x = self.array(x)
        if x.array is not None:
            return self.each("{0}", x, dtype=x.dtype, shape=tuple(shape))
        return self._seen(x, np.broadcast_to(x.cells, shape))

    def _seen(self, x: CArray, cells: np.ndarray) -> CArray:
        found = self.view(x, cells)
        assert found is not None
        return found

    def indexed(self, x: CArray, index: Any) -> CArray:
        parts = spelled(index, x.ndim)
        arrays = [self.array(part) for part in parts if isinstance(part, CArray | np.ndarray)]
        if not arrays:
            if x.array is not None:
                return self.constant(np.ascontiguousarray(x.array[parts]), x.name)
            return self._seen(x, np.asarray(x.cells[parts]))
        if len(arrays) > 1 or parts[0] is not arrays[0] or any(part != slice(None) for part in parts[1:]):
            raise ExportError("export to C: the model indexes by masks, or by several arrays")
        rows: CArray = self.operations.embedding(x, arrays[0])  # type: ignore[attr-defined]
        return rows

    def concatenate(self, parts: Sequence[Any], axis: int = 0) -> CArray:
        arrays = [self.array(part) for part in parts]
        axis %= arrays[0].ndim
        total = sum(x.shape[axis] for x in arrays)
        out, start = self.new((*arrays[0].shape[:axis], total, *arrays[0].shape[axis + 1 :])), 0
        for x in arrays:
            before = (slice(None),) * axis
            self._copy(x, self._seen(out, out.cells[(*before, slice(start, start + x.shape[axis]))]))
            start += x.shape[axis]
        return out

    def pad(self, x: Any, width: Any, mode: str = "constant", constant_values: Any = 0.0) -> CArray:
        x = self.array(x)
        out = self.new([n + sum(ends) for n, ends in zip(x.shape, width, strict=True)])
        self.say(f"for (int i = 0; i < {out.size}; i++) (", out, f")[i] = {literal(float(constant_values))};")
        inside = tuple(slice(before, before + n) for (before, _), n in zip(width, x.shape, strict=True))
        self._copy(x, self._seen(out, out.cells[inside]))
        return out

    def _copy(self, x: CArray, y: CArray) -> None:
        nest = loops([y.cells, x.cells])
        head = "".join(f"for (int i{a} = 0; i{a} < {n}; i{a}++) " for a, (n, _) in enumerate(nest))
        steps = [" + ".join(f"{s[k]} * i{a}" for a, (_, s) in enumerate(nest) if s[k]) or "0" for k in (0, 1)]
        self.say(head, "(", y, f")[{steps[0]}] = (", x, f")[{steps[1]}];")

    # Sums and products ------------------------------------------------------------------------------------------------

    def _reduced(self, function: str, x: Any, axis: Any, keepdims: bool) -> CArray:
        x = self.array(x)
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        chosen = sorted(int(a) % x.ndim for a in axes)
        kept = [a for a in range(x.ndim) if a not in chosen]
        rows = self.dense(self.transpose(x, (*kept, *chosen)))
        out = self.new([x.shape[a] for a in kept])
        self.call(function, rows, out, out.size, x.size // max(1, out.size))
        return self.reshape(out, [1 if a in chosen else n for a, n in enumerate(x.shape)]) if keepdims else out

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> CArray:
        return self._reduced("row_sums", x, axis, keepdims)

    def max(self, x: Any, axis: Any = None, keepdims: bool = False) -> CArray:
        return self._reduced("row_peaks", x, axis, keepdims)

    def mean(self, x: Any, axis: Any = None, keepdims: bool = False) -> CArray:
        total = self.sum(x, axis, keepdims)
        return self.divide(total, float(self.array(x).size / max(1, total.size)))

    def matmul(self, x: Any, y: Any) -> CArray:
        """Write the product of dense matrices, one call for each pair of a stack."""
        x, y = self.array(x), self.dense(self.swapaxes(self.array(y), -1, -2))
        lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x = self.dense(self.broadcast_to(x, (*lead, *x.shape[-2:])))
        y = self.dense(self.broadcast_to(y, (*lead, *y.shape[-2:])))
        out = self.new((*lead, x.shape[-2], y.shape[-2]))
        for at in np.ndindex(*lead):
            inner, columns = y.shape[-1], y.shape[-2]
            self.call("linear_float", *[a[at] for a in (x, y)], "NULL", out[at], x.shape[-2], inner, columns)
        return out
