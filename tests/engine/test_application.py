"""An application of an operation is a value: it runs again forward and backward, in any namespace and dtype."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import NUMPY
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample

OPERATIONS = {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}
SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in OPERATIONS.items()
    for i, sample in enumerate(op.samples())
]
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def run(op: type[Op], sample: Sample) -> tuple[Op, list[np.ndarray], list[Any]]:
    """The application of an operation to a sample, gradients of its outputs, and the gradients by the tape."""
    outputs = op.run(NUMPY, sample.inputs, sample.params)
    needs = [x is not None for x in sample.inputs]
    application = op.application(sample.inputs, outputs, sample.params, needs)
    rng = np.random.default_rng(3)
    incoming = [rng.standard_normal(np.shape(y)).astype(np.asarray(y).dtype) for y in outputs]
    inputs = [None if x is None else Tensor(x, requires_grad=True) for x in sample.inputs]
    made = op.apply(*inputs, **sample.params)
    made = list(made) if isinstance(made, tuple) else [made]
    for y, expected in zip(made, outputs, strict=True):
        np.testing.assert_array_equal(y.numpy(), expected)
    grads = tv.grad(made, [x for x in inputs if x is not None], incoming)
    found = iter(grads)
    return application, incoming, [None if x is None else next(found) for x in inputs]


@every_sample
def test_it_gives_the_gradients_of_the_tape(op: type[Op], sample: Sample) -> None:
    application, incoming, expected = run(op, sample)
    found = application.gradients(NUMPY, incoming)
    for gradient, by_tape in zip(found, expected, strict=True):
        if by_tape is not None:
            np.testing.assert_array_equal(gradient, by_tape.numpy())


@every_sample
def test_it_runs_on_tensors(op: type[Op], sample: Sample) -> None:
    application, incoming, expected = run(op, sample)
    found = application.mapped(Tensor).gradients(F, [Tensor(g) for g in incoming])
    for gradient, by_tape in zip(found, expected, strict=True):
        if by_tape is not None:
            np.testing.assert_allclose(gradient.numpy(), by_tape.numpy(), rtol=1e-12, atol=1e-14)


@every_sample
def test_mapping_it_makes_another_value(op: type[Op], sample: Sample) -> None:
    application, _, _ = run(op, sample)
    other = application.mapped(lambda x: -x)
    assert type(other) is op
    assert (other.shapes, other.needs, other.params) == (application.shapes, application.needs, sample.params)
    for negative, array in zip(other.saved, application.saved, strict=True):
        assert (negative is None) == (array is None)
        if array is not None:
            np.testing.assert_array_equal(negative, -array)


@every_sample
def test_it_saves_only_what_the_wanted_gradients_need(op: type[Op], sample: Sample) -> None:
    outputs = op.run(NUMPY, sample.inputs, sample.params)
    for i in range(len(sample.inputs)):
        needs = [j == i for j in range(len(sample.inputs))]
        application = op.application(sample.inputs, outputs, sample.params, needs)
        for array, (_, reader) in zip(application.saved, op.sources, strict=True):
            assert array is None or reader is None or reader == i


def test_parameters_and_defaults_are_attributes() -> None:
    x = np.ones((2, 3))
    op = OPERATIONS["softmax"]
    for params, axis in (({}, -1), ({"axis": 0}, 0)):
        application: Any = op.application([x], op.run(NUMPY, [x], params), params, [True])
        assert (application.axis, application.shapes, application.needs) == (axis, [(2, 3)], (True,))


def test_a_class_that_saves_what_it_does_not_have_is_refused() -> None:
    rules = {"forward": staticmethod(lambda xp, x: x), "backward": lambda ctx, xp, dy: dy}
    for entry, name in (("e", "e"), ("e for x", "e"), ("x for e", "e"), ("x for out", "out")):
        allowed = "it may name x, out, and an input after 'for'"
        with pytest.raises(TypeError, match=f"Wrong: saves names '{name}'; {allowed}"):
            type("Wrong", (Op,), {"saves": (entry,), **rules})


def test_a_rule_that_gives_another_number_of_gradients_is_named() -> None:
    rule = {"forward": staticmethod(lambda xp, x, y: x * y), "backward": lambda ctx, xp, dz: dz}
    try:
        one_gradient: Any = type("OneGradient", (Op,), rule)
        x = tv.tensor([1.0, 2.0], requires_grad=True)
        with pytest.raises(RuntimeError, match="backward of one_gradient gave 1 gradients for 2 inputs"):
            one_gradient.apply(x, x).sum().backward()
    finally:
        Op.registry.pop("one_gradient", None)


def test_an_operation_without_backward_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Doubled defines no backward\(ctx, xp, \*gradients\)"):
        type("Doubled", (Op,), {"forward": staticmethod(lambda xp, x: 2 * x)})


def test_an_operation_without_forward_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Doubled defines no forward\(xp, \*inputs, \*\*params\)"):
        type("Doubled", (Op,), {})
