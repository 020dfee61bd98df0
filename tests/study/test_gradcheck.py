"""`tv.gradcheck` accepts correct gradients, and reports where a wrong one is wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor


@pytest.fixture
def new_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove operations that a test defines from the table of all operations."""
    monkeypatch.setattr(Op, "registry", dict(Op.registry))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def broken(rule: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """The operation y = sin x with the given gradient rule."""

    class Sine(Op):
        saves = ("x",)

        @staticmethod
        def forward(xp: Any, x: Any) -> Any:
            return xp.sin(x)

        backward = rule

    return Sine.apply


def test_right_gradients_pass() -> None:
    assert tv.gradcheck(F.tanh, normal(3)) is True
    assert tv.gradcheck(lambda x, y: (x * y, x + y), [normal(3, 2), normal(2, seed=1)], order=2) is True
    assert tv.gradcheck(lambda x: x.sum(), normal()) is True


@pytest.mark.usefixtures("new_operations")
@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.01, np.nan, np.inf])
def test_a_wrong_gradient_is_reported_with_its_place_and_both_values(factor: float) -> None:
    x = normal(2, 3)
    wrong = np.ones((2, 3))
    wrong[1, 2] = factor

    def backward(ctx: Any, xp: Any, dy: Any) -> Any:
        return dy * np.cos(x.data) * wrong

    with pytest.raises(tv.GradcheckError, match=r"worst at inputs\[0\]\[1, 2\]: \S+ by the tape, \S+ numerically"):
        tv.gradcheck(broken(backward), x, atol=1e-7, rtol=1e-5)


@pytest.mark.usefixtures("new_operations")
def test_only_order_two_notices_a_saved_intermediate_that_counts_as_constant() -> None:
    def backward(ctx: Any, xp: Any, dy: Any) -> Any:
        (x,) = ctx.saved
        return dy * np.cos(x.data if isinstance(x, Tensor) else x)  # the right value, but cos x is not connected to x

    tv.gradcheck(broken(backward), normal(3))
    with pytest.raises(tv.GradcheckError, match="second-order gradient"):
        tv.gradcheck(broken(backward), normal(3), order=2)


@pytest.mark.usefixtures("new_operations")
def test_order_two_notices_a_detached_gradient() -> None:
    def backward(ctx: Any, xp: Any, dy: Any) -> Any:
        (x,) = ctx.saved
        dy, x = (a.detach().numpy() if isinstance(a, Tensor) else a for a in (dy, x))
        return Tensor(dy * np.cos(x)) if xp is F else dy * np.cos(x)

    with pytest.raises(tv.GradcheckError, match="second-order gradient"):
        tv.gradcheck(broken(backward), normal(3), order=2)


def test_an_output_that_lost_its_history_is_noticed() -> None:
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(lambda x: (x * 2).detach(), normal(3))
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(lambda x: (x * 3, (x * 2).detach()), normal(3))
    assert tv.gradcheck(lambda x: (x * 3, tv.tensor(np.ones(2))), normal(3), order=2)


def test_every_input_is_checked() -> None:
    x, y = normal(3), normal(3, seed=1)
    with pytest.raises(tv.GradcheckError, match=r"inputs\[1\]"):
        tv.gradcheck(lambda a, b: a * 2 + b.detach() * b.detach(), [x, y])
    assert tv.gradcheck(lambda a, b: a * b, [x, y.detach()])  # an input that requires no gradient is not varied


def test_inputs_are_left_unchanged() -> None:
    x = normal(3)
    before = x.numpy().copy()
    tv.gradcheck(F.exp, x, order=2)
    assert x.grad is None
    np.testing.assert_array_equal(x.numpy(), before)


def test_the_caller_chooses_tolerances_and_step() -> None:
    crooked = lambda x: x * 2 + x.detach() * 1e-4  # noqa: E731  (off by 1e-4)
    assert tv.gradcheck(crooked, normal(3))
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(crooked, normal(3), rtol=1e-6, atol=1e-9)
    with pytest.raises(tv.GradcheckError):  # a difference over a step of 1 is far from the derivative
        tv.gradcheck(F.exp, normal(3), eps=1.0)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no input has requires_grad=True"):
        tv.gradcheck(F.exp, [normal(3).detach()])
    with pytest.raises(TypeError, match=r"inputs\[1\] is float32; .*float64"):
        tv.gradcheck(F.add, [normal(3), tv.tensor([1.0, 2.0, 3.0], requires_grad=True)])
    with pytest.raises(ValueError, match="order is 3; it must be 1 or 2"):
        tv.gradcheck(F.exp, normal(3), order=3)
    assert issubclass(tv.GradcheckError, AssertionError)
