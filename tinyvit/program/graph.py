"""What a model computes, as a list of steps: values, references to them, and numbers that depend on the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..engine import Op

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Ref:
    """A reference to a value of a graph, by its number."""

    number: int


@dataclass(frozen=True)
class Size:
    """A whole number that depends on the free sizes n_0, n_1, ... of the inputs: base + sum of per[i] n_i."""

    base: int
    per: Sizes

    def at(self, sizes: Sizes) -> int:
        """Return the number for these sizes."""
        return self.base + sum(a * n for a, n in zip(self.per, sizes, strict=True))

    def text(self, letters: Sequence[str]) -> str:
        """Return the number as a formula of the letters of the free sizes, such as "4B+1"."""
        terms = [f"{a if a != 1 else ''}{c}" for a, c in zip(self.per, letters, strict=True) if a]
        return "+".join(terms + [str(self.base)] * (self.base != 0)).replace("+-", "-")


@dataclass(frozen=True, eq=False)
class ArrayFunction:
    """A function of NumPy that a model calls on arrays itself, as on a mask; or a check of their values."""

    name: str
    function: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Value:
    """An input, a constant, or what a step computes.

    Attributes
    ----------
    shape : of numbers, and of `Size` where a length depends on the batch.
    name : of an input that of the model's argument, of a parameter its dotted name, else "".
    array : of a constant its values, else None.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype
    name: str = ""
    array: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One application of an operation, or one call of a function of NumPy.

    Attributes
    ----------
    call : the class of the operation, or an `ArrayFunction`.
    inputs : positional arguments: `Ref`, numbers, None; of a function also lists and indices with these in them.
    params : the other arguments, by name. A `Ref` or a `Size` may be anywhere in them.
    outputs : the numbers of the values that it computes; none for a check.
    scope : the dotted name of the innermost module that was running, "" for the model itself.
    """

    call: Any
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    outputs: tuple[int, ...]
    scope: str = ""

    @property
    def is_operation(self) -> bool:
        """Whether this is an operation of `tinyvit.functional`, not a function of NumPy."""
        return isinstance(self.call, type) and issubclass(self.call, Op)

    @property
    def name(self) -> str:
        """The name of the operation, such as "linear"; of a function of NumPy "numpy.not_equal"."""
        return str(self.call.name)

    @property
    def reads(self) -> list[int]:
        """The numbers of the values that it reads, in the order of its arguments; a value may occur twice."""
        return [leaf.number for leaf in leaves((self.inputs, self.params)) if isinstance(leaf, Ref)]


@dataclass(frozen=True, eq=False)
class Graph:
    """Steps in the order in which they run.

    Attributes
    ----------
    values : all values by number.
    inputs : the numbers of the inputs, in the order of the model's arguments.
    result : what the model returns, with a `Ref` in the place of each array.
    letters : of the free sizes, "B" for the batch; empty if all sizes are fixed.
    axes : for each input, for each of its axes: the number of its free size, or None.
    """

    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    result: Any
    letters: tuple[str, ...] = ()
    axes: tuple[tuple[int | None, ...], ...] = ()
    reason: str = field(default="")

    @property
    def outputs(self) -> list[int]:
        """The numbers of the values that the model returns, in order."""
        return [leaf.number for leaf in leaves(self.result) if isinstance(leaf, Ref)]

    def with_steps(self, steps: Sequence[Step], values: Sequence[Value] | None = None) -> "Graph":
        """Return the same graph with other steps, and perhaps other values."""
        return replace(self, steps=tuple(steps), values=self.values if values is None else tuple(values))


# Nested arguments ----------------------------------------------------------------------------------------------------


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists, dictionaries and slices with `function` applied to everything else in them."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[mapped(part, function) for part in tree])
    if isinstance(tree, tuple | list):
        return type(tree)([mapped(part, function) for part in tree])
    if isinstance(tree, Mapping):
        return {key: mapped(part, function) for key, part in tree.items()}
    if isinstance(tree, slice):
        return slice(*[mapped(part, function) for part in (tree.start, tree.stop, tree.step)])
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """Yield everything that is in nested tuples, lists, dictionaries and slices, in order."""
    if isinstance(tree, tuple | list):
        for part in tree:
            yield from leaves(part)
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from leaves(part)
    elif isinstance(tree, slice):
        yield from leaves((tree.start, tree.stop, tree.step))
    else:
        yield tree


def at(tree: Any, sizes: Sizes) -> Any:
    """Return nested arguments with the numbers for these sizes in the place of each `Size`."""
    return mapped(tree, lambda leaf: leaf.at(sizes) if isinstance(leaf, Size) else leaf)
