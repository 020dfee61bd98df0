"""Find the kernel that serves a call: one function for the tape, for direct calls and for the optimizer."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from . import registry
from .interrupts import import_whole
from .registry import TECHNOLOGIES, KernelSpec, Spec

CHOICES = ("auto", "numpy", *TECHNOLOGIES)


class Kernel:
    """A row of the registry, loaded: its functions, with the version that serves."""

    def __init__(self, spec: Spec, version: int) -> None:
        module = import_whole(spec.module)
        self.spec, self.version = spec, version
        functions = [spec.forward, spec.backward] if isinstance(spec, KernelSpec) else [spec.step]
        bound = [functools.partial(getattr(module, name), version=version) for name in functions]
        self.forward: Callable[..., Any] = bound[0]  # of an UpdateSpec, the step
        self.backward: Callable[..., Any] = bound[-1]


_load = functools.cache(Kernel)


def split_choice(name: Any, argument: str = "name") -> tuple[str, int | None]:
    """Return the technology, "auto" or "numpy", and the version that a name such as "numba:v1" chooses.

    Raises ValueError, which calls the name `argument`, if it chooses nothing.
    """
    technology, colon, version = name.partition(":v") if isinstance(name, str) else ("", "", "")
    if not colon and technology in CHOICES:
        return technology, None
    if technology in TECHNOLOGIES and version.isascii() and version.isdecimal() and int(version) > 0:
        return technology, int(version)
    raise ValueError(
        f"{argument} is {name!r}; it must be one of {', '.join(CHOICES)}, "
        "a technology perhaps with a version, as in 'numba:v1'"
    )


def candidates(operation: str, device: str, choice: str) -> tuple[Spec, ...]:
    """Return the rows that a choice considers for an operation on a kind of device, the first one first.

    "auto" leaves out what computes elsewhere, and what is slower than the plain rule on this machine.
    """
    technology, _ = split_choice(choice)
    rows = (spec for spec in registry.SPECS if spec.operation == operation)
    if technology != "auto":
        return tuple(spec for spec in rows if spec.technology == technology)
    return tuple(spec for spec in rows if spec.device == device and not (spec.is_slower and spec.is_slower()))


def find(
    operation: str,
    device: str,
    choice: str,
    dtype: Any,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    chosen_by: str = "use_kernels",
) -> Kernel | None:
    """Return the kernel that serves a call, None for the plain rule.

    Parameters
    ----------
    operation : the name under which kernels for it are registered.  device : "cpu" or "cuda".
    choice : a name for `use_kernels`.  chosen_by : what took that name, for the error.
    dtype : the floating dtype of the inputs.  inputs, params : the arguments of the call, by name.

    Raises
    ------
    RuntimeError
        The technology that was chosen by name has a kernel for this operation, but the kernel cannot serve this call
        and is not optional.
    """
    technology, version = split_choice(choice)
    refusals = []
    is_required = technology != "auto"
    for spec in candidates(operation, device, choice):
        reason = refusal(spec, device, dtype, inputs, params)
        if reason is None and technology == "auto" and spec.loses:
            reason = spec.loses(inputs)
        if reason is None:
            return _load(spec, min(version or spec.versions, spec.versions))
        refusals.append(reason)
        is_required = is_required and not spec.is_optional
    if refusals and is_required:
        reasons = "; ".join(refusals)
        raise RuntimeError(f"{chosen_by}({choice!r}): {operation} cannot be served: {reasons}; use 'auto' or 'numpy'")
    return None


def refusal(spec: Spec, device: str, dtype: Any, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    """Return the reason why a kernel cannot serve a call, None if it can."""
    if spec.device != device:
        return f"the inputs are on {device!r}, and {spec.technology} computes on {spec.device!r}"
    if dtype not in spec.dtypes:
        known = ", ".join(sorted(str(d) for d in spec.dtypes))
        return f"the inputs are {dtype or 'not floating'}, and {spec.technology} computes in {known}"
    reason = _import_error(spec.module)  # first, because `refuses` may be a function of that module
    if reason is None and spec.refuses:
        reason = spec.refuses(inputs, params)
    if reason is None and spec.is_compiled:
        reason = import_whole(f"{__package__}.cuda.device").current_device().why_not()
    return reason


@functools.cache
def _import_error(module: str) -> str | None:
    try:
        with warnings.catch_warnings():  # the compilers that kernels import may be deprecating each other's functions
            warnings.simplefilter("ignore", DeprecationWarning)
            import_whole(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return None
