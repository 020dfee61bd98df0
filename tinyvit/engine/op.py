"""Operations: a class states everything about one kind; an instance is one application of it."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from .. import backend, context, dispatch
from ..backend import devices
from ..backend.checks import refuse
from .dtypes import unwrapped
from .tape import Node
from .tensor import Tensor, on_tape

# The namespace of gradient rules that run on tensors, on the tape: `tinyvit.functional`, which puts itself here.
tensor_namespace: Any = None


class Op:
    """One kind of differentiable operation; an instance is one application of it.

    A subclass writes its formula in the docstring and defines

    - `forward(xp, *arrays, **params)` (static): the output, or a tuple of outputs. Differentiable inputs are
      positional, all else is keyword-only and becomes an attribute of the instance.
    - `backward(ctx, xp, *gradients)`: the gradient of each input (None for one that needs none), in the same order.
      It calls only functions of `xp` and operators, on what it finds in `ctx.saved`. An operation with several outputs
      gets None for an output that nobody used.
    - `saves`: the names of the inputs and outputs that `backward` needs; "x for y" if x is needed only for the gradient
      of y. Nothing else may be saved: a saved intermediate would count as a constant in second derivatives.
    - `copies`: the parameters that are arrays, or tuples with arrays among them, such as ids, masks and indices.
    - `samples()`: inputs that exercise it, awkward shapes included. The tests run every operation's samples.

    Attributes of an instance, as `backward` finds them in `ctx`: `saved` (in the order of `saves`), `shapes` and
    `needs` (of each input: its shape, whether its gradient is wanted), and the parameters.

    `backward` sees the values that forward saw. If a saved tensor was modified in place since, RuntimeError is raised.
    Bare arrays that are saved, and the parameters in `copies`, are copied in forward, because a later write by NumPy
    cannot be noticed. (`Tensor(array)` promises that `array` is left alone.)

    The tape holds a `Node` for each application. Where no kernel served, `dispatch.PlainRule` makes an instance of it.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("out",)
    is_sequence: ClassVar[bool] = False  # whether forward returns a tuple whose length the inputs decide
    has_one_output: ClassVar[bool]
    kernel: ClassVar[str | None] = None  # the name under which kernels for it are registered
    kernel_from: ClassVar[int] = 0  # the least number of elements of the first input for which its kernel is used
    view: ClassVar[bool] = False  # whether the output may share the input's memory
    autocast: ClassVar[str] = "follow"  # inputs: "narrow" in its dtype, "wide" in float32, "follow" in that they share
    masters: ClassVar[tuple[str, ...]] = ()  # inputs that may be float32 where the first is bfloat16
    narrow: ClassVar[tuple[str, ...]] = ()  # inputs that may be bfloat16 where the first is float32
    mixes: ClassVar[tuple[str, ...]]  # masters and narrow together
    # What studying it needs; tinyvit/functional/teaching.py says more.
    letters: ClassVar[tuple[str, ...]] = ()  # of the axes of inputs and outputs, as in "x y: B N C"
    draws: ClassVar[str | None] = None  # the parameter that makes it draw random numbers, unless it is 0
    is_activation: ClassVar[bool] = False  # whether units of its output can be zero for every image
    attention_maps: ClassVar[tuple[str, ...]] = ()  # variables (B, H, N, S) of its gradient rule, to lay over an image
    fault: ClassVar[Any] = None  # a mistake to plant in its gradient rule
    questions: ClassVar[tuple[Any, ...]] = ()  # question k is about the k-th application on the way back

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # names of the positional parameters of forward
    registry: ClassVar[dict[str, type["Op"]]] = {}
    # For each saved name its place, input i as i and output j as ~j, and the input whose gradient it is for, None for
    # any: ("x for y", "out") of inputs x and y gives ((0, 1), (~0, None)).
    sources: ClassVar[tuple[tuple[int, int | None], ...]]

    forward: ClassVar[Callable[..., Any]]
    backward: Callable[..., Any]
    samples: ClassVar[Callable[[], Iterable[Any]]]

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        for needed in ("forward(xp, *inputs, **params)", "backward(ctx, xp, *gradients)"):
            if not hasattr(cls, needed.partition("(")[0]):
                raise TypeError(f"{cls.__name__} defines no {needed}, which every operation needs")
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        cls.inputs = tuple(p.name for p in parameters if p.kind != p.KEYWORD_ONLY)
        for p in parameters:
            if p.kind == p.KEYWORD_ONLY and p.default is not p.empty:
                setattr(cls, p.name, p.default)
        places = {name: i for i, name in enumerate(cls.inputs)} | {name: ~j for j, name in enumerate(cls.outputs)}
        names = [entry.partition(" for ") for entry in cls.saves]
        unknown = [n for n, _, _ in names if n not in places] + [x for _, _, x in names if x and x not in cls.inputs]
        if unknown:
            allowed = f"{', '.join(places)}, and an input after 'for'"
            raise TypeError(f"{cls.__name__}: saves names {unknown[0]!r}; it may name {allowed}")
        cls.sources = tuple((places[name], cls.inputs.index(x) if x else None) for name, _, x in names)
        cls.mixes = (*cls.masters, *cls.narrow)
        cls.has_one_output = len(cls.outputs) == 1 and not cls.is_sequence
        cls.registry[cls.name] = cls

    @classmethod
    def input_name(cls, i: int) -> str:
        """Return the name of input `i`; the last name stands for all further ones."""
        return cls.inputs[min(i, len(cls.inputs) - 1)]

    # An application as a value -------------------------------------------------------------------------------------

    def __init__(self, saved: Sequence[Any], shapes: Sequence[Any], needs: Sequence[bool], params: dict[str, Any]):
        self.__dict__.update(params)
        self.saved, self.shapes, self.needs, self.params = saved, shapes, needs, params

    @classmethod
    def application(
        cls, inputs: Sequence[Any], outputs: Sequence[Any], params: dict[str, Any], needs: Sequence[bool]
    ) -> Self:
        """Return the application of this operation to `inputs` (arrays, numbers, None) that gave `outputs`."""
        wanted = [(s, reader is None or needs[reader]) for s, reader in cls.sources]
        saved = [(inputs[s] if s >= 0 else outputs[~s]) if is_wanted else None for s, is_wanted in wanted]
        return cls(saved, [() if x is None else np.shape(x) for x in inputs], tuple(needs), params)

    def mapped(self, function: Callable[[Any], Any]) -> Self:
        """Return the same application with `function` applied to everything that it saved."""
        saved = [None if x is None else function(x) for x in self.saved]
        return type(self)(saved, self.shapes, self.needs, self.params)

    @classmethod
    def run(cls, xp: Any, inputs: Sequence[Any], params: dict[str, Any]) -> tuple[Any, ...]:
        """Run forward in a namespace; always a tuple of outputs."""
        returned = cls.forward(xp, *inputs, **params)
        return returned if type(returned) is tuple else (returned,)

    def gradients(self, xp: Any, incoming: Sequence[Any]) -> tuple[Any, ...]:
        """Run the gradient rule in a namespace on the gradients of the outputs; always a tuple, one for each input."""
        returned = self.backward(xp, *incoming)
        return returned if type(returned) is tuple else (returned,)

    @classmethod
    def residuals(cls, xp: Any, inputs: Any, outputs: Any, params: dict[str, Any]) -> tuple[Any, ...]:
        """Compute, by the plain rule, the residuals that kernels of this operation return after the outputs."""
        return ()

    # An application on the tape ------------------------------------------------------------------------------------

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        """Compute the output tensor(s), and put this application on the tape if a gradient will be wanted.

        Inputs are tensors, arrays, Python or NumPy scalars (which never promote) or None.
        """
        now = context.now()
        if now.precision is not None:
            inputs = tensor_namespace.autocast_inputs(cls, inputs, now.precision)
        if now.recorder is not None:
            return now.recorder.apply(cls, inputs, params)
        arrays, dtype = unwrapped(cls, inputs)
        if devices.gpu_in_use:
            arrays, params = backend.on_one_device(cls.name, arrays, params)
        implementation = dispatch.select(cls, dtype, arrays, params, now.kernels)
        try:
            returned = implementation.forward(arrays, params, dtype)
            count = len(returned) if cls.is_sequence else len(cls.outputs)  # residuals of a kernel come after them
            outputs = [Tensor(returned[0])] if cls.has_one_output else [Tensor(y) for y in returned[:count]]
        except (ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
            refuse(cls.name, [(cls.input_name(i), x) for i, x in enumerate(arrays)], params, error)
        if now.recording:
            edges = [(x.source or x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
            needs = tuple([edge is not None for edge in edges])
            if True in needs:
                kept = implementation.kept(arrays, returned)
                node = Node(cls, params, dtype, edges, needs, len(outputs), implementation, kept)
                _record(node, inputs, arrays, outputs)
        if cls.view and isinstance(inputs[0], Tensor):
            inputs[0].share_memory(outputs)
        return outputs[0] if cls.has_one_output else tuple(outputs)

    @classmethod
    def gradients_of(cls, node: Node, incoming: Sequence[Any], create_graph: bool) -> Sequence[Any]:
        """Return the gradient of each input of an entry of the tape; tensors if `create_graph`, else arrays."""
        node.check_usable()
        if create_graph:
            grads = _recorded_gradients(node, incoming)
        else:
            if devices.gpu_in_use:
                backend.select_gpu_of(incoming)
            grads = node.implementation.backward(node, incoming)
        needs = node.needs
        if len(grads) != len(needs):
            raise RuntimeError(f"backward of {cls.name} gave {len(grads)} gradients for {len(needs)} inputs")
        for shape, need, gradient in zip(node.shapes, needs, grads):  # noqa: B905 - checked above
            if need and (gradient is None or gradient.shape != shape):
                got = f"shape {None if gradient is None else gradient.shape} for an input of shape {shape}"
                raise RuntimeError(f"backward of {cls.name} gave a gradient of {got}")
        return grads


def _recorded_gradients(node: Node, incoming: Sequence[Any]) -> Sequence[Any]:
    """Run the gradient rule of an entry on tensors that are connected to the tape, for gradients of gradients."""
    op, mixes = node.op, node.op.mixes
    places = zip(node.saved, op.sources, strict=False)  # longer where a kernel served: what it keeps comes last
    saved = [None if array is None else _connected(node, array, source) for array, (source, _) in places]
    saved = [_cast(x, node.dtype) for x in saved] if mixes else saved
    device = next(dy.device for dy in incoming if dy is not None)
    with context.changed(device=device):  # of the constants that the rule makes
        grads = op(saved, node.shapes, node.needs, node.params).gradients(tensor_namespace, incoming)
    dtypes = node.dtypes or [node.dtype] * len(grads)
    return [_cast(g, dtype) for g, dtype in zip(grads, dtypes, strict=True)] if mixes else grads


def _connected(node: Node, array: Any, source: int) -> Any:
    """Return something saved as the tensor at its place of the tape; constants and numbers as they are."""
    edge = (node, ~source) if source < 0 else node.edges[source]
    if edge is None:
        return Tensor(array) if hasattr(array, "dtype") else array
    return on_tape(array, edge) if type(edge) is tuple else edge


def _cast(x: Any, dtype: Any) -> Any:
    """Cast a tensor to `dtype`, on the tape, if it has another; leave anything else as it is."""
    return tensor_namespace.cast(x, dtype) if isinstance(x, Tensor) and x.dtype != dtype else x


def _record(node: Node, inputs: Sequence[Any], arrays: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Put an entry on the tape, between `inputs` and `outputs`, and save there what its gradient rule needs."""
    op, needs, saved = node.op, node.needs, node.saved
    node.shapes = [getattr(array, "shape", ()) for array in arrays]
    for i, out in enumerate(outputs):
        out.source, out.requires_grad = (node, i), True
    for name in op.copies:
        if node.params.get(name) is not None:
            node.params = node.params | {name: backend.copy_of(node.params[name])}
    if op.mixes:
        dtypes = [getattr(array, "dtype", None) for array in arrays]
        node.dtypes = dtypes if len({*dtypes, None}) > 2 else None
    for s, reader in node.implementation.sources:
        if reader is not None and not needs[reader]:
            saved.append(None)
            continue
        owner = inputs[s] if s >= 0 else outputs[~s]
        array = arrays[s] if s >= 0 else owner.data
        saved.append(array)
        if isinstance(owner, Tensor) and owner.data is array:  # else integers were cast to a new array
            memory = owner.memory
            node.guards.append((s, memory, memory.version))
