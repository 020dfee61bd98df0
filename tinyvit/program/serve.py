"""Programs in the place of a model that is called again and again, without anybody asking for them.

A program gives the same bits as its model, so it can take over at any call. Making one takes as long as some
forward passes; therefore a model computes the first calls of a kind itself.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np

from .. import context
from ..engine import Tensor
from ..nn import Module, keep_attention
from .graph import leaves, mapped
from .program import Program, freeze

CALLS_BEFORE = 3  # calls with inputs of one form that the model computes itself

_servers: "weakref.WeakKeyDictionary[Module, dict[str, _Server]]" = weakref.WeakKeyDictionary()


def served(model: Module, method: str = "forward") -> Callable[..., Any]:
    """Return a method of a model, computed by a program as soon as it has been called a few times.

    It takes and returns what the method does, to the bit. The program is used within `no_grad`, on the CPU, and as
    long as the model has the parameters that it was made with; where there cannot be one, the model computes.
    """
    return _server(model, method, getattr(type(model), method))


def served_with_attention(model: Module) -> Callable[..., Any]:
    """Return `forward` of a model with its attention weights, served as by `served`.

    It returns what `forward` does, and a mapping from the names of the layers that attended to their weights
    (B, H, N, S) in the last of their calls, see `keep_attention`.
    """
    return _server(model, "forward with attention", _with_attention)


def _with_attention(model: Module, *args: Any) -> tuple[Any, dict[str, Any]]:
    with keep_attention(model) as kept:
        returned = type(model).forward(model, *args)
    return returned, {name: maps[-1] for name, maps in kept.items() if maps}


def _server(model: Module, name: str, function: Callable[..., Any]) -> "_Server":
    servers = _servers.setdefault(model, {})
    if name not in servers:
        servers[name] = _Server(model, function)
    return servers[name]


@contextmanager
def serving(model: Module, *methods: str) -> Iterator[None]:
    """Within this block, let programs compute these methods of a model, as `served` does."""
    own = vars(model)
    names = [name for name in methods if hasattr(type(model), name) and name not in own]
    servers = {name: served(model, name) for name in names}
    own.update(servers)
    try:
        yield
    finally:
        for name in names:
            del own[name]


class _Server:
    """A function of a model and arrays, and the programs that compute it for inputs of several forms."""

    def __init__(self, model: Module, function: Callable[..., Any]) -> None:
        self._model, self._function = weakref.ref(model), function
        self._calls: dict[Any, int] = {}
        self._made: dict[Any, tuple[Program | None, Any, Any]] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        model = self._model()
        assert model is not None
        if options:
            return self._function(model, *args, **options)
        form = None if model.training or context.now().recording else _form(args)
        if form is None:
            return self._by_model(model, args)
        calls = self._calls[form] = self._calls.get(form, 0) + 1
        if calls <= CALLS_BEFORE:
            return self._by_model(model, args)
        program, template, state = self._made.get(form) or (None, None, None)
        if form not in self._made or (program is not None and state != state_of(model)):
            returned = self._by_model(model, args)
            self._made[form] = self._make(model, args, returned)
            return returned
        if program is None:
            return self._by_model(model, args)
        found = program(*[x for x in args if isinstance(x, np.ndarray | Tensor)])
        return _as_in(template, found)

    def _by_model(self, model: Module, args: Any) -> Any:
        return self._function(model, *args)

    def _make(self, model: Module, args: Any, returned: Any) -> tuple[Program | None, Any, Any]:
        """Return a program, which of its results are tensors, and the state of the parameters; None if it cannot be."""
        try:
            program = freeze(MethodType(self._function, model), *args)
        except Exception:  # whatever the reason is, the model itself computes
            return None, None, None
        if not program.is_batch_free:
            return None, None, None
        return program, mapped(returned, lambda leaf: isinstance(leaf, Tensor)), state_of(model)


def _form(args: Any) -> Any:
    """Return what decides which program computes a call: kinds, dtypes, shapes without the batch; None for no program.

    Inputs whose batches differ may or may not share a letter, so it matters which lengths are equal.
    """
    now = context.now()
    lengths: dict[int, int] = {}
    found: list[Any] = []
    if now.recorder is not None:
        return None
    for x in args:
        if isinstance(x, np.ndarray | Tensor):
            array = x.data if isinstance(x, Tensor) else x
            if not isinstance(array, np.ndarray) or not array.shape:
                return None
            same = lengths.setdefault(array.shape[0], len(lengths))
            found.append((type(x), array.dtype, array.shape[1:], same))
        elif x is None or isinstance(x, bool | int | float):
            found.append((type(x), x))
        else:
            return None
    return (*found, now.kernels, now.precision)


def state_of(model: Module) -> Any:
    """Return what changes when parameters change: which arrays they are, how often they were changed, sums of bits."""
    return [
        (id(p.data), p.data.shape, p.memory.version, _sum_of_bits(p.data))
        for p in model.parameters()
        if isinstance(p.data, np.ndarray)
    ]


def _sum_of_bits(array: np.ndarray) -> int:
    size = array.itemsize
    kind = f"u{size}" if size in (2, 4, 8) else "u1"
    flat = array.reshape(-1)
    if size == 4 and flat.size % 2 == 0 and flat.flags.c_contiguous:
        kind = "u8"
    return int(np.add.reduce(flat.view(kind), dtype=np.uint64))


def _as_in(template: Any, found: Any) -> Any:
    """Return results of a program as the model returns them: as tensors where those are tensors."""
    are_tensors = leaves(template)
    return mapped(found, lambda leaf: Tensor(leaf) if next(are_tensors) is True else leaf)
