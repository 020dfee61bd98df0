"""Hooks: when they are called, what they receive and may return; and `retain_grad` for tensors that are not leaves."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit.engine import Tensor


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def leaf(*values: float) -> Tensor:
    return tv.tensor(np.array(values, np.float64), requires_grad=True)


def equal(tensor: Tensor | None, values: Any) -> None:
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("kind", ["leaf", "inner"])
def test_hooks_run_in_order_and_may_replace_the_gradient(kind: str) -> None:
    x = leaf(1.0, 2.0)
    y = x if kind == "leaf" else x * 1.0
    seen: list[tuple[str, list[float]]] = []
    y.register_hook(lambda g: seen.append(("first", g.numpy().tolist())))
    y.register_hook(lambda g: g * 10)
    remove = y.register_hook(lambda g: g * 1000)
    y.register_hook(lambda g: seen.append(("last", g.numpy().tolist())))
    remove()
    remove()  # removing it a second time does nothing
    (y * 3).sum().backward()
    assert seen == [("first", [3, 3]), ("last", [30, 30])]
    equal(x.grad, [30, 30])


def test_what_a_hook_computes_is_not_recorded_without_create_graph() -> None:
    x, w = leaf(1.0), leaf(2.0)
    y = x * 1.0
    for tensor in (x, y):
        tensor.register_hook(lambda g: g * w)
    (y * 3).backward()
    equal(x.grad, [12])
    assert not x.grad.requires_grad


def test_a_hook_sees_the_complete_gradient_once() -> None:
    x = leaf(1.0)
    calls: list[float] = []
    x.register_hook(lambda g: calls.append(g.item()))
    (2 * x + 5 * x).backward()
    assert calls == [7]


def test_grad_returns_gradients_as_the_hooks_replaced_them() -> None:
    x = leaf(1.0)
    y = x * 2
    x.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: g + 1)
    dx, dy = tv.grad(y * 3, [x, y])
    equal(dy, [4])
    equal(dx, [80])


def test_the_hooks_of_a_leaf_from_which_the_walk_starts_are_called() -> None:
    x = leaf(2.0)
    x.register_hook(lambda g: g * 10)
    x.backward()
    equal(x.grad, [10])
    equal(tv.grad(x, x)[0], [10])
    equal(tv.grad([x, x * 3], x)[0], [40])


def test_grad_calls_no_hook_of_tensors_that_the_inputs_do_not_depend_on() -> None:
    a, b = leaf(1.0), leaf(2.0)
    inner = a * 1.0
    for tensor in (a, inner):
        tensor.register_hook(lambda g: pytest.fail("the gradient that this hook sees is incomplete"))
    equal(tv.grad(inner * b + a * a + inner * inner, b)[0], [1])
    equal(tv.grad([inner, inner + b], b)[0], [1])


@pytest.mark.parametrize("kind", ["leaf", "inner"])
def test_gradients_that_hooks_kept_or_returned_are_never_modified(kind: str) -> None:
    x, fixed = leaf(1.0, 2.0), leaf(7.0, 7.0).detach()
    y = x if kind == "leaf" else x * 1.0
    kept: list[Tensor] = []
    y.register_hook(kept.append)
    y.register_hook(lambda g: fixed)
    for _ in range(2):
        (y * 3).sum().backward(retain_graph=True)
    equal(kept[0], [3, 3])
    equal(fixed, [7, 7])
    equal(x.grad, [14, 14])


@pytest.mark.parametrize("kind", ["leaf", "inner"])
def test_a_hook_must_return_a_tensor_like_the_gradient(kind: str) -> None:
    for wrong, error in [
        (np.ones(2), TypeError), (leaf(1.0, 1.0).to("float32"), (TypeError, ValueError)), (leaf(1.0), ValueError),
    ]:  # fmt: skip
        x = leaf(1.0, 2.0)
        y = x if kind == "leaf" else x * 1.0
        y.register_hook(lambda g, wrong=wrong: wrong)
        with pytest.raises(error, match="hook"):
            (y * 3).sum().backward()


def test_a_hook_needs_a_tensor_that_requires_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="register_hook"):
        tv.tensor(1.0).register_hook(print)


def test_retain_grad_keeps_the_gradient_of_an_inner_tensor() -> None:
    x = leaf(1.0, 2.0)
    y, z = x * 2, x * 3
    y.retain_grad()
    x.retain_grad()  # a leaf keeps its gradient anyway
    (y * z).sum().backward()
    equal(y.grad, z.numpy())
    assert z.grad is None
    assert not np.shares_memory(y.grad.data, x.grad.data)


CALLS = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=4)


@settings(max_examples=25)
@given(calls=CALLS, times=st.integers(1, 3))
def test_retain_grad_adds_up_as_leaves_do(calls: list[tuple[bool, bool, float]], times: int) -> None:
    leaf_y, x = leaf(1.0, 2.0), leaf(1.0, 2.0)
    inner_y = x * 1.0
    for _ in range(times):
        inner_y.retain_grad()
    found = []
    for y in (leaf_y, inner_y):
        loss = (y * y * y).sum()
        for create_graph, clears, weight in calls:
            y.grad = None if clears else y.grad
            loss.backward(weight, create_graph=create_graph, retain_graph=True)
        found.append((y.grad.numpy().copy(), y.grad.requires_grad))
        if y.grad.requires_grad:
            (second,) = tv.grad(y.grad.sum(), [y])
            found[-1] += (second.numpy(),)
    for expected, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_retain_grad_follows_changes_in_place() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1.0
    y.retain_grad()
    y *= 3
    (y * y).sum().backward(retain_graph=True)
    equal(y.grad, [6, 12])
    y.retain_grad()  # it was called before
    (y * y).sum().backward()
    equal(y.grad, [12, 24])


def test_hooks_of_a_leaf_are_called_while_the_walk_continues() -> None:
    first, twice, last = (tv.tensor([2.0], requires_grad=True) for _ in range(3))
    seen = []
    for name, leaf in (("first", first), ("twice", twice), ("last", last)):
        leaf.register_hook(lambda g, name=name: seen.append((name, g.item())))
    a = first * twice
    a.register_hook(lambda g: seen.append(("a", g.item())))
    b = a * 3
    b.register_hook(lambda g: seen.append(("b", g.item())))
    (b * last + twice * 0.5).sum().backward()
    # `last` is complete before the walk reaches b; `twice` has its last part from the product with `first`
    assert seen[:1] == [("last", 12.0)]
    assert seen[1:3] == [("b", 2.0), ("a", 6.0)]
    assert sorted(seen[3:]) == [("first", 12.0), ("twice", 12.5)]


def test_every_hook_of_a_leaf_is_called_once_with_the_whole_gradient() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        leaves = [tv.tensor(rng.standard_normal(3), requires_grad=True) for _ in range(6)]
        calls: list[list[Any]] = [[] for _ in leaves]
        for leaf, seen in zip(leaves, calls, strict=True):
            leaf.register_hook(lambda g, seen=seen: seen.append(g.numpy().copy()))
        pool = list(leaves)
        for _ in range(12):
            i, j = rng.integers(0, len(pool), 2)
            pool.append(pool[i] * pool[j] + pool[j])
        sum(pool[-3:], pool[-4]).sum().backward()
        for leaf, found in zip(leaves, calls, strict=True):
            assert len(found) == (leaf.grad is not None)
            assert leaf.grad is None or found[0].tobytes() == leaf.grad.numpy().tobytes()
