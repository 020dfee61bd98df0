"""What `scaled_dot_product_attention` promises about masks, causality, fully masked rows, scale and dropout."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from oracles import ORACLES

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

INF = np.inf


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.numpy() for t in tensors]


HEADS = (normal(2, 2, 3, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2))
attend = F.scaled_dot_product_attention


def test_a_query_that_sees_no_key_gives_zero_and_zero_gradients() -> None:
    q, k, v = normal(1, 1, 3, 4), normal(1, 1, 2, 4, seed=1), normal(1, 1, 2, 4, seed=2)
    for mask in (
        np.array([[True, True], [False, False], [True, False]]),
        np.array([[0.0, 0], [-INF, -INF], [0, -INF]]),
    ):
        out = attend(q, k, v, mask)
        dq, dk, dv = tv.grad(out[0, 0, 1].sum(), [q, k, v])
        np.testing.assert_array_equal(out.numpy()[0, 0, 1], 0)
        assert all((g.numpy() == 0).all() for g in (dq, dk, dv))
        np.testing.assert_allclose(out.numpy()[0, 0, 2], v.numpy()[0, 0, 0])


@pytest.mark.parametrize("kind", ["boolean", "floating", "tensor", "none"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks_combine_with_causality_which_is_top_left(kind: str, is_causal: bool) -> None:
    q, k, v = HEADS
    allowed = np.random.default_rng(5).random((2, 1, 3, 5)) < 0.7
    bias = np.where(allowed, normal(2, 2, 3, 5).numpy(), -INF)
    given = {"boolean": allowed, "tensor": tv.tensor(allowed), "floating": bias, "none": None}[kind]
    expected = ORACLES["attention"](
        *arrays(q, k, v), bias if kind == "floating" else None, mask=None if given is None else allowed,
        is_causal=is_causal, scale=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(attend(q, k, v, given, is_causal=is_causal).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_a_floating_mask_has_a_gradient_in_its_own_shape() -> None:
    q, k, v = HEADS
    bias = normal(1, 2, 1, 5)
    tv.gradcheck(attend, [q, k, v, bias])


def test_the_default_scale_follows_from_the_head_size_of_the_keys() -> None:
    q, k, v = *HEADS[:2], normal(2, 2, 5, 9)
    expected = ORACLES["attention"](*arrays(q, k, v), scale=4**-0.5)
    np.testing.assert_allclose(attend(q, k, v).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_attention_survives_extreme_scores() -> None:
    q, k, v = (Tensor(t.numpy() * 1e3, requires_grad=True) for t in HEADS)
    out = attend(q, k, v, scale=1e3)
    assert np.isfinite(out.numpy()).all()
    assert all(np.isfinite(g.numpy()).all() for g in tv.grad(out.sum(), [q, k, v]))


def test_dropout_of_attention_always_applies_and_its_mean_is_the_output() -> None:
    q, k, v = HEADS
    draws = [attend(q, k, v, dropout_p=0.3, generator=tv.Generator(s)).numpy() for s in range(2000)]
    spread = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (spread > 0).all()
    assert (np.abs(np.mean(draws, axis=0) - attend(q, k, v).numpy()) < 5 * spread).all()
    assert (attend(q, k, v, dropout_p=1.0).numpy() == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mask_of_python_numbers_has_the_dtype_of_the_query(dtype: str) -> None:
    q = Tensor(np.random.default_rng(0).standard_normal((1, 1, 2, 2)).astype(dtype))
    out = F.scaled_dot_product_attention(q, q, q, [[0.0, -math.inf], [-math.inf, 0.0]])
    np.testing.assert_array_equal(out.numpy(), q.numpy(), strict=True)
