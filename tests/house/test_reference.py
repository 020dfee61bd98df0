"""The reference of the documentation site has every public name, and every entry has a docstring to show."""

import importlib
import inspect
import re
from collections import Counter
from typing import Any

import pytest
from sources import ROOT

REFERENCE = ROOT / "docs/reference"

# The public modules. What a later one has from an earlier one is documented there.
MODULES = [
    *("tinyvit", "tinyvit.functional", "tinyvit.nn", "tinyvit.nn.init", "tinyvit.optim", "tinyvit.models"),
    *("tinyvit.data", "tinyvit.study", "tinyvit.kernels", "tinyvit.program", "tinyvit.interop"),
    *("tinyvit.use", "tinyvit.dense", "tinyvit.recipe", "tinyvit.tasks", "tinyvit.engine"),
]


def found(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(module), own)


def entries() -> list[tuple[str, str, str]]:
    """The kind, the name and the text of each entry of the reference."""
    pages = "\n".join(path.read_text("utf-8") for path in sorted(REFERENCE.glob("*.md")))
    return re.findall(r"^\.\. (auto\w+|data):: (\S+)\n((?:\n?^   .*\n)*)", pages, re.MULTILINE)


def names_of(module: Any) -> list[str]:
    """The `__all__` of a module, or the public functions and classes that it defines."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


def public_names() -> list[str]:
    """Every name of a public module, but modules; each object once, by its first name."""
    names: dict[int, str] = {}
    for module in MODULES:
        for name in names_of(importlib.import_module(module)):
            value = found(f"{module}.{name}")
            if not inspect.ismodule(value):
                names.setdefault(id(value), f"{module}.{name}")
    return list(names.values())


def test_every_public_name_has_an_entry() -> None:
    listed = {name for _, name, _ in entries()}
    shown = {id(found(name)) for name in listed}
    assert len(public_names()) > 200
    missing = [name for name in public_names() if name not in listed and id(found(name)) not in shown]
    assert not missing, f"add {', '.join(missing)} to a file of docs/reference/"


def test_no_name_has_two_entries() -> None:
    assert not [name for name, count in Counter(name for _, name, _ in entries()).items() if count > 1]


def test_every_page_of_the_reference_is_in_its_index() -> None:
    index = (REFERENCE / "index.md").read_text("utf-8")
    pages = {path.stem for path in REFERENCE.glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"^(\w+)$", index, re.MULTILINE)) - {"toctree"}


def own_members(value: type) -> list[str]:
    """The public methods and properties that a class defines itself; `forward` is described by its class."""
    kinds = (classmethod, staticmethod, property)
    members = ((name, member) for name, member in vars(value).items() if not name.startswith("_") and name != "forward")
    return [name for name, member in members if inspect.isfunction(member) or isinstance(member, kinds)]


@pytest.mark.parametrize(("kind", "name", "text"), entries(), ids=lambda part: str(part)[:60])
def test_every_entry_has_a_docstring_of_its_own(kind: str, name: str, text: str) -> None:
    value = found(name)
    if kind == "data":
        assert text.strip()
        return
    described = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert described
    assert not described.startswith(f"{value.__name__}("), "the docstring is the one that dataclasses make"
    assert ("class" in kind or "exception" in kind) == inspect.isclass(value)
    if inspect.isclass(value):
        assert not [member for member in own_members(value) if not inspect.getdoc(getattr(value, member))]
