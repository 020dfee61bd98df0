"""The facts in an operation's class that the study page shows fit the operation: letters, faults, questions, maps."""

import inspect
import sys
from typing import Any

import numpy as np
import pytest

from tinyvit.backend import NUMPY
from tinyvit.engine import Op
from tinyvit.functional.teaching import SHAPE, SIGN
from tinyvit.study.rules.axes import axes_of
from tinyvit.study.rules.functions import FUNCTIONS, Function, function_of
from tinyvit.study.subject import study_operation

OPERATIONS = {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}
every_operation = pytest.mark.parametrize("op", OPERATIONS.values(), ids=OPERATIONS)

# Functions of `xp` without a row in `FUNCTIONS`: the page shows their results, but does not unfold them.
NOT_UNFOLDED = {"add.at", "arange", "dropout_mask", "empty", "index_put", "take_rows", "zeros"}


@every_operation
def test_letters_are_those_of_inputs_and_outputs(op: type[Op]) -> None:
    for row in op.letters:
        names, _, letters = row.partition(":")
        assert set(names.split()) <= {*op.inputs, *op.outputs}
        words = letters.removeprefix(" usually").split("|")
        assert all(len(letter) == 1 or letter == "..." for word in words for letter in word.split())


@every_operation
def test_there_is_a_letter_for_every_axis(op: type[Op]) -> None:
    for sample in op.samples():
        arrays: dict[str, Any] = dict(zip(op.inputs, sample.inputs, strict=False))
        outputs = op.run(NUMPY, sample.inputs, sample.params)
        arrays |= dict(zip(op.outputs, outputs, strict=False))
        for name, array in arrays.items():
            axes = axes_of(op, name, array)
            assert axes is None or len(axes) == np.ndim(array)


def test_letters_fit_the_rank() -> None:
    linear, attention, relu = (Op.registry[name] for name in ("linear", "attention", "relu"))
    assert axes_of(linear, "out", np.zeros((2, 3, 4))) == ("B", "N", "K")  # the usual letters, and its own last one
    assert axes_of(linear, "out", np.zeros((2, 4))) == ("B", "K")
    assert axes_of(linear, "weight", np.zeros((2, 4))) == ("K", "C")
    assert axes_of(attention, "bias", np.zeros((3, 3))) == ("N", "S")
    assert axes_of(attention, "bias", np.zeros((2, 2, 3, 3))) == ("B", "H", "N", "S")
    assert axes_of(relu, "x", np.zeros((1, 2, 3, 3))) == ("B", "C", "y", "x")
    assert axes_of(relu, "x", np.zeros((1, 2, 3))) == ("B", "N", "C")
    assert axes_of(Op.registry["split_heads"], "out_2", np.zeros((1, 2, 3, 4))) == ("B", "H", "N", "D")
    assert axes_of(Op.registry["exp"], "x", np.zeros((1, 2, 3, 4))) is None


@pytest.mark.parametrize("op", [op for op in OPERATIONS.values() if op.fault], ids=lambda op: op.name)
def test_a_fault_changes_one_place_of_the_rule(op: type[Op]) -> None:
    fault = op.fault
    module = sys.modules[op.__module__]
    function = op.backward if fault.function == "backward" else getattr(module, fault.function)
    assert inspect.getsource(function).count(fault.right) == 1
    assert fault.wrong != fault.right
    assert fault.mistake[0].islower()
    assert not fault.mistake.endswith(".")


@every_operation
def test_questions_are_about_arrays_that_exist(op: type[Op]) -> None:
    for question in op.questions:
        assert question.array in {*(f"d{name}" for name in op.inputs), *op.backward.__code__.co_varnames}
        assert question.options in (SIGN, SHAPE) or 0 <= question.answer < len(question.options)
        for text in (question.text, question.reason):
            text.format(index=[0, 0], value=0.0, incoming="dy")


@every_operation
def test_attention_maps_are_variables_of_the_gradient_rule(op: type[Op]) -> None:
    assert set(op.attention_maps) <= set(op.backward.__code__.co_varnames)


@every_operation
def test_the_page_knows_every_function_that_a_rule_calls(op: type[Op]) -> None:
    narrations = [part.narration() for entry in study_operation(op.name) for part in (entry, entry.backward) if part]
    called = {step.function.partition("[")[0] for narration in narrations for step in narration.steps}
    unknown = {name for name in called if function_of(name) == Function()} - FUNCTIONS.keys() - NOT_UNFOLDED
    assert not unknown, f"add a row to FUNCTIONS in study/rules/functions.py for each of {unknown}"


def test_functions_of_elements_need_no_row() -> None:
    """NumPy says which those are, and of how many arrays."""
    assert function_of("hypot") == function_of("maximum")
    assert function_of("hypot").link is function_of("sin").link is function_of("exp").link
    assert function_of("hypot").mathml is not function_of("sin").mathml
    assert function_of("vecdot") == function_of("no function") == Function()
