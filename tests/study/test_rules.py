"""Every operation on all its samples: narration and check of its rules; a wrong rule is found and named."""

from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample
from tinyvit.study import Check, check_rule, narrate_backward, narrate_forward, trace
from tinyvit.study.check.differences import check

OPERATIONS = {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}
SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in OPERATIONS.items()
    for i, sample in enumerate(op.samples())
]
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)


def ran(op: type[Op], sample: Sample) -> tuple[list[Any], list[Any], list[Any], list[bool]]:
    """The outputs, random gradients of them, the resulting gradients of the inputs, and needs."""
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
def test_a_narrated_rule_has_the_same_results(op: type[Op], sample: Sample) -> None:
    outputs, incoming, gradients, needs = ran(op, sample)
    forward = narrate_forward(op, sample.inputs, sample.params)
    assert [r.value.tobytes() for r in forward.results] == [y.tobytes() for y in outputs]
    backward = narrate_backward(op, sample.inputs, outputs, sample.params, needs, incoming)
    for result, gradient in zip(backward.results, gradients, strict=True):
        assert gradient is None or result.value.tobytes() == gradient.tobytes()
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


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1.0), ("float16", 1e-8), ("float64", 1e4), ("float32", 1e-8)])
@pytest.mark.parametrize("name", sorted(Op.registry))
def test_rounding_is_not_called_wrong(name: str, dtype: str, scale: float) -> None:
    """These rules are right; the numbers are at the edges of the range of their dtype."""
    rng = np.random.default_rng(1)
    for drawn in Op.registry[name].samples():
        arrays = [x if x is None else np.asarray(x) for x in drawn.inputs]
        inputs = [
            x if x is None or x.dtype.kind != "f" else tv.Tensor((x * scale).astype(dtype), requires_grad=True)
            for x in arrays
        ]
        with np.errstate(all="ignore"), tv.use_kernels("numpy"), trace() as recorded:
            outputs = Op.registry[name].apply(*inputs, **drawn.params)
            for y in outputs if isinstance(outputs, tuple) else (outputs,):
                if y.requires_grad:
                    y.backward(rng.standard_normal(y.shape).astype(y.dtype), retain_graph=True)
        for backward in recorded.backwards:
            found = check(backward)
            assert found.verdict != "wrong", found.reason


def test_a_gradient_that_cancels_is_not_called_wrong() -> None:
    """The keys' bias changes all scores of a query equally, so its gradient is 0 and the computed one is rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 16, 32)).astype(np.float32)
    tv.manual_seed(0)
    q, k, v = (tv.nn.Linear(32, 32) for _ in range(3))
    with tv.use_kernels("numpy"), trace() as recorded:
        out = F.scaled_dot_product_attention(q(x), k(x), v(x))
        F.cross_entropy(out.reshape(-1, 32), rng.integers(0, 32, 128)).backward()
    found = [check(b) for b in recorded.backwards]
    assert {c.verdict for c in found} == {"agrees"}, [c.reason for c in found]
    assert any("which is the rounding error of float32" in c.reason for c in found)


def test_one_singular_element_leaves_the_others_checked() -> None:
    x = tv.tensor(np.array([4.0, 0.0, 1.0, 9.0]), requires_grad=True)
    with np.errstate(all="ignore"), trace() as recorded:
        F.sqrt(x).sum().backward()
    found = check(recorded["sqrt"].backward)
    assert found.verdict == "agrees"
    verdicts = {row.index: row.verdict for row in found.rows}
    assert verdicts.pop((1,)) == verdicts.pop(None) == "unclear"
    assert set(verdicts.values()) == {"agrees"}


def test_a_rule_that_returns_nan_for_a_finite_slope_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Op.registry["exp"], "backward", lambda ctx, xp, dy: dy * np.nan)
    found = checked(Op.registry["exp"], next(iter(Op.registry["exp"].samples())))
    assert found.verdict == "wrong"


@every_sample
def test_the_check_names_a_wrong_rule(op: type[Op], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.backward

    def a_tenth_of_a_percent_off(ctx: Op, xp: Any, *dys: Any) -> Any:
        first, *others = grads if isinstance(grads := right(ctx, xp, *dys), tuple) else (grads,)
        return (first * 1.001, *others)

    monkeypatch.setattr(op, "backward", a_tenth_of_a_percent_off)
    found = checked(op, sample)
    assert found.verdict == "wrong"
    assert f"the gradient of {op.inputs[0]} by the rule of {op.name}" in found.reason


def test_one_wrong_element_of_many_is_found() -> None:
    """The random direction finds it, because it contains every element."""
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


def test_a_small_fault_in_a_small_element_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest gradient is wrong by a millionth, and the reason names its row."""
    x = tv.tensor(np.random.default_rng(0).standard_normal(50), requires_grad=True)
    with trace() as recorded:
        x.exp().sum().backward()
    backward = recorded["exp"].backward
    least = int(np.abs(backward.outgoing[0].array).argmin())
    right = Op.registry["exp"].backward

    def wrong(ctx: Op, xp: Any, dy: Any) -> Any:
        g = right(ctx, xp, dy).copy()
        g[least] *= 1 + 1e-6
        return g

    monkeypatch.setattr(Op.registry["exp"], "backward", wrong)
    found = check(backward)
    assert found.verdict == "wrong"
    assert f"at [{least}]" in found.reason
    assert all(row.tolerance < 1e-6 * max(1.0, abs(row.rule)) for row in found.rows)


def test_the_rows_are_the_largest_the_median_and_the_smallest_gradient() -> None:
    x = tv.tensor(np.arange(1.0, 100.0), requires_grad=True)
    with trace() as recorded:
        (x * x).sum().backward()
    rows = check(recorded["multiply"].backward).rows
    first = [row.index[0] for row in rows if row.input == "x" and row.index is not None]
    assert first[:3] == [98, 49, 0]
    assert len(first) == 4


def test_a_kernel_that_is_wrong_where_its_rule_is_right_is_found() -> None:
    x = tv.tensor(np.ones((2, 3), np.float32), requires_grad=True)
    with trace() as recorded:
        x.tanh().sum().backward()
    backward = recorded["tanh"].backward
    backward.outgoing[0].array[0, 0] *= 1.01
    found = check(backward)
    assert found.verdict == "wrong"
    assert "what ran for tanh differs from its rule" in found.reason


def test_kinks_and_zero_gradients_are_not_called_wrong() -> None:
    x = tv.tensor(np.array([0.0, 1.0]), requires_grad=True)
    with trace() as recorded:
        (x.relu() * np.array([1.0, 0.0])).sum().backward()
    found = check(recorded["relu"].backward)
    assert found.verdict != "wrong"
    assert "unclear" in {row.verdict for row in found.rows}


def test_the_error_of_the_difference_is_smallest_at_a_medium_step() -> None:
    x = tv.tensor(np.random.default_rng(0).standard_normal(5), requires_grad=True)
    with trace() as recorded:
        x.exp().sum().backward()
    errors = [error for _, error in check(recorded["exp"].backward).curve]
    best = errors.index(min(errors))
    assert 0 < best < len(errors) - 1
    assert errors[0] > 100 * errors[best]
    assert errors[-1] > 100 * errors[best]
