"""The names of classes, functions, arguments, oracles and kernels agree, and every function has what its tests need."""

import re
from collections.abc import Callable
from typing import Any

import names
import numpy as np
import pytest
from corners import CORNERS, REFUSED
from in_numpy import IN_NUMPY
from oracles import ORACLES
from test_every_argument import CALLS
from test_functions import CONSTANTS, EXAMPLES, calls_of

import tinyvit.functional as F
from tinyvit.engine import Op
from tinyvit.functional.samples import sample

TABLES = {
    "CORNERS in tests/support/corners.py": CORNERS,
    "REFUSED in tests/support/corners.py": REFUSED,
    "CALLS in tests/functional/test_every_argument.py": CALLS,
    "EXAMPLES in tests/functional/test_functions.py": EXAMPLES,
    "CONSTANTS in tests/functional/test_functions.py": CONSTANTS,
}


@pytest.mark.parametrize("name", sorted({*names.of_package(), *F.__all__, *names.mistakes()}))
def test_the_names_of_an_operation_agree(name: str) -> None:
    if name in names.mistakes():
        pytest.fail(names.mistakes()[name], pytrace=False)


@pytest.mark.parametrize("name", names.functions())
def test_a_function_that_is_not_called_like_its_operation_has_rows(name: str) -> None:
    unknown = [table for table, rows in TABLES.items() for row in rows if row not in F.__all__]
    assert not unknown, f"{unknown} name functions that tinyvit.functional does not have"
    missing = rows_that_lack(name)
    if missing:
        pytest.fail(f"{how_it_is_called(name)} It needs {'; '.join(missing)}.", pytrace=False)


def rows_that_lack(name: str) -> list[str]:
    """Return which rows a function needs that it does not have."""
    wanted = {
        "an example, in EXAMPLES of tests/functional/test_functions.py": name in CONSTANTS or bool(calls_of(name)),
        "calls of it, in CORNERS of tests/support/corners.py": name in CORNERS,
        "a right call with the kind of each argument, in CALLS of tests/functional/test_every_argument.py": (
            name in CALLS or name == "einsum"
        ),
        "the same for arrays of NumPy, in tests/functional/in_numpy.py": hasattr(IN_NUMPY, name),
    }
    return [row for row, is_there in wanted.items() if not is_there]


def how_it_is_called(name: str) -> str:
    arguments = names.parameters_of(getattr(F, name))
    if name not in Op.registry:
        return f"F.{name} is not the function of one operation."
    op = Op.registry[name]
    if arguments == names.arguments_of(op):
        return f"The name of an argument of F.{name}({', '.join(arguments)}) does not tell its kind."
    forward = ", ".join(names.arguments_of(op))
    return (
        f"F.{name} takes ({', '.join(arguments)}), but the forward of {op.__name__} ({forward}): give them the same "
        "names in the same order. A function that is meant to differ needs rows in tables of the tests."
    )


# Each mistake has its sentence ----------------------------------------------------------------------------------------


Patch = pytest.MonkeyPatch
EXP = Op.registry["exp"]
ALL_BUT_EXP = [name for name in F.__all__ if name != "exp"]
MISTAKES: dict[str, tuple[Callable[[Patch], Any], str]] = {
    "class and function": (
        lambda p: (p.setattr(EXP, "name", "expo"), p.setitem(Op.registry, "expo", EXP), p.delitem(Op.registry, "exp"),
                   p.setattr(F, "__all__", ALL_BUT_EXP)),
        "is the operation expo, but the function that applies it is called exp",
    ),
    "not public": (lambda p: p.setattr(F, "__all__", ALL_BUT_EXP), "whose function is not public"),
    "not imported": (lambda p: p.setattr(F, "__all__", [*F.__all__, "cube"]), "names cube, which is not imported"),
    "samples": (lambda p: p.setattr(EXP, "samples", staticmethod(lambda: iter(()))), "Exp in .* has no samples"),
    "inputs": (
        lambda p: p.setattr(EXP, "samples", staticmethod(lambda: iter([sample((3,), (3,))]))),
        "sample 0 of Exp has 2 inputs, but forward takes x",
    ),
    "parameters": (
        lambda p: p.setattr(EXP, "samples", staticmethod(lambda: iter([sample((3,), scal=2.0)]))), "parameter 'scal'"
    ),
    "oracle": (
        lambda p: (p.setitem(ORACLES, "exq", np.exp), p.delitem(ORACLES, "exp")),
        "exp has no oracle: .*; 'exq' there is the name of no operation",
    ),
    "oracle of nothing": (lambda p: p.setitem(ORACLES, "cube", np.exp), "'cube', which is the name of no operation"),
    "arguments of the oracle": (
        lambda p: p.setitem(ORACLES, "softmax", lambda x, axes: x), r"oracle of softmax .*\(x, axis\).*'ax"
    ),
    "kernel": (lambda p: p.setattr(EXP, "kernel", "sofmax"), 'Exp says kernel = "sofmax".* is \'softmax\' meant'),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_name_has_one_sentence(mistake: str, monkeypatch: Patch) -> None:
    make, sentence = MISTAKES[mistake]
    before = {*names.mistakes().values()}
    make(monkeypatch)
    (found,) = {*names.mistakes.__wrapped__().values()} - before
    assert re.search(sentence, found), found
