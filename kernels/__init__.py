"""Fused kernels, installed and imported as `tinyvit.kernels`: the registry, one folder for each operation, and the
functions below, which call a kernel directly, on arrays, without the tape.

`implementation` is "auto" (the first of the registry that can serve, else the plain rule), "numpy" (the plain rule), or
a technology, perhaps with a version: "numba", "numba:v1". RuntimeError says why one cannot serve.
"""

from .direct import (
    attention_backward,
    attention_forward,
    attention_weights,
    layer_norm_backward,
    layer_norm_forward,
)

__all__ = [
    "attention_backward",
    "attention_forward",
    "attention_weights",
    "layer_norm_backward",
    "layer_norm_forward",
]
