"""NaN and infinity in keys that a query may not see: plain rule and kernels keep one stated rule."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from draws import Array, few_or_all, on_drawn
from hidden import hidden_keys
from hypothesis import strategies as st
from tinyvit.kernels.attention.by_block import KEYS, QUERIES
from trial import Trial

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.functional.attention import Attention

SLOW = pytest.mark.slow
CHOICES = ["numpy", "numba:v2", pytest.param("numba:v1", marks=SLOW)]
DTYPES = ["float32", pytest.param("float64", marks=SLOW), pytest.param("bfloat16", marks=SLOW)]


def run_by(choice: str) -> Any:
    def run(case: Any, upstream: tuple[Array]) -> list[Array]:
        return Trial(Attention, case, (True, True, True, False), upstream).run(choice)

    return run


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@few_or_all(10, 30)
@on_drawn()
def test_a_hidden_key_may_give_nan_but_no_other_number(choice: str, dtype: str, data: st.DataObject) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    edges = (1, 8, QUERIES, 2 * QUERIES, KEYS + 1)
    data.draw(hidden_keys(kind, edges, (8, 16, 64))).check(run_by(choice))


@pytest.mark.parametrize("choice", CHOICES)
def test_zeros_in_the_place_of_padding_are_the_way_out(choice: str) -> None:
    """What the docstring of scaled_dot_product_attention advises gives finite results."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 2, 9, 8)).astype(np.float32)
    k[0, :, 7:], v[0, :, 7:] = np.nan, np.inf
    mask = np.ones((2, 1, 1, 9), bool)
    mask[0, ..., 7:] = False
    tensors = [tv.tensor(x, requires_grad=True) for x in (q, k, v)]
    seen = mask.swapaxes(-1, -2)
    with tv.use_kernels(choice):
        kept = [F.where(seen, x, 0.0) for x in tensors[1:]]
        out = F.scaled_dot_product_attention(tensors[0], *kept, attn_mask=mask)
        out.sum().backward()
    assert all(np.isfinite(x.numpy()).all() for x in (out, *(t.grad for t in tensors)))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_floating_mask_does_not_hide_a_key_that_is_nan(choice: str) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 5, 8)).astype(np.float32)
    k[..., 3, 0] = np.nan
    bias = np.where(np.arange(5) == 3, -np.inf, 0).astype(np.float32)
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        out = F.scaled_dot_product_attention(*map(tv.tensor, (q, k, v)), attn_mask=bias)
    assert np.isnan(out.numpy()).all()
