"""Schedules, gradient clipping and the average of the weights, one number at a time."""

import math
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import Tensor
from tinyvit.optim import (
    EMA,
    clip_grad_norm,
    constant_with_warmup,
    cosine_with_warmup,
    joint_norm,
    linear_with_warmup,
)


def parameter(values: Any = (1.0, -2.0, 0.5)) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


# Clipping -----------------------------------------------------------------------------------------------------------


def with_gradients(*gradients: Any) -> list[Tensor]:
    ps = [parameter(np.zeros(np.shape(g))) for g in gradients]
    for p, g in zip(ps, gradients, strict=True):
        p.grad = Tensor(np.array(g, np.float64))
    return ps


def test_clipping_scales_all_gradients_together() -> None:
    ps = [*with_gradients([3.0, 0.0], [[4.0]]), parameter()]
    assert clip_grad_norm(iter(ps), 2.0) == 5
    np.testing.assert_allclose(ps[0].grad.numpy(), [1.2, 0])
    np.testing.assert_allclose(ps[1].grad.numpy(), [[1.6]])
    assert ps[2].grad is None


def test_short_and_non_finite_gradients_are_not_changed() -> None:
    for gradient, limit in [
        ([3.0, 4.0], 5.0),
        ([3.0, 4.0], 6.0),
        ([np.nan, 1.0], 1.0),
        ([np.inf, 1.0], 1.0),
        ([0.0, 0.0], 1.0),
    ]:
        (p,) = with_gradients(gradient)
        norm = clip_grad_norm([p], limit)
        np.testing.assert_equal(norm, np.sqrt(np.sum(np.square(gradient))))
        np.testing.assert_array_equal(p.grad.numpy(), gradient)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 40_000])
def test_norms_of_tiny_and_huge_gradients(dtype: str, size: int) -> None:
    dtype = np.dtype(dtype) if dtype != "bfloat16" else tv.tensor(np.zeros(1)).to("bfloat16").dtype
    exponents = {"float16": (-7, -3, 0, 4), "bfloat16": (-38, -20, 0, 37), "float32": (-44, -23, 0, 20, 38)}
    for exponent in exponents.get(dtype.name, (-320, -170, 0, 160, 300)):
        values = (np.random.default_rng(0).integers(1, 3, size) * 10.0**exponent).astype(dtype)
        with np.errstate(all="ignore"):
            largest = values.astype(np.float64).max()
            exact = largest * np.linalg.norm(values.astype(np.float64) / largest)
        assert joint_norm([values, values[:0]]) == pytest.approx(exact, rel=1e-12)
        assert joint_norm([values[::-1], values]) == pytest.approx(2**0.5 * exact, rel=1e-12)
        p = Tensor(np.zeros(size, dtype), requires_grad=True)
        p.grad = Tensor(values.copy())
        limit = min(1.0, exact / 2)
        assert clip_grad_norm([p], limit) == pytest.approx(exact, rel=1e-6)
        digits = max(
            2e-2 if dtype.itemsize == 2 else 1e-5,
            float(np.finfo(np.float16).smallest_subnormal) * size**0.5 / limit if dtype == np.float16 else 0,
        )
        if exponent > -30:
            assert joint_norm([p.grad.numpy()]) == pytest.approx(limit, rel=digits)


# Schedules ----------------------------------------------------------------------------------------------------------


def test_schedules_at_their_start_middle_and_end() -> None:
    for schedule in (cosine_with_warmup, linear_with_warmup, constant_with_warmup):
        end = 0.4 if schedule is constant_with_warmup else 0.1
        middle = 0.4 if schedule is constant_with_warmup else 0.25
        values = [schedule(step, 110, 10, 0.4, min_lr=0.1) for step in (0, 5, 10, 60, 110, 500)]
        np.testing.assert_allclose(values, [0, 0.2, 0.4, middle, end, end], rtol=1e-12)
        assert schedule(0, 10, 0, 0.4) == 0.4  # without a warm-up the first step has the full rate
        assert schedule(10, 10, 10, 0.4) == 0.4


def test_the_cosine_is_a_cosine() -> None:
    for step in range(101):
        expected = 1.5 + 0.5 * math.cos(math.pi * step / 100)
        assert cosine_with_warmup(step, 100, 0, 2.0, min_lr=1.0) == pytest.approx(expected)
    falling = [cosine_with_warmup(s, 100, 20, 1.0) for s in range(20, 101)]
    assert falling == sorted(falling, reverse=True)


# Averages -----------------------------------------------------------------------------------------------------------


def test_the_average_follows_its_formula() -> None:
    p = parameter([1.0])
    ema = EMA([p], decay=0.3)
    expected = 1.0
    for t, value in enumerate([2.0, -1.0, 5.0, 0.0], start=1):
        p.assign([value])
        ema.update()
        d = min(0.3, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
    assert ema.averages[0][0] == pytest.approx(expected, rel=1e-14)
    with ema.applied():
        assert p.item() == pytest.approx(expected, rel=1e-14)
    assert p.item() == 0.0


def test_the_parameters_values_are_restored_after_an_error() -> None:
    p = parameter([1.0])
    ema = EMA([p])
    p.assign([2.0])
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert p.item() == 2.0


def test_a_restored_average_continues() -> None:
    p = parameter([1.0])
    ema = EMA([p], 0.9)
    p.assign([2.0])
    ema.update()
    restored, state = EMA([parameter([7.0])], 0.9), ema.state_dict()
    at_first = state["averages"]["0"].copy()
    restored.load_state_dict(state)
    for average in (ema, restored):
        average.parameters[0].assign([3.0])
        average.update()
    np.testing.assert_array_equal(restored.averages[0], ema.averages[0])
    assert restored.steps == 2
    assert restored.averages[0] != at_first
    np.testing.assert_array_equal(state["averages"]["0"], at_first)  # a state does not change with its average
    with pytest.raises(ValueError, match="EMA state"):
        EMA([parameter()]).load_state_dict(ema.state_dict())
