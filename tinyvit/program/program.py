"""A model traced once: run without the interpreter, looked at as a list of steps, exported."""

import inspect
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import context
from ..backend import products_in_one_thread
from ..backend.checks import check_flags
from ..engine import Tensor
from ..nn import Module
from .compiled import CompiledSteps, Weights, is_compilable
from .fold import folded
from .graph import Graph, Ref, Size, Sizes, Step, mapped
from .layout import Layout, planned
from .merge import Differs, merged
from .plain import PlainSteps
from .stand_in import TraceError
from .text import describe, shape_text
from .trace import record

PLANS_KEPT = 64  # for so many batch sizes, what depends on the size is kept


class Program:
    """What a model computes for inputs of some shapes and dtypes, with its weights at the time when it was frozen.

    Call it with NumPy arrays; it returns NumPy arrays in the form in which the model returns tensors. It can be called
    by several threads at once.

    Attributes
    ----------
    graph : the steps and values, see `tinyvit.program.graph`.
    operations : the steps in the order in which they run.
    is_batch_free : whether the first axis of the inputs may have any length; if not, `graph.reason` says why.
    """

    def __init__(self, graph: Graph, fingerprint: Mapping[str, Any], title: str, kernels: str) -> None:
        self.graph, self._fingerprint, self._title, self._kernels = graph, fingerprint, title, kernels
        self._weights = Weights() if is_compilable(graph, kernels) else None
        self._plans: dict[Sizes, Any] = {}
        self._lock = threading.Lock()

    @property
    def operations(self) -> list[Step]:
        """The steps, in the order in which they run."""
        return list(self.graph.steps)

    @property
    def is_batch_free(self) -> bool:
        """Whether the program runs for any batch size, and not that of the example alone."""
        return bool(self.graph.letters)

    @property
    def peak_bytes(self) -> int:
        """The memory that a call with batches of one works in, beside inputs, weights and results."""
        return self.memory((1,) * len(self.graph.letters)).bytes

    def memory(self, sizes: Sizes) -> Layout:
        """Return where values lie in memory during a call with these free sizes."""
        plan = self.plan(sizes)
        return plan.layout if isinstance(plan, CompiledSteps) else planned(self.graph, sizes)

    def __repr__(self) -> str:
        return describe(self.graph, self._title)

    def is_current(self, model: Module) -> bool:
        """Return whether the model has the parameters that this program was made with.

        A program has copies of them, so changes made afterwards do not reach it; freeze the model again for that.
        """
        return fingerprint_of(model) == self._fingerprint

    # Calls ------------------------------------------------------------------------------------------------------------

    def __call__(self, *arrays: Any) -> Any:
        """Compute what the model returns for these arrays.

        Raises TypeError or ValueError for arrays of other dtypes or shapes than the program was made for.
        """
        given = [self._checked(i, x) for i, x in enumerate(self._counted(arrays))]
        sizes = self._sizes_of(given)
        values = self.plan(sizes).run(given)
        return mapped(self.graph.result, lambda leaf: _returned(leaf, values, given, self.graph, sizes))

    def _counted(self, arrays: Sequence[Any]) -> Sequence[Any]:
        names = [self.graph.values[number].name for number in self.graph.inputs]
        if len(arrays) != len(names):
            raise TypeError(f"the program takes {len(names)} arrays ({', '.join(names)}), not {len(arrays)}")
        return arrays

    def _checked(self, i: int, x: Any) -> np.ndarray:
        """Return input `i` as an array, or raise an error that says what it should be."""
        value = self.graph.values[self.graph.inputs[i]]
        array = x.data if isinstance(x, Tensor) else x
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"{value.name} is a {type(x).__name__}; it must be an array, {shape_text(self.graph, value)}"
            )
        if array.dtype != value.dtype:
            if not (array.dtype.kind in "iu" and value.dtype.kind in "iu"):
                raise TypeError(f"{value.name} is {array.dtype}; it must be {value.dtype}: use .astype({value.dtype})")
            array = array.astype(value.dtype)
        free = self.graph.axes[i] if self.graph.axes else (None,) * len(value.shape)
        fits = array.ndim == len(value.shape) and all(
            letter is not None or n == length for n, length, letter in zip(array.shape, value.shape, free, strict=True)
        )
        if not fits:
            reason = f" ({self.graph.reason})" if self.graph.reason else ""
            wanted = shape_text(self.graph, value)
            raise ValueError(f"{value.name} has shape {array.shape}; the program takes {wanted}{reason}")
        return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")

    def _sizes_of(self, arrays: Sequence[np.ndarray]) -> Sizes:
        found: dict[int, tuple[int, str]] = {}
        for number, array, axes in zip(self.graph.inputs, arrays, self.graph.axes, strict=bool(self.graph.axes)):
            for length, letter in zip(array.shape, axes, strict=True):
                name = self.graph.values[number].name
                if letter is not None and found.setdefault(letter, (length, name))[0] != length:
                    other = found[letter]
                    raise ValueError(
                        f"{name} has {length} rows and {other[1]} {other[0]}; they must have the same number, "
                        f"{self.graph.letters[letter]}"
                    )
        return tuple(found[i][0] for i in range(len(self.graph.letters)))

    def plan(self, sizes: Sizes) -> Any:
        """Return what runs the steps for these free sizes; the last few are kept."""
        plan = self._plans.get(sizes)
        if plan is None:
            with self._lock:
                plan = self._plans.get(sizes)
                if plan is None:
                    while len(self._plans) >= PLANS_KEPT:
                        del self._plans[next(iter(self._plans))]
                    plan = self._plans[sizes] = self._new_plan(sizes)
        return plan

    def _new_plan(self, sizes: Sizes) -> Any:
        if self._weights is None:
            return PlainSteps(self.graph, sizes, self._kernels)
        return CompiledSteps(self.graph, sizes, self._kernels, self._weights)

    # Export -----------------------------------------------------------------------------------------------------------

    def export_onnx(
        self,
        path: str | Path,
        *examples: np.ndarray,
        names: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        int8: bool = False,
    ) -> Any:
        """Write an ONNX file (opset 17), and compare what onnxruntime computes from it with this program.

        Parameters
        ----------
        examples : inputs to compare on, such as real images; random numbers if omitted.
        names : of the outputs.
        metadata : facts to store in the file; what is not a text is stored as JSON.
        int8 : store weights in 8 bits, by onnxruntime's quantizer, with a scale for each output of a linear map.

        Returns a `tinyvit.program.onnx.Written`: path, size, and how the outputs compare.
        Raises ExportError if `onnx` or `onnxruntime` is not installed (extra "onnx"), if ONNX cannot express the model,
        or if the outputs differ; the file is not written then.
        """
        from .onnx import export_onnx

        check_flags("export_onnx", int8=int8)
        return export_onnx(self, path, *examples, names=names, metadata=metadata, int8=int8)

    def export_c(
        self,
        folder: str | Path,
        *example: np.ndarray,
        name: str = "model",
        int8: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        """Write C99 into a folder, for one input at a time: NAME.c, NAME.h with the weights, main.c and example.h.

        The code needs no library but libm and allocates nothing: it works in static memory whose size it states.

        Parameters
        ----------
        example : inputs for example.h, on which main.c runs the model; random numbers if omitted.
        name : of the files, and of the function NAME_run; small letters, digits and _.
        int8 : store constants in 8 bits, with a factor for each row of a weight, or for each 32 numbers of a bias.
        metadata : facts to write into the header as comments.

        Returns a `tinyvit.program.c_source.WrittenC`: the files, and the sizes of weights and working memory.
        Raises ExportError if C has no form of something that the model calls.
        """
        from .c_source import export_c

        check_flags("export_c", int8=int8)
        return export_c(self, folder, *example, name=name, int8=int8, metadata=metadata)


def _returned(leaf: Any, values: Sequence[Any], given: Sequence[np.ndarray], graph: Graph, sizes: Sizes) -> Any:
    """Return an output in memory of its own."""
    if not isinstance(leaf, Ref):
        return leaf.at(sizes) if isinstance(leaf, Size) else leaf
    array = values[leaf.number]
    is_shared = graph.values[leaf.number].array is not None or any(np.may_share_memory(array, x) for x in given)
    return array.copy() if is_shared or array.base is not None else array


def fingerprint_of(model: Any) -> dict[str, Any]:
    """Return shape, dtype and a checksum of each parameter by name."""
    parameters = model.named_parameters() if isinstance(model, Module) else ()
    return {name: (p.shape, str(p.dtype), zlib.crc32(p.numpy().tobytes())) for name, p in parameters}


# Freezing -------------------------------------------------------------------------------------------------------------


def freeze(model: Module | Callable[..., Any], *example: Any) -> Program:
    """Trace a model once on example inputs, and return what it computes as a `Program`.

    Parameters
    ----------
    model : a Module in eval mode, or a function of tensors, such as a method of one.
    example : its arguments. Arrays and tensors become the inputs of the program; numbers and None are part of it. The
        first axis of an array is taken as the batch, whose size stays free: inputs whose first axes have equal lengths
        share one. Where the model cannot be traced so, as `program.graph.reason` then says, all sizes are fixed.

    Raises
    ------
    TraceError
        (a TypeError) The model reads values of arrays that depend on its inputs (`.item()`, `bool()`, `.numpy()`),
        changes arrays in place, or draws random numbers, as dropout does in training mode.
    """
    owner = model if isinstance(model, Module) else getattr(model, "__self__", None)
    arguments = dict(zip(_argument_names(model, len(example)), example, strict=True))
    return freeze_function(model, arguments, owner, _leading_axes(arguments))


def freeze_function(
    function: Callable[..., Any], example: Mapping[str, Any], owner: Any, axes: Mapping[str, Sequence[str | None]]
) -> Program:
    """Trace a function of tensors; `axes` names the free axes of the inputs by letters, None for one that is fixed."""
    kernels = context.now().kernels
    # The trace needs shapes only. Plain rules give them without compiling a kernel, which programs may not need.
    with context.changed(recording=False, kernels="numpy"), products_in_one_thread():
        graph = _graph(function, example, owner, axes)
    graph = folded(graph, kernels)
    graph = replace(graph, values=tuple(_with_own_memory(value) for value in graph.values))
    title = f"program of {type(owner).__name__}" if isinstance(owner, Module) else "program"
    return Program(graph, fingerprint_of(owner), title, kernels)


def _with_own_memory(value: Any) -> Any:
    """Return a value whose constant array cannot be changed from outside, in the same order in memory."""
    if value.array is None:
        return value
    array = np.array(value.array, order="K", copy=True)
    array.flags.writeable = False
    return replace(value, array=array)


def _graph(function: Callable[..., Any], example: Mapping[str, Any], owner: Any, axes: Mapping[str, Any]) -> Graph:
    arrays = {name: x for name, x in example.items() if isinstance(x, np.ndarray | Tensor)}
    letters = list(dict.fromkeys(letter for name in arrays for letter in axes[name] if letter is not None))
    places = tuple(tuple(None if c is None else letters.index(c) for c in axes[name]) for name in arrays)
    sizes = _sizes(arrays.values(), places, len(letters))
    first = record(function, owner, example)
    try:
        # Small sizes take little time, and show where steps differ between small and large batches. But whole numbers
        # may be indices, which could point beyond the end of a smaller axis.
        grows = any(x.dtype.kind in "iu" for x in arrays.values())
        near = [[n + 1, n + 2] if grows else [m for m in (2, 3, 4) if m != n] for n in sizes]
        others = [tuple(near[j][0] if i == j else n for j, n in enumerate(sizes)) for i in range(len(letters))]
        others += [tuple(lengths[1] for lengths in near)] if letters else []
        traces = [first, *(record(function, owner, _resized(example, axes, letters, s)) for s in others)]
        return merged(traces, [sizes, *others], letters, places)
    except (Differs, TraceError, ValueError, IndexError) as error:
        if not letters:
            raise
        reason = str(error)
    again = record(function, owner, example)
    try:
        fixed = merged([first, again], [(), ()], (), tuple((None,) * len(axes[name]) for name in arrays))
    except Differs as error:
        raise TraceError(f"freeze: the model does not do the same in each forward pass: {error}") from None
    return replace(fixed, reason=f"all sizes are fixed, because {reason}")


def _argument_names(model: Any, count: int) -> list[str]:
    """Return the names of the first `count` arguments."""
    function = model.forward if isinstance(model, Module) else model
    try:
        given = [p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_POSITIONAL]
    except (TypeError, ValueError):
        given = []
    return (given + [f"argument_{i}" for i in range(len(given), count)])[:count]


def _leading_axes(arguments: Mapping[str, Any]) -> dict[str, tuple[str | None, ...]]:
    """Return letters for the first axes: "B" for the first length, other letters for others."""
    letters: dict[int, str] = {}
    found: dict[str, tuple[str | None, ...]] = {}
    for name, x in arguments.items():
        shape = getattr(x, "shape", ())
        if shape:
            letters.setdefault(shape[0], "BQRUVW"[len(letters)] if len(letters) < 6 else f"B{len(letters)}")
        found[name] = (letters[shape[0]], *[None] * (len(shape) - 1)) if shape else ()
    return found


def _sizes(arrays: Any, places: Any, count: int) -> Sizes:
    found = {
        letter: length
        for x, axes in zip(arrays, places, strict=True)
        for length, letter in zip(x.shape, axes, strict=True)
        if letter is not None
    }
    return tuple(found[i] for i in range(count))


def _resized(example: Mapping[str, Any], axes: Mapping[str, Any], letters: Sequence[str], sizes: Sizes) -> Any:
    """Return the example with other free sizes; its rows are repeated, and begin with another one."""

    def resized(name: str, x: Any) -> Any:
        if not isinstance(x, np.ndarray | Tensor):
            return x
        array = x.data if isinstance(x, Tensor) else x
        for axis, letter in enumerate(axes[name]):
            if letter is not None:
                rows = (np.arange(sizes[letters.index(letter)]) + 1) % max(1, array.shape[axis])
                array = array.take(rows, axis)
        return Tensor(array) if isinstance(x, Tensor) else array

    return {name: resized(name, x) for name, x in example.items()}
