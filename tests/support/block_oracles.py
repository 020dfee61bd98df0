"""Oracles of transformers: blocks by the formulas of their papers, made of the oracles of operations.

x is (B, N, C); `w` maps the names of a module's parameters to arrays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from oracles import Array, attention, each, gelu, layer_norm

Weights = dict[str, Array]


def part(w: Weights, name: str) -> Weights:
    """Select the weights of the submodule `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(f"{name}.")}


def linear(x: Array, w: Weights) -> Array:
    return x @ w["weight"].T + w.get("bias", 0.0)


def normalized(x: Array, w: Weights, eps: float) -> Array:
    return layer_norm(x, w["weight"], w["bias"], eps)


def mlp(x: Array, w: Weights) -> Array:
    return linear(each(gelu)(linear(x, part(w, "fc1"))), part(w, "fc2"))


def heads_attend(q: Array, k: Array, v: Array, heads: int, **options: Any) -> Array:
    """Compute attention head by head, each on its own columns of q (B, N, C), k and v (B, S, C)."""
    size = q.shape[-1] // heads
    outs = []
    for h in range(heads):
        one = [x[:, None, :, h * size : (h + 1) * size] for x in (q, k, v)]
        outs.append(attention(*one, scale=size**-0.5, **options)[:, 0])
    return np.concatenate(outs, axis=-1)


def self_attention(x: Array, w: Weights, heads: int, **options: Any) -> Array:
    q, k, v = np.split(linear(x, part(w, "qkv")), 3, axis=-1)
    return linear(heads_attend(q, k, v, heads, **options), part(w, "proj"))


def cross_attention(x: Array, context: Array, w: Weights, heads: int, **options: Any) -> Array:
    k, v = np.split(linear(context, part(w, "kv")), 2, axis=-1)
    return linear(heads_attend(linear(x, part(w, "q")), k, v, heads, **options), part(w, "proj"))


def residual(x: Array, branches: list[Callable[[Array], Array]], w: Weights, norm: str, eps: float) -> Array:
    """Apply the branches in turn: x + f(norm(x)) if `norm` is "pre", else norm(x + f(x))."""
    for i, f in enumerate(branches, start=1):
        scale = w.get(f"ls{i}.gamma", 1.0)
        if norm == "pre":
            x = x + scale * f(normalized(x, part(w, f"norm{i}"), eps))
        else:
            x = normalized(x + scale * f(x), part(w, f"norm{i}"), eps)
    return x


def block(x: Array, w: Weights, heads: int, norm: str = "pre", eps: float = 1e-5, **options: Any) -> Array:
    attn = lambda y: self_attention(y, part(w, "attn"), heads, **options)  # noqa: E731
    return residual(x, [attn, lambda y: mlp(y, part(w, "mlp"))], w, norm, eps)


def decoder_block(
    x: Array, context: Array, w: Weights, heads: int, norm: str, mask: Any = None, context_mask: Any = None
) -> Array:
    branches = [
        lambda y: self_attention(y, part(w, "attn"), heads, mask=mask, is_causal=True),
        lambda y: cross_attention(y, context, part(w, "cross"), heads, mask=context_mask),
        lambda y: mlp(y, part(w, "mlp")),
    ]
    return residual(x, branches, w, norm, 1e-5)


def stack(count: int, one: Callable[[Array, Weights], Array], x: Array, w: Weights, eps: float = 1e-5) -> Array:
    """Apply `count` blocks, then the final norm if the weights have one."""
    for i in range(count):
        x = one(x, part(w, f"blocks.{i}"))
    final = part(w, "norm")
    return normalized(x, final, eps) if final else x
