"""Sums over many rows are as exact as sums in pairs: of the plain rule in any layout, and in the kernels' gradients."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyvit.kernels import sums

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

ROWS = 1 << 17
NAMES = ("layer_norm", "bias_gelu", "linear", "embedding")
CHOICES = [
    pytest.param(name, f"numba:v{v}", id=f"{name}-v{v}", marks=() if v == 2 else pytest.mark.slow)
    for name, v in itertools.product(NAMES, (1, 2))
] + [pytest.param(name, "numpy", id=f"{name}-plain") for name in NAMES]


@st.composite
def summed(draw: st.DrawFn) -> tuple[np.ndarray, int | tuple[int, ...] | None, bool]:
    """Draw an array of some layout in which one axis is long, and the axes to sum over."""
    shape = [draw(st.sampled_from([1, 2, 3, 33])) for _ in range(draw(st.integers(1, 4)))]
    long = draw(st.integers(0, len(shape) - 1))
    shape[long] = draw(st.sampled_from([31, 32, 33, 1025, 40_000 if len(shape) < 3 else 2000]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = np.full(shape, 0.1, np.float32) if draw(st.booleans()) else rng.random(shape, np.float32)
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    layout = draw(st.sampled_from(["dense", "flipped", "spaced", "broadcast"]))
    if layout == "flipped":
        x = np.flip(x)
    elif layout == "spaced":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "broadcast":
        x = np.broadcast_to(x[:1], (draw(st.sampled_from([5, 3000])), *x.shape[1:]))
    axes = draw(st.sets(st.integers(0, x.ndim - 1), min_size=1))
    axis = draw(st.sampled_from([None, tuple(axes), min(axes), -1]))
    return x, axis, draw(st.booleans())


@settings(max_examples=100)
@given(summed())
def test_a_sum_errs_by_a_few_roundings_in_any_layout(drawn) -> None:
    x, axis, keepdims = drawn
    exact = x.sum(axis=axis, keepdims=keepdims, dtype=np.float64)
    found = sums.total(x, axis, keepdims)
    assert (np.shape(found), found.dtype) == (exact.shape, np.float32)
    np.testing.assert_allclose(found, exact, rtol=4e-6)
    averaged = sums.mean(x, axis, keepdims)
    assert (np.shape(averaged), averaged.dtype) == (exact.shape, np.float32)
    np.testing.assert_allclose(averaged, x.mean(axis=axis, keepdims=keepdims, dtype=np.float64), rtol=4e-6)


def gradients(name: str, dtype: type) -> list[np.ndarray]:
    """Return the gradients of what an operation adds to, or multiplies with, each of many equal rows."""
    row, weight = (Tensor(np.full(4, v, dtype), True) for v in (0.25, 1.0))
    if name == "layer_norm":
        y, leaves = F.layer_norm(Tensor(np.tile(np.array([1, 2, 4, 8], dtype), (ROWS, 1))), weight, row), [weight, row]
    elif name == "bias_gelu":
        y, leaves = F.bias_gelu(Tensor(np.full((ROWS, 4), 0.75, dtype)), row), [row]
    elif name == "linear":
        y, leaves = F.linear(Tensor(np.full((ROWS, 4), 0.75, dtype)), Tensor(np.ones((4, 4), dtype)), row), [row]
    else:
        table = Tensor(np.ones((3, 4), dtype), True)
        y, leaves = F.embedding(np.zeros(ROWS, int), table), [table]
    upstream = np.full(y.shape, np.float32(0.1), dtype)
    return [g.numpy() for g in tv.grad(y, leaves, Tensor(upstream))]


@pytest.mark.parametrize(("name", "choice"), CHOICES)
def test_gradients_of_many_equal_rows_are_exact_to_a_few_roundings(name: str, choice: str) -> None:
    with tv.use_kernels(choice):
        found = gradients(name, np.float32)
    with tv.use_kernels("numpy"):
        exact = gradients(name, np.float64)
    for g, e in zip(found, exact, strict=True):
        np.testing.assert_allclose(g, e, rtol=4e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda b: Tensor(np.zeros((ROWS, 4), np.float32)) + b,
        lambda b: Tensor(np.ones((ROWS, 4), np.float32)) * b,
        lambda b: b.broadcast_to((ROWS, 4)),
        lambda b: F.where(np.ones((ROWS, 4), bool), b, 0.0),
        lambda b: F.maximum(Tensor(np.zeros((ROWS, 4), np.float32)), b),
        lambda b: b.reshape(1, 4)[np.zeros(ROWS, int)],
        lambda b: b.reshape(1, 4)[np.zeros((ROWS, 1), int), np.arange(4)],
        lambda b: F.take_rows(b.reshape(1, 1, 4), np.zeros((1, ROWS), int)).reshape(ROWS, 4),
    ],
)
def test_the_gradient_of_what_was_repeated_is_exact_to_a_few_roundings(function) -> None:
    b = Tensor(np.full(4, 0.3, np.float32), True)
    y = function(b)
    (found,) = tv.grad(y, (b,), Tensor(np.full(y.shape, 0.1, np.float32)))
    np.testing.assert_allclose(found.numpy(), np.float64(np.float32(0.1)) * ROWS, rtol=4e-6)


def test_a_mean_of_more_ones_than_float32_counts_and_a_long_running_sum() -> None:
    ones = np.broadcast_to(np.float32(1), (1 << 25, 1))
    assert F.mean(Tensor(ones), axis=0).numpy().tolist() == [1.0]
    running = F.cumsum(Tensor(np.full(1 << 20, 0.1, np.float32))).numpy()
    np.testing.assert_allclose(running[-1], np.float64(np.float32(0.1)) * (1 << 20), rtol=1e-6)
    assert F.var(Tensor(np.full((1 << 20, 2), 100.0, np.float32)), axis=0).numpy().tolist() == [0.0, 0.0]
