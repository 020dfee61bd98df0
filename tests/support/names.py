"""Operations and functions whose names agree: of the class, of the function and its arguments, of oracle and kernel.

`mistakes()` has a sentence for every one whose names do not agree, or that lacks its samples or its oracle.
`tests/functional/test_names.py` fails with this sentence. All other tests of operations leave these out, because they
could fail only with errors that follow from it.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import numpy as np
from oracles import ORACLES
from tinyvit.kernels.registry import SPECS

import tinyvit.functional as F
from tinyvit.engine import Op

INIT = "tinyvit/functional/__init__.py"
# Operations behind functions and operators of other names.
BEHIND_OTHERS = {"add_narrow", "advanced_index", "attention", "basic_index"}


def file_of(op: type[Op]) -> str:
    return f"{op.__module__.replace('.', '/')}.py"


def parameters_of(function: Any) -> list[str]:
    return [*inspect.signature(function).parameters]


def arguments_of(op: type[Op]) -> list[str]:
    """Return the names of what `forward` takes after `xp`."""
    return parameters_of(op.forward)[1:]


def of_package() -> dict[str, type[Op]]:
    return {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}


@functools.cache
def mistakes() -> dict[str, str]:
    """Return what is wrong with operations and functions, by their names: one sentence for each mistake."""
    found: dict[str, str] = {}
    for name in F.__all__:
        if not hasattr(F, name):
            found[name] = f"__all__ in {INIT} names {name}, which is not imported there: add the import"
    for name, op in of_package().items():
        wrong = next(filter(None, (_of_function(op), _of_samples(op), _of_oracle(op), _of_kernel(op))), None)
        if wrong is not None:
            found.setdefault(name, wrong)
    for key in ORACLES.keys() - of_package().keys():
        if not any(re.search(rf"\b{key}\b", text) for text in found.values()):  # else it is mentioned
            found[key] = f"ORACLES has {key!r}, which is the name of no operation: remove it, or give it the right name"
    return found


def _of_function(op: type[Op]) -> str | None:
    if op.name in F.__all__ or op.name in BEHIND_OTHERS or not op.__module__.startswith("tinyvit.functional."):
        return None
    what = f"the class {op.__name__} in {file_of(op)} is the operation {op.name}"
    module = inspect.getmodule(op)
    if isinstance(getattr(module, op.name, None), FunctionType):
        return f"{what}, whose function is not public: add it to the imports and to __all__ in {INIT}"
    callers = applied_by(op)
    if callers:
        return f"{what}, but the function that applies it is called {callers[0]}: give class and function the same name"
    return f"{what}, but there is no function of that name: write it there, and add it to __all__ in {INIT}"


def applied_by(op: type[Op]) -> list[str]:
    """Return the functions in the file of an operation that mention its class."""
    module = vars(inspect.getmodule(op))
    return [n for n, f in module.items() if isinstance(f, FunctionType) and op.__name__ in f.__code__.co_names]


def _of_samples(op: type[Op]) -> str | None:
    samples = list(op.samples())
    if not samples:
        return f"{op.__name__} in {file_of(op)} has no samples: define samples(), which yields inputs to test it with"
    any_number = any(p.kind == p.VAR_POSITIONAL for p in inspect.signature(op.forward).parameters.values())
    for i, sample in enumerate(samples):
        if not any_number and len(sample.inputs) != len(op.inputs):
            count = len(sample.inputs)
            return f"sample {i} of {op.__name__} has {count} inputs, but forward takes {', '.join(op.inputs)}"
        for unknown in sample.params.keys() - {*arguments_of(op)[len(op.inputs) :]}:
            return (f"sample {i} of {op.__name__} has the parameter {unknown!r}, which forward does not take: its "
                    f"arguments are {', '.join(arguments_of(op))}")  # fmt: skip
    return None


def _of_oracle(op: type[Op]) -> str | None:
    if op.name not in ORACLES:
        unused = [*(ORACLES.keys() - of_package().keys())]
        similar = difflib.get_close_matches(op.name, unused, cutoff=0.5) or [n for n in applied_by(op) if n in unused]
        hint = f"; {similar[0]!r} there is the name of no operation, and may be meant for it" if similar else ""
        return f"the operation {op.name} has no oracle: add {op.name!r} to ORACLES in tests/support/oracles.py{hint}"
    if isinstance(ORACLES[op.name], np.ufunc):
        return None
    for sample in op.samples():
        try:
            inspect.signature(ORACLES[op.name]).bind(*sample.inputs, **sample.params)
        except TypeError as error:
            return (f"the oracle of {op.name} cannot be called with ({', '.join(arguments_of(op))}), the arguments of "
                    f"forward: {error}")  # fmt: skip
    return None


def _of_kernel(op: type[Op]) -> str | None:
    rows = {spec.operation for spec in SPECS}
    if op.kernel is None or op.kernel in rows:
        return None
    similar = difflib.get_close_matches(op.kernel, rows)
    hint = f"; is {similar[0]!r} meant?" if similar else ""
    return f'{op.__name__} says kernel = "{op.kernel}", but no row of kernels/registry.py is for that{hint}'


def _right(names: Iterable[str]) -> list[str]:
    wrong = mistakes()
    others = {n for name in wrong if name in Op.registry for n in applied_by(Op.registry[name])}
    return [name for name in names if name not in wrong and (name in Op.registry or name not in others)]


@functools.cache
def operations() -> dict[str, type[Op]]:
    """Return the operations of the package whose names agree."""
    return {name: Op.registry[name] for name in _right(of_package())}


@functools.cache
def functions() -> list[str]:
    """Return the public functions of `tinyvit.functional` whose names agree."""
    return _right(F.__all__)
