"""Wrong gradient rules for students to find by the checks: each is the right rule with one change, `Op.fault`."""

import functools
import linecache
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from ...backend.words import did_you_mean
from ...engine import Op
from ...errors import TinyvitError
from ..record.records import Recording
from .differences import check


class PlantError(TinyvitError):
    """The fault that was asked for cannot be planted."""


class Place(NamedTuple):
    """The place of a planted fault: the key of an operation, what runs there instead, and the mistake in words."""

    key: str
    op: type[Op]
    mistake: str


def plantable() -> list[str]:
    """The names of the operations that have a fault to plant."""
    return sorted(name for name, op in Op.registry.items() if op.fault is not None)


def place_for(operation: str, recorded: Recording, chance: random.Random | None = None) -> Place:
    """Choose where to plant the fault of `operation` ("any": of a random one) in a recorded pass, so that it shows.

    `chance` makes the random choices, so that a seed gives the same place again. Raises PlantError if the fault would
    show nowhere; the message names the operations whose faults would.
    """
    names = plantable()
    if operation not in (*names, "any"):
        near = did_you_mean(operation, names)
        raise PlantError(f"no fault is known for {operation!r}{near}; available: {', '.join(names)}, or any")
    chance = chance or random.Random()
    tried = chance.sample(names, len(names)) if operation == "any" else [operation]
    place = next(filter(None, (_place(name, recorded, chance) for name in tried)), None)
    if place is None:
        here = [name for name in names if _place(name, recorded, chance)]
        others = f"available: {', '.join(here)}" if here else "the same is true of every other operation"
        raise PlantError(
            f"a fault of {operation} would not show here: its rule does not run, or the mistake makes no difference; "
            f"{others}"
        )
    return place


def _place(name: str, recorded: Recording, chance: random.Random) -> Place | None:
    """A random application of an operation at which its wrong rule does not pass the check."""
    wrong = wrong_operation(name)
    entries = [entry for entry in recorded.entries if entry.op.name == name and entry.backward]
    for entry in chance.sample(entries, len(entries)):
        assert entry.backward is not None
        found = check(entry.backward, op=wrong)
        if found is not None and found.verdict == "wrong":
            return Place(entry.key, wrong, f"{entry.key}: {entry.op.fault.mistake}")
    return None


@functools.cache
def wrong_operation(name: str) -> type[Op]:
    """The operation with its fault; it is not in the registry."""
    op = Op.registry[name]
    rule, function = op.backward, op.fault.function
    if function == rule.__name__:
        backward = _changed(op, rule)
    else:  # the fault is in a function of the module that the rule calls
        changed = _changed(op, getattr(sys.modules[op.__module__], function))
        backward = FunctionType(rule.__code__, {**rule.__globals__, function: changed}, rule.__name__)
    wrong = type(op.__name__, (op,), {"backward": backward, "__doc__": op.__doc__, "__module__": op.__module__})
    Op.registry[name] = op  # the new class has just registered itself under this name
    return wrong


def _changed(op: type[Op], function: Any) -> FunctionType:
    """`function` compiled again with the fault; its source can be read like that of any other function."""
    fault, code = op.fault, function.__code__
    path = Path(code.co_filename)
    lines = linecache.getlines(str(path))
    source = "".join(lines)
    start = source.index(fault.right, sum(map(len, lines[: code.co_firstlineno - 1])))
    wrong = source[:start] + fault.wrong + source[start + len(fault.right) :]
    # A name of its own for the cache of sources, of which pages show the end: it must not tell that rule from others.
    name = str(path.parents[1] / f"planted {op.name} {function.__name__}" / path.parent.name / path.name)
    linecache.cache[name] = len(wrong), None, wrong.splitlines(keepends=True), name
    for part in _codes(compile(wrong, name, "exec")):
        if part.co_name == code.co_name and part.co_firstlineno == code.co_firstlineno:
            return FunctionType(part, function.__globals__, part.co_name, function.__defaults__, function.__closure__)
    raise AssertionError(f"{function.__name__} is not where it was")


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if hasattr(constant, "co_consts"):
            yield from _codes(constant)
