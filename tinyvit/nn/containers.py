"""Containers of modules and of parameters, which `Module` finds: lists and dictionaries, and modules in a row."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..functional.tensors import Tensor
from .module import Module, Parameter


class ModuleList(Module):
    """Modules in order, named 0, 1, 2 ..."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        names = [name for name, _ in self.named_children()]
        setattr(self, names[index], _checked(self, module))

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        setattr(self, str(len(self)), _checked(self, module))

    def extend(self, modules: Iterable[Module]) -> None:
        """Add several modules at the end."""
        for module in modules:
            self.append(module)


class Sequential(ModuleList):
    """Modules applied one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleDict(Module):
    """Modules under names, in the order in which they were added."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        for name, module in (modules or {}).items():
            self[name] = module

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.named_children())

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __getitem__(self, name: str) -> Module:
        return dict(self.named_children())[name]

    def __setitem__(self, name: str, module: Module) -> None:
        setattr(self, _checked_name(self, name), _checked(self, module))

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def keys(self) -> list[str]:
        """Return the names of the modules, in their order."""
        return list(self)

    def values(self) -> list[Module]:
        """Return the modules, in their order."""
        return [module for _, module in self.named_children()]

    def items(self) -> list[tuple[str, Module]]:
        """Return the modules with their names, in their order."""
        return list(self.named_children())


class ParameterList(Module):
    """Parameters in order, named 0, 1, 2 ... Floating tensors and arrays become parameters."""

    def __init__(self, parameters: Iterable[Any] = ()) -> None:
        self.extend(parameters)

    def _own(self) -> list[tuple[str, Parameter]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Parameter)]

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self._own())

    def __getitem__(self, index: int) -> Parameter:
        return list(self)[index]

    def __setitem__(self, index: int, parameter: Any) -> None:
        setattr(self, self._own()[index][0], _as_parameter(self, parameter))

    def append(self, parameter: Any) -> None:
        """Add a parameter at the end."""
        setattr(self, str(len(self)), _as_parameter(self, parameter))

    def extend(self, parameters: Iterable[Any]) -> None:
        """Add several parameters at the end."""
        for parameter in parameters:
            self.append(parameter)


class ParameterDict(Module):
    """Parameters under names, in the order in which they were added. Floating tensors and arrays become parameters."""

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        for name, parameter in (parameters or {}).items():
            self[name] = parameter

    def items(self) -> list[tuple[str, Parameter]]:
        """Return the parameters with their names, in their order."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Parameter)]

    def keys(self) -> list[str]:
        """Return the names of the parameters, in their order."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Parameter]:
        """Return the parameters, in their order."""
        return [parameter for _, parameter in self.items()]

    def __len__(self) -> int:
        return len(self.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, name: str) -> Parameter:
        return dict(self.items())[name]

    def __setitem__(self, name: str, parameter: Any) -> None:
        setattr(self, _checked_name(self, name), _as_parameter(self, parameter))

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)


def _checked(container: Module, value: Any) -> Any:
    """Return `value` if it is a module, else raise TypeError, which names the right container for a parameter."""
    if not isinstance(value, Module):
        own = type(container).__name__
        way = f"; use tv.nn.{'ParameterDict' if own == 'ModuleDict' else 'ParameterList'}"
        raise TypeError(f"{own}: a {type(value).__name__} is not a module{way if isinstance(value, Parameter) else ''}")
    return value


def _as_parameter(container: Module, value: Any) -> Parameter:
    if isinstance(value, Parameter):
        return value
    if isinstance(value, Tensor) and value.node is not None:
        raise TypeError(f"{type(container).__name__}: the result of an operation is no parameter; give value.detach()")
    if isinstance(value, Module):
        raise TypeError(f"{type(container).__name__}: a {type(value).__name__} is a module; use tv.nn.ModuleList")
    return Parameter(value)


def _checked_name(container: Module, name: Any) -> str:
    """Return the name of an entry, which must not be that of an attribute and must not contain a dot."""
    own = type(container).__name__
    if not isinstance(name, str) or not name or "." in name:
        raise (ValueError if isinstance(name, str) else TypeError)(
            f"{own}: the name {name!r} must be a text without dots that is not empty"
        )
    if hasattr(type(container), name) or (name in vars(container) and name not in container):  # type: ignore[operator]
        raise KeyError(f"{own}: {name!r} is an attribute of the container; choose another name")
    return name
