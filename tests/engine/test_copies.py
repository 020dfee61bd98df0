"""Copying and sending tensors: what `copy`, `deepcopy` and `pickle` keep, and what they refuse."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


RNG = np.random.default_rng(0)
LEAVES: dict[str, Callable[[], Tensor]] = {
    "float32": lambda: tv.tensor(RNG.standard_normal((2, 3)).astype(np.float32)),
    "float64 that requires a gradient": lambda: tv.tensor(RNG.standard_normal((2, 3)), requires_grad=True),
    "bfloat16": lambda: tv.tensor(np.ones((2, 3)).astype(ml_dtypes.bfloat16), requires_grad=True),
    "integers": lambda: tv.tensor(np.arange(6)),
    "booleans": lambda: tv.tensor(np.array([True, False])),
    "no axes": lambda: tv.tensor(2.5, requires_grad=True),
    "no elements": lambda: tv.tensor(np.zeros((0, 3), np.float32)),
    "strided": lambda: Tensor(np.arange(12.0).reshape(3, 4).T[::2]),
    "a parameter": lambda: tv.nn.Parameter(RNG.standard_normal((2, 3)).astype(np.float32)),
    "a frozen parameter": lambda: tv.nn.Linear(3, 2).requires_grad_(False).weight,
}


def used(x: Tensor) -> Tensor:
    """The same tensor after operations, a view, an in-place change and, if it takes one, a backward."""
    x.reshape(-1)
    with tv.no_grad():
        x[...] = x.numpy().copy()
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient)
        (x * 2).sum().backward()
    return x


@pytest.mark.parametrize("after", [lambda x: x, used], ids=["new", "used"])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", LEAVES)
def test_a_leaf_comes_back_equal(kind: str, how: Callable[[Any], Any], after: Callable[[Tensor], Tensor]) -> None:
    x = after(LEAVES[kind]())
    y = how(x)
    assert type(y) is type(x)
    assert (y.dtype, y.shape, y.requires_grad, y.node) == (x.dtype, x.shape, x.requires_grad, None)
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    assert np.shares_memory(x.numpy(), y.numpy()) == (how is copy.copy and x.size > 0)
    if how is copy.deepcopy and x.grad is not None:
        np.testing.assert_array_equal(y.grad.numpy(), x.grad.numpy())
        assert not np.shares_memory(y.grad.numpy(), x.grad.numpy())
    else:
        assert y.grad is None
    if y.requires_grad:
        before = None if x.grad is None else x.grad.numpy().copy()
        (y * 3).sum().backward()
        expected = 5 if how is copy.deepcopy and before is not None else 3  # the gradient of before is 2
        np.testing.assert_array_equal(y.grad.numpy(), np.full(y.shape, expected))
        assert (x.grad is None) == (before is None)
        if before is not None:
            np.testing.assert_array_equal(x.grad.numpy(), before)


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_a_result_on_the_tape_is_refused(how: Callable[[Any], Any]) -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a result of exp that is on the tape cannot be .*detach\(\)"):
        how([F.exp(x)])
    np.testing.assert_array_equal(how(F.exp(x).detach()).numpy(), F.exp(x).numpy())


def test_a_shallow_copy_stays_on_the_tape_and_shares_changes() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    y = x * 1
    z = copy.copy(y)
    F.exp(z).sum().backward(retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), np.exp([1.0, 2.0]), rtol=1e-6)
    kept = F.multiply(y, y)
    with tv.no_grad():
        z += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        kept.sum().backward()


def test_copies_keep_what_is_shared_within_them() -> None:
    w = tv.nn.Parameter(np.ones(2, np.float32))
    for how in (copy.deepcopy, pickled):
        a, b = how((w, w))
        assert a is b is not w


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "__getitem__": (0,), "broadcast_to": ((4, 2, 3),), "clip": (-1.0, 1.0), "reshape": (6,), "split": (2, 0),
    "swapaxes": (0, 1), "take": ([0],), "to": ("float64",), "__copy__": (),
}  # fmt: skip
BINARY = ("add", "sub", "mul", "truediv", "pow", "matmul")
ARGUMENTS |= {
    f"__{r}{name}__": (np.ones((3, 3) if name == "matmul" else (1, 1)),) for name in BINARY for r in ("", "r")
}
ARGUMENTS["__rmatmul__"] = (np.ones((2, 2)),)
WITHOUT_HISTORY = {"detach", "argmax", "__invert__"}  # and comparisons, which return booleans
METHODS = [
    name
    for name, method in vars(Tensor).items()
    if callable(method) and (not name.startswith("_") or name in ARGUMENTS or name in ("__abs__", "__neg__"))
    if name not in {"backward", "register_hook", "retain_grad", "assign", "mark_modified", "share_memory", "item"}
]


@pytest.mark.parametrize("origin", ["a leaf", "a result"])
@pytest.mark.parametrize("name", METHODS)
def test_only_detach_ends_a_gradient(name: str, origin: str) -> None:
    leaf = tv.tensor(np.full((2, 3), 0.5), requires_grad=True)
    x = leaf if origin == "a leaf" else leaf * 1.0
    returned = getattr(x, name)(*ARGUMENTS.get(name, ()))
    for y in returned if isinstance(returned, tuple) else (returned,):
        if isinstance(y, Tensor):
            assert y.requires_grad == (name not in WITHOUT_HISTORY), name


@pytest.mark.parametrize("origin", ["a leaf", "a result", "a parameter", "bfloat16"])
def test_a_copy_has_memory_and_a_gradient_of_its_own(origin: str) -> None:
    if origin == "a parameter":
        x = tv.nn.Parameter(np.array([1.0, 2.0], np.float32))
    else:
        dtype = "bfloat16" if origin == "bfloat16" else "float32"
        x = tv.tensor([1.0, 2.0], dtype, requires_grad=True)
        x = x * 1.0 if origin == "a result" else x
    y = x.copy()
    assert not np.shares_memory(x.data, y.data)
    assert (y.dtype, y.requires_grad) == (x.dtype, True)
    dx, dy = tv.grad((3 * x + 5 * y).sum(), [x, y])
    np.testing.assert_array_equal(dx.numpy().astype(np.float32), [8, 8])
    np.testing.assert_array_equal(dy.numpy().astype(np.float32), [5, 5])
    with tv.no_grad():
        assert not x.copy().requires_grad
        y += 1  # a result, which may be changed
    np.testing.assert_array_equal(x.numpy().astype(np.float32), [1, 2])
    assert not tv.tensor([1, 2]).copy().requires_grad


@pytest.mark.parametrize("ambient", [tv.no_grad, contextlib.nullcontext])
def test_a_gradient_that_is_on_the_tape_stays_there_when_it_is_added_up(ambient: Callable[[], Any]) -> None:
    x, weight = tv.tensor([2.0], requires_grad=True), tv.tensor([3.0], requires_grad=True)
    y = x + 0.0
    z = x * x
    with ambient():
        y.backward(weight, create_graph=True)  # x.grad = weight
        assert x.grad is not weight
        z.backward(create_graph=True)  # x.grad = weight + 2 x
    dx, dweight = tv.grad(x.grad, [x, weight])
    assert (dx.item(), dweight.item()) == (2.0, 1.0)
