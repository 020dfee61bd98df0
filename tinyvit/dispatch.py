"""Which implementation serves an operation, and why: the plain rule, or a fused kernel from the registry."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import device_of, keep_freed_memory
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
        A technology may be followed by a version, as in "numba:v1": the kernels of that version, or of their last one
        where they have fewer.
    """

    def __init__(self, name: str) -> None:
        global _choice
        split_choice(name)
        self._before, _choice = _choice, name

    def __enter__(self) -> "use_kernels":
        return self

    def __exit__(self, *_: object) -> None:
        global _choice
        _choice = self._before


def current_choice() -> str:
    """The name last given to `use_kernels`."""
    return _choice


@functools.cache
def split_choice(name: str) -> tuple[str, int | None]:
    """The technology and the version that a choice names; ValueError if there is no such choice."""
    chosen = registry.split_choice(name)
    if chosen is None:
        raise ValueError(
            f"use_kernels: name is {name!r}; it must be one of {', '.join(CHOICES)}, "
            "a technology perhaps with a version, as in 'numba:v1'"
        )
    return chosen


class Implementation:
    """A kernel of the registry, loaded, in the form the tape calls it."""

    def __init__(self, spec: KernelSpec, op: Any, version: int) -> None:
        module = importlib.import_module(spec.module)
        keep_freed_memory()
        self.spec, self.version = spec, version
        # (*arrays, **params) -> the outputs of the operation and the residuals of the kernel.
        self.forward = functools.partial(getattr(module, spec.forward), version=version)
        self._backward = functools.partial(getattr(module, spec.backward), version=version)
        outputs = len(op.outputs)
        # Where each kept value is found: input i as i, output or residual j as ~j.
        returned = op.outputs + spec.residuals
        self._kept = tuple(op.inputs.index(k) if k in op.inputs else ~returned.index(k) for k in spec.keeps)
        # What an entry of the tape holds on to: what the plain rule saves, and the tensors that this kernel keeps.
        plain = {source for source, _ in op._sources} if hasattr(op, "_sources") else set()
        tensors = [place for place in self._kept if place >= 0 or ~place < outputs]
        self.sources = (*getattr(op, "_sources", ()), *((s, None) for s in tensors if s not in plain))

    def kept(self, arrays: Sequence[Any], returned: Sequence[Any]) -> list[Any]:
        """What `backward` shall be given again, of the inputs and of what forward returned."""
        return [arrays[place] if place >= 0 else returned[~place] for place in self._kept]

    def backward(self, ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
        kept, params = ctx.extra
        return self._backward(*gradients, *kept, **params, needs=ctx.needs)


@functools.cache
def _load(spec: KernelSpec, op: Any, version: int | None) -> Implementation:
    return Implementation(spec, op, spec.versions if version is None else min(version, spec.versions))


class _Table:
    """The registry as one choice sees it on one kind of device, arranged for finding a kernel quickly."""

    def __init__(self, specs: Sequence[KernelSpec], choice: str, device: str) -> None:
        self.specs, self._device = specs, device
        self._technology, self._version = split_choice(choice)
        self._rows: dict[str, list[KernelSpec]] = {}
        for spec in specs:
            if spec.technology == self._technology or (self._technology == "auto" and _is_choice(spec, device)):
                self._rows.setdefault(spec.operation, []).append(spec)
        self.sure: dict[Any, dict[Any, Implementation]] = {}  # what serves whatever the inputs, by operation and dtype

    def find(self, op: Any, dtype: Any, arrays: Sequence[Any], params: dict[str, Any]) -> Implementation | None:
        rows: Sequence[KernelSpec] = self._rows.get(op.kernel, ())
        for spec in rows:
            if self._refusal(spec, op, dtype, arrays, params) is None:
                served = _load(spec, op, self._version)
                if spec.refuses is None and spec is rows[0]:
                    self.sure.setdefault(op, {})[dtype] = served
                return served
        if rows and self._technology != "auto":
            reasons = "; ".join(str(self._refusal(spec, op, dtype, arrays, params)) for spec in rows)
            raise RuntimeError(
                f"use_kernels({_choice!r}): {op.name} cannot be served: {reasons}; use 'auto' or 'numpy'"
            )
        return None

    def _refusal(self, spec: KernelSpec, *question: Any) -> str | None:
        if spec.device != self._device:
            return f"the inputs are on {self._device!r}, and {spec.technology} computes on {spec.device!r}"
        return refusal(spec, *question)


def _is_choice(spec: KernelSpec, device: str) -> bool:
    """Whether "auto" considers a kernel."""
    return spec.device == device and (spec.is_slower is None or spec.is_slower() is None)


_tables: dict[tuple[str, str], _Table] = {}


def select(op: Any, dtype: Any, arrays: Sequence[Any], params: dict[str, Any]) -> Implementation | None:
    """The kernel that shall serve this application of operation `op`, or None for the plain rule."""
    if _choice == "numpy":
        return None
    device = "cpu" if not arrays or type(arrays[0]) is np.ndarray else device_of(arrays[0]).partition(":")[0]
    table = _tables.get((_choice, device))
    if table is None or table.specs is not registry.SPECS:
        table = _tables[_choice, device] = _Table(registry.SPECS, _choice, device)
    served = table.sure.get(op)
    found = None if served is None else served.get(dtype)
    return table.find(op, dtype, arrays, params) if found is None else found


def refusal(spec: KernelSpec, op: Any, dtype: Any, arrays: Sequence[Any], params: dict[str, Any]) -> str | None:
    """Why this kernel cannot serve these inputs; None if it can."""
    if dtype not in spec.dtypes:
        known = ", ".join(sorted(str(d) for d in spec.dtypes))
        return f"the inputs are {dtype or 'not floating'}, and {spec.technology} computes in {known}"
    reason = spec.refuses(dict(zip(op.inputs, arrays, strict=False)), params) if spec.refuses else None
    return reason or _why_not_loaded(spec.module)


@functools.cache
def _why_not_loaded(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return None
