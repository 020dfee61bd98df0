"""Fused kernels, installed and imported as `tinyvit.kernels`, and functions that call them directly, on arrays.

Their argument `implementation` is "auto" (the first kernel in the registry that can serve the call, else the plain
rule), "numpy" (the plain rule), or a technology, perhaps with a version: "numba", "numba:v1". If a technology cannot
serve the call, RuntimeError gives the reason.

Order: interrupts, cache, sums, cpu, cuda, adamw, clip, average, bias_gelu, gelu, cast, add_narrow, cross_entropy,
depthwise_conv, dropout, embedding, layer_norm, max_pool2d, narrow, patches, softmax, linear, attention, conv2d,
program, registry, lookup, direct, precompile.
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
