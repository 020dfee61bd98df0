"""Modules: parameters and sub-modules under names, found by looking at a module's attributes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from ..functional.tensors import Tensor, constant, is_floating, on_device_of, tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(tensor(data).data, requires_grad=True)


class Module:
    """A part of a model. A subclass sets parameters and modules as attributes and defines `forward`."""

    training = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (list, tuple)) and any(isinstance(v, (Module, Parameter)) for v in value):
            raise TypeError(
                f"{type(self).__name__}.{name}: modules in a plain list are not found; use tv.nn.ModuleList"
            )
        super().__setattr__(name, value)

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules among the attributes, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

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

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays or tensors into the parameters of these names; nothing changes if any of them does not fit.

        Raises
        ------
        KeyError
            With `strict`, names are missing or unexpected; the message lists them.
        ValueError
            A shape differs.
        TypeError
            An array holds no real numbers, integers or booleans.
        """
        own = dict(self._named_entries())
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unexpected):
            raise KeyError(f"load_state_dict: missing names {missing}, unexpected names {unexpected}")
        arrays = {name: _array_of(state[name]) for name in own if name in state}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {array.shape}; the module's is {own[name].shape}")
            if array.dtype.kind not in "fiub" and not is_floating(array):  # bfloat16 is of a kind of its own
                raise TypeError(f"load_state_dict: {name} has dtype {array.dtype}; it must hold real numbers")
        for name, array in arrays.items():
            own[name].assign(array)

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and the like on, in this module and all below it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch dropout and the like off, in this module and all below it."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or thaw every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, device_or_dtype: Any) -> Self:
        """Move every parameter and constant to a device, or convert it to a dtype, in place; gradients are dropped."""
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.detach().to(device_or_dtype).data, None
        for module in self.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) and not isinstance(value, Parameter):
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


def _array_of(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


class ModuleList(Module):
    """Modules in order, named 0, 1, 2 ..."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]

    def append(self, module: Module) -> None:
        setattr(self, str(len(self)), module)


class Sequential(ModuleList):
    """Modules applied one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
