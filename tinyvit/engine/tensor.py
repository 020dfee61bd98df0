"""Tensors: arrays that remember how they were computed, and compute their gradients."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import backend, context
from ..backend import Array
from .tape import Edge, Memory, Node, walk_back


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
        unbind = split = cast("Callable[..., tuple[Tensor, ...]]", None)
        __setitem__ = cast("Callable[..., None]", None)

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        if type(data) is not np.ndarray:
            if not hasattr(data, "dtype"):
                raise TypeError(f"Tensor takes an array, not a {type(data).__name__}; tinyvit.tensor(data) makes one")
            data = np.asarray(data) if isinstance(data, np.generic) else data
        if data.dtype.kind not in "fiubV":  # V: bfloat16
            raise TypeError(f"data has dtype {data.dtype}; a tensor holds real numbers, integers or booleans")
        if requires_grad and not backend.is_floating(data):
            raise TypeError(f"requires_grad=True needs a floating dtype, not {data.dtype}")
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

    def item(self) -> float | int | bool:
        """Return the value of a tensor with one element as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item: the tensor has shape {self.shape}, not one element")
        return self.numpy().item()

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

    def assign(self, array: Any) -> None:
        """Copy values of the same shape into this tensor's memory, off the tape, as when weights are loaded."""
        self.data[...] = backend.to_device_of(array, self.data)
        self.mark_modified()

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
        start = start_of("gradient", self, gradient, create_graph)
        walk = walk_back([start], None, retain_graph, create_graph)
        for leaf, gradient in walk.sums.items():
            _add_to_grad(leaf, as_tensor(gradient), leaf in walk.own, create_graph)

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

    def retain_grad(self) -> None:
        """Make the way back add the gradient of this tensor to its `.grad` too, although it is not a leaf."""
        place = self.place
        if place == self.retained:  # of a leaf, or called before
            return
        self.retained, reference = place, weakref.ref(self)  # a hook that held the tensor would keep it alive

        def keep(gradient: Tensor) -> None:
            tensor = reference()
            if tensor is not None and tensor.retained == place:  # not after it was modified in place
                _add_to_grad(tensor, gradient, False, context.now().recording)

        self.register_hook(keep)


def _add_to_grad(x: Tensor, found: Tensor, is_new: bool, create_graph: bool) -> None:
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
    return Tensor(backend.as_array(data.data if isinstance(data, Tensor) else data, dtype, device), requires_grad)


def start_of(argument: str, root: Tensor, gradient: Any, create_graph: bool) -> tuple[Edge, Any]:
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
