"""The scale of float16 losses: how gradients are divided by it, and when it changes."""

import math
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


def trained(gradient: float, **settings: Any) -> tuple[Tensor, tv.LossScaler]:
    """Return a parameter after one step in which its scaled gradient was `gradient`, and the scaler."""
    p = Tensor(np.ones(3, np.float32), True)
    scaler = tv.LossScaler(tv.optim.SGD([p], lr=1.0), **settings)
    p.grad = Tensor(np.full(3, gradient, np.float32))
    scaler.step()
    return p, scaler


def test_gradients_are_divided_by_the_scale() -> None:
    p, scaler = trained(512.0, initial=1024)
    np.testing.assert_array_equal(p.numpy(), 0.5)
    assert scaler.scale == 1024


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_step_that_overflowed_is_skipped_and_the_scale_halved(bad: float) -> None:
    p, scaler = trained(bad, initial=1024)
    np.testing.assert_array_equal(p.numpy(), 1.0)
    assert scaler.scale == 512


def test_the_scale_grows_again_after_enough_good_steps() -> None:
    p, scaler = trained(0.0, initial=8, growth=2)
    assert scaler.scale == 8
    p.grad = Tensor(np.zeros(3, np.float32))
    scaler.step()
    assert scaler.scale == 16


@pytest.mark.parametrize("growth", [1, 2, 5])
def test_only_good_steps_in_a_row_make_the_scale_grow(growth: int) -> None:
    """Random steps, and a scaler that is saved and loaded after each, against the rule in three lines."""
    p = Tensor(np.ones(3, np.float32), True)
    scaler, scale, good = tv.LossScaler(tv.optim.SGD([p], lr=0.0), initial=1024, growth=growth), 1024.0, 0
    for is_bad in np.random.default_rng(0).random(60) < 0.25:
        p.grad = Tensor(np.full(3, np.inf if is_bad else 1.0, np.float32))
        scaler.step()
        scale, good = (scale / 2, 0) if is_bad else (scale, good + 1)
        scale, good = (scale * 2, 0) if good == growth else (scale, good)
        assert (scaler.scale, scaler.good_steps) == (scale, good)
        state = scaler.state_dict()
        scaler = tv.LossScaler(tv.optim.SGD([p], lr=0.0), growth=growth)
        scaler.load_state_dict(state)


@pytest.mark.parametrize(("clip_norm", "step"), [(2.0, 2.0), (10.0, 10.0), (20.0, 10.0), (0.0, 10.0)])
def test_clipping_applies_to_the_unscaled_gradients(clip_norm: float, step: float) -> None:
    p = Tensor(np.zeros(1, np.float32), True)
    scaler = tv.LossScaler(tv.optim.SGD([p], lr=1.0), initial=4)
    p.grad = Tensor(np.array([40.0], np.float32))
    assert scaler.step(clip_norm) == 10
    np.testing.assert_allclose(p.numpy(), -step)


def test_the_scale_keeps_small_gradients_of_float16() -> None:
    x = Tensor(np.full((1, 4), 1e-3, np.float32))
    w = Tensor(np.full((1, 4), 1e-3, np.float32), True)
    scaler = tv.LossScaler(tv.optim.SGD([w], lr=1.0))
    with tv.autocast("float16"):
        loss = F.linear(x, w).sum() * 1e-6
    loss.backward(retain_graph=True)
    assert not w.grad.numpy().any()
    w.grad = None
    scaler.scaled(loss).backward()
    np.testing.assert_allclose(w.grad.numpy() / scaler.scale, 1e-9, rtol=0.1)


def test_a_loaded_scaler_continues_where_the_saved_one_stopped() -> None:
    _, scaler = trained(math.nan, initial=64)
    _, other = trained(0.0)
    other.load_state_dict(scaler.state_dict())
    assert (other.scale, other.good_steps) == (32, 0)
