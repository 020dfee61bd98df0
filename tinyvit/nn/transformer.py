"""Transformer blocks and stacks of them. B batch, N tokens, S tokens of a context, H heads, D head size, C channels.

A stack whose result is needed for one token only takes that token's number as `read`. It passes `read` to its last
block, which attends with all tokens and computes everything after the attention for that token alone: (B, C) instead
of (B, N, C).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.attention import attention_weights
from ..functional.tensors import Tensor, constant
from .containers import ModuleList
from .layers import GELU, Dropout, DropPath, Identity, LayerNorm, LayerScale, Linear
from .module import Module


class Mlp(Module):
    """Two linear maps with a GELU between them: (..., dim) -> (..., hidden_dim) -> (..., dim)."""

    def __init__(
        self, dim: int, hidden_dim: int | None = None, dropout: float = 0.0, approximate: str = "none"
    ) -> None:
        self.fc1 = Linear(dim, hidden_dim or 4 * dim)
        self.act = GELU(approximate)
        self.fc2 = Linear(hidden_dim or 4 * dim, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


# Attention ----------------------------------------------------------------------------------------------------------


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
        if heads < 1 or dim % heads:
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

    With a cache, x is the tokens that follow those of earlier calls; a mask then covers all keys so far.
    """

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
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
        if cache is not None:
            k, v = cache.extend(k, v)
            if is_causal:  # the new tokens' rows of the causal mask of all tokens
                seen = np.tri(x.shape[1], k.shape[2], k.shape[2] - x.shape[1], dtype=bool)
                attn_mask, is_causal = _restricted(attn_mask, seen), False
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
        super().__init__(dim, heads, dropout)
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


def _restricted(attn_mask: Any, seen: np.ndarray) -> Any:
    """Return a mask of either kind, or None, restricted to the keys that are `seen`."""
    if attn_mask is None:
        return seen
    if constant(attn_mask).dtype == bool:
        return attn_mask & seen
    return F.where(seen, attn_mask, -np.inf)


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


# Blocks -------------------------------------------------------------------------------------------------------------


def check_norm(norm: str) -> None:
    """Raise ValueError unless `norm` is a form of block that exists."""
    if norm not in ("pre", "post"):
        raise ValueError(f"norm is {norm!r}; it must be 'pre' or 'post'")


class Block(Module):
    """Self-attention and MLP, each with a residual sum: (B, N, C) -> (B, N, C), or (B, C) of the token `read`.

    norm="pre": x + f(norm(x)) (Dosovitskiy et al., 2021); norm="post": norm(x + f(x)) (Vaswani et al., 2017).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "pre",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        check_norm(norm)
        self.post = norm == "post"
        narrow = not self.post  # then only linear maps read what a layer norm gives
        self.norm1 = LayerNorm(dim, eps, narrow)
        self.attn = Attention(dim, heads, qkv_bias, dropout)
        self.ls1 = Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = LayerNorm(dim, eps, narrow)
        self.mlp = Mlp(dim, mlp_dim, dropout)
        self.ls2 = Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False, read: int | None = None) -> Tensor:
        if self.post:
            y = self.drop_path(self.ls1(self.attn(x, attn_mask, is_causal, read=read)))
            x = self.norm1(of_token(x, read) + y)
            return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
        x = of_token(x, read) + self.drop_path(self.ls1(self.attn(self.norm1(x), attn_mask, is_causal, read=read)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


BlockCache = tuple[KeyValueCache, KeyValueCache] | tuple[None, None]


class DecoderBlock(Module):
    """Causal self-attention, attention onto a context, and MLP: (B, N, C), (B, S, context_dim) -> (B, N, C).

    Without `causal`, tokens see those after them too. `cache` holds the keys and values of the tokens, and those of
    the context. With `read`, the result is that token's alone, (B, C).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int | None = None,
        context_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        causal: bool = True,
    ) -> None:
        check_norm(norm)
        self.post, self.causal = norm == "post", causal
        narrow = not self.post
        self.norm1 = LayerNorm(dim, eps, narrow)
        self.attn = Attention(dim, heads, dropout=dropout)
        self.norm2 = LayerNorm(dim, eps, narrow)
        self.cross = CrossAttention(dim, heads, context_dim, dropout=dropout)
        self.norm3 = LayerNorm(dim, eps, narrow)
        self.mlp = Mlp(dim, mlp_dim, dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        attn_mask: Any = None,
        context_mask: Any = None,
        cache: BlockCache = (None, None),
        context_of: Any = None,
        read: int | None = None,
    ) -> Tensor:
        own, onto = cache
        if self.post:
            x = self.norm1(x + self.attn(x, attn_mask, self.causal, own))
            y = self.cross(x, context, context_mask, onto, context_of, read=read)
            x = self.norm2(of_token(x, read) + y)
            return self.norm3(x + self.mlp(x))
        x = x + self.attn(self.norm1(x), attn_mask, self.causal, own)
        y = self.cross(self.norm2(x), context, context_mask, onto, context_of, read=read)
        x = of_token(x, read) + y
        return x + self.mlp(self.norm3(x))


# Stacks -------------------------------------------------------------------------------------------------------------


def apply_blocks(
    blocks: Iterable[Module],
    x: Tensor,
    *args: Any,
    read: int | None = None,
    caches: Sequence[BlockCache] | None = None,
    **options: Any,
) -> Tensor:
    """Apply the blocks one after the other to x (B, N, C); with `read` the result is that token's alone, (B, C).

    Each block gets its cache, if there are any, and all the other arguments; only the last one gets `read`.
    """
    stack = list(blocks)
    for i, block in enumerate(stack):
        own: dict[str, Any] = {} if caches is None else {"cache": caches[i]}
        if read is not None and i == len(stack) - 1:
            own["read"] = read
        x = block(x, *args, **own, **options)
    return x if stack else of_token(x, read)


class TransformerEncoder(Module):
    """A stack of `Block`s: (B, N, C) -> (B, N, C), or (B, C) of the token `read`.

    A final layer norm follows pre-norm blocks.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        self.blocks = ModuleList(Block(dim, heads, mlp_dim, norm, dropout=dropout, eps=eps) for _ in range(depth))
        self.norm = LayerNorm(dim, eps) if norm == "pre" else Identity()

    def forward(self, x: Tensor, attn_mask: Any = None, read: int | None = None) -> Tensor:
        return self.norm(apply_blocks(self.blocks, x, attn_mask, read=read))


class TransformerDecoder(Module):
    """A stack of `DecoderBlock`s: (B, N, C), (B, S, context_dim) -> (B, N, C), token n seeing tokens up to n.

    Without `causal`, every token sees all. `context_of`: see `CrossAttention`. With `read`, the result is that token's
    alone, (B, C). A final layer norm follows pre-norm blocks.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        context_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        causal: bool = True,
    ) -> None:
        self.blocks = ModuleList(
            DecoderBlock(dim, heads, mlp_dim, context_dim, norm, dropout, eps, causal) for _ in range(depth)
        )
        self.norm = LayerNorm(dim, eps) if norm == "pre" else Identity()

    def new_caches(self) -> list[tuple[KeyValueCache, KeyValueCache]]:
        """Return empty caches, to be passed to every call of `forward` that gets a few more tokens."""
        return [(KeyValueCache(), KeyValueCache()) for _ in self.blocks]

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        attn_mask: Any = None,
        context_mask: Any = None,
        caches: Sequence[BlockCache] | None = None,
        context_of: Any = None,
        read: int | None = None,
    ) -> Tensor:
        options = {"context_mask": context_mask, "context_of": context_of}
        return self.norm(apply_blocks(self.blocks, x, context, attn_mask, read=read, caches=caches, **options))
