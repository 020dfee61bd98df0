"""The tape: what `backward` and `grad` return, `no_grad`, and gradients of gradients."""

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def leaf(*values: float) -> Tensor:
    return tv.tensor(np.array(values, np.float64), requires_grad=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def equal(tensor: Tensor | None, values: Any) -> None:
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.numpy(), values)


# Gradients add up -----------------------------------------------------------------------------------------------------


def test_a_tensor_used_twice_gets_the_sum() -> None:
    x = leaf(1.0)
    y = 3 * x
    (2 * y + 5 * y).backward()
    equal(x.grad, [21])


def test_the_same_tensor_on_both_sides() -> None:
    x = leaf(3.0)
    (x * x + x / x - x).backward()
    equal(x.grad, [5])


def test_each_entry_of_the_tape_is_walked_once() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(40):  # 2^40 paths
        y = y + y
    y.backward()
    equal(x.grad, [2.0**40])


def test_backward_waits_for_every_use_of_a_tensor() -> None:
    x = leaf(2.0)
    early = x * x
    late = early.exp().log() * early
    calls: list[float] = []
    early.register_hook(lambda g: calls.append(g.item()))
    (late + early).backward()
    assert calls == [pytest.approx(9)]  # d(early^2 + early) / d early, complete and once
    assert x.grad.item() == pytest.approx(9 * 4)


def test_backward_twice_accumulates() -> None:
    x = leaf(1.0, 2.0)
    for factor in (2.0, 3.0):
        (x * factor).sum().backward()
    equal(x.grad, [5, 5])
    x.grad = None
    x.sum().backward()
    equal(x.grad, [1, 1])


@pytest.mark.parametrize("operations", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_chain_of_operations(operations: int) -> None:
    x = leaf(1.0)
    y = x
    for _ in range(operations // 2):
        y = y * 1.0 + 1.0
    (slope,) = tv.grad(y, x, retain_graph=True)
    equal(slope, [1])
    y.backward(retain_graph=True)
    equal(x.grad, [1])
    last = weakref.ref(y)
    del y  # a graph that backward did not free is freed at once, without recursion
    assert last() is None


def test_gradient_weights_the_output() -> None:
    x = leaf(1.0, 2.0)
    for weight in (tv.tensor(np.array([3.0, 4.0])), np.array([3.0, 4.0]), [3.0, 4.0]):
        x.grad = None
        (x * x).backward(weight)
        equal(x.grad, [6, 16])


def test_a_leaf_is_its_own_gradient() -> None:
    x = leaf(2.0)
    x.backward()
    equal(x.grad, [1])
    equal(tv.grad(x, x)[0], [1])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (a + b).sum(), lambda a, b: ((a + b) ** 2).sum(), lambda a, b: (a.T + b.T).sum(),
        lambda a, b: a.reshape(4).sum() + b.broadcast_to(3, 2, 2).sum(), lambda a, b: sum(a.unbind()).sum() + b.max(),
        lambda a, b: F.add_layer_norm(a, b, np.ones(2), np.zeros(2))[0].sum(),
        lambda a, b: F.add_layer_norm(a, b, np.ones(2), np.zeros(2))[1].sum(),
        lambda a, b: a + 0 * b, lambda a, b: F.stack([a + 1.0, b + 1.0]),
    ],
)  # fmt: skip
def test_grad_is_never_shared_and_can_be_written_to(function: Callable[..., Tensor], create_graph: bool) -> None:
    a, b = normal(2, 2), normal(2, 2, seed=1)
    given = np.ones(function(a, b).shape)
    function(a, b).backward(Tensor(given), create_graph=create_graph)
    held = [a.data, b.data, given, a.grad.data, b.grad.data]
    assert all(not np.shares_memory(x, y) for i, x in enumerate(held) for y in held[:i])
    assert a.grad.data.flags.writeable
    assert b.grad.data.flags.writeable


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("function", [lambda x: x, lambda x: x + 1.0, lambda x: x.reshape(2)])
def test_a_gradient_that_was_given_is_copied(function: Callable[[Tensor], Tensor], create_graph: bool) -> None:
    x, given = leaf(1.0, 2.0), leaf(3.0, 4.0).detach()
    y, z = function(x), function(x) + 1.0
    for t in (y, z):
        t.retain_grad()
    y.backward(given, create_graph=create_graph)
    z.backward(given, create_graph=create_graph)
    held = {id(array): array for array in (given.data, x.grad.data, y.grad.data, z.grad.data)}
    assert len(held) == (3 if y is x else 4)
    assert not any(np.shares_memory(a, b) for a in held.values() for b in held.values() if a is not b)


# Freed graphs ---------------------------------------------------------------------------------------------------------


def test_a_second_backward_needs_retain_graph() -> None:
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    equal(x.grad, [8])
    with pytest.raises(RuntimeError, match=r"multiply were freed.*retain_graph=True"):
        y.backward()
    with pytest.raises(RuntimeError, match=r"multiply were freed"):
        (y + 1).backward()  # also where a new graph leads into the freed one


def test_grad_frees_the_graph_unless_it_is_retained() -> None:
    x = leaf(2.0)
    y = x * x
    equal(tv.grad(y, x, retain_graph=True)[0], [4])
    equal(tv.grad(y, x)[0], [4])
    for allow_unused in (False, True):
        with pytest.raises(RuntimeError, match="freed"):
            tv.grad(y, x, allow_unused=allow_unused)


# no_grad and detach ---------------------------------------------------------------------------------------------------


def test_no_grad_works_as_a_context_manager_and_as_a_decorator() -> None:
    x = leaf(1.0)

    @tv.no_grad()
    def double(t: Tensor) -> Tensor:
        """Return twice its argument."""
        return t * 2

    with tv.no_grad():
        assert not (x * 2).requires_grad
        with tv.no_grad():
            assert not double(x).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    assert not double(x).requires_grad
    assert (double.__name__, double.__doc__) == ("double", "Return twice its argument.")
    with pytest.raises(ZeroDivisionError), tv.no_grad():
        raise ZeroDivisionError
    assert (x * 2).requires_grad


def test_one_no_grad_can_be_entered_twice() -> None:
    off = tv.no_grad()
    with off, off:
        assert not (leaf(1.0) * 2).requires_grad
    assert (leaf(1.0) * 2).requires_grad


def test_no_grad_applies_to_its_own_thread_only() -> None:
    recorded: list[bool] = []
    with tv.no_grad():
        thread = threading.Thread(target=lambda: recorded.append((leaf(1.0) * 2).requires_grad))
        thread.start()
        thread.join()
    assert recorded == [True]


def test_detach_is_the_same_array_without_history() -> None:
    x = leaf(2.0)
    y = (x * x).detach()
    assert not y.requires_grad
    (y * x).backward()
    equal(x.grad, [4])
    assert x.detach().data is x.data


# grad -----------------------------------------------------------------------------------------------------------------


def test_grad_of_leaves_and_inner_tensors_touches_no_grad_attribute() -> None:
    x = leaf(1.0, 2.0)
    y = x * x
    z = (y * 3).sum()
    found = tv.grad(z, [y, x])
    assert isinstance(found, tuple)
    equal(found[0], [3, 3])
    equal(found[1], [6, 12])
    assert x.grad is y.grad is None


def test_grad_walks_no_further_than_it_has_to() -> None:
    x = leaf(2.0)
    y = x * x
    z = y * y
    equal(tv.grad(z, y)[0], [8])
    y.backward()  # the graph that led to y is still there
    equal(x.grad, [4])


def test_grad_of_several_outputs_with_weights() -> None:
    x = leaf(1.0, 2.0)
    outputs = [x * 2, (x * x).sum()]
    (dx,) = tv.grad(outputs, x, [np.array([1.0, 10.0]), None])
    equal(dx, [2 + 2, 20 + 4])
    with pytest.raises(ValueError, match="grad_outputs has 1 entries for 2 outputs"):
        tv.grad(outputs, x, [None])


def test_an_unused_input_raises_or_is_none() -> None:
    x, unused = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match=r"inputs\[1\].*allow_unused=True"):
        tv.grad(x * 2, [x, unused])
    dx, nothing = tv.grad(x * 2, [x, unused], allow_unused=True)
    equal(dx, [2])
    assert nothing is None


def test_backward_and_grad_refuse_invalid_arguments() -> None:
    x, constant = leaf(1.0, 2.0), tv.tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"shape \(2,\) needs a gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\).*\(2,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(ValueError, match=r"float32.*float64"):
        (x * 2).backward(tv.tensor([1.0, 1.0]))
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        constant.sum().backward()
    with pytest.raises(RuntimeError, match=r"inputs\[0\].*requires_grad=True"):
        tv.grad(x.sum(), constant)
    with pytest.raises(RuntimeError, match=r"grad_outputs\[1\] is missing.*shape \(2,\)"):
        tv.grad([x.sum(), x * 2], x)
    with pytest.raises(ValueError, match=r"grad_outputs\[0\] has shape \(3,\)"):
        tv.grad([x * 2], x, [np.ones(3)])


# Gradients of gradients -----------------------------------------------------------------------------------------------


def test_third_order() -> None:
    x = leaf(0.3, -1.2)
    y = x.tanh() * x**3
    for _ in range(3):
        (y,) = tv.grad(y.sum(), x, create_graph=True)
    t = np.tanh(x.data)
    s = 1 - t * t  # tanh' = s, tanh'' = -2 t s, tanh''' = s (6 t^2 - 2)
    expected = s * (6 * t * t - 2) * x.data**3 + 3 * (-2 * t * s) * 3 * x.data**2 + 3 * s * 6 * x.data + t * 6
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)


def test_a_hessian_vector_product_is_the_hessian_times_the_vector() -> None:
    a, x, v = normal(5, 3).detach(), normal(3, seed=1), np.array([1.0, -2.0, 0.5])
    (gradient,) = tv.grad((a @ x).exp().sum(), x, create_graph=True)
    (product,) = tv.grad(gradient, x, v)
    hessian = a.data.T @ np.diag(np.exp(a.data @ x.data)) @ a.data
    np.testing.assert_allclose(product.numpy(), hessian @ v, rtol=1e-12)


def test_backward_with_create_graph_leaves_a_differentiable_grad() -> None:
    x = leaf(2.0)
    for _ in range(2):
        (x**3).backward(create_graph=True)
    equal(x.grad, [24])  # 2 * 3 x^2
    equal(tv.grad(x.grad, x)[0], [24])  # 2 * 6 x


def test_a_gradient_on_the_tape_is_not_changed_by_the_next_backward() -> None:
    x = tv.tensor([3.0], requires_grad=True)
    (x * x * x).sum().backward(create_graph=True)
    first = x.grad
    (2.0 * x).sum().backward()
    assert (first.item(), x.grad.item()) == (27, 29)
    assert tv.grad(x.grad.sum(), x)[0].item() == 18


def test_a_gradient_penalty_trains() -> None:
    x, w = normal(4, 3).detach(), normal(3, seed=1)
    x.requires_grad = True
    (dx,) = tv.grad((x @ w).tanh().sum(), x, create_graph=True)
    ((dx * dx).sum() ** 0.5).backward()
    step = 1e-6

    def penalty(values: np.ndarray) -> float:
        return float(np.sqrt(((1 - np.tanh(x.data @ values) ** 2) ** 2).sum() * (values**2).sum()))

    numeric = [(penalty(w.data + step * e) - penalty(w.data - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(w.grad.numpy(), numeric, rtol=1e-6)


def block() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    module = tv.nn.Block(4, 2).to("float64")
    return module, normal(2, 3, 4)


def attention() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return lambda x: F.scaled_dot_product_attention(*x.unbind(), is_causal=True), normal(3, 1, 2, 4, 3)


def layer_norm() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return lambda x: F.layer_norm(x, normal(4, seed=3), normal(4, seed=4)), normal(2, 3, 4)


@pytest.mark.parametrize("case", [block, attention, layer_norm])
def test_the_hessian_is_symmetric(case: Callable[[], Any]) -> None:
    function, x = case()
    rng = np.random.default_rng(5)
    u, v, w = (rng.standard_normal(function(x).shape), *rng.standard_normal((2, *x.shape)))
    (gradient,) = tv.grad((function(x) * u).sum(), x, create_graph=True)
    (hv,), (hw,) = (tv.grad(gradient, x, direction, retain_graph=True) for direction in (v, w))
    assert np.sum(w * hv.numpy()) == pytest.approx(np.sum(v * hw.numpy()), rel=1e-10)
    assert abs(np.sum(w * hv.numpy())) > 1e-3


def test_create_graph_works_inside_no_grad_and_outside_leaves_recording_on() -> None:
    x = leaf(2.0)
    y = x**3
    with tv.no_grad():
        (first,) = tv.grad(y, x, create_graph=True)
        assert not (x * 2).requires_grad
    equal(tv.grad(first, x)[0], [12])
    tv.grad(x**3, x)
    assert (x * 2).requires_grad
