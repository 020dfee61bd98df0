"""Which implementation serves an operation of the tape or an optimizer's step: the plain rule, or a kernel."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from . import context
from .backend import device_of, is_on_gpu, keep_freed_memory, namespace_of, narrowed, widened
from .kernels import lookup, registry
from .kernels.interrupts import import_whole
from .kernels.lookup import Kernel
from .kernels.registry import KernelSpec


class use_kernels(context.changed):
    """Choose the implementations of all operations that have kernels.

    As a call it chooses for the thread that calls. As a `with` block, or as a decorator, it chooses for that block or
    function, and what was chosen before the call is chosen again afterwards.

    Parameters
    ----------
    name : {"auto", "numpy", "numba", "cupy", "numba-cuda"}
        "auto" takes the first kernel of the table that can serve and falls back to the plain rule; "numpy" is the plain
        rule on any device; the others raise RuntimeError, with the reason, where an operation has a kernel of that
        technology but it cannot serve. Operations without a kernel run the plain rule; so does `add` where its kernel
        cannot serve. Backward uses what forward used.
        A technology may be followed by a version, as in "numba:v1": the kernels of that version, or of their last one
        where they have fewer.
    """

    def __init__(self, name: str) -> None:
        lookup.split_choice(name, "use_kernels: name")
        super().__init__(kernels=name)
        self._before: str | None = context.now().kernels  # until the first block takes the call back
        context.set_here(kernels=name)

    def __enter__(self) -> "use_kernels":
        self._take_back()
        return super().__enter__()

    def __call__(self, function: context.Function) -> context.Function:
        self._take_back()
        return super().__call__(function)

    def _take_back(self) -> None:
        """Undo the choice of the call: this is a block or a decorator."""
        before, self._before = self._before, None
        if before is not None:
            context.set_here(kernels=before)


def current_choice() -> str:
    """Return the name that `use_kernels` was last given in this thread."""
    return context.now().kernels


# Implementations -----------------------------------------------------------------------------------------------------


class PlainRule:
    """An operation's own rules, as the tape runs them.

    They compute 16-bit inputs in float32 and round their results; what they compute from integers alone is float32.
    """

    spec = None

    def __init__(self, op: Any) -> None:
        self.op, self.sources = op, op.sources

    def forward(self, arrays: Sequence[Any], params: dict[str, Any], dtype: Any) -> Sequence[Any]:
        """Return the outputs. `dtype` is the common floating dtype of the inputs, None without one."""
        op = self.op
        if op.mixes or (dtype is not None and dtype.itemsize == 2 and not op.view):
            arrays = [widened(a) for a in arrays]
        outputs: Sequence[Any] = op.run(namespace_of(arrays[0]), arrays, params)
        dtype = params.get("dtype", dtype)  # an operation with a parameter `dtype` gives that
        if dtype is not None and dtype.itemsize != 2 and type(outputs[0]) is np.ndarray:
            return outputs
        return [_in_dtype(y if type(y) is np.ndarray or is_on_gpu(y) else np.asarray(y), dtype) for y in outputs]

    def kept(self, arrays: Sequence[Any], returned: Sequence[Any]) -> None:
        """Return None: `backward` needs only what the tape saves for it."""

    def backward(self, node: Any, incoming: Sequence[Any]) -> Sequence[Any]:
        """Return the gradient of each input of an entry of the tape."""
        application = self.op(node.saved, node.shapes, node.needs, node.params)
        if node.dtype.itemsize == 2 and not self.op.view:
            application, incoming = application.mapped(widened), [widened(g) for g in incoming]
        array = incoming[0] if self.op.has_one_output else next(g for g in incoming if g is not None)
        return _in_dtypes_of(node, application.gradients(namespace_of(array), incoming))


class Implementation:
    """A kernel in the form in which the tape calls it for one operation."""

    def __init__(self, kernel: Kernel, op: Any) -> None:
        keep_freed_memory()
        self.op, self.spec, self.version = op, kernel.spec, kernel.version
        self._forward, self._backward = kernel.forward, kernel.backward
        assert isinstance(self.spec, KernelSpec)
        outputs = len(op.outputs)
        # The place of each kept value: input i as i, output or residual j as ~j.
        returned = op.outputs + self.spec.residuals
        unknown = [k for k in self.spec.keeps if k not in op.inputs + returned]
        if unknown:
            names = ", ".join(op.inputs + returned)
            raise ValueError(f"the kernel of {op.name} keeps {unknown[0]!r}, which is none of {names}")
        self._kept = tuple(op.inputs.index(k) if k in op.inputs else ~returned.index(k) for k in self.spec.keeps)
        # What an entry of the tape saves: what the plain rule saves, and the tensors that this kernel keeps.
        plain = {source for source, _ in op.sources}
        tensors = [place for place in self._kept if place >= 0 or ~place < outputs]
        self.sources = (*op.sources, *((s, None) for s in tensors if s not in plain))

    def forward(self, arrays: Sequence[Any], params: dict[str, Any], dtype: Any) -> Sequence[Any]:
        """Return the outputs of the operation and the residuals of the kernel."""
        returned: Sequence[Any] = self._forward(*arrays, **params)
        if type(returned) is not tuple:
            kind = type(returned).__name__
            raise TypeError(f"forward of {self.spec.module} returned {kind}, not a tuple of the outputs")
        return returned

    def kept(self, arrays: Sequence[Any], returned: Sequence[Any]) -> list[Any]:
        """Return the values that the kernel's backward takes, out of the inputs and of what forward returned."""
        return [arrays[place] if place >= 0 else returned[~place] for place in self._kept]

    def backward(self, node: Any, incoming: Sequence[Any]) -> Sequence[Any]:
        """Return the gradient of each input of an entry of the tape that this kernel served."""
        returned = self._backward(*incoming, *node.kept, **node.params, needs=node.needs)
        return _in_dtypes_of(node, returned if type(returned) is tuple else (returned,))


def _in_dtype(array: Any, dtype: Any) -> Any:
    if dtype is None:
        return array.astype(np.float32) if array.dtype == np.float64 else array
    return narrowed(array, dtype)


def _in_dtypes_of(node: Any, gradients: Sequence[Any]) -> Sequence[Any]:
    """Round gradients that were computed in float32 to the 16-bit dtypes of their inputs."""
    if node.dtypes is None and node.dtype.itemsize != 2:
        return gradients
    dtypes = node.dtypes or [node.dtype] * len(gradients)
    return [None if g is None else narrowed(g, dtype) for g, dtype in zip(gradients, dtypes, strict=True)]


_plain_rule = functools.cache(PlainRule)
_implementation = functools.cache(Implementation)

# Which one serves ----------------------------------------------------------------------------------------------------


class _Served:
    """The answers that hold for any inputs, for one choice of kernels on one kind of device.

    Attributes
    ----------
    specs : the registry in which the answers were found.
    by_op : what serves an operation, by operation and dtype.
    updates : what `select_update` found, by name and dtype.
    """

    def __init__(self, specs: Sequence[Any]) -> None:
        self.specs = specs
        self.by_op: dict[Any, dict[Any, Implementation | PlainRule]] = {}
        self.updates: dict[tuple[str, Any], Kernel | None] = {}


_served: dict[tuple[str, str], _Served] = {}
LARGE_SUM = 50_000  # from this number of elements on, a kernel adds two arrays faster than NumPy
_CHOICE = "tinyvit.kernels.linear.choice"


def select(
    op: Any, dtype: Any, arrays: Sequence[Any], params: Mapping[str, Any], choice: str
) -> Implementation | PlainRule:
    """Return what serves this application of operation `op` under a choice of kernels."""
    if choice == "numpy" or not op.kernel or (op.kernel_from and arrays[0].size < op.kernel_from):
        return _plain_rule(op)
    device = "cpu" if not arrays or type(arrays[0]) is np.ndarray else device_of(arrays[0]).partition(":")[0]
    found = _served_on(device, choice).by_op.get(op)
    implementation = None if found is None else found.get(dtype)
    return implementation or _find(op, device, choice, dtype, arrays, params)


def _served_on(device: str, choice: str) -> _Served:
    known = _served.get((choice, device))
    if known is None or known.specs is not registry.SPECS:
        known = _served[choice, device] = _Served(registry.SPECS)
    return known


def _find(
    op: Any, device: str, choice: str, dtype: Any, arrays: Sequence[Any], params: Mapping[str, Any]
) -> Implementation | PlainRule:
    """Ask the registry, and remember the answer where it does not depend on the inputs."""
    known = _served_on(device, choice)
    kernel = lookup.find(op.kernel, device, choice, dtype, dict(zip(op.inputs, arrays, strict=False)), params)
    if kernel is None:
        implementation: Any = _plain_rule(op)
        rows = [spec for spec in registry.SPECS if spec.operation == op.kernel and spec.device == device]
        is_certain = all(dtype not in spec.dtypes for spec in rows)
    else:
        implementation, spec = _implementation(kernel, op), kernel.spec
        is_first = spec is lookup.candidates(op.kernel, device, choice)[0]
        is_certain = spec.refuses is None and is_first and not (spec.loses and products_of_blas())
    if is_certain:
        known.by_op.setdefault(op, {})[dtype] = implementation
    return implementation


def select_update(name: str, dtype: Any, device: str) -> Kernel | None:
    """Return the kernel for work off the tape, or None for the plain rule: an optimizer's step, a sum of gradients.

    Parameters
    ----------
    name : the name under which kernels for the work are registered.  device : "cpu" or "cuda".
    dtype : of the parameters or gradients.
    """
    choice = context.now().kernels
    known = _served_on(device, choice).updates
    if (name, dtype) in known:
        return known[name, dtype]
    kernel = lookup.find(name, device, choice, dtype, {}, {})
    if kernel is not None:
        keep_freed_memory()
    if device == "cpu":  # on a GPU the answer also depends on which GPU is current
        known[name, dtype] = kernel
    return kernel


def sum_of(x: Any, y: Any) -> Any:
    """Return x + y of two gradients of one tensor, both arrays or both tensors; a kernel adds large arrays."""
    is_large = type(x) is type(y) is np.ndarray and x.size >= LARGE_SUM and x.dtype == y.dtype
    kernel = select_update("add", x.dtype, "cpu") if is_large else None
    return x + y if kernel is None else kernel.forward(x, y)[0]


def products_of_blas() -> Collection[tuple[int, int, int]]:
    """Return the shapes (R, K, N) of linear maps on the CPU that "auto" leaves to OpenBLAS."""
    chosen: Collection[tuple[int, int, int]] = import_whole(_CHOICE).chosen()
    return chosen


@contextmanager
def products_as(shapes: Collection[tuple[int, int, int]]) -> Iterator[None]:
    """Within this block, in all threads, leave the linear maps of these shapes to OpenBLAS, and no others."""
    choice = import_whole(_CHOICE)
    before = choice.replace(shapes)
    _served.clear()
    try:
        yield
    finally:
        choice.replace(before)
        _served.clear()


def is_served(operation: str, dtype: Any, device: str) -> bool:
    """Return whether a kernel serves this operation in this thread; for operations whose inputs do not matter."""
    return lookup.find(operation, device, context.now().kernels, dtype, {}, {}) is not None


def copies_in_place(copies: Mapping[int, Any]) -> AbstractContextManager[None]:
    """Return a block in which linear maps on a GPU take these copies of parameters, found by their addresses."""
    from .kernels.linear import narrow

    return narrow.in_place(copies)


class PlainKernel:
    """The plain rule of an operation in the form in which kernels are called directly: the reference beside them.

    It computes 16-bit inputs in float32, and its results stay so.
    """

    def __init__(self, op: Any) -> None:
        self.op = op

    def forward(self, *inputs: Any, **params: Any) -> tuple[Any, ...]:
        """Return the outputs of the operation and what its kernels return after them."""
        inputs = tuple(map(widened, inputs))
        xp = namespace_of(inputs[0])
        outputs = self.op.run(xp, inputs, params)
        return *outputs, *self.op.residuals(xp, inputs, outputs, params)

    def backward(
        self, incoming: Sequence[Any], kept: Mapping[str, Any], needs: Sequence[bool], params: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return the gradient of each input. `kept` are inputs and outputs by name."""
        inputs, outputs = ([kept.get(name) for name in names] for names in (self.op.inputs, self.op.outputs))
        application = self.op.application(inputs, outputs, params, needs).mapped(widened)
        gradients = [None if g is None else widened(g) for g in incoming]
        found: tuple[Any, ...] = application.gradients(namespace_of(gradients[0]), gradients)
        return found
