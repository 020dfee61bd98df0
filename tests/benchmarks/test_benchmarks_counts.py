"""Statistics of times, the named shapes, and the counted work of a case."""

import math

import numpy as np
import pytest
from counted import operations_of_products
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.by_operation import REST, Clock, by_name, clocked, profile
from benchmarks.cases import (
    MODELS,
    SUITES,
    AttentionShape,
    Case,
    ModelShape,
    RowShape,
    TextShape,
    find_case,
    select_cases,
)
from benchmarks.contenders.functional_vit import vit_logits
from benchmarks.costs import cost, parameter_count
from benchmarks.models import build_model
from benchmarks.stats import differ, is_quiet, noise, quantile, ratios, summarize
from tinyvit import tensor, use_kernels

SECONDS = st.floats(1e-7, 1e3)
SERIES = st.lists(SECONDS, min_size=1, max_size=20)


# Statistics ---------------------------------------------------------------------------------------------------------


@given(SERIES, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(np.quantile(values, q), rel=1e-9)


def test_a_quantile_needs_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(SERIES, st.floats(0.1, 10))
def test_a_contender_that_is_always_faster_by_a_factor_has_that_ratio(seconds: list[float], factor: float) -> None:
    speed = summarize(ratios([factor * s for s in seconds], seconds))
    assert speed == pytest.approx((factor, factor, factor))


@given(SERIES, st.floats(0.1, 10))
def test_noise_is_relative(values: list[float], factor: float) -> None:
    assert noise([factor * v for v in values]) == pytest.approx(noise(values), rel=1e-6, abs=1e-12)


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=20))
def test_more_rounds_of_the_same_values_mean_less_noise(values: list[float]) -> None:
    assert noise(values * 16) <= noise(values) / 2 + 1e-12


def test_noise_is_the_standard_error_of_the_median() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(100, 5, (2000, 25))
    estimated = np.mean([noise(row.tolist()) for row in draws])
    assert estimated == pytest.approx(np.median(draws, axis=1).std() / 100, rel=0.15)


def test_a_measurement_ends_when_every_series_is_quiet_and_long_enough() -> None:
    steady, restless = [1.0] * 5, [1.0, 2.0, 1.0, 2.0, 1.5]
    assert is_quiet([steady, steady], 0.01, rounds=5)
    assert not is_quiet([steady, restless], 0.01, rounds=5)
    assert not is_quiet([steady[:4]], 0.01, rounds=5)


@given(SERIES, SERIES)
def test_differing_is_symmetric_and_no_series_differs_from_itself(a: list[float], b: list[float]) -> None:
    assert differ(summarize(a), summarize(b)) == differ(summarize(b), summarize(a))
    assert not differ(summarize(a), summarize(a))


# Shapes and their work ----------------------------------------------------------------------------------------------


def test_cases_are_found_by_their_ids() -> None:
    cases = [case for suite in SUITES.values() for case in suite.cases]
    assert len({case.id for case in cases}) == len(cases)
    assert all(find_case(case.id) == case for case in cases)


def test_the_shapes_cover_common_vision_transformers() -> None:
    shapes = [case.shape for case in SUITES["attention"].cases]
    assert {shape.N for shape in shapes} == {17, 50, 65, 197, 257, 1024}
    assert (min(shape.D for shape in shapes), max(shape.D for shape in shapes)) == (16, 80)
    by_name = {shape.name: shape for shape in shapes}
    for model in MODELS:
        s = by_name[model.name]
        assert (model.batch, model.heads, model.N, model.dim) == (s.B, s.H, s.N, s.H * s.D)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_a_quick_run_takes_some_shapes_of_the_suite(suite) -> None:
    assert 0 < len(select_cases(suite, suite.quick)) < len(suite.cases)


def test_cases_are_selected_by_name_or_label() -> None:
    attention = SUITES["attention"]
    assert select_cases(attention, ("vit-s",)) == select_cases(attention, ("vit-s n65 d64",))
    with pytest.raises(ValueError, match=r"no shape vit-xxl \(did you mean 'vit-s'\?\); available: digits-s"):
        select_cases(attention, ("vit-s", "vit-xxl"))


class Counted:
    """A number without a value. The class counts the operations on all of them."""

    count = 0

    def _count(self, other: object = None) -> "Counted":
        Counted.count += 1
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _count
    function = larger = _count  # exp, erf, tanh or sqrt; the maximum of two


def dot(xs: list[Counted], ys: list[Counted]) -> Counted:
    total = Counted()
    for x, y in zip(xs, ys, strict=True):
        total = total + x * y
    return total


def add_all(xs: list[Counted]) -> Counted:
    total = Counted()
    for x in xs:
        total = total + x
    return total


ONE = Counted()


def attention_forward(n: int, d: int) -> None:
    for _ in range(n * n):
        dot([ONE] * d, [ONE] * d)  # S
    for _ in range(n * d):
        dot([ONE] * n, [ONE] * n)  # out


def attention_backward(n: int, d: int) -> None:
    for _ in range(2 * n * n):
        dot([ONE] * d, [ONE] * d)  # S, dP
    for _ in range(3 * n * d):
        dot([ONE] * n, [ONE] * n)  # dv, dq, dk


def layer_norm_forward(row: list[Counted]) -> None:
    mean = add_all(row) / len(row)
    centered = [x - mean for x in row]
    rstd = 1 / (dot(centered, centered) / len(row) + ONE).function()
    for x in row:
        (x - mean) * rstd * ONE + ONE  # x - mean again, for the row is read twice and not kept


def layer_norm_backward(row: list[Counted]) -> None:
    mean = rstd = weight = dweight = dbias = dy = ONE
    xhat = [(x - mean) * rstd for x in row]
    g = [dy * weight for _ in row]
    mean_g, mean_gx = add_all(g) / len(row), dot(g, xhat) / len(row)
    for x, gi in zip(xhat, g, strict=True):
        dweight, dbias = dweight + dy * x, dbias + dy
        rstd * (gi - mean_g - x * mean_gx)


def gelu_forward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        z * (0.5 + 0.5 * (ONE * z).function())


def gelu_backward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        cdf = 0.5 + 0.5 * (ONE * z).function()
        slope = cdf + z * (ONE * (-0.5 * (z * z)).function())
        ONE + ONE * slope  # dx = dy slope, and the bias's sum


def gelu_tanh_forward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        0.5 * z * (1 + (ONE * (z + ONE * (z * z * z))).function())


def gelu_tanh_backward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        square = z * z
        t = (ONE * (z + ONE * (square * z))).function()
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (ONE * (1 + ONE * square))
        ONE + ONE * slope


def softmax_forward(row: list[Counted]) -> None:
    largest = row[0]
    for x in row:
        largest = largest.larger(x)
    e = [(x - largest).function() for x in row]
    total = add_all(e)
    for x in e:
        x / total


def softmax_backward(row: list[Counted]) -> None:
    inner = dot(row, row)
    for y in row:
        y * (y - inner)


COUNTED = {
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "bias_gelu": (gelu_forward, gelu_backward),
    "bias_gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "softmax": (softmax_forward, softmax_backward),
}


def counted(run, *arguments) -> int:
    Counted.count = 0
    run(*arguments)
    return Counted.count


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operation", COUNTED)
def test_operations_of_rows_are_those_of_a_counted_loop(operation: str, direction: str) -> None:
    rows, columns = 3, 40
    flops = cost(Case("ops", operation, RowShape("tiny", rows, columns), direction)).flops
    found = rows * counted(COUNTED[operation][direction == "backward"], [ONE] * columns)
    assert flops <= found <= flops + 6 * rows  # the cost leaves out a few operations per row


@pytest.mark.parametrize(("direction", "loop"), [("forward", attention_forward), ("backward", attention_backward)])
def test_operations_of_attention_are_those_of_a_counted_loop(direction: str, loop) -> None:
    shape = AttentionShape("tiny", B=2, H=3, N=5, D=4)
    assert cost(Case("attention", "attention", shape, direction)).flops == 2 * 3 * counted(loop, 5, 4)


def test_operations_of_linear_are_those_of_a_counted_loop() -> None:
    def forward() -> None:
        for _ in range(rows * 4 * columns):
            dot([ONE] * columns, [ONE] * columns) + ONE

    def backward() -> None:
        for _ in range(rows * columns):  # dx
            dot([ONE] * 4 * columns, [ONE] * 4 * columns)
        for _ in range(4 * columns * columns):  # dweight
            dot([ONE] * rows, [ONE] * rows)
        for _ in range(4 * columns):  # dbias
            add_all([ONE] * rows)

    rows, columns = 3, 4
    for direction, loop in (("forward", forward), ("backward", backward)):
        assert cost(Case("ops", "linear", RowShape("tiny", rows, columns), direction)).flops == counted(loop)


class CountingProducts(np.ndarray):
    """An array that counts the operations of its matrix products."""

    count = 0

    def __matmul__(self, other):
        out = np.matmul(self, other)
        CountingProducts.count += 2 * out.size * self.shape[-1]
        return out

    def __rmatmul__(self, other):
        return other.view(CountingProducts) @ self


def test_operations_of_a_model_are_those_of_its_matrix_products() -> None:
    shape = ModelShape("tiny", image=8, channels=3, patch=4, dim=12, depth=2, heads=3, batch=2)
    weights = {name: w.view(CountingProducts) for name, w in build_model(shape).state_dict().items()}
    images = np.ones((2, 3, 8, 8), np.float32)
    CountingProducts.count = 0
    vit_logits(np, np.vectorize(math.erf), weights, images, shape)
    assert cost(Case("inference", "inference", shape, "step")).flops == CountingProducts.count


@pytest.mark.parametrize("answers", [0, 5])
def test_operations_of_a_step_with_texts_are_those_of_its_matrix_products(answers: int, monkeypatch) -> None:
    shape = TextShape(
        "tiny", image=8, patch=4, dim=12, depth=2, heads=3, length=5, vocabulary=9, batch=2, answers=answers
    )
    case = Case("text", "train", shape, "step")
    count = operations_of_products(case, monkeypatch)
    # The cost is that of the published model. Ours applies proj and MLP of the last block to the token it reads alone.
    unread = shape.patches + shape.length - 1 if answers else 0
    assert cost(case).flops == count + 6 * shape.batch * unread * 9 * shape.dim**2


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def test_parameters_are_counted(shape: ModelShape) -> None:
    assert parameter_count(shape) == sum(array.size for array in build_model(shape).state_dict().values())


def test_a_step_is_split_into_its_calls_and_what_lies_between_them() -> None:
    clock = Clock()
    clock.calls = [("a", 1.0, 3.0), ("b", 3.5, 4.0), ("a", 4.0, 4.25)]
    parts = clock.parts(0.5, 5.0)
    assert parts == [(REST, 0.5), ("a", 2.0), (REST, 0.5), ("b", 0.5), (REST, 0.0), ("a", 0.25), (REST, 0.75)]
    disturbed = [(name, seconds + 100 * (i == 1)) for i, (name, seconds) in enumerate(parts)]
    assert by_name([parts, parts, parts, disturbed]) == {"a": 2.25, REST: 1.75, "b": 0.5}


def test_a_profile_names_what_a_step_computes() -> None:
    shape = ModelShape("tiny", image=4, channels=1, patch=2, dim=8, depth=1, heads=2, batch=2)
    with use_kernels("numpy"):
        parts = profile(shape, steps=1)
        assert {"linear forward", "linear backward", "attention forward", "adamw", REST} <= set(parts)
        assert all(seconds >= 0 for seconds in parts.values())
        with clocked() as clock:
            pass
        tensor([1.0]) + 1
    assert clock.calls == []  # the clocks are gone
