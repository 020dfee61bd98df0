"""Tensors: arrays that remember how they were computed, and compute their gradients; and `grad`, which returns them."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import backend, context
from ..backend import Array, Memory
from ..backend.checks import check_flags, flag, listed
from .tape import Edge, Node, walk_back


class Tensor:
    """An array that remembers how it was computed.

    Attributes
    ----------
    data : the live array, kept without a copy (`tinyvit.tensor` copies and converts).
    requires_grad : whether `backward` computes the gradient with respect to this tensor; floating dtypes only.
    grad : Tensor or None, filled in by `backward`.
    source : the entry of the tape that made this tensor and which of its outputs this is, a pair; None for a leaf.
    retained : the `place` for which `retain_grad` was called; None before.
    """

    __slots__ = ("__weakref__", "_memory", "data", "grad", "hooks", "requires_grad", "retained", "source")

    if TYPE_CHECKING:  # operators and methods come from a table in tinyvit.functional
        T: "Tensor"
        _method = cast("Callable[..., Tensor]", None)
        __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __isub__ = __mul__ = __rmul__ = __imul__ = _method
        __truediv__ = __rtruediv__ = __itruediv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = _method
        __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = __invert__ = __abs__ = __getitem__ = _method
        sum = mean = var = max = min = cumsum = logsumexp = argmax = reshape = transpose = swapaxes = _method
        copy = broadcast_to = take = clip = flip = exp = log = sqrt = tanh = sigmoid = abs = relu = _method
        softmax = log_softmax = to = _method
        item = cast("Callable[..., Any]", None)
        assign = retain_grad = __setitem__ = cast("Callable[..., None]", None)
        unbind = split = cast("Callable[..., tuple[Tensor, ...]]", None)

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        if type(data) is not np.ndarray or data.dtype.kind not in "fiub" or requires_grad:
            data = backend.checked_array(data, requires_grad)
        self.data: Array = data
        self.grad: Tensor | None = None
        self.requires_grad = requires_grad
        self.source: tuple[Node, int] | None = None
        self.hooks: list[Callable[[Any], Any]] | None = None  # of a leaf; those of other tensors are in their Node
        self.retained: tuple[int, int] | None = None
        self._memory: Memory | None = None

    # Its values
    shape = property(lambda self: self.data.shape, doc="The length of each axis.")
    ndim = property(lambda self: self.data.ndim, doc="The number of axes.")
    size = property(lambda self: self.data.size, doc="The number of elements.")
    dtype = property(lambda self: self.data.dtype, doc="The dtype of the elements, as NumPy's.")
    device = property(lambda self: backend.device_of(self.data), doc="Where the values are: 'cpu' or 'cuda:0'.")

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array; on the CPU the live one, not a copy."""
        return backend.to_host(self.data)

    # Its place on the tape
    node = property(lambda self: self.source and self.source[0], doc="The entry of the tape that made it, or None.")
    edge = property(lambda self: self.source or self, doc="Where a gradient goes: to `source`, or to this leaf itself.")

    @property
    def place(self) -> tuple[int, int] | None:
        """`source` as two numbers, the first one the entry's; None for a leaf."""
        return self.source and (self.source[0].sequence, self.source[1])

    def detach(self) -> "Tensor":
        """Return the same array, without its history."""
        out = Tensor(self.data)
        out._memory = self.memory
        return out

    @property
    def memory(self) -> Memory:
        """The state shared with the tensors that view the same array, made when it is first asked for."""
        if self._memory is None:
            self._memory = Memory()
        return self._memory

    def share_memory(self, views: Sequence["Tensor"]) -> None:
        """Give each of `views` that uses the memory of this tensor its version counter."""
        owner = self.data if self.data.base is None else self.data.base
        for view in views:
            if view.data.base is owner or view.data is self.data:
                self.memory.join(self, view)
                view._memory = self.memory

    def mark_modified(self) -> None:
        """Record that `data` was written to: a backward that needs the old values raises instead of using the new."""
        if self._memory is not None:  # else nothing has asked for the version yet
            self._memory.version += 1

    # Gradients
    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this tensor, weighted by `gradient`, to `.grad` of every leaf that requires it.

        Parameters
        ----------
        gradient : tensor or array of this tensor's shape, dL/dself; 1 for a tensor with one element if omitted.
        retain_graph : whether the tape keeps what it saved, for another `backward`; implied by `create_graph`.
        create_graph : whether the gradient computation is recorded too, so that it can itself be differentiated.

        Raises RuntimeError if no gradient flows here, `gradient` is missing, or the tape was freed or modified.
        """
        check_flags("backward", retain_graph=retain_graph, create_graph=create_graph)
        start = _start_of("gradient", self, gradient, create_graph)
        walk = walk_back([start], None, retain_graph, create_graph)
        for leaf, gradient in walk.found.items():
            add_to_grad(leaf, as_tensor(gradient), leaf in walk.own, create_graph)

    def register_hook(self, hook: "Callable[[Tensor], Tensor | None]") -> Callable[[], None]:
        """Call `hook(gradient)` when the gradient of this tensor is complete; return a function that removes the hook.

        What the hook returns, if not None, replaces the gradient, which must not be modified in place.
        """
        if not callable(hook):
            raise TypeError(f"register_hook: hook is {hook!r}; it must be a function of the gradient")
        if not self.requires_grad:
            raise RuntimeError("register_hook needs a tensor that requires a gradient")
        if self.source is None:
            hooks = self.hooks = self.hooks or []
        else:
            node, index = self.source
            node.hooks = node.hooks or {}
            hooks = node.hooks.setdefault(index, [])
        on_gradient = functools.partial(_hooked, hook)
        hooks.append(on_gradient)
        return lambda: hooks.remove(on_gradient) if on_gradient in hooks else None


def add_to_grad(x: Tensor, found: Tensor, is_new: bool, create_graph: bool) -> None:
    """Add a gradient to `x.grad`. `is_new` says that nobody else holds its array."""
    if x.grad is None and not found.requires_grad:
        x.grad = found if is_new else found.copy()
    elif x.grad is not None and not (create_graph or x.grad.requires_grad):
        x.grad.data += found.data
        x.grad.mark_modified()
    else:
        with context.changed(recording=True):  # whatever is on the tape stays there
            x.grad = found.copy() if x.grad is None else x.grad + found


def on_tape(array: Array, source: tuple[Node, int]) -> Tensor:
    """Return the tensor that is an output of an entry of the tape."""
    out = Tensor(array)
    out.source, out.requires_grad = source, True
    return out


def as_tensor(x: Any) -> Tensor:
    """Return an array as a tensor without history; a tensor as it is."""
    return x if isinstance(x, Tensor) else Tensor(x)


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Copy `data` into a new leaf tensor. Python floats become float32, integers int64; arrays keep their dtype."""
    array = backend.as_array(data.data if isinstance(data, Tensor) else data, dtype, device)
    return Tensor(array, flag("tensor: requires_grad", requires_grad))


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradient of `outputs` with respect to each of `inputs`, without touching the `.grad` of any leaf.

    Parameters
    ----------
    outputs, inputs : tensor or sequence of tensors; inputs may be leaves or lie within the graph.
    grad_outputs : one gradient for each output, as in `Tensor.backward`.  create_graph, retain_graph : as there.
    allow_unused : return None for an input that no output depends on, instead of raising RuntimeError.
    """
    check_flags("grad", create_graph=create_graph, allow_unused=allow_unused, retain_graph=retain_graph)
    outputs, inputs = listed("grad: outputs", outputs, Tensor), listed("grad: inputs", inputs, Tensor)
    given = [None] * len(outputs) if grad_outputs is None else listed("grad_outputs", grad_outputs)
    if len(given) != len(outputs):
        raise ValueError(f"grad_outputs has {len(given)} entries for {len(outputs)} outputs")
    if not inputs:
        raise ValueError("grad: inputs is empty; a generator can be used only once")
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            raise RuntimeError(f"inputs[{i}] does not require a gradient; create it with requires_grad=True")
    starts = [_start_of(f"grad_outputs[{i}]", y, given[i], create_graph) for i, y in enumerate(outputs)]
    found = walk_back(starts, {x.edge for x in inputs}, retain_graph, create_graph).found
    gradients = [found.get(x.edge) for x in inputs]
    unused = [i for i, gradient in enumerate(gradients) if gradient is None]
    if unused and not allow_unused:
        raise RuntimeError(f"no output depends on inputs[{unused[0]}]; pass allow_unused=True to get None for it")
    return tuple([None if gradient is None else as_tensor(gradient) for gradient in gradients])


def _start_of(argument: str, root: Tensor, gradient: Any, create_graph: bool) -> tuple[Edge, Any]:
    """Return where the walk back from `root` starts, and with which gradient, given as `argument`."""
    if not root.requires_grad:
        raise RuntimeError("backward: this tensor does not depend on any tensor with requires_grad=True")
    if gradient is None and root.size != 1:
        raise RuntimeError(f"{argument} is missing: backward of a tensor of shape {root.shape} needs a gradient")
    gradient = Tensor(np.ones_like(root.data)) if gradient is None else gradient
    is_tensor = isinstance(gradient, Tensor)
    start = gradient if is_tensor else Tensor(backend.as_array(gradient, root.dtype, root.device, argument))
    if start.shape != root.shape or start.dtype != root.dtype:
        needed = f"its tensor has {root.shape} and {root.dtype}"
        raise ValueError(f"{argument} has shape {start.shape} and dtype {start.dtype}; {needed}")
    return root.edge, start if create_graph else start.data


def _hooked(hook: Callable[[Tensor], Tensor | None], gradient: Any) -> Any:
    """Return what `hook` makes of a gradient, an array or a tensor; the same kind comes back."""
    before = as_tensor(gradient)
    after = hook(before)
    if after is None:
        return gradient
    if not isinstance(after, Tensor):
        raise TypeError(f"a hook returned a {type(after).__name__}; it may return a Tensor or None")
    if (after.shape, after.dtype) != (before.shape, before.dtype):
        given = f"for a gradient of {before.shape} and {before.dtype}"
        raise ValueError(f"a hook returned shape {after.shape} and dtype {after.dtype} {given}")
    return after if before is gradient else after.data
