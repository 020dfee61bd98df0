"""Steps as equations: every array has a name given before, a gradient has its own, and functions are explained."""

import ast
import re
from typing import Any

import numpy as np
import pytest
from test_rules import every_sample, ran

import tinyvit as tv
from tinyvit.engine import Op
from tinyvit.functional.samples import Sample
from tinyvit.study import narrate_backward, narrate_forward
from tinyvit.study.page.document import document_of
from tinyvit.study.rules.steps import Narration, Step
from tinyvit.study.rules.written import constants_of, equation_of, explanations_of
from tinyvit.study.subject import study_operation

_WORDS = {"mask", "constant", "inf", "nan", "None", "True", "False"}
_DTYPES = {"float64", "float32", "float16", "bool", "int64"}


def narrations(op: type[Op], sample: Sample) -> tuple[Narration, Narration]:
    with tv.use_kernels("numpy"):
        outputs, incoming, _, needs = ran(op, sample)
    backward = narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming)
    return narrate_forward(op, sample.inputs, sample.params), backward


def identifiers(equation: str) -> set[str]:
    """The words of an equation, without the names of keyword arguments."""
    return set(re.findall(r"(?<![\w.])[^\W\d]\w*(?!\w|=[^=])", equation))


@every_sample
def test_equations_use_only_what_was_named_or_explained(op: type[Op], sample: Sample) -> None:
    constants = constants_of(sample.params)
    for narration in narrations(op, sample):
        known = {name for x in narration.inputs for name in (x.name, x.local) if name} | {*constants.values()}
        for step in narration.steps:
            equation = equation_of(step, constants)
            function = step.function.partition("[")[0]
            explained = [line for line in explanations_of(narration) if line.startswith(f"{function}(")]
            called = {function} if hasattr(np, function) or explained else set()
            assert identifiers(equation.replace(" with ", " ").replace(" at [", "[").replace(", added up", "")) <= (
                known | called | _WORDS | _DTYPES
            ), f"{step.label} = {equation}"
            assert step.label
            known.add(step.label)


@every_sample
def test_the_last_step_of_a_gradient_has_its_name(op: type[Op], sample: Sample) -> None:
    _, backward = narrations(op, sample)
    inputs = [op.inputs[min(i, len(op.inputs) - 1)] for i in range(len(backward.results))]
    for result, name in zip(backward.results, inputs, strict=True):
        if isinstance(result, Step):  # a gradient that is passed on unchanged has no step
            assert result.name is not None
            assert not re.fullmatch(r"t\d+", result.name)
            own = {f"d{name}", f"d{name[0]}", "dtotal"}  # a bias is also b; the sum with a residual has one gradient
            assert re.sub(r"_\d+$", "", result.name) in own


@every_sample
def test_an_equation_of_operators_gives_the_value_of_its_step(op: type[Op], sample: Sample) -> None:
    """Evaluate each equation that is an operator on named arrays, with the values that stood behind the names."""
    constants = constants_of(sample.params)
    for narration in narrations(op, sample):
        values = {name: x.value for x in narration.inputs for name in (x.name, x.local) if name}
        for step in narration.steps:
            equation = equation_of(step, constants)
            try:
                tree = ast.parse(equation, mode="eval").body
            except SyntaxError:
                tree = None
            numbers = (ast.BinOp, ast.UnaryOp, ast.Compare)
            if isinstance(tree, numbers) and identifiers(equation) <= values.keys():
                found, text = eval(equation, {}, values), f"{op.name}: {step.label} = {equation}"
                np.testing.assert_allclose(found, step.value, rtol=1e-5, err_msg=text)  # constants are rounded
            values[step.label] = step.value


def test_a_function_that_a_rule_calls_gives_no_array_a_name_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sigmoid` calls its argument x, as the rule calls its first input."""
    monkeypatch.setattr(Op, "registry", dict(Op.registry))

    class Softer(Op):
        """z = x s(x - y)"""

        @staticmethod
        def forward(xp: Any, x: Any, y: Any) -> Any:
            z = x * xp.sigmoid(x - y)
            return z

        def backward(ctx: Any, xp: Any, dz: Any) -> Any:  # type: ignore[override]
            raise NotImplementedError

    x, y = np.array([1.0, 2.0]), np.array([0.5, -1.0])
    narration = narrate_forward(Softer, [x, y], {})
    labels = [step.label for step in narration.steps]
    assert labels[0] == "t1"
    assert not {"x", "y"} & set(labels)


def test_what_a_function_of_the_module_returns_has_its_name() -> None:
    op = Op.registry["softmax"]
    forward, backward = narrations(op, next(iter(op.samples())))
    assert [f"{s.label} = {equation_of(s, {})}" for s in forward.steps] == [
        "largest = max(x, axis=-1, keepdims=True)",
        "t1 = x - largest",
        "e = exp(t1)",
        "t2 = sum(e, axis=-1, keepdims=True)",
        "y = e / t2",
    ]
    assert [f"{s.label} = {equation_of(s, {})}" for s in backward.steps] == [
        "t1 = dy * y",
        "t2 = sum(t1, axis=-1, keepdims=True)",
        "t3 = dy - t2",
        "dx = y * t3",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("basic_index", "y = x[..., ::-1, None]"),
        ("add_rows", "dx = take_rows(dy, rows)"),
        ("cast", "dx = cast(dy, float64)"),
        ("concatenate", "y = concatenate((parts, parts_1, parts_2), axis=0)"),
    ],
)
def test_indices_parameters_and_lists_are_written_out(name: str, expected: str) -> None:
    op = Op.registry[name]
    found = [
        f"{step.label} = {equation_of(step, constants_of(sample.params))}"
        for sample in op.samples()
        for narration in narrations(op, sample)
        for step in narration.steps
    ]
    assert expected in found


def test_a_text_shows_equations_under_the_source_and_names_the_gradient() -> None:
    with tv.use_kernels("numpy"):
        text = study_operation("softmax").text("softmax")
    backward = text.partition("softmax, backward")[2].partition("softmax#2")[0]
    assert "saved by the forward pass: y\n" in backward
    assert re.search(r"activation.py:\d+  return y \* \(dy - xp.sum\(dy \* y, axis=ctx.axis", backward)
    assert re.findall(r"^     (\w+) += (.*)$", backward, re.MULTILINE)[:4] == [
        ("t1", "dy * y"),
        ("t2", "sum(t1, axis=-1, keepdims=True)"),
        ("t3", "dy - t2"),
        ("dx", "y * t3"),
    ]
    assert "t1, t2 ... are intermediate results" in text


def test_the_page_has_the_equations_and_a_legend_for_what_stands_in_the_source() -> None:
    with tv.use_kernels("numpy"):
        document = document_of(study_operation("softmax"))
    (step, *_) = document.ops[0]["steps"][0]
    assert (step["i"], step["w"]) == ("largest", "max(x, axis=-1, keepdims=True)")
    assert any(line.startswith("In the source, ") and "ctx is" in line for line in document.ops[0]["says"][1])
    assert not any("ctx" in line for line in document.ops[0]["says"][0])
