"""Functions of each element at very large numbers: neither values nor slopes overflow where the true ones do not.

From 1e10 on, bounded functions have reached their limits to the last bit, so the oracles are these limits, and the few
formulas that have none, in the longest floating type that NumPy has.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from corners import functions_of

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

Array = np.ndarray
DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.slow)]  # whose kernels take a second each to compile
SCALES = [1e10, 1e20, 1e38, 1.0]  # and 1 is the largest number of the dtype
NO_ELEMENTS = {"merge_heads"}  # moves what it is given

# Each function of x, and its value and slope at large |x|.
ORACLES: dict[str, tuple[Callable[..., Any], Callable[[Array], Any]]] = {
    "relu": (F.relu, lambda x: (np.maximum(x, 0), x > 0)),
    "silu": (F.silu, lambda x: (np.maximum(x, 0), x > 0)),
    "gelu": (F.gelu, lambda x: (np.maximum(x, 0), x > 0)),
    "gelu by tanh": (lambda x: F.gelu(x, "tanh"), lambda x: (np.maximum(x, 0), x > 0)),
    "bias_gelu": (lambda x: F.bias_gelu(x, x.detach()), lambda x: (np.maximum(2 * x, 0), x > 0)),
    "bias_gelu by tanh": (lambda x: F.bias_gelu(x, x.detach(), "tanh"), lambda x: (np.maximum(2 * x, 0), x > 0)),
    "sigmoid": (F.sigmoid, lambda x: (x > 0, 0 * x)),
    "tanh": (F.tanh, lambda x: (np.sign(x), 0 * x)),
    "erf": (F.erf, lambda x: (np.sign(x), 0 * x)),
    "exp": (F.exp, lambda x: (np.where(x > 0, np.inf, 0),) * 2),
    "abs": (F.abs, lambda x: (np.abs(x), np.sign(x))),
    "negative": (F.negative, lambda x: (-x, -np.ones_like(x))),
    "log": (lambda x: F.log(F.abs(x)), lambda x: (np.log(np.abs(x)), 1 / x)),
    "sqrt": (lambda x: F.sqrt(F.abs(x)), lambda x: (np.sqrt(np.abs(x)), np.sign(x) / (2 * np.sqrt(np.abs(x))))),
    "divide": (lambda x: 1e4 / x, lambda x: (1e4 / x, -1e4 / x / x)),
    "maximum": (lambda x: F.maximum(x, 1.0), lambda x: (np.maximum(x, 1), x > 0)),
    "logsumexp": (lambda x: F.logsumexp(F.stack([x, 0 * x]), axis=0), lambda x: (np.maximum(x, 0), x > 0)),
    "softmax": (lambda x: F.softmax(F.stack([x, 0 * x]), axis=0)[0], lambda x: (x > 0, 0 * x)),
    "log_softmax": (lambda x: F.log_softmax(F.stack([x, 0 * x]), axis=0)[0], lambda x: (np.minimum(x, 0), x < 0)),
    "cross_entropy": (
        lambda x: F.cross_entropy(F.stack([x, 0 * x], axis=1), np.zeros(x.shape, int), reduction="none"),
        lambda x: (np.maximum(-x, 0), -1.0 * (x < 0)),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, np.full(x.shape, 0.25, x.dtype), "none"),
        lambda x: (np.maximum(x, 0) - x / 4, (x > 0) - 0.25),
    ),
}


def drawn(dtype: Any, scale: float) -> Array:
    """Numbers of both signs up to `scale`, or up to the largest of the dtype, and those two themselves."""
    rng = np.random.default_rng(5)
    largest = float(np.finfo(dtype).max) if scale == 1.0 else scale
    return np.array([*(rng.uniform(0.5, 1, 6) * rng.choice([-1, 1], 6)), 1, -1]).astype(dtype) * np.dtype(dtype).type(
        largest
    )


def value_and_slope(function: Callable[..., Any], x: Array) -> tuple[Array, Array]:
    leaf = Tensor(x, requires_grad=True)
    y = function(leaf)
    return y.numpy(), tv.grad(y, leaf, np.ones(y.shape, y.dtype))[0].numpy()


def test_every_function_of_one_element_is_here() -> None:
    assert set(functions_of(1)) - NO_ELEMENTS <= set(ORACLES)


@pytest.mark.parametrize("choice", ["numpy", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ORACLES)
def test_neither_value_nor_slope_overflows(name: str, scale: float, dtype: str, choice: str) -> None:
    function, oracle = ORACLES[name]
    x = drawn(dtype, scale)
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        found = value_and_slope(function, x)
        for what, y, e in zip(("value", "slope"), found, oracle(x.astype(np.longdouble)), strict=True):
            expected = np.asarray(e).astype(dtype)  # what is beyond the range is infinite, what is too small 0
            info = np.finfo(dtype)
            np.testing.assert_allclose(y, expected, rtol=8 * info.eps, atol=info.tiny, err_msg=what)


VERSIONS = [*(pytest.param(c, marks=pytest.mark.slow) for c in ("numba:v1",)), "numpy", "auto"]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", VERSIONS)
def test_gelu_has_its_limits_at_infinity_and_keeps_nan(choice: str, dtype: str, approximate: Any) -> None:
    largest = np.finfo(dtype).max
    x = np.array([-np.inf, np.inf, np.nan, largest, -largest, 1e20, -1e20], dtype)
    bias = np.zeros(x.shape, dtype)
    for function in (lambda x: F.gelu(x, approximate), lambda x: F.bias_gelu(x, Tensor(bias), approximate)):
        with tv.use_kernels(choice), np.errstate(all="ignore"):
            y, slope = value_and_slope(function, x)
        np.testing.assert_array_equal(y, np.array([0, np.inf, np.nan, largest, 0, 1e20, 0], dtype))
        np.testing.assert_array_equal(slope, np.array([0, 1, np.nan, 1, 0, 1, 0], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silu_has_its_limits_at_infinity_and_keeps_nan(dtype: str) -> None:
    x = np.array([-np.inf, np.inf, np.nan, np.finfo(dtype).max, -1e20], dtype)
    with np.errstate(all="ignore"):
        y, slope = value_and_slope(F.silu, x)
    np.testing.assert_array_equal(y, np.array([0, np.inf, np.nan, np.finfo(dtype).max, 0], dtype))
    np.testing.assert_array_equal(slope, np.array([0, 1, np.nan, 1, 0], dtype))
