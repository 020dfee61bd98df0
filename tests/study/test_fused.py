"""The comparison of fused kernels with their formulas."""

import re

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.study import trace
from tinyvit.study.page.fused import comparisons_of

RNG = np.random.default_rng(0)


def test_the_state_of_the_kernel_after_each_tile_is_the_softmax_of_its_keys() -> None:
    """The kernels run in another process, where they are not compiled."""
    x = tv.tensor(RNG.standard_normal((1, 2, 7, 4)), requires_grad=True)
    weight, bias = (tv.tensor(a, requires_grad=True) for a in RNG.standard_normal((2, 4)))
    with trace() as recorded:
        q, k = 2 * x, F.exp(x)
        F.scaled_dot_product_attention(q, k, F.layer_norm(x, weight, bias)).backward(RNG.standard_normal(x.shape))
        F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
    attention, layer_norm = comparisons_of(recorded)
    assert attention["title"] == "attention: head 0, query 3"
    assert len(attention["rows"]) == 4
    scores = 0.5 * q.numpy()[0, 0, 3] @ k.numpy()[0, 0].T
    telescoped = 1.0
    for row, seen in zip(attention["rows"], (2, 4, 5, 7), strict=True):
        _, m, factor, *pairs = row
        assert row[0] == f"keys 0 to {seen - 1}"
        assert m == scores[:seen].max()
        assert pairs[3] == pytest.approx(np.log(np.exp(scores[:seen]).sum()))
        assert pairs[0::2] == pytest.approx(pairs[1::2], rel=1e-9)  # the kernel's and the formula's
        telescoped *= factor
    assert telescoped == pytest.approx(np.exp(attention["rows"][0][1] - m))
    for row in layer_norm["rows"]:
        assert row[1::2] == pytest.approx(row[2::2], rel=1e-9)
    for comparison in (attention, layer_norm):
        assert all(len(row) == len(comparison["columns"]) for row in comparison["rows"])
        difference = re.search(r"difference is (\S+) of", comparison["compare"][-1][2])
        assert difference
        assert float(difference[1]) < 1e-9


def test_an_operation_without_a_kernel_is_not_compared() -> None:
    with trace() as recorded:
        F.exp(tv.tensor([1.0]))
    assert comparisons_of(recorded) == []


@pytest.mark.parametrize("mask", [~np.eye(7, dtype=bool), np.zeros((7, 7), bool)], ids=["others", "none"])
def test_attention_with_a_mask_is_not_compared(mask: np.ndarray) -> None:
    x = tv.tensor(RNG.standard_normal((1, 2, 7, 4)), requires_grad=True)
    with trace() as recorded:
        F.scaled_dot_product_attention(x, x, x, attn_mask=mask).sum().backward()
    assert comparisons_of(recorded) == []
