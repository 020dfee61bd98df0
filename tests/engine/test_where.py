"""The `where` of NumPy's namespace has the bits of NumPy's, also where it masks them."""

import ml_dtypes
import numpy as np
import pytest

from tinyvit.backend import NUMPY

RNG = np.random.default_rng(0)
SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1.5])


def same(condition: np.ndarray, x: np.ndarray, y: object) -> None:
    found, expected = NUMPY.where(condition, x, y), np.where(condition, x, y)
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert not np.shares_memory(found, x)


@pytest.mark.parametrize("y", [0.0, -0.0, 0, 1.0, np.float64(0.0), np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, ml_dtypes.bfloat16], ids=str)
def test_the_bits_are_those_of_numpy(dtype: object, y: object) -> None:
    values = RNG.integers(-5, 5, (5, 8)) if dtype is np.int64 else np.where(RNG.random((5, 8)) < 0.5, SPECIAL, 2.5)
    same(RNG.random((5, 8)) < 0.5, values.astype(dtype), y)


def test_other_layouts_and_shapes_are_those_of_numpy() -> None:
    x, condition = RNG.standard_normal((4, 6)).astype(np.float32), RNG.random((4, 6)) < 0.5
    same(condition.T, x.T, 0.0)
    same(condition.T.copy(), x.T, 0.0)
    same(np.asfortranarray(condition), x, 0.0)
    same(condition[::2, ::3], x[::2, ::3], 0.0)
    same(condition[:, :1], x, 0.0)
    same(condition, x[:1], 0.0)
    same(condition[:0], x[:0], 0.0)
    same(condition[0, 0], x[0, 0], 0.0)
    same(np.array(True), np.array(np.float32(2.0)), 0.0)
    same(condition.astype(np.int8), x, 0.0)
    same(condition, x, np.zeros_like(x))
