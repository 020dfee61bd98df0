"""The keys of a recipe: what values they allow, and how a section of them is checked."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import RecipeError

_KINDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of allowed numbers, which never include infinity and NaN."""

    at_least: float = float("-inf")
    above: float = float("-inf")
    at_most: float = float("inf")
    below: float = float("inf")

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return " and ".join(
            f"{field.name.replace('_', ' ')} {bound}" for field, bound in bounds if bound != field.default
        )


def key(allowed: Range | tuple[str, ...], default: Any = dataclasses.MISSING) -> Any:
    """Declare a key with the range or the choices of its values; without a default, every recipe must state it."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a recipe, whose values are checked when it is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int and abs(value) <= 2**53:
                value = float(value)
                object.__setattr__(self, field.name, value)
            allowed = field.metadata.get("allowed")
            known = type(value) is field.type and (field.type is not str or _is_text(value))
            if not known or (allowed is not None and value not in allowed):
                expected = _KINDS[field.type]
                if isinstance(allowed, Range):
                    expected += f", {allowed}"
                elif allowed is not None:
                    expected = "one of " + ", ".join(map(repr, allowed))
                name = f"{type(self).__name__.lower()}.{field.name}"
                raise RecipeError(f"{name} is {value!r}; it must be {expected}")


def _is_text(value: str) -> bool:
    """Return whether UTF-8 can encode `value`: the name of a file may contain bytes that are not valid text."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
