"""Multi-head attention: of tokens to each other, and to a context.

B batch, N tokens, S tokens of a context, H heads, D head size, C channels. With `read`, the result is that of one token
only, (B, C) instead of (B, N, C).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor, attention_weights, check_flags, constant, other_keys
from . import init
from .layers import Dropout, Identity, Linear, normalization
from .module import Module, Parameter


class KeyValueCache:
    """Keys and values (B, H, S, D) of the tokens so far, so that a new token computes only its own key and value.

    `parts` is (k, v), or None before the first token.
    """

    def __init__(self) -> None:
        self.parts: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return those of all."""
        if self.parts is not None:
            k, v = (F.concatenate([old, new], axis=2) for old, new in zip(self.parts, (k, v), strict=True))
        self.parts = k, v
        return k, v

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows of the batch, in this order; a row may be taken more than once."""
        if self.parts is not None:
            k, v = self.parts
            self.parts = k[rows], v[rows]


class _MultiHead(Module):
    """The steps that self-attention and cross-attention share."""

    kept: tuple[list[np.ndarray], ...] = ()  # where blocks of `keep_attention` collect the weights
    proj: Module
    proj_drop: Module

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        init.check_sizes(type(self).__name__, dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"dim is {dim} and heads {heads}; dim must be a multiple of heads")
        self.heads, self.dropout = heads, dropout

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any, is_causal: bool = False, read: int | None = None
    ) -> Tensor:
        """Attend with q (B, H, N, D) to k and v (B, H, S, D), then project: (B, N, C), or (B, C) of one token."""
        dropout_p = self.dropout if self.training else 0.0
        if self.kept:
            weights = attention_weights(q, k, attn_mask, is_causal, dropout_p)
            for maps in self.kept:
                maps.append(weights)
        x = F.merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal))
        return self.proj_drop(self.proj(of_token(x, read)))


class Attention(_MultiHead):
    """Multi-head self-attention: (B, N, C) -> (B, N, C). `qkv` is one linear map with rows q, k, v, head-major.

    With a cache, x is the tokens that follow those of earlier calls; a mask then covers all keys so far, and with
    `is_causal` each of them sees all earlier tokens, those of the cache too.

    Parameters
    ----------
    qk_norm : normalize queries and keys in each head before they are multiplied (Henry et al., Query-key normalization
        for transformers, 2020; with a layer norm, as here: Dehghani et al., Scaling vision transformers to 22 billion
        parameters, 2023).
    norm_layer : the kind of that normalization, see `normalization`.
    lsa : locality self-attention: no token attends to itself, and the scores of each head are divided by a learned
        `temperature` (H,), at first sqrt(D) (Lee et al., Vision transformer for small-size datasets, 2021, equation 5).
    rope : a module that is applied to queries and keys (B, H, N, D), such as `RotaryPositions`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: bool = False,
        proj_bias: bool = True,
        eps: float = 1e-5,
        *,
        norm_layer: str = "layernorm",
        lsa: bool = False,
        rope: Module | None = None,
    ) -> None:
        check_flags("Attention", qkv_bias=qkv_bias, qk_norm=qk_norm, proj_bias=proj_bias, lsa=lsa)
        super().__init__(dim, heads, dropout)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = normalization(norm_layer, dim // heads, eps) if qk_norm else Identity()
        self.k_norm = normalization(norm_layer, dim // heads, eps) if qk_norm else Identity()
        self.temperature = Parameter(np.full(heads, math.sqrt(dim // heads), np.float32)) if lsa else None
        self.rope = rope or Identity()
        self.proj = Linear(dim, dim, bias=proj_bias)
        self.proj_drop = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        attn_mask: Any = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
        read: int | None = None,
    ) -> Tensor:
        q, k, v = F.split_heads(self.qkv(x), self.heads, 3)
        q, k = self.rope(self.q_norm(q)), self.rope(self.k_norm(k))
        if cache is not None:
            check_flags("attention", is_causal=is_causal)  # before the cache grows
            k, v = cache.extend(k, v)
            is_causal = is_causal and x.shape[1] > 1  # one new token sees all tokens
            if is_causal:  # the new tokens' rows of the causal mask of all tokens
                seen = np.tri(x.shape[1], k.shape[2], k.shape[2] - x.shape[1], dtype=bool)
                attn_mask, is_causal = _restricted(attn_mask, seen, q.dtype), False
        if self.temperature is not None:
            q = q * (math.sqrt(q.shape[3]) / self.temperature).reshape(-1, 1, 1)  # scores are divided by sqrt(D) later
            attn_mask = _restricted(attn_mask, other_keys(q, k), q.dtype)
        return self.attend(q, k, v, attn_mask, is_causal, read)


class CrossAttention(_MultiHead):
    """Multi-head attention of x (B, N, C) onto a context (B, S, context_dim) -> (B, N, C).

    `context_of` (B,) says which row of the context each row of x attends to; by default row i attends to row i. A
    context is projected once for all rows that attend to it, and with a cache at the first call only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        check_flags("CrossAttention", qkv_bias=qkv_bias)
        super().__init__(dim, heads, dropout)
        init.check_optional_sizes("CrossAttention", context_dim=context_dim)
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(context_dim or dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        attn_mask: Any = None,
        cache: KeyValueCache | None = None,
        context_of: Any = None,
        read: int | None = None,
    ) -> Tensor:
        (q,) = F.split_heads(self.q(x), self.heads, 1)
        if cache is None:
            k, v = self._keys_and_values(context, context_of)
        else:
            k, v = cache.parts or cache.extend(*self._keys_and_values(context, context_of))
        return self.attend(q, k, v, attn_mask, read=read)

    def _keys_and_values(self, context: Tensor, context_of: Any) -> tuple[Tensor, ...]:
        return F.split_heads(select_rows(self.kv(context), context_of), self.heads, 2)


def _restricted(attn_mask: Any, seen: np.ndarray, dtype: Any) -> Any:
    """Return a mask of either kind, or None, restricted to the keys that are `seen`. Lists and numbers take `dtype`."""
    if attn_mask is None:
        return seen
    values = constant(attn_mask, "attention: attn_mask")
    if values.dtype.kind in "iu":
        return attn_mask  # refused by the attention
    if values.dtype == bool:
        return attn_mask & seen
    is_array = isinstance(attn_mask, Tensor) or values is attn_mask
    return F.where(seen, attn_mask if is_array else values.astype(dtype), -np.inf)


def of_token(x: Tensor, read: int | None) -> Tensor:
    """Return the token `read` of x (B, N, C): (B, C); all of x if that is None."""
    return x if read is None else x[:, read]


def select_rows(x: Tensor, rows: Any) -> Tensor:
    """Return these rows of x (B,); all of x if that is None."""
    return x if rows is None else x[rows]


@contextmanager
def keep_attention(model: Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """Within this block, every attention layer of `model` keeps its weights.

    Yields a mapping from the names of the layers to lists of arrays (B, H, N, S), one for each call: the weights by
    which the values were multiplied, with masks, dropout and the rounding of `autocast`. A layer that has several names
    has the same list under each. Blocks may be nested.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _MultiHead)}
    lists: dict[int, list[np.ndarray]] = {id(layer): [] for layer in layers.values()}
    own = {id(layer): layer for layer in layers.values()}
    for number, layer in own.items():
        layer.kept = (*layer.kept, lists[number])
    try:
        yield {name: lists[id(layer)] for name, layer in layers.items()}
    finally:
        for number, layer in own.items():
            layer.kept = tuple(maps for maps in layer.kept if maps is not lists[number])
