"""Every operation on each of its samples. The tests are written once for all, so a new operation is tested at once."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from names import operations
from oracles import oracle_of

import tinyvit as tv
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample

Array = np.ndarray

OPERATIONS = operations()
SAMPLES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in OPERATIONS.items()
    for i, sample in enumerate(op.samples())
]
TIGHT: Any = {"atol": 1e-7, "rtol": 1e-6, "order": 2}  # a central difference of step 1e-6 is good to about 1e-9
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """The plain rules are the reference; kernels have tests of their own."""
    with tv.use_kernels("numpy"):
        yield


def in_dtype(sample: Sample, dtype: Any) -> tuple[list[Array | None], dict[str, Any]]:
    """The inputs and parameters of a sample, converted to another dtype."""
    inputs = [None if x is None else x.astype(dtype) for x in sample.inputs]
    return inputs, {k: np.dtype(dtype) if isinstance(v, np.dtype) else v for k, v in sample.params.items()}


def tensors(inputs: list[Array | None], requires_grad: bool = True) -> list[Tensor | None]:
    return [None if x is None else Tensor(x, requires_grad) for x in inputs]


def applied(op: type[Op], inputs: list[Tensor | None], params: dict[str, Any]) -> list[Tensor]:
    out = op.apply(*inputs, **params)
    return list(out) if isinstance(out, tuple) else [out]


def weights_of(outputs: list[Tensor]) -> list[Array]:
    """Incoming gradients that are the same in every dtype, up to rounding."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal(y.shape).astype(y.dtype) for y in outputs]


def values_and_gradients(
    op: type[Op],
    inputs: list[Array | None],
    params: dict[str, Any],
    change: Callable[[Array], Array] = np.array,
    incoming: float = 1.0,
) -> list[Array]:
    """The outputs of an operation, then the gradients of its inputs; `change` is applied to all arrays that go in.

    The gradients that come in are multiplied with `incoming`.
    """
    xs = tensors([None if x is None else change(x) for x in inputs])
    outputs = applied(op, xs, params)
    weights = [change(u * np.asarray(incoming, u.dtype)) for u in weights_of(outputs)]
    gradients = tv.grad(outputs, [x for x in xs if x is not None], weights)
    return [t.numpy() for t in (*outputs, *gradients)]


# The formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_docstring_of_every_operation_is_its_formula(name: str) -> None:
    formula = OPERATIONS[name].__dict__.get("__doc__") or ""
    assert formula.strip(), f"{name} has no docstring: write its formula there, which the study page shows"


# Parameters without a sample of their own: the dtype of an output that has 16 bits, which the samples have not.
NOT_SAMPLED = {("layer_norm", "y_dtype"), ("add_layer_norm", "y_dtype")}
NEUTRAL = (0.0, 1.0)  # factors and summands that a rule may forget without a difference


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_parameter_has_a_sample_in_which_it_matters(name: str) -> None:
    """A rule that ignores a parameter is right where the parameter has its default, or where a factor is 1."""
    op = OPERATIONS[name]
    for parameter in inspect.signature(op.forward).parameters.values():
        if parameter.kind != parameter.KEYWORD_ONLY or (name, parameter.name) in NOT_SAMPLED:
            continue
        given = [sample.params.get(parameter.name, parameter.default) for sample in op.samples()]
        usual = [parameter.default, *(NEUTRAL if all(type(value) is float for value in given) else ())]
        other = [value for value in given if not any(value is u or (np.isscalar(value) and value == u) for u in usual)]
        assert other, (
            f"{op.__name__} has no sample with {parameter.name} other than {usual_values(usual)}: let samples() "
            f"yield one, because a rule that forgets {parameter.name} is right without"
        )


def usual_values(values: list[Any]) -> str:
    return " or ".join(sorted({repr(value) for value in values if value is not inspect.Parameter.empty}))


@every_sample
def test_forward_equals_the_oracle(op: type[Op], sample: Sample) -> None:
    expected = oracle_of(op.name)(*sample.inputs, **sample.params)
    outputs = applied(op, tensors(list(sample.inputs)), sample.params)
    for y, e in zip(outputs, expected if isinstance(expected, tuple) else [expected], strict=True):
        np.testing.assert_allclose(y.numpy(), e, rtol=1e-12, atol=1e-14, strict=True)


@every_sample
def test_gradients_of_first_and_second_order_agree_with_finite_differences(op: type[Op], sample: Sample) -> None:
    xs = [x for x in sample.inputs if x is not None]

    def function(*varied: Tensor) -> Any:
        rest = iter(varied)
        return op.apply(*(None if x is None else next(rest) for x in sample.inputs), **sample.params)

    tv.gradcheck(function, tensors(xs), **TIGHT)
    outputs = len(applied(op, list(sample.inputs), sample.params))
    for i in range(outputs if outputs > 1 else 0):  # and each output on its own
        tv.gradcheck(lambda *xs, i=i: function(*xs)[i], tensors(xs), **TIGHT)


@every_sample
def test_a_wrong_gradient_is_caught(op: type[Op], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.backward

    def one_percent_off(ctx: Op, xp: Any, *dys: Any) -> Any:
        first, *others = grads if isinstance(grads := right(ctx, xp, *dys), tuple) else (grads,)
        return (first * 1.01, *others)

    monkeypatch.setattr(op, "backward", one_percent_off)
    first, *others = tensors(list(sample.inputs), requires_grad=False)
    first.requires_grad = True
    with pytest.raises(tv.GradcheckError, match=r"inputs\[0\]"):
        tv.gradcheck(lambda x: op.apply(x, *others, **sample.params), first)


# The numbers ---------------------------------------------------------------------------------------------------------


def perturbed(rng: np.random.Generator) -> Callable[[Array], Array]:
    """A function that moves every element by one rounding error of float32, up or down."""
    eps = float(np.finfo(np.float32).eps)
    return lambda x: x * (1 + eps * rng.choice([-1, 1], x.shape)) if x.dtype == np.float64 else np.array(x)


@every_sample
def test_float32_is_as_exact_as_its_rounding_allows(op: type[Op], sample: Sample) -> None:
    """The reference is float64 on the same inputs. The tolerance follows from how rounded inputs change its result:

    four times the largest change that eight random roundings cause, plus four rounding errors of the largest result.
    """
    inputs, params = in_dtype(sample, np.float32)
    found = values_and_gradients(op, inputs, params)
    same = [None if x is None else x.astype(np.float64) for x in inputs]
    exact = values_and_gradients(op, same, sample.params)
    rng = np.random.default_rng(2)
    roundings = [values_and_gradients(op, same, sample.params, perturbed(rng)) for _ in range(8)]
    for i, (y, e) in enumerate(zip(found, exact, strict=True)):
        assert y.dtype == np.float32
        change = max(np.abs(r[i] - e).max() for r in roundings)
        floor = np.finfo(np.float32).eps * np.abs(e).max()
        assert np.abs(y - e).max() <= 4 * change + 4 * floor


# Beyond this size of their inputs, a number on the way leaves the range of float32 though the result does not: a sum of
# squares or of products, or the sum before a mean; and differences of weights in attention are rounded, and then
# multiplied with the inputs.
LARGEST = (
    dict.fromkeys(("layer_norm", "add_layer_norm", "rms_norm"), 1e15)
    | dict.fromkeys(("mean", "var", "avg_pool2d", "binary_cross_entropy_with_logits"), 1e20)
    | dict.fromkeys(("matmul", "linear", "depthwise_conv", "conv2d"), 1e15)
    | {"attention": 1.0}
)
SCALES = [1e10, 1e20, 1e38, 1e-30]  # the squares of the last three are beyond the range


def scaled(sample: Sample, scale: float, dtype: Any) -> Iterator[list[Array | None]]:
    """The inputs of a sample in a dtype, all of them multiplied with `scale`, and then each of them alone."""
    inputs = in_dtype(sample, dtype)[0]
    for chosen in [range(len(inputs)), *([i] for i in range(len(inputs)) if len(inputs) > 1)]:
        yield [x if x is None or i not in chosen else x * np.asarray(scale, dtype) for i, x in enumerate(inputs)]


@pytest.mark.parametrize(
    ("op", "sample", "scale"),
    [
        pytest.param(*case.values, scale, id=f"{case.id}-{scale:g}")
        for case in SAMPLES
        for scale in SCALES
        if scale <= LARGEST.get(case.values[0].name, np.inf)
    ],
)
def test_large_and_small_numbers_leave_the_range_only_where_the_result_does(
    op: type[Op], sample: Sample, scale: float
) -> None:
    """Where the result at float64 is in the range of float32, so is that of float32, and as exact as above."""
    params = in_dtype(sample, np.float32)[1]
    for inputs in scaled(sample, scale, np.float32):
        same = [None if x is None else x.astype(np.float64) for x in inputs]
        with np.errstate(all="ignore"):
            found, exact = values_and_gradients(op, inputs, params), values_and_gradients(op, same, sample.params)
            rng = np.random.default_rng(2)
            roundings = [values_and_gradients(op, same, sample.params, perturbed(rng)) for _ in range(4)]
            for i, (y, e) in enumerate(zip(found, exact, strict=True)):
                fits = np.abs(e) < np.finfo(np.float32).max / 4
                assert np.isfinite(y[fits]).all(), f"output or gradient {i} overflows, or divides by 0"
                change = max(np.abs(r[i] - e).max(initial=0, where=fits) for r in roundings)
                floor = np.finfo(np.float32).eps * np.abs(e).max(initial=np.finfo(np.float32).tiny, where=fits)
                assert np.abs(y - e).max(initial=0, where=fits) <= 8 * change + 8 * floor, (
                    f"output or gradient {i} loses digits"
                )


@pytest.mark.parametrize(
    ("op", "sample", "scale", "incoming"),
    [
        pytest.param(*case.values, scale, incoming, id=f"{case.id}-{scale:g}")
        for case in SAMPLES
        for scale, incoming in [(1e30, 1e10), (1e-30, 1e-15)]
        if scale <= LARGEST.get(case.values[0].name, np.inf)
    ],
)
def test_a_gradient_leaves_the_range_only_where_the_result_does(
    op: type[Op], sample: Sample, scale: float, incoming: float
) -> None:
    """A slope is formed before it is multiplied: dz (x / z) may be finite where dz x is not, and not 0 where it is."""
    params = in_dtype(sample, np.float32)[1]
    for inputs in scaled(sample, scale, np.float32):
        same = [None if x is None else x.astype(np.float64) for x in inputs]
        with np.errstate(all="ignore"):
            found = values_and_gradients(op, inputs, params, incoming=incoming)
            exact = values_and_gradients(op, same, sample.params, incoming=incoming)
        number = len(found) - sum(x is not None for x in inputs)
        if not all(np.isfinite(y).all() for y in found[:number]):
            continue  # the gradients are those of infinite outputs
        for i, (y, e) in enumerate(zip(found[number:], exact[number:], strict=True)):
            fits = (np.abs(e) < np.finfo(np.float32).max / 4) & (np.abs(e) > 1e-30)
            np.testing.assert_allclose(
                y[fits], e[fits], rtol=0.01, err_msg=f"gradient {i} leaves the range on the way: form the slope first"
            )


def weighted(arrays: list[Array], weights: list[Array]) -> float:
    return sum(float((x * w).sum()) for x, w in zip(arrays, weights, strict=True))


@pytest.mark.parametrize("scale", [1e-30, 1e-200])
@every_sample
def test_small_numbers_give_what_the_oracle_gives(op: type[Op], sample: Sample, scale: float) -> None:
    """At float64, where a constant such as 1e-12 that is added to them hides them, and where 1e-200 has no square.

    The gradient is compared with a difference of the oracle, of a step that is a part of each element. The error of the
    difference is (step log x)^2 for x^y, less for others, and the rounding error of the values divided by the step.
    """
    inputs, step = next(scaled(sample, scale, np.float64)), 1e-5

    def oracle(part: float) -> list[Array]:
        found = oracle_of(op.name)(*(x if x is None else x * (1 + part) for x in inputs), **sample.params)
        return [np.asarray(y) for y in (found if isinstance(found, tuple) else (found,))]

    with np.errstate(all="ignore"):
        xs = [x for x in inputs if x is not None]
        results = values_and_gradients(op, inputs, sample.params)
        found, gradients = results[: -len(xs)], results[-len(xs) :]
        values, up, down = oracle(0), oracle(step), oracle(-step)
        for i, (y, e) in enumerate(zip(found, values, strict=True)):
            largest = np.abs(e).max(initial=np.finfo(np.float64).tiny)
            assert np.abs(y - e).max(initial=0) <= 1e-12 * largest, f"output {i} loses small numbers"
        weights = weights_of([Tensor(y) for y in found])
        expected = (weighted(up, weights) - weighted(down, weights)) / (2 * step)
        if abs(expected) / scale > np.finfo(np.float64).max:
            return  # the gradient itself is out of range
        rounding = (
            16 * np.finfo(np.float64).eps * weighted(list(map(np.abs, values)), list(map(np.abs, weights))) / step
        )
        tolerance = (step * np.log(scale)) ** 2 * abs(expected) + rounding
        assert abs(weighted(gradients, xs) - expected) <= tolerance, (
            "the gradients are wrong, lose small numbers or divide by 0"
        )


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "transposed": lambda x: np.array(x.T, order="C").T,
    "reversed": lambda x: np.flip(np.array(np.flip(x))),
}


@every_sample
def test_the_memory_layout_of_inputs_does_not_matter(op: type[Op], sample: Sample) -> None:
    inputs = list(sample.inputs)
    expected = values_and_gradients(op, inputs, sample.params)
    for layout, laid_out in LAYOUTS.items():
        found = values_and_gradients(op, inputs, sample.params, laid_out)
        for y, e in zip(found, expected, strict=True):  # not bit by bit, for BLAS may add in another order
            np.testing.assert_allclose(y, e, rtol=1e-12, atol=1e-14, err_msg=layout, strict=True)


# What an operation must not do ----------------------------------------------------------------------------------------


def contents(arrays: Any) -> list[bytes]:
    return [a.tobytes() for a in arrays if isinstance(a, np.ndarray)]


@pytest.mark.parametrize("create_graph", [False, True])
@every_sample
def test_inputs_are_never_modified(op: type[Op], sample: Sample, create_graph: bool) -> None:
    xs = tensors([None if x is None else x.copy() for x in sample.inputs])
    extras = [a for v in sample.params.values() for a in (v if isinstance(v, tuple) else (v,))]
    outputs = applied(op, xs, sample.params)
    weights = weights_of(outputs)
    held = [*(x.data for x in xs if x is not None), *(y.data for y in outputs), *weights, *extras]
    before = contents(held)
    tv.grad(outputs, [x for x in xs if x is not None], weights, create_graph=create_graph)
    assert contents(held) == before
    assert contents(x.data for x in xs if x is not None) == contents(sample.inputs)


@every_sample
def test_an_input_gets_the_same_gradient_when_no_other_needs_one(op: type[Op], sample: Sample) -> None:
    everything = iter(
        values_and_gradients(op, list(sample.inputs), sample.params)[-sum(x is not None for x in sample.inputs) :]
    )
    for i, x in enumerate(sample.inputs):
        if x is None:
            continue
        xs = [None if other is None else Tensor(other, requires_grad=i == j) for j, other in enumerate(sample.inputs)]
        outputs = applied(op, xs, sample.params)
        (gradient,) = tv.grad(outputs, xs[i], weights_of(outputs))
        assert gradient.numpy().tobytes() == next(everything).tobytes()


@every_sample
def test_nothing_is_recorded_when_no_input_needs_a_gradient(op: type[Op], sample: Sample) -> None:
    assert not any(y.requires_grad for y in applied(op, tensors(list(sample.inputs), False), sample.params))
