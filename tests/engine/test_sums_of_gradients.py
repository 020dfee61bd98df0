"""Sums of the gradients of one tensor: their values, and arrays of others that they must not change."""

import itertools
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import Op, Tensor
from tinyvit.optim import clip_grad_norm


def leaf(*values: float) -> Tensor:
    return tv.tensor(np.array(values, np.float64), requires_grad=True)


def equal(tensor: Tensor, values: Any) -> None:
    np.testing.assert_array_equal(tensor.numpy(), values)


KEPT = np.full(2, 0.5)


class _Halved(Op):
    """y = x / 2 of x = 1, with a gradient that is an array which others hold"""

    saves = ("out",)

    @staticmethod
    def forward(xp, x, *, given):
        return x / 2

    def backward(ctx, xp, dy):
        return {"saved": ctx.saved[0], "given": ctx.given, "constant": KEPT}[ctx.held]

    held = "saved"

    @staticmethod
    def samples():
        return ()


del Op.registry[_Halved.name]  # it is no operation of the package


@pytest.mark.parametrize("held", ["saved", "given", "constant"])
@pytest.mark.parametrize("uses", [0, 1, 2])
@pytest.mark.parametrize("is_leaf", [False, True])
def test_a_gradient_that_somebody_else_holds_is_not_changed(
    held: str, uses: int, is_leaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Halved, "held", held)
    w, given = leaf(1.0, 1.0), np.full(2, 0.5)
    x = w if is_leaf else w * 1.0
    y = _Halved.apply(x, given=given)
    z = y.sum()
    for _ in range(uses):
        z = z + x.sum()
    z.backward(retain_graph=True)
    z.backward()
    equal(w.grad, [1.0 + 2 * uses] * 2)
    clip_grad_norm([w], 1e-3)
    for array in (y.numpy(), given, KEPT):
        np.testing.assert_array_equal(array, [0.5, 0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_one_number_are_added(dtype: Any) -> None:
    """NumPy returns some of them as numbers and others as arrays without axes."""
    x = tv.tensor(np.array(2.0, dtype), requires_grad=True)
    for uses in itertools.permutations(
        [lambda y: y.reshape(1).sum(), lambda y: y * y, lambda y: y + np.ones(3, y.dtype), tv.Tensor.exp]
    ):
        y = x * 1.0
        total = sum((use(y).sum() for use in uses[1:]), uses[0](y).sum())
        (dx,) = tv.grad(total, x)
        np.testing.assert_allclose(dx.numpy(), 1 + 4 + 3 + np.exp(2.0), rtol=1e-6)
        assert dx.dtype == dtype


def test_sums_do_not_change_gradients_that_somebody_else_holds() -> None:
    w, held = leaf(1.0, 2.0), []
    x = w * 2.0
    parts = [x + 1.0, x * 3.0, x + x, -x]
    for part in parts:
        part.register_hook(lambda g: held.append((g, g.numpy().copy())))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    upstream = leaf(1.0, 10.0).detach()
    x_gradient, *gradients = tv.grad(total, [x, *parts], upstream)
    for g, before in held:
        equal(g, before)
    equal(x_gradient, [5.0, 50.0])
    for g in (*gradients, upstream):
        equal(g, [1.0, 10.0])


def test_a_gradient_that_a_kernel_hands_on_is_copied() -> None:
    x, other = (tv.tensor(np.ones(60_000, np.float32), requires_grad=i == 0) for i in range(2))
    given = tv.tensor(np.ones(60_000, np.float32))
    with tv.use_kernels("auto"):
        (x + other).backward(given)
    assert x.grad is not None
    assert not np.shares_memory(x.grad.numpy(), given.numpy())


def test_a_gradient_that_a_kernel_computed_and_a_hook_keeps_is_not_changed() -> None:
    weight = tv.tensor(np.ones((3, 5), np.float32), requires_grad=True)
    kept: list[Tensor] = []
    weight.register_hook(kept.append)
    with tv.use_kernels("auto"):
        for _ in range(2):
            tv.functional.linear(np.ones((2, 5), np.float32), weight).sum().backward()
    for gradient in kept:
        equal(gradient, np.full((3, 5), 2.0))
    assert weight.grad is not None
    equal(weight.grad, np.full((3, 5), 4.0))


def test_a_gradient_that_a_kernel_returns_for_two_inputs_is_not_shared_by_them() -> None:
    x, residual = (tv.tensor(np.ones((2, 6), np.float32), requires_grad=True) for _ in range(2))
    weight, bias = (tv.tensor(np.ones(6, np.float32), requires_grad=True) for _ in range(2))
    with tv.use_kernels("auto"):
        total, y = tv.functional.add_layer_norm(x, residual, weight, bias)
        (total.sum() + y.sum()).backward()
    assert x.grad is not None
    assert residual.grad is not None
    assert not np.shares_memory(x.grad.numpy(), residual.grad.numpy())
