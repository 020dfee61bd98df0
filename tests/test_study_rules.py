"""Every operation, on every one of its samples: its rule is narrated as it runs, and checked; a wrong one is named."""

from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.autograd import Op, Tensor
from tinyvit.functional.samples import Sample
from tinyvit.study import Check, check, check_rule, narrate_backward, narrate_forward, trace

OPERATIONS = {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}
SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in OPERATIONS.items()
    for i, sample in enumerate(op.samples())
]
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)


def ran(op: type[Op], sample: Sample) -> tuple[list[Any], list[Any], list[Any], list[bool]]:
    """Outputs, incoming gradients, gradients of the inputs, needs."""
    xs = [None if x is None else Tensor(x, requires_grad=True) for x in sample.inputs]
    out = op.apply(*xs, **sample.params)
    outputs = list(out) if isinstance(out, tuple) else [out]
    rng = np.random.default_rng(3)
    incoming = [rng.standard_normal(y.shape) for y in outputs]
    found = iter(tv.grad(outputs, [x for x in xs if x is not None], incoming))
    gradients = [None if x is None else next(found).numpy() for x in xs]
    return [y.numpy() for y in outputs], incoming, gradients, [x is not None for x in xs]


def checked(op: type[Op], sample: Sample) -> Check:
    _, incoming, gradients, needs = ran(op, sample)
    names = [op.inputs[min(i, len(op.inputs) - 1)] for i in range(len(needs))]
    return check_rule(op, sample.inputs, sample.params, incoming, needs, gradients, names)


@every_sample
def test_the_narrated_rule_gives_what_the_rule_gives(op: type[Op], sample: Sample) -> None:
    outputs, incoming, gradients, needs = ran(op, sample)
    forward = narrate_forward(op, sample.inputs, sample.params)
    assert [r.value.tobytes() for r in forward.results] == [y.tobytes() for y in outputs]
    backward = narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming)
    for told, gradient in zip(backward.results, gradients, strict=True):
        assert gradient is None or told.value.tobytes() == gradient.tobytes()
    for step in forward.steps + backward.steps:
        assert step.source, "the text of the rule"
        assert step.axes is None or len(step.axes) == np.ndim(step.value)


@every_sample
def test_each_step_says_what_it_computes(op: type[Op], sample: Sample) -> None:
    """The text of a step that is an operator or one call, evaluated on its operands, gives its value."""
    outputs, incoming, _, needs = ran(op, sample)
    for step in narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming).steps:
        numbers = [x.value if hasattr(x, "value") else x for x in step.operands]
        symbols = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "power": "**"}
        if step.function in symbols:
            assert symbols[step.function] in step.source
            result = eval(f"a {symbols[step.function]} b", {"a": numbers[0], "b": numbers[1]})
            np.testing.assert_array_equal(step.value, result)
        elif step.function in ("exp", "sum", "mean", "sqrt", "matmul", "where"):
            assert f"xp.{step.function}(" in step.source
            result = getattr(np, step.function)(*numbers, **step.params)
            np.testing.assert_allclose(step.value, result, rtol=1e-13)


def test_steps_have_the_names_of_the_rules_variables() -> None:
    op = Op.registry["layer_norm"]
    sample = next(iter(op.samples()))
    outputs, incoming, _, needs = ran(op, sample)
    steps = narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming).steps
    named = {step.name: step.source for step in steps if step.name}
    assert list(named) == ["centered", "rstd", "xhat", "g", "dweight", "dbias", "mean_g", "mean_gx", "dx"]
    assert named["g"] == "dy * weight"
    assert named["dx"] == "rstd * (g - mean_g - xhat * mean_gx)"


def test_letters_follow_the_steps() -> None:
    op = Op.registry["attention"]
    sample = next(iter(op.samples()))
    outputs, incoming, _, needs = ran(op, sample)
    steps = narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming).steps
    axes = {step.name: "".join(step.axes or "") for step in steps if step.name}
    assert {k: axes[k] for k in ("p", "dp", "r", "ds", "dk")} == {
        "p": "BHNS", "dp": "BHNS", "r": "BHN1", "ds": "BHNS", "dk": "BHSD",
    }  # fmt: skip


@every_sample
def test_right_rules_agree(op: type[Op], sample: Sample) -> None:
    found = checked(op, sample)
    assert found.verdict == "agrees", found.reason
    assert not [row for row in found.rows if row.verdict == "wrong"]


@every_sample
def test_a_planted_fault_is_pointed_at_by_name(op: type[Op], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.backward

    def a_tenth_of_a_percent_off(ctx: Op, xp: Any, *dys: Any) -> Any:
        first, *others = grads if isinstance(grads := right(ctx, xp, *dys), tuple) else (grads,)
        return (first * 1.001, *others)

    monkeypatch.setattr(op, "backward", a_tenth_of_a_percent_off)
    found = checked(op, sample)
    assert found.verdict == "wrong"
    assert f"the gradient of {op.inputs[0]} by the rule of {op.name}" in found.reason


def test_one_wrong_element_of_many_is_found() -> None:
    """Not by the chosen elements alone: the random direction sees every one."""
    x = tv.tensor(np.random.default_rng(0).standard_normal((20, 30)), requires_grad=True)
    with trace() as recorded:
        x.exp().sum().backward()
    backward = recorded["exp"].backward
    assert check(backward).verdict == "agrees"
    op = Op.registry["exp"]
    right = op.backward

    def wrong(ctx: Op, xp: Any, dy: Any) -> Any:
        g = right(ctx, xp, dy).copy()
        g[7, 11] += 0.01
        return g

    op.backward = wrong  # type: ignore[method-assign]
    try:
        assert check(backward).verdict == "wrong"
    finally:
        op.backward = right  # type: ignore[method-assign]


def test_a_kernel_that_is_wrong_where_its_rule_is_right_is_found() -> None:
    x = tv.tensor(np.ones((2, 3), np.float32), requires_grad=True)
    with trace() as recorded:
        x.tanh().sum().backward()
    backward = recorded["tanh"].backward
    backward.outgoing[0].array[0, 0] *= 1.01
    found = check(backward)
    assert found.verdict == "wrong"
    assert "what ran for tanh differs from its rule" in found.reason


def test_a_kink_and_a_gradient_of_nothing_are_not_called_wrong() -> None:
    x = tv.tensor(np.array([0.0, 1.0]), requires_grad=True)
    with trace() as recorded:
        (x.relu() * np.array([1.0, 0.0])).sum().backward()
    found = check(recorded["relu"].backward)
    assert found.verdict != "wrong"
    assert "unclear" in {row.verdict for row in found.rows}


def test_the_error_of_the_difference_has_its_best_step_in_the_middle() -> None:
    x = tv.tensor(np.random.default_rng(0).standard_normal(5), requires_grad=True)
    with trace() as recorded:
        x.exp().sum().backward()
    errors = [error for _, error in check(recorded["exp"].backward).curve]
    best = errors.index(min(errors))
    assert 0 < best < len(errors) - 1
    assert errors[0] > 100 * errors[best]
    assert errors[-1] > 100 * errors[best]
