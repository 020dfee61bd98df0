"""The one table of fused kernels: which implementation serves which operation, on what, and what it keeps.

A kernel is added in two places: its module, and a row here. The module offers two functions,

    forward(**inputs, **params)            -> the operation's outputs, then the residuals, as one tuple
    backward(*gradients, **kept, **params) -> the gradients of the inputs, in the operation's order

with the operation's own names for inputs, outputs and parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TECHNOLOGIES = ("numba", "cupy", "numba-cuda")


def _refuses_nothing(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class KernelSpec:
    """One row: an implementation of an operation, forward and backward.

    Parameters
    ----------
    operation : str
        The name that an operation gives as its `kernel`.
    technology : str
        One of `TECHNOLOGIES`.
    module : str
        Where it is; imported on first use.
    dtypes : frozenset of str
        The floating dtypes it computes in.
    residuals : tuple of str
        Names of what forward returns after the outputs: what it computed and backward needs again.
    keeps : tuple of str
        Names of the inputs, outputs and residuals that backward is given.
    refuses : callable
        `refuses(inputs, params)` gives the reason why it cannot serve these, or None.
    """

    operation: str
    technology: str
    module: str
    dtypes: frozenset[str]
    residuals: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    refuses: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] = _refuses_nothing

    def __post_init__(self) -> None:
        if self.technology not in TECHNOLOGIES:
            raise ValueError(f"{self.operation}: technology is {self.technology!r}; it must be one of {TECHNOLOGIES}")


SPECS: tuple[KernelSpec, ...] = ()
