"""What is changed after use: gradients are those of the values used, or `backward` is refused; and no false alarm."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import copy_of
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample

SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in sorted(Op.registry.items())
    if name not in ("to_device", "cast")
    for i, sample in enumerate(op.samples())
]
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)
kernels = pytest.mark.parametrize("choice", quick_first(["numpy", "auto"]))


def arrays_in(value: Any) -> list[np.ndarray]:
    """Return the arrays that a parameter is or holds."""
    parts = value if isinstance(value, tuple) else (value,)
    return [part for part in parts if isinstance(part, np.ndarray)]


def spoil(array: np.ndarray) -> None:
    """Write other values of the same kind, as for the next batch; indices stay valid."""
    if array.dtype == bool:
        np.logical_not(array, out=array)
    elif array.dtype.kind in "iu":
        array[...] = 0 if array.any() else 1
    else:
        array += 1.5


def copied(value: Any) -> Any:
    return tuple(copied(v) for v in value) if isinstance(value, tuple) else value.copy() if arrays_in(value) else value


def gradients(op: type[Op], inputs: list[Any], params: dict[str, Any], before: Callable[[], None]) -> list[np.ndarray]:
    """Return the gradients of those inputs that require one, after `before` was called between forward and backward."""
    out = op.apply(*inputs, **params)
    outs = out if isinstance(out, tuple) else (out,)
    rng = np.random.default_rng(0)
    upstream = [Tensor(rng.normal(size=y.shape)) for y in outs]
    before()
    return [g.numpy() for g in tv.grad(outs, [x for x in inputs if getattr(x, "requires_grad", False)], upstream)]


@every_sample
def test_the_parameters_that_are_arrays_are_stated(op: type[Op], sample: Sample) -> None:
    assert {name for name, value in sample.params.items() if arrays_in(value)} <= set(op.copies)


@kernels
@every_sample
def test_parameters_may_change_after_forward(op: type[Op], sample: Sample, choice: str) -> None:
    def run(changed: bool) -> list[np.ndarray]:
        params = {k: copied(v) for k, v in sample.params.items()}
        inputs = [x if x is None else Tensor(x.copy(), requires_grad=True) for x in sample.inputs]
        given = [a for v in params.values() for a in arrays_in(v)]
        return gradients(op, inputs, params, lambda: [spoil(a) for a in given] if changed else None)

    with tv.use_kernels(choice):
        for found, expected in zip(run(True), run(False), strict=True):
            np.testing.assert_array_equal(found, expected)


def gradient_of_one(op: type[Op], sample: Sample, wanted: int, changed: int, bare: bool, spoiled: bool) -> np.ndarray:
    """Return the gradient of one input after another was changed, which is a bare array or a tensor."""
    inputs: list[Any] = [None if x is None else x.copy() for x in sample.inputs]
    for i, x in enumerate(inputs):
        if x is not None and not (bare and i == changed):
            inputs[i] = Tensor(x, requires_grad=i == wanted)

    def change() -> None:
        if spoiled and bare:
            spoil(inputs[changed])
        elif spoiled:
            inputs[changed].assign(inputs[changed].numpy() + 1.5)

    return gradients(op, inputs, sample.params, change)[0]


@kernels
@every_sample
def test_inputs_may_change_after_forward_or_backward_is_refused(op: type[Op], sample: Sample, choice: str) -> None:
    given = [i for i, x in enumerate(sample.inputs) if x is not None]
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        for wanted, changed, bare in itertools.product(given, given, [True, False]):
            if bare and wanted == changed:
                continue
            expected = gradient_of_one(op, sample, wanted, changed, bare, False)
            found = None
            with contextlib.suppress(RuntimeError) if not bare else contextlib.nullcontext():
                found = gradient_of_one(op, sample, wanted, changed, bare, True)
            if found is not None:
                np.testing.assert_array_equal(found, expected)


# Operations whose gradient with respect to one input does not need what is changed.
HARMLESS = {
    "x / 2": lambda x, o: x / 2.0,
    "x / o": lambda x, o: x / o,
    "x ** 2": lambda x, o: x**2.0,
    "x * o": lambda x, o: x * o,
    "x + o": lambda x, o: x + o,
    "x @ o": lambda x, o: x @ o,
    "where": lambda x, o: F.where(np.eye(3, dtype=bool), x, o),
    "clip": lambda x, o: x.clip(-1, 1),
    "abs": lambda x, o: x.abs(),
    "maximum": lambda x, o: F.maximum(x, o),
    "log": lambda x, o: (x * x + 1).log(),
    "linear": lambda x, o: F.linear(x, o, None),
    "layer_norm": lambda x, o: F.layer_norm(x, o[0], o[1]),
    "gelu": lambda x, o: F.gelu(x),
    "sum": lambda x, o: x.sum(axis=0),
    "cumsum": lambda x, o: x.cumsum(0),
    "attention mask": lambda x, o: F.where(o > 0, x, 0.0),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_output_that_no_gradient_needs_may_be_changed(name: str) -> None:
    function = HARMLESS[name]
    o = Tensor(np.arange(1.0, 10).reshape(3, 3))
    values = np.random.default_rng(0).normal(size=(3, 3))

    def gradient(changes: bool) -> np.ndarray:
        x = Tensor(values.copy(), requires_grad=True)
        y = function(x, o)
        if changes:
            y += 1.0
        y.sum().backward()
        return x.grad.numpy()

    np.testing.assert_array_equal(gradient(True), gradient(False))


@kernels
def test_changing_what_only_the_gradient_of_a_constant_would_need_is_no_alarm(choice: str) -> None:
    x, other = np.ones((2, 3)), np.full((3, 3), 2.0)
    cases: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
        "multiply": (F.multiply, Tensor(x), Tensor(x.copy(), True)),
        "linear": (lambda a, w: F.linear(a, w), Tensor(x, True), Tensor(other)),
        "matmul": (F.matmul, Tensor(x, True), Tensor(other)),
        "divide": (F.divide, Tensor(x, True), Tensor(x.copy())),
        "power": (F.power, Tensor(x), Tensor(x.copy(), True)),
        "bce": (F.binary_cross_entropy_with_logits, Tensor(x), Tensor(x.copy(), True)),
    }
    unused = {"multiply": 1, "linear": 0, "matmul": 0, "divide": 0, "power": None, "bce": 1}
    with tv.use_kernels(choice):
        for name, (function, a, b) in cases.items():
            y = function(a, b)
            if (place := unused[name]) is not None:
                with tv.no_grad():
                    (a, b)[place].assign((a, b)[place].numpy() + 1)
            y.sum().backward()


def loss_of_a_batch(x: Tensor, q: Tensor, index: Any, visible: Any) -> Tensor:
    total = F.cross_entropy(x, index) + F.embedding(index, x)[:, 0].sum() + x[index, 0].sum()
    total = total + F.where(visible, x[:, 1], 0.0).sum() + x[visible].sum()
    return total + F.scaled_dot_product_attention(q, q, q, attn_mask=visible)[..., 0].sum()


@kernels
@pytest.mark.parametrize("as_tensor", [True, False])
def test_labels_masks_and_indices_of_a_batch_may_be_refilled(choice: str, as_tensor: bool) -> None:
    rng = np.random.default_rng(0)
    index: Any = np.array([0, 1, 2, 0])
    visible: Any = np.array([True, False, True, True])
    if as_tensor:
        index, visible = tv.tensor(index), tv.tensor(visible)
    x, q = (Tensor(rng.normal(size=shape), requires_grad=True) for shape in [(4, 3), (1, 1, 4, 3)])
    with tv.use_kernels(choice):
        expected = tv.grad(loss_of_a_batch(x, q, index, visible), (x, q))
        loss = loss_of_a_batch(x, q, index, visible)
        index[1:] = 0
        visible[:2] = False
        for found, e in zip(tv.grad(loss, (x, q)), expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), e.numpy())


def test_a_broadcast_mask_is_copied_without_its_repetitions() -> None:
    mask = np.broadcast_to(np.array([True, False]), (1000, 1000, 2))
    copy = copy_of((slice(None), mask))[1]
    assert copy.strides == mask.strides
    assert not np.shares_memory(copy, mask)
    np.testing.assert_array_equal(copy, mask)
