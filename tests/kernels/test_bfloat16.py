"""bfloat16 in compiled code: rounding, widening and products are correct, at every edge of a tile."""

import ml_dtypes
import numpy as np
from draws import Array, around, few_or_all, on_drawn
from hypothesis import strategies as st
from tinyvit.kernels.cpu.bfloat16 import DTYPE, NATIVE, bits, rounded, widened
from tinyvit.kernels.cpu.compiler import entries, entry
from tinyvit.kernels.linear.microkernel import PANEL_BYTES, ROWS, multiply, multiply_add, ready
from tinyvit.kernels.linear.operands import BFLOAT16, left_rows, operand, stack, stacked

SMALLEST = 2.0**-126  # the smallest normal number


@entry
def round_all(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = rounded(x[i], out)


@entry
def widen_all(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = widened(x[i])


@entries(f"void({{0}}[:,:], {{0}}[:,:], {{1}}[:,:], boolean, {BFLOAT16.name}[:,::1], {BFLOAT16.name}[:,::1])")
def product_of_rows(x: Array, y: Array, c: Array, accumulate: bool, left: Array, right: Array) -> None:
    """Set c = x^T y, or add x^T y to c."""
    depth = stack(y, right)
    multiply(stacked(x, left, 3).T, right[:depth], c, accumulate)


@entries(f"void({{0}}[:,::1], {{0}}[:,:], {{1}}[::1], {{0}}[:,:], {BFLOAT16.name}[:,::1])")
def affine(x: Array, y: Array, bias: Array, c: Array, right: Array) -> None:
    """Set c = x y + bias."""
    multiply_add(operand(x), right[: stack(y, right)], bias, c)


def room(rows: Array) -> Array:
    """Return memory in which such rows become an operand, larger than they need."""
    return np.full((rows.shape[0] + 1, rows.shape[1] + 3), 7, BFLOAT16)


def same(a: Array, b: Array) -> Array:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def test_rounding_is_that_of_ml_dtypes() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 20_000, np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    x = np.concatenate([words, ties, ties - 1, ties + 1]).view(np.float32)
    out = np.empty(x.shape, np.uint16)
    round_all(x, out)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        found, expected = out.view(DTYPE).astype(np.float32), x.astype(DTYPE).astype(np.float32)
    flushed = (np.abs(x) < SMALLEST) & (found == 0) & NATIVE
    assert (same(found, expected) | flushed).all()


def test_widening_is_exact() -> None:
    x = np.arange(2**16).astype(np.uint16)
    out = np.empty(x.shape, np.float32)
    widen_all(x, out)
    assert same(out, x.view(DTYPE).astype(np.float32)).all()


def drawn(data: st.DataObject, *shape: int) -> Array:
    """Return numbers of bfloat16 in the middle of a larger matrix that is NaN elsewhere."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    large = np.full((shape[0] + 2, shape[1] + 4), np.nan, DTYPE)
    middle = large[1:-1, 2:-2]
    middle[...] = rng.standard_normal(shape).astype(DTYPE)
    return middle


def check(found: Array, x: Array, y: Array, start: Array) -> None:
    """Check that c = x y + start up to the errors of sums in float32, in any order, and of its last rounding."""
    a, b = x.astype(float), y.astype(float)
    size = np.abs(a) @ np.abs(b) + np.abs(start)
    bound = (x.shape[1] + 2) * np.finfo(np.float32).eps * size
    exact = a @ b + start
    if found.dtype == np.uint16:
        found = found.view(DTYPE).astype(float)
        bound = bound + float(ml_dtypes.finfo(DTYPE).eps) / 2 * np.abs(exact)
    assert (np.abs(found - exact) <= bound).all()


def sizes(data: st.DataObject) -> tuple[int, int, int]:
    width = PANEL_BYTES // 4
    m = data.draw(st.sampled_from([1, *around(2, *ROWS, sum(ROWS))]))
    n = data.draw(st.sampled_from(around(2, width // 2, width, 2 * width)))
    return m, n, data.draw(st.sampled_from([1, 2, 3, 8, 33]))


@few_or_all(20, 60)
@on_drawn()
def test_a_product_of_transposed_rows_with_rows_is_correct(data: st.DataObject) -> None:
    ready(BFLOAT16, np.dtype(np.float32))
    m, n, k = sizes(data)
    x, y, accumulate = drawn(data, k, m), drawn(data, k, n), data.draw(st.booleans())
    start = np.ones((m, n), np.float32) if accumulate else np.zeros((m, n), np.float32)
    around_c = np.full((m + 2, n + 3), 7, np.float32)
    c = around_c[1 : 1 + m, 1 : 1 + n]
    c[...] = start if accumulate else np.nan
    product_of_rows[DTYPE](bits(x), bits(y), c, accumulate, room(x), room(y))
    check(c, x.T, y, start)
    c[...] = 7
    assert (around_c == 7).all()


@few_or_all(20, 60)
@on_drawn()
def test_results_are_rounded_once(data: st.DataObject) -> None:
    ready(BFLOAT16, np.dtype(np.uint16))
    m, n, k = sizes(data)
    x, y, bias = drawn(data, m, k), drawn(data, k, n), drawn(data, 1, n)[0].astype(np.float32)
    around_c = np.full((m + 2, n + 3), 7, np.uint16)
    c = around_c[1 : 1 + m, 1 : 1 + n]
    affine[DTYPE](left_rows(x), bits(y), bias, c, room(y))
    check(c, x, y, bias)
    c[...] = 7
    assert (around_c == 7).all()


def test_infinity_and_nan_stay_in_their_rows() -> None:
    ready(BFLOAT16, np.dtype(np.float32))
    x = np.ones((6, 5), DTYPE)
    x[0, 1], x[3, 2], x[5, 3] = np.inf, np.nan, -np.inf
    y, c = np.ones((6, 40), DTYPE), np.empty((5, 40), np.float32)
    product_of_rows[DTYPE](bits(x), bits(y), c, False, room(x), room(y))
    expected = np.array([6, np.inf, np.nan, -np.inf, 6])[:, None]
    assert same(c, np.broadcast_to(expected, c.shape)).all()
