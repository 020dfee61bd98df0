"""What the tape keeps alive: backward frees saved arrays as it goes, and there are no reference cycles."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import Op, Tensor


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.disable()
    with tv.use_kernels("numpy"):
        yield
    gc.enable()


def normal(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def test_saved_arrays_are_freed_as_backward_goes() -> None:
    x = normal(3)
    first = x.exp()
    second = first.exp()
    third = second.exp()
    loss = third.sum()
    arrays = [weakref.ref(t.data) for t in (first, second, third)]
    alive: list[list[bool]] = []
    for t in (second, first):
        t.register_hook(lambda g: alive.append([r() is not None for r in arrays]))
    del first, second, third, t
    loss.backward()
    assert alive == [[True, True, False], [True, False, False]]
    assert [r() for r in arrays] == [None] * 3
    assert loss.requires_grad


def test_a_tensor_that_outlives_its_backward_keeps_no_other_array_alive() -> None:
    x = normal(3)
    y, factor = x.exp(), normal(3)
    z = y * factor
    arrays = [weakref.ref(t.data) for t in (y, factor)]
    del y, factor
    assert all(r() is not None for r in arrays)
    z.sum().backward()
    assert [r() for r in arrays] == [None, None]
    assert z.shape == (3,)


def test_retain_graph_frees_nothing_until_the_graph_goes() -> None:
    x = normal(3)
    y = x.exp()
    loss = y.sum()
    array = weakref.ref(y.data)
    del y
    loss.backward(retain_graph=True)
    assert array() is not None
    del loss
    assert array() is None


def test_only_what_backward_needs_is_saved() -> None:
    x = normal(3)
    y = x * 2.0
    z = y + 1.0  # the gradient of a sum needs neither of its terms
    array = weakref.ref(y.data)
    del y
    assert array() is None
    z.sum().backward()


def test_nothing_is_kept_under_no_grad() -> None:
    x = normal(3)
    with tv.no_grad():
        y = x.exp()
        z = y * y
    array = weakref.ref(y.data)
    del y
    assert array() is None
    assert not z.requires_grad


SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in Op.registry.items()
    if op.__module__.startswith("tinyvit.")
    for i, sample in enumerate(op.samples())
]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_no_operation_makes_a_reference_cycle(op: type[Op], sample: Any, create_graph: bool) -> None:
    def use() -> weakref.ref:
        xs = [None if x is None else Tensor(x, requires_grad=True) for x in sample.inputs]
        out = op.apply(*xs, **sample.params)
        outputs = out if isinstance(out, tuple) else (out,)
        gradients = tv.grad(outputs, [x for x in xs if x is not None], outputs, create_graph=create_graph)
        return weakref.ref(outputs[-1]), weakref.ref(gradients[0])

    assert [r() for r in use()] == [None, None]


def forget(loss: Tensor, x: Tensor) -> None:
    """Drop the graph without a backward pass."""


def backward(loss: Tensor, x: Tensor) -> None:
    loss.backward()


def backward_twice(loss: Tensor, x: Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def backward_with_graph(loss: Tensor, x: Tensor) -> None:
    loss.backward(create_graph=True)
    x.grad = None  # the gradient refers to x, and x to the gradient


def hessian_vector_product(loss: Tensor, x: Tensor) -> None:
    (gradient,) = tv.grad(loss, x, create_graph=True)
    tv.grad(gradient.sum(), x)


@pytest.mark.parametrize("use", [forget, backward, backward_twice, backward_with_graph, hessian_vector_product])
def test_a_graph_dies_with_its_last_tensor(use: Callable[[Tensor, Tensor], None]) -> None:
    block = tv.nn.Block(4, 2).to("float64")
    x = normal(2, 3, 4)
    hidden = block(x)
    loss = (hidden * hidden).sum()
    use(loss, x)
    for p in block.parameters():
        p.grad = None
    tensors = [weakref.ref(t) for t in (hidden, loss)]
    arrays = [weakref.ref(t.data) for t in (hidden, loss)]
    del hidden, loss
    assert [r() for r in tensors + arrays] == [None] * 4


@pytest.mark.parametrize("use", [forget, backward, backward_with_graph])
def test_retain_grad_makes_no_cycle(use: Callable[[Tensor, Tensor], None]) -> None:
    x = normal(3)
    y = x.exp()
    y.retain_grad()
    loss = (y * y).sum()
    use(loss, x)
    assert (y.grad is None) == (use is forget)
    if use is backward_with_graph:
        y.grad = None
    tensor, array = weakref.ref(y), weakref.ref(y.data)
    del y, loss
    assert tensor() is array() is None


@pytest.mark.usefixtures("few_objects")
def test_a_training_step_leaves_no_garbage() -> None:
    model = tv.models.ViT(8, 4, 3, 8, 2, 2, in_channels=1, dropout=0.1)
    optimizer = tv.optim.AdamW(model.parameters())
    images = np.zeros((2, 1, 8, 8), np.float32)

    def garbage() -> int:
        gc.collect()
        for _ in range(2):
            loss = tv.functional.cross_entropy(model(images), [0, 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del loss
        return gc.collect()

    # What is imported at the first step, or a thread of an earlier test, may leave some; a step leaves it every time.
    assert 0 in [garbage() for _ in range(4)]
