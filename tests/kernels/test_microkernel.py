"""Matrix products by register tiles: correct at every edge, without touching memory outside the arrays."""

import numpy as np
import pytest
from draws import Array, around, few_or_all, on_drawn
from hypothesis import given
from hypothesis import strategies as st
from tinyvit.kernels.cpu.compiler import entries
from tinyvit.kernels.linear.microkernel import PANEL_BYTES, ROWS, multiply, multiply_add, ready
from tinyvit.kernels.linear.numba_cpu import BLOCK, FEW_BLOCKS, TASKS, groups_of


@entries("void({0}[:,:], {0}[:,:], {0}[:,:], boolean)")
def product(a: Array, b: Array, c: Array, accumulate: bool) -> None:
    multiply(a, b, c, accumulate)


@entries("void({0}[:,:], {0}[:,:], {0}[:], {0}[:,:])")
def product_and_bias(a: Array, b: Array, bias: Array, c: Array) -> None:
    multiply_add(a, b, bias, c)


def within(x: Array, around: float = np.nan) -> tuple[Array, Array]:
    """Return a copy of a matrix in the middle of a larger one, which is `around` elsewhere, and the larger one."""
    large = np.full((x.shape[0] + 2, x.shape[1] + 3), around, x.dtype)
    middle = large[1 : 1 + x.shape[0], 1 : 1 + x.shape[1]]
    middle[...] = x
    return middle, large


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@few_or_all(50, 150)
@on_drawn()
def test_a_product_of_any_shape_is_correct(dtype: str, data: st.DataObject) -> None:
    ready(np.dtype(dtype))
    panel = PANEL_BYTES // np.dtype(dtype).itemsize
    m = data.draw(st.sampled_from([0, *around(2, *ROWS, sum(ROWS), 2 * ROWS[0])]))
    n = data.draw(st.sampled_from([0, *around(2, panel // 2, panel, 2 * panel)]))
    k = data.draw(st.sampled_from([0, 1, 2, 5, 33]))
    mode = data.draw(st.sampled_from(["overwrite", "accumulate", "bias"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    a, _ = within(normal(m, k))
    if data.draw(st.booleans()):
        a = within(normal(k, m))[0].T
    b, _ = within(normal(k, n))
    bias = within(normal(1, n))[0][0]
    before = normal(m, n) if mode == "accumulate" else np.full((m, n), np.nan, dtype)
    c, around_c = within(before, around=7)  # any result from beyond a or b would be NaN
    if mode == "bias":
        product_and_bias[np.dtype(dtype)](a, b, bias, c)
    else:
        product[np.dtype(dtype)](a, b, c, mode == "accumulate")

    start = {"overwrite": np.zeros(1), "accumulate": before, "bias": bias}[mode]
    exact = a.astype(float) @ b.astype(float) + start
    bound = (k + 2) * np.finfo(dtype).eps * (np.abs(a).astype(float) @ np.abs(b) + np.abs(start))  # in any order
    assert (np.abs(c - exact) <= bound).all()
    c[...] = 7
    assert (around_c == 7).all()


LARGE = 10_000_000  # elements of a weight


@given(rows=st.integers(0, 100 * BLOCK), panels=st.integers(1, 99), size=st.sampled_from([1, LARGE]))
def test_threads_get_enough_tasks_and_an_even_number_of_them(rows: int, panels: int, size: int) -> None:
    """Bits do not depend on how panels are grouped, so only this test sees it."""
    groups, blocks = groups_of(rows, size, panels), max(1, -(-rows // BLOCK))
    assert 1 <= groups <= panels
    assert groups * blocks >= min(TASKS // 2, panels * blocks)
    if blocks >= TASKS:
        is_uneven = blocks % 2 == 1 and blocks < FEW_BLOCKS and size == LARGE
        assert groups == min(panels, 2 if is_uneven else 1)
