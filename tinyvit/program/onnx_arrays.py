"""Functions under NumPy's names that write nodes of an ONNX file (opset 17)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .lower import ExportError, Extent, Language, Symbol, joined, spelled, whole_numbers

OPSET = 17
_INT = np.dtype(np.int64)
_BOOL = np.dtype(bool)


class OnnxArray(Symbol):
    """A value of an ONNX graph; `array` holds the values of a constant, which is written when a node reads it."""

    __hash__ = object.__hash__

    def __init__(self, xp: "Onnx", name: str, shape: Sequence[Any], dtype: Any, array: Any = None) -> None:
        self.xp, self.name, self.shape, self.dtype, self.array = xp, name, tuple(shape), np.dtype(dtype), array


class Onnx(Language):
    """Collects nodes and initializers.

    Attributes
    ----------
    nodes, initializers : protobuf messages of the `onnx` package.
    """

    title = "ONNX"

    def __init__(self, onnx: Any) -> None:
        self._helper, self._numpy_helper = onnx.helper, onnx.numpy_helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: dict[Any, str] = {}
        self._taken: set[str] = set()
        self._kept: list[Any] = []  # arrays whose ids are keys
        self._free: dict[int, tuple[str, int]] = {}  # of each free size the input and the axis that has it

    # Nodes and constants ----------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[Any], dtype: Any) -> OnnxArray:
        for axis, n in enumerate(shape):
            if isinstance(n, Extent):
                self._free.setdefault(n.per.index(1), (name, axis))
        self._taken.add(name)
        return OnnxArray(self, name, shape, dtype)

    def constant(self, array: np.ndarray, name: str = "") -> OnnxArray:
        return OnnxArray(self, name, array.shape, array.dtype, array)

    def node(self, kind: str, inputs: Sequence[Any], shape: Sequence[Any], dtype: Any, **attributes: Any) -> OnnxArray:
        """Add a node with one output, and return that."""
        name = self._new_name(kind.lower())
        names = [self._name_of(x) for x in inputs]
        self.nodes.append(self._helper.make_node(kind, names, [name], name=name, **attributes))
        return OnnxArray(self, name, shape, dtype)

    def name_output(self, x: OnnxArray, name: str) -> None:
        """Give a value the name of an output of the model."""
        if name in self._taken:
            raise ExportError(f"export to ONNX: an output cannot be named {name}, which is the name of another value")
        self._taken.add(name)
        self.nodes.append(self._helper.make_node("Identity", [self._name_of(x)], [name], name=f"to {name}"))

    def _new_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name

    def _name_of(self, x: Any) -> str:
        if x is None:
            return ""
        if x.array is None:
            return str(x.name)
        array = np.ascontiguousarray(x.array)
        key: Any = id(x.array) if array.nbytes > 64 else (array.tobytes(), array.dtype.str, x.array.shape)
        if key not in self._names:
            name = self._names[key] = self._new_name(x.name or "constant")
            self._kept.append(x.array)
            self.initializers.append(self._numpy_helper.from_array(array.reshape(x.array.shape), name))
        return self._names[key]

    def array(self, x: Any, dtype: Any = None) -> OnnxArray:
        """Return a value for an array or a number; numbers get `dtype`."""
        if isinstance(x, OnnxArray):
            return x
        if isinstance(x, Extent):
            return self.reshape(self.lengths([x]), ())
        return self.constant(np.asarray(x, None if hasattr(x, "dtype") and np.ndim(x) else dtype))

    def lengths(self, shape: Sequence[Any]) -> OnnxArray:
        """Return lengths of axes as an int64 vector, computed from the inputs where they depend on these."""
        if whole_numbers(tuple(shape)):
            return self.constant(np.array(shape, np.int64).reshape(-1))
        parts = []
        for n in shape:
            total = self.constant(np.array([n.base if isinstance(n, Extent) else n], np.int64))
            for letter, factor in enumerate(n.per if isinstance(n, Extent) else ()):
                if factor:
                    name, axis = self._free[letter]
                    source = OnnxArray(self, name, (1,), _INT)
                    term = self.node("Shape", [source], (1,), _INT, start=axis, end=axis + 1)
                    total = total + (term * factor if factor != 1 else term)
            parts.append(total)
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, (len(parts),), _INT, axis=0)

    # Elementwise ------------------------------------------------------------------------------------------------------

    def _each(self, kind: str, *given: Any, dtype: Any = None) -> OnnxArray:
        known = [x.dtype for x in given if isinstance(x, OnnxArray) or np.ndim(x)]
        common = np.result_type(*known) if known else np.dtype(np.float32)
        inputs = [self.astype(self.array(x, common), common) for x in given]
        return self.node(kind, inputs, joined(*[x.shape for x in inputs]), dtype or common)

    def add(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Add", x, y)

    def subtract(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Sub", x, y)

    def multiply(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Mul", x, y)

    def divide(self, x: Any, y: Any) -> OnnxArray:
        x, y = (self.array(a, np.float32) for a in (x, y))
        if {x.dtype.kind, y.dtype.kind} <= set("iub"):  # a division of whole numbers gives fractions, as in NumPy
            x, y = self.astype(x, np.float64), self.astype(y, np.float64)
        return self._each("Div", x, y)

    true_divide = divide

    def power(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Pow", x, y)

    def maximum(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Max", x, y)

    def minimum(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Min", x, y)

    def equal(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Equal", x, y, dtype=_BOOL)

    def not_equal(self, x: Any, y: Any) -> OnnxArray:
        return self.logical_not(self.equal(x, y))

    def less(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Less", x, y, dtype=_BOOL)

    def less_equal(self, x: Any, y: Any) -> OnnxArray:
        return self._each("LessOrEqual", x, y, dtype=_BOOL)

    def greater(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Greater", x, y, dtype=_BOOL)

    def greater_equal(self, x: Any, y: Any) -> OnnxArray:
        return self._each("GreaterOrEqual", x, y, dtype=_BOOL)

    def logical_and(self, x: Any, y: Any) -> OnnxArray:
        return self._each("And", self.astype(x, _BOOL), self.astype(y, _BOOL))

    def logical_or(self, x: Any, y: Any) -> OnnxArray:
        return self._each("Or", self.astype(x, _BOOL), self.astype(y, _BOOL))

    def logical_not(self, x: Any) -> OnnxArray:
        return self._each("Not", self.astype(x, _BOOL))

    bitwise_and, bitwise_or, invert = logical_and, logical_or, logical_not

    def negative(self, x: Any) -> OnnxArray:
        return self._each("Neg", x)

    def abs(self, x: Any) -> OnnxArray:
        return self._each("Abs", x)

    def sign(self, x: Any) -> OnnxArray:
        return self._each("Sign", x)

    def exp(self, x: Any) -> OnnxArray:
        return self._each("Exp", x)

    def log(self, x: Any) -> OnnxArray:
        return self._each("Log", x)

    def sqrt(self, x: Any) -> OnnxArray:
        return self._each("Sqrt", x)

    def tanh(self, x: Any) -> OnnxArray:
        return self._each("Tanh", x)

    def erf(self, x: Any) -> OnnxArray:
        return self._each("Erf", x)

    def sigmoid(self, x: Any) -> OnnxArray:
        return self._each("Sigmoid", x)

    def where(self, condition: Any, x: Any, y: Any) -> OnnxArray:
        known = [a.dtype for a in (x, y) if isinstance(a, OnnxArray) or np.ndim(a)]
        common = np.result_type(*known) if known else np.dtype(np.float32)
        inputs = [self.array(condition), self.array(x, common), self.array(y, common)]
        return self.node("Where", inputs, joined(*[a.shape for a in inputs]), common)

    def astype(self, x: Any, dtype: Any) -> OnnxArray:
        x, dtype = self.array(x), np.dtype(dtype)
        if x.dtype == dtype:
            return x
        if x.array is not None:
            return self.constant(x.array.astype(dtype))
        return self.node("Cast", [x], x.shape, dtype, to=self._helper.np_dtype_to_tensor_dtype(dtype))

    # Shapes -----------------------------------------------------------------------------------------------------------

    def reshape(self, x: Any, shape: Any) -> OnnxArray:
        x, shape = self.array(x), tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        if -1 in shape:
            total: Any = 1
            for n in x.shape:
                total = n * total
            for n in shape:
                if n != -1:
                    total = total // n
            shape = tuple(total if isinstance(n, int) and n == -1 else n for n in shape)
        if x.array is not None and whole_numbers(shape):
            return self.constant(x.array.reshape(shape), x.name)
        # 0 stands for the length that the input has at this place, -1 for what is left.
        written = [0 if isinstance(n, Extent) and x.shape[i : i + 1] == (n,) else n for i, n in enumerate(shape)]
        if sum(isinstance(n, Extent) for n in written) == 1:
            written = [-1 if isinstance(n, Extent) else n for n in written]
        return self.node("Reshape", [x, self.lengths(written)], shape, x.dtype)

    def transpose(self, x: Any, axes: Any = None) -> OnnxArray:
        x = self.array(x)
        order = [int(a) % x.ndim for a in (axes or range(x.ndim - 1, -1, -1))]
        if order == list(range(x.ndim)):
            return x
        if x.array is not None:
            return self.constant(x.array.transpose(order), x.name)
        return self.node("Transpose", [x], [x.shape[a] for a in order], x.dtype, perm=order)

    def concatenate(self, parts: Sequence[Any], axis: int = 0) -> OnnxArray:
        inputs = [self.array(part) for part in parts]
        axis %= inputs[0].ndim
        total: Any = 0
        for x in inputs:
            total = x.shape[axis] + total
        shape = (*inputs[0].shape[:axis], total, *inputs[0].shape[axis + 1 :])
        return self.node("Concat", inputs, shape, inputs[0].dtype, axis=axis)

    def broadcast_to(self, x: Any, shape: Any) -> OnnxArray:
        x = self.array(x)
        return x if x.shape == tuple(shape) else self.node("Expand", [x, self.lengths(shape)], shape, x.dtype)

    def pad(self, x: Any, width: Any, mode: str = "constant", constant_values: Any = 0.0) -> OnnxArray:
        ends = [n for pair in zip(*width, strict=True) for n in pair]
        pads = self.constant(np.array([w[0] for w in width] + [w[1] for w in width], np.int64))
        shape = [n + before + after for n, (before, after) in zip(x.shape, width, strict=True)]
        if not any(ends):
            return self.array(x)
        return self.node("Pad", [x, pads, self.array(constant_values, x.dtype)], shape, x.dtype)

    def zeros(self, shape: Any, dtype: Any = np.float32) -> OnnxArray:
        return self.broadcast_to(np.zeros((1,) * len(shape), dtype), shape)

    def arange(self, stop: Any) -> OnnxArray:
        if isinstance(stop, Extent):
            ends = [self.array(n, np.int64) for n in (0, stop, 1)]
            return self.node("Range", ends, (stop,), _INT)
        return self.constant(np.arange(stop))

    def take_rows(self, x: Any, rows: Any) -> OnnxArray:
        rows = self.array(rows)[..., None]
        return self.node("GatherND", [x, rows], (*rows.shape[:2], x.shape[2]), x.dtype, batch_dims=1)

    def indexed(self, x: OnnxArray, index: Any) -> OnnxArray:
        """Return x[index], for numbers, slices and None, or one array of integers."""
        parts = spelled(index, x.ndim)
        if x.array is not None and whole_numbers(parts) and not any(isinstance(p, OnnxArray) for p in parts):
            return self.constant(x.array[parts])
        gone: list[int] = []
        new: list[int] = []
        axis = 0
        for place, part in enumerate(parts):
            if part is None:
                new.append(place - len(gone))
                continue
            if isinstance(part, OnnxArray | np.ndarray):
                x = self._taken_at(x, part, axis, parts)
            elif isinstance(part, slice):
                x = self._cut(x, axis, part)
            else:
                start = int(part)
                x = self._cut(x, axis, slice(start, start + 1 if start != -1 else None))
                gone.append(axis)
            axis += 1
        if gone:
            kept = [n for a, n in enumerate(x.shape) if a not in gone]
            x = self.node("Squeeze", [x, self.constant(np.array(gone, np.int64))], kept, x.dtype)
        if new:
            shape = list(x.shape)
            for place in new:
                shape.insert(place, 1)
            x = self.node("Unsqueeze", [x, self.constant(np.array(new, np.int64))], shape, x.dtype)
        return x

    def _taken_at(self, x: OnnxArray, ids: Any, axis: int, parts: Any) -> OnnxArray:
        ids = self.array(ids)
        if ids.dtype == _BOOL or any(part is not ids and part != slice(None) for part in parts if part is not ids):
            raise ExportError("export to ONNX: the model indexes by masks, or by several arrays")
        shape = (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])
        return self.node("Gather", [x, ids], shape, x.dtype, axis=axis)

    def _cut(self, x: OnnxArray, axis: int, part: slice) -> OnnxArray:
        n, ends = x.shape[axis], (part.start, part.stop)
        step = 1 if part.step is None else int(part.step)
        if (ends == (None, None) or ends == (0, None) or ends == (0, n)) and step == 1:
            return x
        if whole_numbers((n, ends)):
            start, stop, _ = part.indices(n)
            length: Any = len(range(start, stop, step))
            stop = -(2**62) if stop < 0 else stop
        else:
            start, stop = part.start or 0, n if part.stop is None else part.stop
            length = stop if start == 0 else _between(start, stop, n)
            if step != 1:
                raise ExportError("export to ONNX: the model takes every second element of an axis of free length")
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        given = [self.lengths([e]) for e in (start, stop)]
        where = [self.constant(np.array([value], np.int64)) for value in (axis, step)]
        return self.node("Slice", [x, *given, *where], shape, x.dtype)

    # Sums and products ------------------------------------------------------------------------------------------------

    def _reduced(self, kind: str, x: Any, axis: Any, keepdims: bool) -> OnnxArray:
        x = self.array(x)
        if x.dtype.kind in "iub":  # as in NumPy, their sums are whole numbers and their means are not
            x = self.astype(x, np.float64 if kind == "ReduceMean" else _INT)
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        chosen = sorted(int(a) % x.ndim for a in axes)
        ones = [1 if a in chosen else n for a, n in enumerate(x.shape)]
        shape = ones if keepdims else [n for a, n in enumerate(ones) if a not in chosen]
        if kind == "ReduceSum":  # the only one whose axes are an input
            vector = self.constant(np.array(chosen, np.int64))
            return self.node(kind, [x, vector], shape, x.dtype, keepdims=int(keepdims))
        return self.node(kind, [x], shape, x.dtype, axes=chosen, keepdims=int(keepdims))

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> OnnxArray:
        return self._reduced("ReduceSum", x, axis, keepdims)

    def mean(self, x: Any, axis: Any = None, keepdims: bool = False) -> OnnxArray:
        return self._reduced("ReduceMean", x, axis, keepdims)

    def max(self, x: Any, axis: Any = None, keepdims: bool = False) -> OnnxArray:
        return self._reduced("ReduceMax", x, axis, keepdims)

    def min(self, x: Any, axis: Any = None, keepdims: bool = False) -> OnnxArray:
        return self._reduced("ReduceMin", x, axis, keepdims)

    def matmul(self, x: Any, y: Any) -> OnnxArray:
        x, y = self.array(x), self.array(y)
        shape = (*joined(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]) if x.ndim > 1 else y.shape[-1:]
        return self.node("MatMul", [x, y], shape, x.dtype)


def _between(start: Any, stop: Any, n: Any) -> Any:
    """Return how many elements a slice has whose ends may depend on free sizes."""
    if isinstance(start, int) and start < 0 and stop is n:
        return -start
    if isinstance(stop, Extent) and isinstance(start, int):
        return stop + -start
    if isinstance(stop, Extent) and isinstance(start, Extent) and stop.per == start.per:
        return stop.base - start.base
    raise ExportError("export to ONNX: the length of a slice depends on the free sizes in a way that is not linear")
