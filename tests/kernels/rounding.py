"""How far rounding may move a result, estimated by the plain rule at float64 with a random error added in each step.

This is Monte Carlo arithmetic (Parker, 1997). With u the unit roundoff of a dtype, every elementary result r becomes r
+ u z s, where z is normally distributed and s is the size of the numbers that are rounded on the way to r. That is |r|
itself for most functions. For a sum it includes all partial sums S_1 ... S_n, s^2 = S_1^2 + ... + S_n^2, as if the
terms were added one after the other. For a product of matrices s^2 = n (t_1^2 + ... + t_n^2) + n r^2 / 3: terms t of
random signs give the first summand, n equal terms the second. Terms that cancel in exact arithmetic, as in the gradient
of a softmax, then no longer cancel, just as in the dtype itself. Functions that only select an input, like a maximum,
have no error.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from tinyvit import backend

_SELECTS = (np.maximum, np.minimum)  # they return one of their inputs, without an error


class Rounded(np.ndarray):
    """An array of float64 whose operations have the rounding errors of a less exact dtype."""

    unit = 0.0
    rng = np.random.default_rng()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        given = [np.asarray(x) if isinstance(x, Rounded) else x for x in inputs]
        if method == "at":
            return _add_at(*given)
        result = getattr(ufunc, method)(*given, **kwargs)
        size = 0.0 if ufunc in _SELECTS else np.abs(result)
        if ufunc is np.matmul:
            squares = np.square(given[0]) @ np.square(given[1]) + np.square(result) / 3
            size = np.sqrt(given[0].shape[-1] * squares)
        elif ufunc is np.add and method == "reduce":
            size = _size_of_sum(given[0], kwargs.get("axis", 0)).reshape(np.shape(result))
        result = _moved(result, size)
        if out is not None:
            out[0][...] = result
        return result


def _add_at(out: np.ndarray, index: Any, terms: np.ndarray) -> None:
    """Add terms at an index, which is a product with a matrix of zeros and ones."""
    count, squares = np.zeros((2, *out.shape))
    for sums, summands in ((count, 1.0), (squares, np.square(terms)), (out, terms)):
        np.add.at(sums, index, summands)
    out[...] = _moved(out, np.sqrt(count * (squares + np.square(out) / 3)))


def _size_of_sum(terms: np.ndarray, axis: int | tuple[int, ...] | None) -> np.ndarray:
    """Return the root of the sum of the squares of all partial sums."""
    axes = tuple(range(terms.ndim)) if axis is None else np.atleast_1d(axis)
    last = np.moveaxis(terms, axes, range(-len(axes), 0))
    lead = last.shape[: last.ndim - len(axes)]
    partial = np.cumsum(last.reshape(*lead, math.prod(last.shape[len(lead) :])), axis=-1)
    return np.sqrt(np.sum(np.square(partial), axis=-1))


def _moved(result: Any, size: Any) -> Any:
    """Return `result` with an error of this size; integers stay exact, and infinities stay infinite."""
    if np.asarray(result).dtype != np.float64:
        return result
    error = Rounded.unit * Rounded.rng.standard_normal(np.shape(result)) * size
    return np.asarray(np.where(np.isfinite(error), result + error, result)).view(Rounded)


class _RoundingNamespace(backend.Namespace):
    """NumPy, except that the results of its functions have rounding errors."""

    def __getattr__(self, name: str) -> Any:
        function = super().__getattr__(name)
        if isinstance(function, np.ufunc):
            return function  # `Rounded` adds the error

        def rounding(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            size = 0.0 if name in ("pad", "reshape") else np.abs(result)
            return result if isinstance(result, Rounded) else _moved(result, size)

        setattr(self, name, rounding)
        return rounding


@contextmanager
def rounding_to(dtype: Any, seed: int) -> Iterator[None]:
    """Within this block, plain rules on `Rounded` arrays of float64 have the rounding errors of `dtype`."""
    Rounded.unit, Rounded.rng = float(ml_dtypes.finfo(dtype).eps) / 2, np.random.default_rng(seed)
    with mock.patch.object(backend, "namespace_of", return_value=_RoundingNamespace(np)):
        yield
