"""Reverse-mode automatic differentiation: tensors, operations, the tape they leave behind, and the way back along it.

A `Tensor` is an array and the place on the tape where it came from. An `Op` is a kind of operation (a class) and one
application of it, an entry of the tape (an instance): what went in, what came out, and what it saved for its gradient.
This file knows no operation by name; `tinyvit.functional` defines them, one class each.
"""

import functools
import heapq
import inspect
import itertools
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import numpy as np

from .. import backend, dispatch
from ..backend import BFLOAT16, Array

# What `backward` computes with when the gradients themselves must be differentiable: `tinyvit.functional`, put here by
# itself, since it has every function of a Namespace, but on tensors and recorded on the tape.
graph_namespace: Any = None

# What brings the inputs of an operation to one dtype: (operation, inputs) -> inputs, put here by `autocast`; or None.
adapt_inputs: Callable[[Any, Sequence[Any]], Sequence[Any]] | None = None

# Runs operations and gradient rules in their place, to record them; None when nobody does (see `tinyvit.study.trace`).
recorder: Any = None


class _Mode(threading.local):
    recording = True


_mode = _Mode()


class no_grad:
    """Record nothing on the tape within this block (`with no_grad():`) or function (`@no_grad()`)."""

    _recording = False

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_mode.recording)
        _mode.recording = self._recording

    def __exit__(self, *_: object) -> None:
        _mode.recording = self._before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with type(self)():
                return function(*args, **kwargs)

        return wrapped


class _record(no_grad):
    """The opposite of `no_grad`: while `create_graph` runs the gradient rules on tensors."""

    _recording = True


class Memory:
    """Common to tensors that share an array: how often it was changed in place, and which they are, if several."""

    __slots__ = ("sharers", "version")

    def __init__(self) -> None:
        self.version = 0
        self.sharers: list[weakref.ref[Tensor]] | None = None

    def share(self, tensor: "Tensor") -> None:
        """Let `tensor` have its array here."""
        if self.sharers is None:
            self.sharers = []
        elif len(self.sharers) > 64 and len(self.sharers) & (len(self.sharers) - 1) == 0:
            self.sharers = [r for r in self.sharers if r() is not None]  # now and then, so that it cannot only grow
        self.sharers.append(weakref.ref(tensor))
        tensor._memory = self

    def is_seen_by_others(self, tensor: "Tensor") -> bool:
        """Whether a tensor other than `tensor` is alive that would show its modifications."""
        return self.sharers is not None and any((t := r()) is not None and t is not tensor for r in self.sharers)


class Tensor:
    """An array that remembers how it was computed.

    Parameters
    ----------
    data : array
        NumPy array, kept without a copy (`tinyvit.tensor` copies and converts).
    requires_grad : bool
        Whether `backward` shall compute the gradient with respect to this tensor; floating dtypes only.

    Attributes
    ----------
    data : the live array.  grad : Tensor or None, filled in by `backward`.
    """

    __slots__ = ("__weakref__", "_hooks", "_index", "_memory", "_op", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # array + tensor is left to Tensor.__radd__

    if TYPE_CHECKING:  # operators and methods come from a table in tinyvit.functional
        T: "Tensor"
        _method = cast("Callable[..., Tensor]", None)
        __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __isub__ = __mul__ = __rmul__ = __imul__ = _method
        __truediv__ = __rtruediv__ = __itruediv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = _method
        __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = __invert__ = __abs__ = __getitem__ = _method
        sum = mean = var = max = min = cumsum = logsumexp = argmax = reshape = transpose = swapaxes = _method
        broadcast_to = take = clip = flip = exp = log = sqrt = tanh = sigmoid = abs = relu = _method
        softmax = log_softmax = to = _method
        unbind: Callable[..., tuple["Tensor", ...]]
        split: Callable[..., tuple["Tensor", ...]]
        __setitem__: Callable[..., None]

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        if type(data) is not np.ndarray:
            if not hasattr(data, "dtype"):
                raise TypeError(f"Tensor takes an array, not a {type(data).__name__}; tinyvit.tensor(data) makes one")
            data = np.asarray(data) if isinstance(data, np.generic) else data
        if requires_grad and not backend.is_floating(data):
            raise TypeError(f"requires_grad=True needs a floating dtype, not {data.dtype}")
        self.data: Array = data
        self.grad: Tensor | None = None
        self.requires_grad = requires_grad
        self._op: Op | None = None  # the entry of the tape that made this tensor; None for a leaf
        self._index = 0  # which of its outputs this is
        self._memory: Memory | None = None  # made when first asked for
        self._hooks: list[Callable[[Tensor], Tensor | None]] | None = None  # of a leaf; an Op has those of its outputs

    @property
    def memory(self) -> Memory:
        """What this tensor has in common with those that share its array."""
        if self._memory is None:
            self._memory = Memory()
        return self._memory

    # Looking at it

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def device(self) -> str:
        return backend.device_of(self.data)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; on the CPU the live one, not a copy."""
        return backend.to_host(self.data)

    def item(self) -> float | int | bool:
        """The value of a tensor with one element as a Python number."""
        return self.numpy().item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor with no axes has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy().item())

    def __int__(self) -> int:
        return int(self.numpy().item())

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="tensor(", precision=4, threshold=200)
        origin = f", op={self._op.name}" if self._op else ", requires_grad=True" if self.requires_grad else ""
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        return f"tensor({values}{dtype}{origin})"

    # Gradients

    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this tensor, weighted by `gradient`, to `.grad` of every leaf that requires it.

        Parameters
        ----------
        gradient : tensor or array of this tensor's shape, optional
            dL/dself; 1 for a tensor with one element.
        retain_graph : bool
            Keep what the tape saved, for another `backward`; implied by `create_graph`.
        create_graph : bool
            Record the gradient computation too, so that it can itself be differentiated.

        Raises
        ------
        RuntimeError
            No gradient flows here, `gradient` is missing, or the tape was freed or modified.
        """
        leaves = _run_backward([self], [gradient], None, retain_graph, create_graph)
        for leaf, (gradient, owned) in leaves.items():
            if leaf.grad is None:
                leaf.grad = gradient if owned else gradient._copy()
            elif create_graph or leaf.grad._op is not None:
                leaf.grad = leaf.grad + gradient
            else:
                leaf.grad.data += gradient.data
                leaf.grad.memory.version += 1

    def detach(self) -> "Tensor":
        """The same array, without its history."""
        out = Tensor(self.data)
        out._memory = self.memory
        return out

    def register_hook(self, hook: "Callable[[Tensor], Tensor | None]") -> Callable[[], None]:
        """Call `hook(gradient)` when the gradient of this tensor is complete.

        What it returns, if not None, replaces the gradient, which must not be modified in place.
        Returns a function that removes the hook.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook needs a tensor that requires a gradient")
        if self._op is None:
            hooks = self._hooks = self._hooks or []
        else:
            hooks = self._op.hooks_of(self._index)
        hooks.append(hook)
        return functools.partial(_discard, hooks, hook)

    def retain_grad(self) -> None:
        """Have `backward` fill in `.grad` of this tensor although it is not a leaf."""
        if self._op is not None:
            self.register_hook(functools.partial(_keep_gradient, weakref.ref(self)))

    # Changing it in place

    def assign(self, array: Any) -> None:
        """Copy values of the same shape into this tensor's memory, off the tape, as when weights are loaded."""
        self.data[...] = backend.like(array, self.data)
        self.mark_modified()

    def mark_modified(self) -> None:
        """Say that `data` was written to: a backward that needs the old values will raise, not use the new ones."""
        self.memory.version += 1

    def _in_place(self, function: Callable[["Tensor", Any], "Tensor"], other: Any) -> "Tensor":
        """self <- function(self, other), in this tensor's own memory; on the tape as any other operation."""
        recording = _mode.recording and (self.requires_grad or (isinstance(other, Tensor) and other.requires_grad))
        if recording and self._op is None and self.requires_grad:
            raise RuntimeError("a leaf that requires a gradient cannot be modified in place; do it under tv.no_grad()")
        if recording and self.memory.is_seen_by_others(self):
            raise RuntimeError(
                "this tensor shares its memory with a view of it, so it cannot be modified in place on the tape; "
                "write x = x + y instead of x += y"
            )
        result = function(self._copy() if recording else self, other)
        if result.shape != self.shape or result.dtype != self.dtype:
            raise ValueError(
                f"in-place result has shape {result.shape} and dtype {result.dtype}, "
                f"the tensor {self.shape} and {self.dtype}"
            )
        self.data[...] = result.data
        self.memory.version += 1
        if recording:
            self._op, self._index, self.requires_grad = result._op, result._index, result.requires_grad
        return self

    def _copy(self) -> "Tensor":
        """A tensor at the same place of the tape, with memory of its own."""
        return _on_tape(self.data.copy(), self._op, self._index) if self._op else Tensor(self.data.copy())


def _discard(hooks: list[Any], hook: Any) -> None:
    if hook in hooks:
        hooks.remove(hook)


def _keep_gradient(reference: "weakref.ref[Tensor]", gradient: Tensor) -> None:
    tensor = reference()
    if tensor is not None:
        tensor.grad = gradient._copy()


def _on_tape(array: Array, op: "Op", index: int) -> Tensor:
    """The tensor that is output `index` of `op`."""
    out = Tensor(array)
    out._op, out._index, out.requires_grad = op, index, True
    return out


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Copy `data` (numbers, nested lists, an array, a Tensor) into a new leaf tensor.

    Python floats become float32, integers int64; arrays keep their dtype unless `dtype` says otherwise.
    """
    if isinstance(data, Tensor):
        data = data.data
    return Tensor(backend.as_array(data, dtype, device), requires_grad)


# Operations ---------------------------------------------------------------------------------------------------------

# Where an input's gradient goes: to an entry of the tape (which of its outputs), to a leaf, nowhere.
_Edge: TypeAlias = "tuple[Op, int] | Tensor | None"
_sequence = itertools.count()


class Op:
    """One kind of differentiable operation; an instance is one application of it, an entry of the tape.

    A subclass writes its formula in the docstring and defines

    - `forward(xp, *arrays, **params)` (static): the output, or a tuple of outputs. Differentiable inputs are
      positional, all else is keyword-only and becomes an attribute of the instance.
    - `backward(ctx, xp, *gradients)`: the gradient of each input (None for one that needs none), in the same order.
      It calls only functions of `xp` and operators, on what it finds in `ctx.saved`. An operation with several outputs
      gets None for an output that nobody used.
    - `saves`: the names of the inputs and outputs that `backward` needs; "x for y" if x is needed only for the gradient
      of y. Nothing else may be saved: a saved intermediate would count as a constant in second derivatives.
    - `samples()`: inputs that exercise it, awkward shapes included. The tests run every operation's samples.

    Attributes of an instance: `saved` (arrays, in the order of `saves`), `shapes` and `needs` (of each input: its
    shape, whether its gradient is wanted).
    """

    saves: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("out",)
    kernel: ClassVar[str | None] = None  # the name under which kernels for it are registered
    view: ClassVar[bool] = False  # whether the output may share the input's memory
    masters: ClassVar[tuple[str, ...]] = ()  # inputs that may be float32 where the first is bfloat16, on the CPU
    narrow: ClassVar[tuple[str, ...]] = ()  # inputs that may be bfloat16 where the first is float32, on the CPU
    mixes: ClassVar[tuple[str, ...]]  # both
    # For the study page: letters of the axes of inputs and outputs, as in "x y: B N C", where "..." stands for leading
    # axes and "|" separates alternatives; facts for monitoring; and what students are shown (functional/teaching.py).
    letters: ClassVar[tuple[str, ...]] = ()
    is_activation: ClassVar[bool] = False  # whether units of its output can be zero for every image
    attention_maps: ClassVar[tuple[str, ...]] = ()  # variables (B, H, N, S) of its gradient rule, to lay over an image
    fault: ClassVar[Any] = None  # a mistake to plant in its gradient rule
    questions: ClassVar[tuple[Any, ...]] = ()  # question k is about the k-th application on the way back

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # names of the positional parameters of forward
    registry: ClassVar[dict[str, type["Op"]]] = {}
    # Of each saved name: input i as i, output j as ~j; and the input whose gradient it is for, None for any.
    _sources: ClassVar[tuple[tuple[int, int | None], ...]]

    forward: ClassVar[Callable[..., Any]]
    backward: Callable[..., Any]
    samples: ClassVar[Callable[[], Iterable[Any]]]

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        cls.inputs = tuple(p.name for p in parameters if p.kind != p.KEYWORD_ONLY)
        for p in parameters:
            if p.kind == p.KEYWORD_ONLY and p.default is not p.empty:
                setattr(cls, p.name, p.default)
        names = [entry.partition(" for ") for entry in cls.saves]
        cls._sources = tuple((cls._source(name), cls.inputs.index(x) if x else None) for name, _, x in names)
        cls.mixes = (*cls.masters, *cls.narrow)
        cls.registry[cls.name] = cls

    @classmethod
    def _source(cls, name: str) -> int:
        return cls.inputs.index(name) if name in cls.inputs else ~cls.outputs.index(name)

    @classmethod
    def _input(cls, i: int) -> str:
        return cls.inputs[min(i, len(cls.inputs) - 1)]

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        """Compute the output tensor(s), and put this application on the tape if a gradient will be wanted.

        Inputs are tensors, arrays, Python or NumPy scalars (which never promote) or None.
        """
        if adapt_inputs is not None and cls.name != "cast":
            inputs = tuple(adapt_inputs(cls, inputs))
        if recorder is not None:
            return recorder.apply(cls, inputs, params)
        arrays, dtype = _arrays(cls, inputs)
        if backend.gpu_in_use:
            arrays, params = backend.on_one_device(cls.name, arrays, params)
        implementation = dispatch.select(cls, dtype, arrays, params) if cls.kernel else None
        if implementation is None:
            narrow = dtype is not None and dtype.itemsize == 2 and not cls.view  # computed in float32, then rounded
            given = [_widened(a) for a in arrays] if narrow or cls.mixes else arrays
            returned = cls.forward(backend.namespace_of(given[0]), *given, **params)
            out_dtype = params.get("dtype", dtype)  # an operation with a parameter `dtype` gives that
            if type(returned) is tuple:
                outputs = [Tensor(_finished(r, out_dtype)) for r in returned]
            else:
                outputs = [Tensor(_finished(returned, out_dtype))]
        else:
            returned = implementation.forward(*arrays, **params)
            outputs = [Tensor(r) for r in returned[: len(cls.outputs)]]

        if _mode.recording:
            needs = tuple([isinstance(x, Tensor) and x.requires_grad for x in inputs])
            if True in needs:
                extra = None if implementation is None else (implementation.kept(arrays, returned), params)
                cls()._record(inputs, needs, arrays, outputs, params, dtype, implementation, extra)
        if cls.view and isinstance(inputs[0], Tensor):
            _share_memory(inputs[0], outputs)
        several = len(cls.outputs) > 1 if implementation is not None else type(returned) is tuple
        return tuple(outputs) if several else outputs[0]

    def _record(
        self,
        inputs: Sequence[Any],
        needs: tuple[bool, ...],
        arrays: list[Any],
        outputs: list[Tensor],
        params: dict[str, Any],
        floating: Any,
        implementation: Any,
        extra: Any,
    ) -> None:
        """Become the entry of the tape that led from `inputs` to `outputs`."""
        if params:
            self.__dict__.update(params)
        self.sequence = next(_sequence)
        self.needs = needs
        self.shapes: list[tuple[int, ...]] = []
        self.edges: list[_Edge] | None = []
        for x, array, need in zip(inputs, arrays, needs, strict=True):
            self.shapes.append(getattr(array, "shape", ()))
            self.edges.append(None if not need else x if x._op is None else (x._op, x._index))
        self.arity = len(outputs)
        self.floating = floating  # dtype of the inputs; of the first of them where they mix
        self.dtypes = [getattr(a, "dtype", None) for a in arrays] if self.mixes else [floating] * len(arrays)
        self.implementation = implementation
        self.extra = extra  # what a fused kernel keeps
        self.hooks: dict[int, list[Any]] | None = None
        for i, out in enumerate(outputs):
            out._op, out._index, out.requires_grad = self, i, True
        # The versions of what backward needs, to notice if it is modified before then.
        self.saved: list[Any] | None = []
        self.guards: list[tuple[int, Memory, int]] | None = []
        for s, reader in self._sources if implementation is None else implementation.sources:
            if reader is None or needs[reader]:
                owner = inputs[s] if s >= 0 else outputs[~s]
                self.saved.append(arrays[s] if s >= 0 else owner.data)
                if isinstance(owner, Tensor):
                    memory = owner._memory or owner.memory
                    self.guards.append((s, memory, memory.version))
            else:
                self.saved.append(None)

    def hooks_of(self, index: int) -> list[Any]:
        self.hooks = {} if self.hooks is None else self.hooks
        return self.hooks.setdefault(index, [])

    def gradients(self, outputs: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        """The gradient of each input from those of the outputs; on tensors if `create_graph`, else on arrays."""
        self.check_alive()
        for _, memory, version in self.guards or ():
            if memory.version != version:
                self._report_modified()
        if backend.gpu_in_use and not create_graph:
            backend.work_beside(outputs)
        if create_graph:
            grads = self._on_tensors().backward(graph_namespace, *outputs)
            if self.mixes:
                grads = tuple(_cast(g, dtype) for g, dtype in zip(grads, self.dtypes, strict=True))
        elif self.implementation is not None:
            grads = self.implementation.backward(self, outputs)
        elif self.floating.itemsize == 2 and not self.view:
            wide = [_widened(g) for g in outputs]
            grads = self._in_float32().backward(backend.namespace_of(next(g for g in wide if g is not None)), *wide)
        else:
            grads = self.backward(backend.namespace_of(next(g for g in outputs if g is not None)), *outputs)
        if type(grads) is not tuple:
            grads = (grads,)
        if not create_graph and (self.floating.itemsize == 2 or (self.mixes and BFLOAT16 in self.dtypes)):
            pairs = zip(grads, self.dtypes, strict=True)
            grads = tuple(g if g is None else _unpromoted(g, dtype) for g, dtype in pairs)
        for shape, need, gradient in zip(self.shapes, self.needs, grads, strict=True):
            if need and (gradient is None or gradient.shape != shape):
                got = None if gradient is None else gradient.shape
                raise RuntimeError(
                    f"backward of {self.name} gave a gradient of shape {got} for an input of shape {shape}"
                )
        return grads

    def _in_float32(self) -> "Op":
        """This entry with what it saved in float32: plain rules in 16 bits round their results only."""
        ctx = type(self)()
        ctx.__dict__.update(self.__dict__)
        ctx.saved = [_widened(a) for a in self.saved or ()]
        return ctx

    def check_alive(self) -> None:
        """Raise RuntimeError if an earlier backward freed this entry."""
        if self.edges is None:
            raise RuntimeError(
                f"the saved arrays of {self.name} were freed by an earlier backward; "
                "pass retain_graph=True to that one to go through the graph again"
            )

    def _on_tensors(self) -> "Op":
        """This entry with its saved arrays as tensors that are connected to the tape, for gradients of gradients."""
        saved, edges = self.saved, self.edges
        assert saved is not None
        assert edges is not None
        ctx = type(self)()
        ctx.__dict__.update(self.__dict__)
        pairs = zip(saved, self._sources, strict=False)
        ctx.saved = [None if a is None else self._connect(a, s, edges) for a, (s, _) in pairs]
        if self.mixes:
            ctx.saved = [_cast(a, self.floating) for a in ctx.saved]
        return ctx

    def _connect(self, array: Array, source: int, edges: Sequence[_Edge]) -> Any:
        if source < 0:
            return _on_tape(array, self, ~source)
        edge = edges[source]
        if isinstance(edge, Tensor):
            return edge
        if edge is None:  # a constant, a number, or not needed
            return Tensor(array) if hasattr(array, "dtype") else array
        return _on_tape(array, *edge)

    def _report_modified(self) -> None:
        source = next(source for source, memory, version in self.guards or () if memory.version != version)
        name = self._input(source) if source >= 0 else self.outputs[~source]
        raise RuntimeError(
            f"{name!r}, saved for the backward of {self.name}, was modified in place after it was used; "
            "modify a copy, or write x = x + y instead of x += y"
        )

    def free(self) -> None:
        """Let go of what was saved and of the entries before this one."""
        self.saved = self.edges = self.guards = None
        self.extra = ()


def _share_memory(source: Tensor, views: Sequence[Tensor]) -> None:
    """Have those of `views` that lie in the memory of `source` count their modifications together with it."""
    array, memory = source.data, source._memory or source.memory
    owner = array if array.base is None else array.base
    for out in views:
        if out.data.base is owner or out.data is array:
            if memory.sharers is None:
                memory.share(source)
            memory.share(out)


def _arrays(cls: type[Op], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """The arrays of `inputs` and their one floating dtype; integers among them take it too, scalars stay scalars."""
    arrays: list[Any] = []
    dtype = None
    for x in inputs:  # the usual case, quickly: tensors of one dtype
        if isinstance(x, Tensor):
            x = x.data
            if x.dtype is not dtype:
                if dtype is None and x.dtype.kind in "fV":  # V: bfloat16
                    dtype = x.dtype
                elif not (cls.mixes and _may_mix(cls, len(arrays), x, dtype)):
                    return _mixed_arrays(cls, inputs)
        elif x is not None:
            return _mixed_arrays(cls, inputs)
        arrays.append(x)
    return arrays, dtype


def _mixed_arrays(cls: type[Op], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    arrays: list[Any] = []
    dtype, integers = None, False
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            x = x.data
        elif isinstance(x, np.generic):
            x = x.item()
        arrays.append(x)
        if x is None or isinstance(x, (bool, int, float)):
            continue
        if not hasattr(x, "dtype"):
            raise TypeError(f"{cls.name}: {cls._input(i)} is a {type(x).__name__}; give a Tensor, an array or a number")
        if x.dtype is dtype:
            continue
        if not backend.is_floating(x):
            integers = True
        elif dtype is None:
            dtype = x.dtype
        elif dtype != x.dtype and not (cls.mixes and _may_mix(cls, i, x, dtype)):
            raise TypeError(
                f"{cls.name}: {cls._input(i)} is {x.dtype}, the inputs before it {dtype}; dtypes are never mixed: "
                f"convert one of them with .to({str(dtype)!r})"
            )
    if integers and dtype is not None:
        arrays = [x.astype(dtype) if hasattr(x, "dtype") and x.dtype != dtype else x for x in arrays]
    if not hasattr(arrays[0], "dtype"):  # a bare number first: an array of what it meets
        met = next((x.dtype for x in arrays if hasattr(x, "dtype")), None)
        arrays[0] = np.asarray(arrays[0], met if dtype is not None else None)
    return arrays, dtype


def _may_mix(cls: type[Op], i: int, x: Any, dtype: Any) -> bool:
    """Whether input i of an operation in `dtype` may be x, which is of another one."""
    names, wanted = (cls.masters, np.float32) if dtype == BFLOAT16 else (cls.narrow, BFLOAT16)
    is_single = dtype == BFLOAT16 or dtype == np.float32
    return type(x) is np.ndarray and is_single and x.dtype == wanted and cls._input(i) in names


def _finished(result: Any, dtype: Any) -> Array:
    """`result` as an array; what was computed from integers alone is float32 where it is floating."""
    if type(result) is not np.ndarray and not backend.is_on_gpu(result):
        result = np.asarray(result)
    if dtype is None:
        return result.astype(np.float32) if result.dtype == np.float64 else result
    return _unpromoted(result, dtype)


def _unpromoted(array: Array, dtype: Any) -> Array:
    """`array` in `dtype` where that has 16 bits and `array`, computed in float32, more."""
    return array.astype(dtype) if dtype.itemsize == 2 and array.dtype.kind == "f" and array.dtype != dtype else array


def _cast(x: Any, dtype: Any) -> Any:
    """A tensor of another dtype in this one, on the tape; all else as it is."""
    return graph_namespace.cast(x, dtype) if isinstance(x, Tensor) and x.dtype != dtype else x


def _widened(array: Any) -> Any:
    """`array` in float32 where it is floating and has 16 bits."""
    narrow = hasattr(array, "dtype") and array.dtype.itemsize == 2 and backend.is_floating(array)
    return array.astype(np.float32) if narrow else array


# The way back -------------------------------------------------------------------------------------------------------


def _run_backward(
    roots: Sequence[Tensor],
    root_gradients: Sequence[Any],
    targets: dict[Any, Any] | None,
    retain_graph: bool,
    create_graph: bool,
) -> dict[Tensor, tuple[Tensor, bool]]:
    """Walk the tape from `roots` back, latest entry first, and return the gradient of every leaf reached.

    With `targets`, a mapping whose keys are leaves and (op, index) pairs, only what leads to one of them is walked,
    and the gradients found are put in as its values. The flag beside a leaf's gradient: nobody else holds its array.
    """
    pending: dict[Op, list[Any]] = {}  # gradients of each entry's outputs, so far
    leaves: dict[Tensor, tuple[Any, bool]] = {}
    queue: list[tuple[int, Op]] = []  # entries reached, latest first: all that use an output come before its maker
    wanted = None if targets is None else _leading_to(targets, [root._op for root in roots if root._op])

    def send(edge: Any, gradient: Any, owned: bool) -> None:
        if type(edge) is not tuple:
            before = leaves.get(edge)
            leaves[edge] = (gradient, owned) if before is None else (before[0] + gradient, True)
            return
        op, index = edge
        slots = pending.get(op)
        if slots is None:
            slots = pending[op] = [None] * op.arity
            heapq.heappush(queue, (-op.sequence, op))
        slots[index] = gradient if slots[index] is None else slots[index] + gradient

    def is_wanted(edge: Any) -> bool:
        return wanted is None or edge in (targets or ()) or (type(edge) is tuple and edge[0] in wanted)

    for root, gradient in zip(roots, root_gradients, strict=True):
        start = _root_gradient(root, gradient)
        if is_wanted(_edge(root)):
            send(_edge(root), start if create_graph else start.data, False)
    with _record() if create_graph else no_grad():
        while queue:
            op = heapq.heappop(queue)[1]
            outputs = pending.pop(op)
            if op.hooks or targets is not None:
                outputs = [_observed(g, (op, i), op.hooks, targets) for i, g in enumerate(outputs)]
            if wanted is not None and op not in wanted:
                continue
            if recorder is None:
                grads = op.gradients(outputs, create_graph)
            else:
                grads = recorder.gradients(op, outputs, create_graph)
            for edge, gradient in zip(op.edges or (), grads, strict=True):
                if edge is not None and (wanted is None or is_wanted(edge)):
                    send(
                        edge, gradient, not (create_graph or type(edge) is tuple) and _is_new(gradient, outputs, grads)
                    )
            if not (retain_graph or create_graph):
                op.free()
        found = {leaf: (_observed_leaf(leaf, g, targets), own and not leaf._hooks) for leaf, (g, own) in leaves.items()}
        if recorder is not None:
            recorder.finished({leaf: gradient for leaf, (gradient, _) in found.items()})
        return found


def _edge(tensor: Tensor) -> _Edge:
    return tensor if tensor._op is None else (tensor._op, tensor._index)


def _root_gradient(root: Tensor, gradient: Any) -> Tensor:
    if not root.requires_grad:
        raise RuntimeError("backward: this tensor does not depend on any tensor with requires_grad=True")
    if gradient is None:
        if root.size != 1:
            raise RuntimeError(f"backward of a tensor of shape {root.shape} needs a gradient of that shape")
        return Tensor(np.ones_like(root.data))
    if not isinstance(gradient, Tensor):
        gradient = Tensor(backend.as_array(gradient, root.dtype, root.device))
    if gradient.shape != root.shape or gradient.dtype != root.dtype:
        raise ValueError(
            f"gradient has shape {gradient.shape} and dtype {gradient.dtype}; "
            f"the tensor it belongs to has {root.shape} and {root.dtype}"
        )
    return gradient


def _leading_to(targets: dict[Any, Any], starts: list[Op]) -> set[Op]:
    """The entries of the tape from which a target can be reached."""
    found, seen, stack = [], set(starts), list(starts)
    while stack:
        op = stack.pop()
        op.check_alive()
        found.append(op)
        for edge in op.edges or ():
            if isinstance(edge, tuple) and edge[0] not in seen:
                seen.add(edge[0])
                stack.append(edge[0])
    wanted: set[Op] = set()
    for op in sorted(found, key=lambda op: op.sequence):
        edges = [edge for edge in op.edges or () if edge is not None]
        if any(edge in targets or (isinstance(edge, tuple) and edge[0] in wanted) for edge in edges):
            wanted.add(op)
    return wanted


def _observed(gradient: Any, place: tuple[Op, int], hooks: dict[int, list[Any]] | None, targets: Any) -> Any:
    """Show a complete gradient to its hooks, which may replace it, and to whoever asked for it."""
    if gradient is None:
        return None
    if hooks and place[1] in hooks:
        raw = not isinstance(gradient, Tensor)
        seen = _hooked(Tensor(gradient) if raw else gradient, hooks[place[1]])
        gradient = seen.data if raw else seen
    if targets is not None and place in targets:
        targets[place] = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
    return gradient


def _observed_leaf(leaf: Tensor, gradient: Any, targets: Any) -> Tensor:
    gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
    if leaf._hooks:
        gradient = _hooked(gradient, leaf._hooks)
    if targets is not None and leaf in targets:
        targets[leaf] = gradient
    return gradient


def _hooked(gradient: Tensor, hooks: Iterable[Callable[[Tensor], Tensor | None]]) -> Tensor:
    for hook in list(hooks):
        replacement = hook(gradient)
        if replacement is not None:
            if not isinstance(replacement, Tensor):
                raise TypeError(f"a hook returned a {type(replacement).__name__}; it may return a Tensor or None")
            if (replacement.shape, replacement.dtype) != (gradient.shape, gradient.dtype):
                raise ValueError(
                    f"a hook returned shape {replacement.shape} and dtype {replacement.dtype} "
                    f"for a gradient of {gradient.shape} and {gradient.dtype}"
                )
            gradient = replacement
    return gradient


def _is_new(gradient: Any, outputs: Sequence[Any], grads: Sequence[Any]) -> bool:
    """Whether nobody else can hold this array: it is no view, was not handed in, and was not handed out twice."""
    if gradient.base is not None:
        return False
    times = 0
    for g in grads:
        if g is gradient:
            times += 1
    for g in outputs:
        if g is gradient:
            times += 1
    return times == 1


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradient of `outputs` with respect to each of `inputs`, without touching any `.grad`.

    Parameters
    ----------
    outputs, inputs : tensor or sequence of tensors
        Inputs may be leaves or lie within the graph.
    grad_outputs : one gradient for each output, optional
        Weights of the outputs' elements; 1 for outputs with one element.
    create_graph : bool
        Record the computation, so that the result can be differentiated again (Hessian-vector products).
    allow_unused : bool
        Return None for an input that no output depends on, instead of raising RuntimeError.
    retain_graph : bool
        Keep what the tape saved, for another pass; implied by `create_graph`.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif isinstance(grad_outputs, Tensor) or hasattr(grad_outputs, "dtype"):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs has {len(grad_outputs)} entries for {len(outputs)} outputs")
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            raise RuntimeError(f"inputs[{i}] does not require a gradient; create it with requires_grad=True")
    targets: dict[Any, Any] = {_edge(x): None for x in inputs}
    _run_backward(outputs, grad_outputs, targets, retain_graph, create_graph)
    found = tuple(targets[_edge(x)] for x in inputs)
    unused = [i for i, gradient in enumerate(found) if gradient is None]
    if unused and not allow_unused:
        raise RuntimeError(f"no output depends on inputs[{unused[0]}]; pass allow_unused=True to get None for it")
    return found
