"""Which implementation serves an operation, and why: the plain rule, or a fused kernel from the registry."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from .backend import is_floating
from .kernels import registry
from .kernels.registry import TECHNOLOGIES, KernelSpec

CHOICES = ("auto", "numpy", *TECHNOLOGIES)

_choice = "auto"


class use_kernels:
    """Choose the implementations of all operations that have kernels; as a call, or for a block with `with`.

    Parameters
    ----------
    name : {"auto", "numpy", "numba", "cupy", "numba-cuda"}
        "auto" takes the first kernel of the table that can serve and falls back to the plain rule; "numpy" is the plain
        rule on any device; the others raise RuntimeError, with the reason, where an operation has a kernel of that
        technology but it cannot serve. Operations without a kernel run plain. Backward uses what forward used.
    """

    def __init__(self, name: str) -> None:
        global _choice
        if name not in CHOICES:
            raise ValueError(f"use_kernels: name is {name!r}; it must be one of {', '.join(CHOICES)}")
        self._before, _choice = _choice, name

    def __enter__(self) -> "use_kernels":
        return self

    def __exit__(self, *_: object) -> None:
        global _choice
        _choice = self._before


def current_choice() -> str:
    """The name last given to `use_kernels`."""
    return _choice


class Implementation:
    """A kernel of the registry, loaded, in the form the tape calls it."""

    def __init__(self, spec: KernelSpec) -> None:
        module = importlib.import_module(spec.module)
        self.spec, self._forward, self._backward = spec, module.forward, module.backward

    def forward(self, op: Any, arrays: Sequence[Any], params: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """The outputs of operation `op`, and the values of `spec.keeps` for its backward."""
        inputs = dict(zip(op.inputs, arrays, strict=False))
        returned = self._forward(**inputs, **params)
        count = len(op.outputs)
        named = inputs | dict(zip(op.outputs + self.spec.residuals, returned, strict=True))
        outputs = returned[0] if count == 1 else tuple(returned[:count])
        return outputs, (tuple(params), tuple(named[name] for name in self.spec.keeps))

    def backward(self, ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
        names, values = ctx.extra
        params = {name: getattr(ctx, name) for name in names}
        return self._backward(*gradients, **dict(zip(self.spec.keeps, values, strict=True)), **params)


_load = functools.cache(Implementation)


def select(op: Any, arrays: Sequence[Any], params: dict[str, Any]) -> Implementation | None:
    """The kernel that shall serve this application of operation `op`, or None for the plain rule."""
    if _choice == "numpy":
        return None
    inputs = dict(zip(op.inputs, arrays, strict=False))
    reasons = []
    for spec in registry.SPECS:
        if spec.operation != op.kernel or _choice not in ("auto", spec.technology):
            continue
        reason = _refusal(spec, inputs, params)
        if reason is None:
            return _load(spec)
        reasons.append(reason)
    if reasons and _choice != "auto":
        raise RuntimeError(
            f"use_kernels({_choice!r}): {op.name} cannot be served: {'; '.join(reasons)}; use 'auto' or 'numpy'"
        )
    return None


def _refusal(spec: KernelSpec, inputs: dict[str, Any], params: dict[str, Any]) -> str | None:
    for name, array in inputs.items():
        if hasattr(array, "dtype") and is_floating(array) and array.dtype.name not in spec.dtypes:
            return f"{name} is {array.dtype}, and {spec.technology} computes in {', '.join(sorted(spec.dtypes))}"
    return spec.refuses(inputs, params)
