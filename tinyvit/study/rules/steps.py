"""The data that a narration consists of: the arrays a rule works with, and the steps that computed them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Operand:
    """An array within a narrated rule: an input of the rule, or (a `Step`) the result of one of its steps.

    Attributes
    ----------
    value : the array, as it was when it entered the step.
    name : the input's name, or the first variable that the step's result was bound to; None if there is none.
    axes : a letter for each axis, where known.
    local : of an input, the variable that the rule binds it to.
    """

    value: Any
    name: str | None = None
    axes: tuple[str, ...] | None = None
    local: str | None = None


@dataclass(eq=False)
class Step(Operand):
    """One step of a rule; its `value` is the result.

    Attributes
    ----------
    source : the expression as the rule writes it.  file, line : the place of its statement.
    function : the function of `xp`, operator or method, "multiply", "matmul", "index" ...
    operands : `Operand`s, numbers, and tuples of them.  params : keyword arguments.
    label : its name, or t1, t2 ... for a step that has none.
    """

    source: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    operands: tuple[Any, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def arrays(self) -> list[Operand]:
        """The arrays among the operands, in order, those within tuples included."""
        return list(_operands_in(self.operands))


def _operands_in(values: Iterable[Any]) -> Iterator[Operand]:
    for x in values:
        if isinstance(x, Operand):
            yield x
        elif isinstance(x, tuple):
            yield from _operands_in(x)


@dataclass(eq=False)
class Narration:
    """A rule that ran: its inputs by name, its steps in order, and its results."""

    inputs: list[Operand]
    steps: list[Step]
    results: tuple[Operand | None, ...]


class NarrationError(LookupError):
    """A rule did something that cannot be narrated step by step."""
