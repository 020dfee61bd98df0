"""Containers of modules and of parameters, which `Module` finds: lists and dictionaries, and modules in a row."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..functional.tensors import Tensor
from .module import Module, Parameter


class _Numbered(Module):
    """Entries of one kind in order, the attributes 0, 1, 2 ... without a gap: no entry is ever under another name."""

    _kind: ClassVar[type] = Module

    def __len__(self) -> int:
        return sum(name.isdecimal() for name in vars(self))

    def __iter__(self) -> Iterator[Any]:
        return (value for name, value in vars(self).items() if name.isdecimal())

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        entries = list(self)
        entries[index] = [_as_entry(self, v) for v in value] if isinstance(index, slice) else _as_entry(self, value)
        self._hold(entries)

    def __delitem__(self, index: Any) -> None:
        entries = list(self)
        del entries[index]
        self._hold(entries)

    def __setattr__(self, name: str, value: Any) -> None:
        own = type(self).__name__
        if not name.isdecimal() and isinstance(value, self._kind):
            raise TypeError(f"{own}: entries are named by numbers, not {name!r}; use append or insert")
        if name.isdecimal() and not isinstance(value, self._kind):
            raise TypeError(
                f"{own}: entry {name} is a {type(value).__name__}; it must be a {self._kind.__name__}, and "
                f"del container[{name}] removes an entry"
            )
        if name.isdecimal() and name not in vars(self) and name != str(len(self)):
            raise TypeError(f"{own}: {name!r} is not the next of {len(self)} entries; use append or insert")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name.isdecimal() and name in vars(self):
            raise TypeError(
                f"{type(self).__name__}: attribute {name} cannot be deleted alone, as the entries after it would keep "
                f"their numbers; use del container[{name}]"
            )
        super().__delattr__(name)

    def _hold(self, entries: list[Any]) -> None:
        """Take `entries` in place of all entries."""
        before = len(self)
        for i, entry in enumerate(entries):
            setattr(self, str(i), entry)
        for i in range(len(entries), before):
            super().__delattr__(str(i))

    def append(self, value: Any) -> None:
        """Add an entry at the end."""
        setattr(self, str(len(self)), _as_entry(self, value))

    def insert(self, index: int, value: Any) -> None:
        """Add an entry before that with the number `index`, as in a list."""
        entries = list(self)
        entries.insert(index, _as_entry(self, value))
        self._hold(entries)

    def extend(self, values: Iterable[Any]) -> None:
        """Add several entries at the end."""
        for value in list(values):
            self.append(value)


class ModuleList(_Numbered):
    """Modules in order, named 0, 1, 2 ...; those after one that is deleted or inserted get the next numbers."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)


class Sequential(ModuleList):
    """Modules applied one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ParameterList(_Numbered):
    """Parameters in order, named 0, 1, 2 ... Floating tensors and arrays become parameters."""

    _kind = Parameter

    def __init__(self, parameters: Iterable[Any] = ()) -> None:
        self.extend(parameters)


class _Named(Module):
    """Entries of one kind, each the attribute of its name, in the order in which they were added."""

    _kind: ClassVar[type] = Module

    def items(self) -> list[tuple[str, Any]]:
        """Return the entries with their names, in their order."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, self._kind)]

    def keys(self) -> list[str]:
        """Return the names of the entries, in their order."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        """Return the entries, in their order."""
        return [value for _, value in self.items()]

    def __len__(self) -> int:
        return len(self.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, name: str) -> Any:
        return dict(self.items())[name]

    def __setitem__(self, name: str, value: Any) -> None:
        entry = _as_entry(self, value)
        setattr(self, _checked_name(self, name), entry)

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, self._kind):
            _checked_name(self, name)
        elif value is None and name in self:
            raise TypeError(
                f"{type(self).__name__}: entry {name!r} is None; it must be a {self._kind.__name__}, and "
                f"del container[{name!r}] removes an entry"
            )
        super().__setattr__(name, value)


class ModuleDict(_Named):
    """Modules under names, in the order in which they were added."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        for name, module in (modules or {}).items():
            self[name] = module


class ParameterDict(_Named):
    """Parameters under names, in the order in which they were added. Floating tensors and arrays become parameters."""

    _kind = Parameter

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        for name, parameter in (parameters or {}).items():
            self[name] = parameter


def _as_entry(container: "_Numbered | _Named", value: Any) -> Any:
    """Return `value` as an entry of the container, or raise TypeError."""
    return (_as_module if container._kind is Module else _as_parameter)(container, value)


def _as_module(container: Module, value: Any) -> Any:
    """Return `value` if it is a module, else raise TypeError, which names the right container for a parameter."""
    if not isinstance(value, Module):
        own = type(container).__name__
        way = f"; use tv.nn.{'ParameterDict' if own == 'ModuleDict' else 'ParameterList'}"
        raise TypeError(f"{own}: a {type(value).__name__} is not a module{way if isinstance(value, Parameter) else ''}")
    return value


def _as_parameter(container: Module, value: Any) -> Parameter:
    if isinstance(value, Parameter):
        return value
    if value is None:
        raise TypeError(f"{type(container).__name__}: a NoneType is not a parameter")
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
