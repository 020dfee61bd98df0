"""Modules: parameters and sub-modules under names, found by looking at a module's attributes."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from ..functional.tensors import Tensor, constant, dtype_or_device, flag, is_floating, on_device_of, tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(tensor(data).data, requires_grad=True)


class LoadResult(NamedTuple):
    """The names that did not fit when a state was loaded: `missing` in the state, `unexpected` by the module."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """A part of a model. A subclass sets parameters and modules as attributes and defines `forward`.

    Modules and parameters are found if they are attributes themselves. For lists and dicts of them there are
    `ModuleList`, `ModuleDict`, `ParameterList` and `ParameterDict`; a plain container that holds any is refused when it
    is set, or when modules or parameters are next listed. A module or parameter can be replaced by another or by None,
    an entry of those containers by another only.
    """

    training = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if isinstance(value, Module | Tensor):
                raise TypeError(
                    f"{cls.__name__}.{name} is a {type(value).__name__} of the class, which is not found; "
                    "set it in __init__"
                )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __setattr__(self, name: str, value: Any) -> None:
        before = vars(self).get(name)
        if isinstance(before, Parameter) and not (value is None or isinstance(value, Parameter)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a Parameter and would be lost if a {type(value).__name__} took its "
                f"place; copy values into it with .{name}.assign(array), or set a tv.nn.Parameter or None"
            )
        if isinstance(before, Module) and not (value is None or isinstance(value, Module)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a module and would be lost if a {type(value).__name__} took its "
                "place; set another module or None"
            )
        if isinstance(value, Tensor) and value.requires_grad and value.node is None and type(value) is Tensor:
            raise TypeError(
                f"{type(self).__name__}.{name}: a tensor that requires a gradient is neither trained nor saved unless "
                "it is a tv.nn.Parameter; make it one, or set value.detach()"
            )
        self._require_found(name, value)
        super().__setattr__(name, value)

    def _require_found(self, name: str, value: Any) -> None:
        """Raise TypeError if `value`, an attribute, is a plain container with modules or parameters in it."""
        if isinstance(value, _CONTAINERS) and (found := _hidden_in(value)):
            place, item = found
            plural = "parameters" if isinstance(item, Parameter) else "modules"
            form = "Dict" if isinstance(value, dict) else "List"
            raise TypeError(
                f"{type(self).__name__}.{name}: {plural} in a plain {type(value).__name__} are not found, such as "
                f"{name}{place}; use tv.nn.Module{form} for modules, tv.nn.Parameter{form} for parameters"
            )

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules among the attributes, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, _CONTAINERS):
                self._require_found(name, value)  # it may have been filled after it was set

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, with their dotted names."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _named_entries(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter under every name it has."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its first dotted name."""
        seen: set[int] = set()
        for name, parameter in self._named_entries():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters on the host, by dotted name."""
        return {name: parameter.numpy().copy() for name, parameter in self._named_entries()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy arrays or tensors into the parameters of these names; nothing changes if any of them does not fit.

        Returns the names that were missing and those that were unexpected, which is allowed without `strict` only.

        Raises
        ------
        KeyError
            With `strict`, names are missing or unexpected; without, none fits. The message lists them, and names a
            prefix that would make more of them fit if it were removed or added.
        ValueError
            A shape differs.
        TypeError
            An array holds no real numbers, integers or booleans, or `state` is no mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"load_state_dict: state is a {type(state).__name__}; give a mapping of names to arrays, such as "
                "tv.load(path) or module.state_dict()"
            )
        own = dict(self._named_entries())
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys(), key=str)
        if flag("load_state_dict: strict", strict) and (missing or unexpected):
            hint = _prefix_hint(own.keys(), state.keys())
            raise KeyError(f"load_state_dict: missing names {missing}, unexpected names {unexpected}{hint}")
        if own and len(missing) == len(own):
            hint = _prefix_hint(own.keys(), state.keys())
            raise KeyError(
                f"load_state_dict: no name fits: missing names {missing}, unexpected names {unexpected}{hint}"
            )
        arrays = {name: _array_of(state[name]) for name in own if name in state}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {array.shape}; the module's is {own[name].shape}")
            if array.dtype.kind not in "fiub" and not is_floating(array):  # bfloat16 is of a kind of its own
                raise TypeError(f"load_state_dict: {name} has dtype {array.dtype}; it must hold real numbers")
        for name, array in arrays.items():
            own[name].assign(array)
        return LoadResult(missing, unexpected)

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and the like on, in this module and all below it."""
        mode = flag("train: mode", mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch dropout and the like off, in this module and all below it."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or thaw every parameter."""
        requires_grad = flag("requires_grad_: requires_grad", requires_grad)
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, device_or_dtype: Any) -> Self:
        """Move every parameter and constant to a device, or convert them to a dtype, in place; gradients are dropped.

        Constants that are integers or booleans, such as ids and masks, keep their dtype. Raises TypeError if the dtype
        is not a floating one.
        """
        dtype = dtype_or_device(device_or_dtype)
        if dtype is not None and not is_floating(np.empty(0, dtype)):
            raise TypeError(f"to: the dtype is {dtype}; a module takes a floating one, such as 'float32'")
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.detach().to(device_or_dtype).data, None
        for module in self.modules():
            for name, value in list(vars(module).items()):
                is_constant = isinstance(value, Tensor) and not isinstance(value, Parameter)
                if is_constant and (dtype is None or is_floating(value.data)):
                    setattr(module, name, value.to(device_or_dtype))
        return self

    def as_input(self, array: Any) -> Tensor:
        """Return an array as a constant on the device of the parameters; a tensor is returned as it is."""
        if isinstance(array, Tensor):
            return array
        parameter = next(self.parameters(), None)
        return Tensor(constant(array)) if parameter is None else on_device_of(array, parameter)

    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        return f"{type(self).__name__}({self.describe()}" + ("\n" + "\n".join(lines) + "\n)" if lines else ")")

    def describe(self) -> str:
        """Return the options of this module in one line, as `repr` and notebooks show them."""
        shapes = (f"{n}={tuple(v.shape)}" for n, v in vars(self).items() if isinstance(v, Parameter))
        return ", ".join(shapes)


def _prefix_hint(own: Iterable[str], given: Iterable[str]) -> str:
    """Return the end of a message: the prefix that would make more of the `given` names fit, if there is one."""
    mine, theirs = set(own), {name for name in given if isinstance(name, str)}
    best, hint = len(mine & theirs), ""
    for some, others, how in ((theirs, mine, "removed from"), (mine, theirs, "added to")):
        prefixes = Counter(
            name[: -len(end)] for name in some for end in _endings(name) if end in others and end != name
        )
        for prefix, count in prefixes.most_common(1):
            if count > best:
                best = count
                hint = f"; with the prefix {prefix!r} {how} the names of the state, {count} of {len(mine)} would fit"
    return hint


def _endings(name: str) -> Iterator[str]:
    """Yield what is left of a dotted name when its first parts are removed."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(1, len(parts)))


def _array_of(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


_CONTAINERS = (list, tuple, dict, set, frozenset, deque)


def _hidden_in(container: Any) -> tuple[str, Any] | None:
    """Return the place and the value of the first module or parameter in nested containers, or None."""
    seen: set[int] = set()  # a container may contain itself
    waiting = [("", container)]
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, Module | Parameter):
            return place, value
        if isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inner = (_CONTAINERS, Module, Parameter)
            waiting += [(f"{place}[{key!r}]", item) for key, item in items if isinstance(item, inner)]
    return None
