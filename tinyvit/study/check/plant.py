"""Wrong gradient rules, to be found by the checks: each is the right rule with one line changed."""

import functools
import linecache
import random
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from ...engine import Op
from ...errors import TinyvitError
from ...functional import activation, normalization
from ..record.records import Recording
from .check import check


class PlantError(TinyvitError):
    """There is no fault to plant of that name."""


class Fault(NamedTuple):
    """What is changed, in a function of a module or of an operation's class; and what the mistake is, in words."""

    owner: ModuleType | type[Op]
    function: str
    right: str
    wrong: str
    words: str


def _rule(operation: str, right: str, wrong: str, words: str) -> Fault:
    return Fault(Op.registry[operation], "backward", right, wrong, words)


_NORM = Fault(
    normalization,
    "_backward",
    "rstd * (g - mean_g - xhat * mean_gx)",
    "rstd * (g - xhat * mean_gx)",
    "the mean of g is not subtracted: the rule forgets that the mean of x depends on x",
)
_SLOPE = Fault(
    activation,
    "_gelu_slope",
    "_normal_cdf(xp, x) + x * (_ONE_OVER_SQRT_2PI * xp.exp(-0.5 * (x * x)))",
    "_normal_cdf(xp, x) + _ONE_OVER_SQRT_2PI * xp.exp(-0.5 * (x * x))",
    "the product rule on x P(x) gives P + x P'; the factor x is missing",
)

FAULTS: dict[str, Fault] = {
    "attention": _rule("attention", "ds = p * (dp - r)", "ds = p * dp", "the sum over the keys is not subtracted: "
                       "softmax was differentiated as if its divisor were a constant"),
    "softmax": _rule("softmax", "y * (dy - xp.sum(dy * y, axis=ctx.axis, keepdims=True))", "y * dy",
                     "softmax was differentiated as if its divisor were a constant"),
    "layer_norm": _NORM,
    "add_layer_norm": _NORM,
    "linear": _rule("linear", "db = xp.sum(rows, axis=0)", "db = xp.mean(rows, axis=0)",
                    "the gradient of the bias is averaged over the rows instead of summed"),
    "gelu": _SLOPE,
    "bias_gelu": _SLOPE,
    "conv2d": _rule("conv2d", "db = xp.sum(dy, axis=(0, 2))", "db = xp.mean(dy, axis=(0, 2))",
                    "the gradient of the bias is averaged over the positions instead of summed"),
    "cross_entropy": _rule("cross_entropy", "xp.sum(t, axis=-1, keepdims=True) - t)",
                           "xp.sum(t, axis=-1, keepdims=True) - 0.5 * t)", "half of the target is forgotten"),
    "mean": _rule("mean", "dy / _count(ctx.shapes[0], ctx.axis)", "dy", "the gradient is not divided by the number "
                  "of elements that were averaged"),
    "relu": _rule("relu", "xp.where(y > 0, dy, 0.0)", "xp.where(y >= 0, dy, 0.0)",
                  "the gradient goes through where the output was cut to 0"),
}  # fmt: skip


class Place(NamedTuple):
    """Where a fault is planted: the key of an operation, what runs there instead, and the mistake in words."""

    key: str
    op: type[Op]
    mistake: str


def place_for(operation: str, recorded: Recording) -> Place:
    """Where a wrong rule of `operation` ("any": of one drawn at random) would show in a pass that was recorded.

    Raises PlantError if nowhere, naming the operations whose faults would.
    """
    if operation not in (*FAULTS, "any"):
        raise PlantError(f"no fault is known for {operation!r}; there is {', '.join(FAULTS)}, or any")
    names = random.sample(list(FAULTS), len(FAULTS)) if operation == "any" else [operation]
    place = next(filter(None, (_place(name, recorded) for name in names)), None)
    if place is None:
        here = [name for name in FAULTS if _place(name, recorded)]
        told = f"there is {', '.join(here)}" if here else "nor would that of another operation"
        raise PlantError(f"a fault of {operation} would not show here: no rule of it runs, or its mistake makes no "
                         f"difference; {told}")  # fmt: skip
    return place


def _place(name: str, recorded: Recording) -> Place | None:
    """Of the applications of an operation one, drawn at random, where its wrong rule does not pass the check."""
    wrong = wrong_operation(name)
    entries = [entry for entry in recorded.entries if entry.op.name == name and entry.backward]
    for entry in random.sample(entries, len(entries)):
        assert entry.backward is not None
        found = check(entry.backward, op=wrong)
        if found is not None and found.verdict == "wrong":
            return Place(entry.key, wrong, f"{entry.key}: {FAULTS[name].words}")
    return None


@functools.cache
def wrong_operation(name: str) -> type[Op]:
    """The operation with its fault; it is not registered."""
    op, fault = Op.registry[name], FAULTS[name]
    rule = fault.owner.__dict__[fault.function]
    backward: Any = _changed(fault, rule)
    if fault.owner is not op:  # the fault is in a function that the rule calls
        rule = op.__dict__["backward"]
        backward = FunctionType(rule.__code__, {**rule.__globals__, fault.function: backward}, rule.__name__)
    wrong = type(op.__name__, (op,), {"backward": backward, "__doc__": op.__doc__, "__module__": op.__module__})
    Op.registry[name] = op  # whose place the new class has just taken
    return wrong


def _changed(fault: Fault, function: FunctionType) -> Any:
    """`function` compiled again with the change; its source can be read like that of any other."""
    path = Path(function.__code__.co_filename)
    source = "".join(linecache.getlines(str(path)))
    start = source.index(fault.right, source.index(f"def {fault.function}(", _class_start(source, fault)))
    wrong = source[:start] + fault.wrong + source[start + len(fault.right) :]
    name = str(path.parent / f"planted {fault.owner.__name__.rpartition('.')[2]} {fault.function} {path.name}")
    linecache.cache[name] = len(wrong), None, wrong.splitlines(keepends=True), name
    code = compile(wrong, name, "exec")
    for part in _codes(code):
        if part.co_name == fault.function and part.co_firstlineno == function.__code__.co_firstlineno:
            return FunctionType(part, function.__globals__, part.co_name, function.__defaults__, function.__closure__)
    raise AssertionError(f"{fault.function} is not where it was")


def _class_start(source: str, fault: Fault) -> int:
    return source.index(f"class {fault.owner.__name__}(Op)") if isinstance(fault.owner, type) else 0


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if hasattr(constant, "co_consts"):
            yield from _codes(constant)
