"""Changes in place: they are recorded correctly, or refused before a gradient can be wrong."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


@pytest.fixture(autouse=True, scope="module")
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def set_item(x: Tensor, value: Any) -> Tensor:
    x[1:] = value
    return x


CHANGES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "[]=": set_item,
}  # fmt: skip
OUT_OF_PLACE: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "+=": operator.add, "-=": operator.sub, "*=": operator.mul, "/=": operator.truediv,
    "[]=": lambda x, value: F.index_put(x, value, slice(1, None)),
}  # fmt: skip
every_change = pytest.mark.parametrize("change", CHANGES)


# Recorded: as if the operation had been written out of place ----------------------------------------------------------


@every_change
def test_the_value_stays_in_its_memory(change: str) -> None:
    y = normal(3) * 2
    array, expected = y.data, OUT_OF_PLACE[change](y, 1.5).numpy()
    assert CHANGES[change](y, 1.5) is y
    assert y.data is array
    np.testing.assert_array_equal(array, expected)


@every_change
@pytest.mark.parametrize("tracked", ["self", "other", "both"])
def test_gradients_equal_those_of_the_operation_out_of_place(change: str, tracked: str) -> None:
    x, other = normal(3, 2), normal(2, seed=1)
    results = []
    for way in (CHANGES, OUT_OF_PLACE):
        y = x * 2 if tracked != "other" else (x * 2).detach()
        z = other if tracked != "self" else other.detach()
        y = way[change](y, z)
        results.append(tv.grad((y.exp() * y).sum(), [x, other], allow_unused=True))
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(["x", "y", "2"])), min_size=1, max_size=6))
def test_any_sequence_of_changes_equals_the_same_out_of_place(steps: list[tuple[str, str]]) -> None:
    gradients = []
    for way in (CHANGES, OUT_OF_PLACE):
        x = Tensor(np.array([1.5, -2.0, 0.7]), requires_grad=True)
        y = x * 1.0
        for change, name in steps:
            other = {"x": x, "y": y + 3, "2": 2.0}[name]
            with np.errstate(all="ignore"):  # overflow is allowed: both ways must give the same result
                y = way[change](y, other if change != "[]=" or name == "2" else other[1:])
        with np.errstate(all="ignore"):
            gradients.append(tv.grad(y.sum(), x)[0].numpy())
    np.testing.assert_array_equal(*gradients)


def test_setting_items_with_every_kind_of_index() -> None:
    for key, value in [
        (0, 5.0), (slice(None, None, 2), np.array([1.0, 2.0])), ([2, 0], normal(2, 2)), ((..., 1), normal(3)),
        (np.array([True, False, True]), 0.0), (tv.tensor([[True, False]] * 3), 1.0),
    ]:  # fmt: skip
        x = normal(3, 2, seed=4)
        y = x * 1.0
        if np.shape(value) == (2,) and isinstance(value, np.ndarray):
            value = value[:, None]
        y[key] = value
        found = tv.grad((y * y).sum(), x)[0].numpy()
        expected = y.numpy().copy() * 2
        expected[key.data if isinstance(key, Tensor) else key] = 0
        np.testing.assert_array_equal(found, expected)


def test_results_from_before_a_change_keep_their_gradient() -> None:
    x = normal(3)
    y = x * 2
    before = y + 1  # its gradient does not depend on the value of y
    y *= 3
    np.testing.assert_array_equal(tv.grad((before + y).sum(), x)[0].numpy(), [8, 8, 8])


# Not recorded ---------------------------------------------------------------------------------------------------------


@every_change
def test_a_leaf_changes_under_no_grad_only(change: str) -> None:
    x = normal(3)
    expected = OUT_OF_PLACE[change](x, 1.5).numpy()
    with pytest.raises(RuntimeError, match=r"leaf.*no_grad"):
        CHANGES[change](x, 1.5)
    with tv.no_grad():
        CHANGES[change](x, 1.5)
    np.testing.assert_array_equal(x.numpy(), expected)
    assert x.requires_grad
    np.testing.assert_array_equal(tv.grad(x.sum(), x)[0].numpy(), [1, 1, 1])


def test_a_tensor_that_no_gradient_reaches_changes_freely() -> None:
    x = tv.tensor([1.0, 2.0])
    row = x[:1]
    x += 1
    row *= 10
    np.testing.assert_array_equal(x.numpy(), [20, 3])
    assert not x.requires_grad


def test_a_tensor_may_be_changed_by_itself() -> None:
    x = tv.tensor([[1.0, 2.0], [3.0, 4.0]])
    x += x.T
    np.testing.assert_array_equal(x.numpy(), [[2, 5], [5, 8]])


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_neither_shape_nor_dtype_can_change(dtype: str) -> None:
    x = tv.tensor([1, 2], dtype=dtype)
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2,\)"):
        x += np.ones((2, 2), dtype)
    y = tv.tensor([1, 2])
    with pytest.raises(ValueError, match=r"float32.*int64"):
        y += 0.5
    np.testing.assert_array_equal(y.numpy(), [1, 2])


# Noticed --------------------------------------------------------------------------------------------------------------


def saved_by(kind: str) -> tuple[Tensor, Tensor]:
    """A tensor whose value the gradient of a loss needs, and that loss."""
    x = normal(3)
    y = x if kind == "leaf" else x * 2
    return y, (y * y.detach().exp()).sum() + (y * y).sum()


@every_change
@pytest.mark.parametrize("kind", ["leaf", "inner"])
@pytest.mark.parametrize("through", ["itself", "detached", "view", "view of detached", "transposed"])
def test_a_change_of_a_tensor_that_backward_needs_is_noticed(change: str, kind: str, through: str) -> None:
    y, loss = saved_by(kind)
    with tv.no_grad():
        target = {
            "itself": lambda: y, "detached": y.detach, "view": lambda: y[:2],
            "view of detached": lambda: y.detach()[:2], "transposed": lambda: y.T,
        }[through]()  # fmt: skip
        CHANGES[change](target, 2.0)
    with pytest.raises(RuntimeError, match=r"'x', saved for the backward of multiply, was modified in place"):
        loss.backward()


@every_change
def test_a_recorded_change_of_a_tensor_that_backward_needs_is_noticed(change: str) -> None:
    y, loss = saved_by("inner")
    CHANGES[change](y, 2.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_a_change_of_a_saved_output_is_noticed() -> None:
    x = normal(3)
    y = x.exp()
    y += 1
    with pytest.raises(RuntimeError, match=r"'out', saved for the backward of exp"):
        y.sum().backward()


def test_a_change_between_two_backwards_is_noticed() -> None:
    y, loss = saved_by("inner")
    loss.backward(retain_graph=True)
    y *= 2
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_create_graph_notices_changes_too() -> None:
    x = normal(3)
    y = x * 2
    (gradient,) = tv.grad((y * y * y).sum(), x, create_graph=True)
    y *= 2
    with pytest.raises(RuntimeError, match="modified in place"):
        tv.grad(gradient.sum(), x)


@pytest.mark.parametrize("how", ["step", "load", "assign", "mark", "average"])
def test_new_weights_between_forward_and_backward_are_noticed(how: str) -> None:
    model = tv.nn.Linear(3, 2)
    average = tv.optim.EMA(model.parameters())
    optimizer = tv.optim.SGD(model.parameters(), lr=0.1)
    x = tv.tensor(np.ones((4, 3), np.float32), requires_grad=True)
    model(x).sum().backward()
    loss = model(x).sum()
    with average.applied() if how == "average" else tv.no_grad():
        pass
    if how == "step":
        optimizer.step()
    elif how == "load":
        model.load_state_dict(model.state_dict())
    elif how == "assign":
        model.weight.assign(np.zeros((2, 3), np.float32))
    elif how == "mark":
        model.weight.data[...] = 0
        model.weight.mark_modified()
    with pytest.raises(RuntimeError, match="'weight', saved for the backward of linear"):
        loss.backward()


WRITABLE_VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda y: y[1:], lambda y: y.reshape(6), lambda y: y.transpose(), lambda y: y.swapaxes(0, 1), lambda y: F.flip(y),
    lambda y: y.unbind()[1], lambda y: F.split(y, 2, axis=1)[1], lambda y: y.detach().reshape(-1)[2:],
]  # fmt: skip


@pytest.mark.parametrize("view", WRITABLE_VIEWS)
def test_a_change_through_any_kind_of_view_is_noticed(view: Callable[[Tensor], Tensor]) -> None:
    y = normal(3, 2) * 2
    loss = (y * y).sum()
    with tv.no_grad():
        other = view(y)
        assert np.shares_memory(other.data, y.data)
        other += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


# Refused: memory shared with another recorded tensor ------------------------------------------------------------------


@every_change
@pytest.mark.parametrize("which", ["view", "base"])
def test_recorded_views_and_their_bases_cannot_be_changed_in_place(change: str, which: str) -> None:
    y = normal(3, 2) * 2
    view = y[0:2]
    before = y.numpy().copy()
    with pytest.raises(RuntimeError, match=r"shares its memory.*x = x \+ y"):
        CHANGES[change](view if which == "view" else y, 2.0)
    np.testing.assert_array_equal(y.numpy(), before)


def test_a_tracked_value_is_not_written_into_a_view_of_an_untracked_tensor() -> None:
    base, w = tv.tensor(np.zeros((2, 3))), normal(3)
    row = base[0]
    with pytest.raises(RuntimeError, match="shares its memory"):
        row += w  # base would hold values of w, but no gradient would reach w


def test_a_deleted_view_does_not_prevent_changes() -> None:
    w = tv.tensor(np.arange(1.0, 5.0), requires_grad=True)
    y = w * 2
    y[0:2] = y[2:4] * 3
    y.sum().backward()
    assert w.grad is not None
    np.testing.assert_array_equal(w.grad.numpy(), [0, 0, 8, 8])
