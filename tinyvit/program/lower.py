"""Write a graph in another language: its steps run in a namespace whose functions write code instead of computing.

The rule of an operation, `forward(xp, ...)`, is written over an array namespace `xp`. Here `xp` is a `Language`, whose
functions have NumPy's names and write nodes of an ONNX file or loops in C. So no operation is described twice: whatever
its rule calls is written. Where a language has an operation as a whole, as ONNX has layer normalization, its
`operations` have a method with the operation's name and arguments, which is called instead of the rule.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TinyvitError
from .graph import Graph, Ref, Size, leaves, mapped


class ExportError(TinyvitError):
    """A program that cannot be exported, or an exported file that does not compute what the program does."""


class Extent(Size):
    """A `Size` with the arithmetic that the rules of operations do with lengths of axes."""

    def __mul__(self, n: int) -> "Extent":
        return Extent(self.base * n, tuple(a * n for a in self.per))

    def __add__(self, n: int) -> "Extent":
        return Extent(self.base + n, self.per)

    def __floordiv__(self, n: Any) -> Any:
        if isinstance(n, Size):
            numbers = [(a, b) for a, b in zip((self.base, *self.per), (n.base, *n.per), strict=True) if a or b]
            ratios = {a // b if b and not a % b else None for a, b in numbers}
            if len(ratios) == 1 and None not in ratios:
                return ratios.pop()
            raise ExportError("export: a length is divided by another one, and both depend on the free sizes")
        if any(a % n for a in (self.base, *self.per)):
            raise ExportError(f"export: the length {self.text('BNQRUV'[: len(self.per)])} is divided by {n}")
        return Extent(self.base // n, tuple(a // n for a in self.per))

    __rmul__, __radd__ = __mul__, __add__


class Symbol:
    """A value of a language. Its operators and methods call functions of the language `xp`."""

    __array_ufunc__ = None  # NumPy's arrays leave operators to this class
    shape: Any
    xp: Any
    if TYPE_CHECKING:  # the loop below adds the operators
        __add__: Any
        __radd__: Any
        __mul__: Any
        __rmul__: Any
        __truediv__: Any

    ndim = property(lambda self: len(self.shape))

    def __getitem__(self, index: Any) -> Any:
        return self.xp.indexed(self, index)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.shape[0]))

    def astype(self, dtype: Any) -> Any:
        return self.xp.astype(self, dtype)

    def __neg__(self) -> Any:
        return self.xp.negative(self)

    def __invert__(self) -> Any:
        return self.xp.logical_not(self)


def _operator(name: str, is_swapped: bool = False) -> Any:
    def method(x: Any, y: Any) -> Any:
        return getattr(x.xp, name)(y, x) if is_swapped else getattr(x.xp, name)(x, y)

    return method


for _sign, _name in (
    *(("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("truediv", "divide"), ("pow", "power")),
    *(("matmul", "matmul"), ("and", "logical_and"), ("or", "logical_or"), ("eq", "equal"), ("ne", "not_equal")),
    *(("lt", "less"), ("le", "less_equal"), ("gt", "greater"), ("ge", "greater_equal")),
):
    setattr(Symbol, f"__{_sign}__", _operator(_name))
    setattr(Symbol, f"__r{_sign}__", _operator(_name, is_swapped=True))


class Operations:
    """The operations that a language has as a whole: a method for each, with the arguments of its rule."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float, y_dtype: Any = None) -> Any:
        raise NotImplementedError

    def add_layer_norm(self, x: Any, residual: Any, weight: Any, bias: Any, eps: float, y_dtype: Any = None) -> Any:
        total = x + residual
        return total, self.layer_norm(total, weight, bias, eps)


class Language:
    """A namespace of functions under NumPy's names which write code.

    Attributes
    ----------
    title : the name of the language, for messages.
    operations : see `Operations`.
    """

    title = ""
    operations: Operations

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ExportError(f"export to {self.title}: the model calls {name}, which has no form in {self.title} yet")

    def constant(self, array: np.ndarray, name: str) -> Any:
        """Return a constant of the program as a value of the language."""
        raise NotImplementedError

    # Functions that are made of others, the same in all languages

    def stop_gradient(self, x: Any) -> Any:
        return x

    def cast(self, x: Any, dtype: Any) -> Any:
        return self.astype(x, dtype)

    def getitem(self, x: Any, index: Any) -> Any:
        return x[index]

    def swapaxes(self, x: Any, first: int, second: int) -> Any:
        order = list(range(x.ndim))
        order[first], order[second] = order[second], order[first]
        return self.transpose(x, tuple(order))

    def stack(self, parts: Sequence[Any], axis: int = 0) -> Any:
        at = axis % (parts[0].ndim + 1)
        return self.concatenate([x[(slice(None),) * at + (None,)] for x in parts], axis=at)

    def split(self, x: Any, stops: Any, axis: int = 0) -> list[Any]:
        n = x.shape[axis]
        ends = [*stops, n] if not isinstance(stops, int) else [n // stops * (i + 1) for i in range(stops)]
        before = (slice(None),) * (axis % x.ndim)
        return [x[(*before, slice(start, end))] for start, end in zip([0, *ends], ends, strict=False)]

    def flip(self, x: Any, axis: Any = None) -> Any:
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        turned = {a % x.ndim for a in axes}
        return x[tuple(slice(None, None, -1 if a in turned else None) for a in range(x.ndim))]

    def squeeze(self, x: Any, axis: Any = None) -> Any:
        axes = [a for a, n in enumerate(x.shape) if n == 1] if axis is None else np.atleast_1d(axis) % x.ndim
        return x[tuple(0 if a in axes else slice(None) for a in range(x.ndim))]

    def expand_dims(self, x: Any, axis: int) -> Any:
        return x[(slice(None),) * (axis % (x.ndim + 1)) + (None,)]

    def full_like(self, x: Any, value: Any, dtype: Any = None, shape: Any = None) -> Any:
        shape = x.shape if shape is None else shape
        return self.broadcast_to(np.full((1,) * len(shape), value, dtype or x.dtype), shape)

    def ones_like(self, x: Any, dtype: Any = None, shape: Any = None) -> Any:
        return self.full_like(x, 1, dtype, shape)

    def zeros_like(self, x: Any, dtype: Any = None, shape: Any = None) -> Any:
        return self.full_like(x, 0, dtype, shape)

    def clip(self, x: Any, lowest: Any, highest: Any) -> Any:
        x = x if lowest is None else self.maximum(x, lowest)
        return x if highest is None else self.minimum(x, highest)

    def im2col(self, x: Any, kernel: Any, stride: Any, padding: Any, value: Any = 0.0) -> Any:
        b, c, *sizes = x.shape
        padded = self.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), constant_values=value)
        down, across = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(sizes, kernel, stride, padding, strict=True))
        rows, columns = (stride[0] * (down - 1) + 1, stride[1] * (across - 1) + 1)
        windows = [
            padded[:, :, slice(i, i + rows, stride[0]), slice(j, j + columns, stride[1])]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        return self.reshape(self.stack(windows, axis=2), (b, c * len(windows), down * across))


def lowered(graph: Graph, xp: Language, inputs: Sequence[Any], sizes: Sequence[int] | None = None) -> list[Any]:
    """Write all steps of a graph in a language, and return its outputs as values of that language.

    Parameters
    ----------
    inputs : values of the language, one for each input of the graph.
    sizes : of the free axes; without them, a length that depends on these is an `Extent`.

    Checks of values, such as ids being in their range, are left out: languages have other ways to report them.
    """
    values: list[Any] = [v.array if v.array is None else xp.constant(v.array, v.name) for v in graph.values]
    for number, x in zip(graph.inputs, inputs, strict=True):
        values[number] = x

    def given(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return values[leaf.number]
        return extent(leaf, sizes) if isinstance(leaf, Size) else leaf

    for step in graph.steps:
        if not step.outputs:
            continue
        arguments, params = mapped((step.inputs, step.params), given)
        name = step.name.removeprefix("numpy.")
        whole = getattr(xp.operations, name, None) if step.is_operation else getattr(xp, name)
        made = step.call.run(xp, arguments, params) if whole is None else whole(*arguments, **params)
        made = tuple(made) if isinstance(made, tuple | list) else (made,)
        for number, x in zip(step.outputs, made, strict=True):
            values[number] = x
    return [values[number] for number in graph.outputs]


def extent(size: Any, sizes: Sequence[int] | None) -> Any:
    """Return a length of the graph as a number, or as an `Extent` where there are no sizes."""
    if not isinstance(size, Size):
        return size
    return Extent(size.base, size.per) if sizes is None else size.at(tuple(sizes))


def joined(*shapes: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape to which these shapes broadcast; a length that is not 1 wins."""
    count = max(map(len, shapes))
    columns = zip(*[(1,) * (count - len(s)) + tuple(s) for s in shapes], strict=True)
    return tuple(next((n for n in column if isinstance(n, Size) or n != 1), 1) for column in columns)


def whole_numbers(tree: Any) -> bool:
    """Return whether no length in nested arguments depends on a free size."""
    return not any(isinstance(leaf, Size) for leaf in leaves(tree))


def spelled(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return an index of slices, numbers, None and arrays with the ellipsis written out and a part for each axis."""
    parts = index if isinstance(index, tuple) else (index,)
    used = sum(part is not None and part is not ... for part in parts)
    rest = (slice(None),) * (ndim - used)
    at = next((i for i, part in enumerate(parts) if part is ...), None)
    return (*parts, *rest) if at is None else (*parts[:at], *rest, *parts[at + 1 :])
