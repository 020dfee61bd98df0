"""layer_norm and add_layer_norm as the registry calls them, made from the two functions that each technology has."""

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def operations(normalize: Function, normalize_backward: Function) -> tuple[Function, Function, Function, Function]:
    """Return forward and backward of layer_norm, then those of add_layer_norm.

    Parameters
    ----------
    normalize : (x, residual, weight, bias, eps, version, **rest) -> sum, y, mean, rstd
        residual (..., C) may be None; then the sum is x itself.
    normalize_backward : (dy, dsum, x, weight, mean, rstd, version, branch_dtype=None) -> dx, dweight, dbias, dbranch
        dsum (..., C), the gradient that dx is added to, may be None. dbranch is dx in `branch_dtype`; it is left out if
        that is None.
    """

    def forward(x, weight, bias, *, eps=1e-5, version, **rest):
        """Return y, mean, rstd."""
        return normalize(x, None, weight, bias, eps, version, **rest)[1:]

    def backward(dy, x, weight, mean, rstd, *, eps=1e-5, needs, version, **rest):
        """Return dx, dweight, dbias."""
        return normalize_backward(dy, None, x, weight, mean, rstd, version)

    def add_forward(x, residual, weight, bias, *, eps=1e-5, version, **rest):
        """Return sum, y, mean, rstd, and the dtype of residual."""
        return *normalize(x, residual, weight, bias, eps, version, **rest), residual.dtype

    def add_backward(dsum, dy, sum, weight, mean, rstd, branch_dtype, *, eps=1e-5, needs, version, **rest):
        """Return dx, dresidual, dweight, dbias; dsum or dy is None if that output was not used."""
        if dy is None:
            return dsum, dsum.astype(branch_dtype, copy=False), np.zeros_like(weight), np.zeros_like(weight)
        dx, dweight, dbias, dbranch = normalize_backward(dy, dsum, sum, weight, mean, rstd, version, branch_dtype)
        return dx, dbranch, dweight, dbias

    return forward, backward, add_forward, add_backward
