"""Operations grouped by the submodules of the model that ran them, and the data flow between operations."""

from collections.abc import Iterable
from typing import Any

from .records import Entry
from .values import Value


def groups_of(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Consecutive operations of the same top-level submodule, such as one block."""
    groups: list[dict[str, Any]] = []
    for entry in entries:
        name = top_level_of(entry.module)
        if not groups or groups[-1]["module"] != name:
            outside = "loss" if groups else "operations"
            title = outside if name is None else name or "model"
            groups.append({"module": name, "title": title, "short": title.replace("blocks.", ""), "ops": []})
        groups[-1]["ops"].append(entry.index)
    return groups


def top_level_of(module: str | None) -> str | None:
    """The outermost submodule that contains a module: "blocks.2" for "blocks.2.attn.qkv"."""
    if not module:
        return module
    first, _, rest = module.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first


def edges_of(entries: Iterable[Entry]) -> list[list[int]]:
    """Pairs of operations, by index, of which the second reads an output of the first."""
    found = [
        [x.origin.source.index, entry.index]
        for entry in entries
        for x in entry.inputs
        if isinstance(x, Value) and x.origin.kind == "output"
    ]
    return [list(pair) for pair in dict.fromkeys(map(tuple, found))]
