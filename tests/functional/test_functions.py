"""Every function of `tinyvit.functional` is made of operations, and its gradient is right.

A function with the arguments of the operation of its name is called with that operation's samples. The others have an
example here, or are listed as functions without a gradient.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from names import arguments_of, functions, operations, parameters_of
from oracles import oracle_of

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def positive(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).uniform(0.5, 2.0, shape), requires_grad=True)


def boxes(count: int, seed: int = 0) -> Tensor:
    corners = np.random.default_rng(seed).uniform(0, 1, (count, 2))
    sizes = np.random.default_rng(seed + 9).uniform(0.3, 1, (count, 2))
    return Tensor(np.concatenate([corners, corners + sizes], axis=1), requires_grad=True)


A, B = normal(3, 4), normal(3, 4, seed=1)
IMAGES = normal(2, 3, 6, 6)
HEADS = [normal(2, 2, 3, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2)]

Call = tuple[Callable[..., Any], list[Tensor]]

# Functions whose arguments are not those of an operation of the same name.
EXAMPLES: dict[str, Call] = {
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, stride=1, padding=1), [IMAGES]),
    "cast": (lambda x: F.cast(x, "float64"), [A]),
    "clip": (lambda x: F.clip(x, -0.5, 0.5), [A]),
    "concatenate": (lambda x, y: F.concatenate([x, y], axis=1), [A, B]),
    "contrastive_loss": (F.contrastive_loss, [A, B, positive()]),
    "cross_entropy": (lambda x: F.cross_entropy(x, np.array([3, 0, 1])), [A]),
    "dropout": (lambda x: F.dropout(x, 0.5, generator=tv.Generator(3)), [A]),
    "einsum": (lambda x, y: F.einsum("ij,kj->ki", x, y), [A, normal(2, 4)]),
    "generalized_iou": (F.generalized_iou, [boxes(5), boxes(5, seed=1)]),
    "index": (lambda x: F.index(x, (slice(1, None), 2)), [A]),
    "interpolate": (lambda x: F.interpolate(x, (9, 4)), [IMAGES]),
    "join_heads": (lambda x, y: F.join_heads([x, y]), [normal(2, 2, 3, 4), normal(2, 2, 3, 4, seed=1)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [IMAGES]),
    "pad": (lambda x: F.pad(x, ((1, 0), (2, 1))), [A]),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), [normal(2, 8, 2, 3)]),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, HEADS),
    "split": (lambda x: F.split(x, 2, axis=1), [A]),
    "stack": (lambda x, y: F.stack([x, y], axis=-1), [A, B]),
    "swapaxes": (lambda x: F.swapaxes(x, 0, 1), [A]),
    "take": (lambda x: F.take(x, [2, 0, 2], axis=1), [A]),
    "to_device": (lambda x: F.to_device(x, "cpu"), [A]),
}
CONSTANTS: dict[str, Callable[[], Tensor]] = {
    "dropout_mask": lambda: F.dropout_mask((3, 4), 0.5, 1, 2, np.float64),
    "ones_like": lambda: F.ones_like(A),
    "sign": lambda: F.sign(A),
    "stop_gradient": lambda: F.stop_gradient(A),
    "zeros": lambda: F.zeros((3, 4)),
    "zeros_like": lambda: F.zeros_like(A),
}


def calls_of(name: str) -> list[Call]:
    """The calls that a function is tested with."""
    if name in EXAMPLES:
        return [EXAMPLES[name]]
    op, arguments = Op.registry.get(name), inspect.signature(getattr(F, name)).parameters.keys()
    if op is None or not set(op.inputs) <= arguments:
        return []
    return [call_with(name, op, sample) for sample in op.samples() if set(sample.params) <= arguments]


def call_with(name: str, op: type[Op], sample: Any) -> Call:
    """A call of a function on a sample; it is a function of those inputs that are not None."""
    given = dict(zip(op.inputs, sample.inputs, strict=False))
    varied = [key for key, x in given.items() if x is not None]

    def function(*tensors: Tensor) -> Any:
        return getattr(F, name)(**{**given, **dict(zip(varied, tensors, strict=True))}, **sample.params)

    return function, [Tensor(given[key], requires_grad=True) for key in varied]


@pytest.mark.parametrize("name", [name for name in functions() if calls_of(name)])
def test_a_function_is_made_of_operations_and_has_the_right_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(name)
    used = set()
    for op in Op.registry.values():
        forward = op.forward
        spy = lambda *a, op=op, forward=forward, **k: used.add(op.name) or forward(*a, **k)  # noqa: E731
        monkeypatch.setattr(op, "forward", staticmethod(spy))
    for function, inputs in calls:
        tv.gradcheck(function, inputs, order=2)
    assert used or name == "to_device"  # which returns x itself if x is there already
    for operation in used:
        oracle_of(operation)  # the operation itself is compared with it elsewhere


def broadcast_inputs(op: type[Op], sample: Sample) -> set[str]:
    """Return the inputs that the function of an operation repeats to the shape of the others, which it is given."""
    given = dict(zip(op.inputs, sample.inputs, strict=True))
    arrays = {key: x for key, x in given.items() if x is not None}
    found = set()
    with contextlib.suppress(ValueError, TypeError), tv.no_grad():  # what refuses other shapes does not broadcast
        full = dict(zip(arrays, map(np.array, np.broadcast_arrays(*arrays.values())), strict=True))
        shape = shape_of_call(op, given | full, sample.params)
        for key in arrays:
            with contextlib.suppress(ValueError, TypeError):
                if shape_of_call(op, given | full | {key: full[key].ravel()[:1]}, sample.params) == shape:
                    found.add(key)
    return found


def shape_of_call(op: type[Op], given: dict[str, Any], params: dict[str, Any]) -> Any:
    outputs = getattr(F, op.name)(**given, **params)
    return [y.shape for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def repeated_inputs(op: type[Op], sample: Sample) -> set[str]:
    """Return the inputs that are smaller than the others, and repeated, in this sample."""
    shapes = {key: x.shape for key, x in zip(op.inputs, sample.inputs, strict=True) if x is not None}
    with contextlib.suppress(ValueError):
        return {key for key, shape in shapes.items() if shape != np.broadcast_shapes(*shapes.values())}
    return set()


def with_several_inputs() -> list[str]:
    """Return the operations of several inputs whose functions have the same arguments, in any order."""
    named = {n: op for n, op in operations().items() if n in F.__all__ and len(op.inputs) > 1}
    return [n for n, op in named.items() if {*arguments_of(op)} == {*parameters_of(getattr(F, n))}]


@pytest.mark.parametrize("name", with_several_inputs())
def test_an_operation_that_broadcasts_its_inputs_has_samples_that_do(name: str) -> None:
    """Only there a test sees a gradient that is not summed over the repetitions."""
    op, samples = Op.registry[name], list(Op.registry[name].samples())
    broadcast = set().union(*(broadcast_inputs(op, sample) for sample in samples))
    missing = broadcast - set().union(*(repeated_inputs(op, sample) for sample in samples))
    assert not missing, (
        f"F.{name} broadcasts its inputs, but no sample of {op.__name__} has to repeat {' or '.join(sorted(missing))}: "
        "let samples() also yield inputs of shapes such as (2, 1) and (1, 3)"
    )


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_have_no_gradient(name: str) -> None:
    assert not CONSTANTS[name]().requires_grad


def test_methods_and_operators_are_the_functions() -> None:
    x, y = normal(3, 4), positive(3, 4)
    pairs = [
        (x + y, F.add(x, y)), (x - y, F.subtract(x, y)), (x * y, F.multiply(x, y)), (x / y, F.divide(x, y)),
        (y**x, F.power(y, x)), (2 + x, F.add(2, x)), (2 - x, F.subtract(2, x)), (2 * x, F.multiply(2, x)),
        (2 / y, F.divide(2, y)), (2**x, F.power(2, x)), (-x, F.negative(x)), (abs(x), F.abs(x)),
        (x @ y.T, F.matmul(x, F.transpose(y))), (x.numpy() @ y.T, F.matmul(x, F.transpose(y))),
        (x.sum(axis=0), F.sum(x, axis=0)), (x.mean(1, keepdims=True), F.mean(x, 1, keepdims=True)),
        (x.var(correction=1), F.var(x, correction=1)), (x.max(0), F.max(x, 0)), (x.min(0), F.min(x, 0)),
        (x.reshape(2, 6), F.reshape(x, (2, 6))), (x.reshape((6, -1)), F.reshape(x, (6, -1))),
        (x.reshape(np.prod(x.shape)), F.reshape(x, 12)), (x.transpose(), x.T), (x.transpose(1, 0), x.T),
        (x.transpose((1, 0)), x.T), (x.transpose([1, 0]), x.T), (x.swapaxes(0, -1), x.T), (x[1:, 2], x.numpy()[1:, 2]),
        (x.exp(), F.exp(x)), (y.log(), F.log(y)), (y.sqrt(), F.sqrt(y)), (x.tanh(), F.tanh(x)), (x.abs(), F.abs(x)),
        (x.clip(-1, 1), F.clip(x, -1, 1)), (x.cumsum(1), F.cumsum(x, 1)), (x.softmax(0), F.softmax(x, 0)),
    ]  # fmt: skip
    for i, (found, expected) in enumerate(pairs):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=str(i), strict=True)


def test_comparisons_are_boolean_tensors() -> None:
    x, y = normal(3, 4), normal(3, 4, seed=1)
    for found, expected in [
        (x < y, x.data < y.data), (x <= y, x.data <= y.data), (x > 0, x.data > 0), (y.numpy() >= x, y.data >= x.data),
        (x == x, np.ones((3, 4), bool)), (x != x, np.zeros((3, 4), bool)), (~(x > 0), x.data <= 0),
        ((x > 0) & (y > 0), (x.data > 0) & (y.data > 0)), ((x > 0) | (y > 0), (x.data > 0) | (y.data > 0)),
    ]:  # fmt: skip
        np.testing.assert_array_equal(found.numpy(), expected, strict=True)
        assert not found.requires_grad
    assert x.argmax().item() == x.data.argmax()
    np.testing.assert_array_equal(x.argmax(axis=1).numpy(), x.data.argmax(axis=1))


def test_iteration_goes_over_the_first_axis_and_has_gradients() -> None:
    x = normal(3, 2)
    first, _, last = x
    (first * 2 + last).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 2], [0, 0], [1, 1]])
    with pytest.raises(ValueError, match="0"):
        iter(tv.tensor(3.0))
