"""Transformer blocks and stacks of them. B batch, N tokens, S tokens of a context, H heads, D head size, C channels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import NUMPY
from ..engine import Tensor
from ..functional.attention import attention_probabilities
from ..functional.elementwise import constant
from .layers import Dropout, DropPath, LayerNorm, LayerScale, Linear, Pending, applied
from .module import Module, ModuleList


class Branch(Module):
    """A branch beside the residual stream: `inner`, then a linear map and dropout, which `ends` names."""

    inner: Callable[..., Tensor]

    def ends(self) -> tuple[Linear, Dropout]:
        raise NotImplementedError(f"{type(self).__name__} defines no ends")

    def forward(self, *args: Any, **options: Any) -> Tensor:
        last, drop = self.ends()
        return drop(last(self.inner(*args, **options)))


def branch_of(module: Any, *args: Any, **options: Any) -> Tensor | Pending:
    """What a module adds to the stream; its last linear map is left to the layer norm that follows where that can be.

    It cannot where dropout comes after it, or where a forward was written anew.
    """
    if not runs(module, Branch):
        return module(*args, **options)
    last, drop = module.ends()
    if not runs(last, Linear) or not runs(drop, Dropout) or (drop.training and drop.p):
        return module(*args, **options)
    return Pending(module.inner(*args, **options), last)


def runs(module: Any, kind: type[Module]) -> bool:
    """Whether calling this, a module or not, runs the forward of the class `kind` and nothing else."""
    if not isinstance(module, Module) or type(module).__call__ is not Module.__call__:
        return False
    return getattr(module.forward, "__func__", None) is kind.forward


class Mlp(Branch):
    """Two linear maps with a GELU between them: (..., dim) -> (..., hidden_dim) -> (..., dim)."""

    def __init__(
        self, dim: int, hidden_dim: int | None = None, dropout: float = 0.0, approximate: str = "none"
    ) -> None:
        self.fc1 = Linear(dim, hidden_dim or 4 * dim)
        self.fc2 = Linear(hidden_dim or 4 * dim, dim)
        self.drop = Dropout(dropout)
        self.approximate = approximate

    def inner(self, x: Tensor) -> Tensor:
        assert self.fc1.bias is not None
        return self.drop(F.linear_gelu(x, self.fc1.weight, self.fc1.bias, self.approximate))

    def ends(self) -> tuple[Linear, Dropout]:
        return self.fc2, self.drop


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"dim is {dim} and heads {heads}; dim must be a multiple of heads")


class KeyValueCache:
    """Keys and values (B, H, S, D) of the tokens one attention layer has seen, so that new ones need only their own.

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


class Attention(Branch):
    """Multi-head self-attention: (B, N, C) -> (B, N, C). `qkv` is one linear map with rows q, k, v, head-major.

    With a cache, x is the tokens that follow those of earlier calls; a mask then covers all keys so far.
    """

    kept: list[np.ndarray] | None = None  # see `keep_attention`

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        _check_heads(dim, heads)
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(dropout)

    def ends(self) -> tuple[Linear, Dropout]:
        return self.proj, self.proj_drop

    def inner(
        self, x: Tensor, attn_mask: Any = None, is_causal: bool = False, cache: KeyValueCache | None = None
    ) -> Tensor:
        q, k, v = F.split_heads(self.qkv(x), self.heads, 3)
        if cache is not None:
            k, v = cache.extend(k, v)
            if is_causal:  # the mask of all tokens, its rows of the new ones
                seen = np.tri(x.shape[1], k.shape[2], k.shape[2] - x.shape[1], dtype=bool)
                attn_mask, is_causal = seen if attn_mask is None else attn_mask & seen, False
        return _attend(self, q, k, v, attn_mask, is_causal)


class CrossAttention(Branch):
    """Multi-head attention of x (B, N, C) onto a context (B, S, context_dim) -> (B, N, C).

    `context_of` (B,) says which row of the context each row of x looks at, its own by default: a context is projected
    once for all that look at it. With a cache, it is projected at the first call only.
    """

    kept: list[np.ndarray] | None = None  # see `keep_attention`

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        _check_heads(dim, heads)
        self.heads, self.dropout = heads, dropout
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(context_dim or dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(dropout)

    def ends(self) -> tuple[Linear, Dropout]:
        return self.proj, self.proj_drop

    def inner(
        self,
        x: Tensor,
        context: Tensor,
        attn_mask: Any = None,
        cache: KeyValueCache | None = None,
        context_of: Any = None,
    ) -> Tensor:
        (q,) = F.split_heads(self.q(x), self.heads, 1)
        if cache is None:
            k, v = self._keys_and_values(context, context_of)
        else:
            k, v = cache.parts or cache.extend(*self._keys_and_values(context, context_of))
        return _attend(self, q, k, v, attn_mask)

    def _keys_and_values(self, context: Tensor, context_of: Any) -> tuple[Tensor, ...]:
        return F.split_heads(of_each(self.kv(context), context_of), self.heads, 2)


def of_each(rows: Tensor, chosen: Any) -> Tensor:
    """The rows `chosen` (B,), or all as they are if that is None."""
    return rows if chosen is None else rows[chosen]


def _attend(
    layer: Attention | CrossAttention, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any, is_causal: bool = False
) -> Tensor:
    """What both kinds of attention do with queries, keys and values (B, H, N, D), up to their last map: (B, N, C)."""
    if layer.kept is not None:
        mask = None if attn_mask is None else constant(attn_mask)
        scale = q.shape[-1] ** -0.5
        layer.kept.append(attention_probabilities(NUMPY, q.numpy(), k.numpy(), None, mask, is_causal, scale))
    dropout_p = layer.dropout if layer.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)
    return F.merge_heads(out)


@contextmanager
def keep_attention(model: Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """Within this block, every attention layer of `model` keeps its weights.

    Yields a mapping from the names of the layers to lists of arrays (B, H, N, S), one for each call. Masks must be
    boolean; dropout is not in the weights.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Attention | CrossAttention)}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.kept = kept[name]
    try:
        yield kept
    finally:
        for layer in layers.values():
            layer.kept = None


class Residual(Module):
    """What all blocks share: a stream x, and branches whose sum with it is left to the layer norm that follows.

    A branch may be `Pending`; `joined(x, branch)` is the stream with it. `advance(x, branch, ...)` carries both through
    the block, so that a pre-norm stack computes every residual sum together with the next layer norm, across block
    borders too. `forward` does one block by itself.
    """

    advance: Callable[..., tuple[Tensor, Tensor | Pending | None]]

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return joined(*self.advance(x, None, *args, **options))


def joined(x: Tensor, branch: Tensor | Pending | None) -> Tensor:
    """The stream with its last branch added."""
    return x if branch is None else x + applied(branch)


def advance_all(blocks: Iterable[Any], x: Tensor, **options: Any) -> tuple[Tensor, Tensor | Pending | None]:
    """Carry x (B, N, C) through the blocks; the last branch is still to be added."""
    branch = None
    for block in blocks:
        x, branch = block.advance(x, branch, **options)
    return x, branch


class Block(Residual):
    """Self-attention and MLP, each with a residual sum: (B, N, C) -> (B, N, C).

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
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, heads, qkv_bias, dropout)
        self.ls1 = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, mlp_dim, dropout)
        self.ls2 = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def _scaled(self, branch: Tensor | Pending, scale: LayerScale | None) -> Tensor | Pending:
        if scale is None and runs(self.drop_path, DropPath) and not (self.training and self.drop_path.p):
            return branch
        y = applied(branch)
        return self.drop_path(y if scale is None else scale(y))

    def advance(
        self, x: Tensor, branch: Tensor | Pending | None, attn_mask: Any = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor | Pending | None]:
        if self.post:
            x = joined(x, branch)
            _, x = self.norm1.after_sum(x, self._scaled(branch_of(self.attn, x, attn_mask, is_causal), self.ls1))
            _, x = self.norm2.after_sum(x, self._scaled(branch_of(self.mlp, x), self.ls2))
            return x, None
        x, y = self.norm1.after_sum(x, branch, narrow=True)
        branch = self._scaled(branch_of(self.attn, y, attn_mask, is_causal), self.ls1)
        x, y = self.norm2.after_sum(x, branch, narrow=True)
        return x, self._scaled(branch_of(self.mlp, y), self.ls2)


def check_norm(norm: str) -> None:
    if norm not in ("pre", "post"):
        raise ValueError(f"norm is {norm!r}; it must be 'pre' or 'post'")


BlockCache = tuple[KeyValueCache, KeyValueCache] | tuple[None, None]


class DecoderBlock(Residual):
    """Causal self-attention, attention onto a context, and MLP: (B, N, C), (B, S, context_dim) -> (B, N, C).

    Without `causal`, tokens see those after them too. `cache` holds the keys and values of the tokens, and those of
    the context.
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
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, heads, dropout=dropout)
        self.norm2 = LayerNorm(dim, eps)
        self.cross = CrossAttention(dim, heads, context_dim, dropout=dropout)
        self.norm3 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, mlp_dim, dropout)

    def advance(
        self,
        x: Tensor,
        branch: Tensor | Pending | None,
        context: Tensor,
        attn_mask: Any = None,
        context_mask: Any = None,
        cache: BlockCache = (None, None),
        context_of: Any = None,
    ) -> tuple[Tensor, Tensor | Pending | None]:
        own, onto = cache
        if self.post:
            x = joined(x, branch)
            _, x = self.norm1.after_sum(x, branch_of(self.attn, x, attn_mask, self.causal, own))
            _, x = self.norm2.after_sum(x, branch_of(self.cross, x, context, context_mask, onto, context_of))
            _, x = self.norm3.after_sum(x, branch_of(self.mlp, x))
            return x, None
        x, y = self.norm1.after_sum(x, branch, narrow=True)
        x, y = self.norm2.after_sum(x, branch_of(self.attn, y, attn_mask, self.causal, own), narrow=True)
        x, y = self.norm3.after_sum(x, branch_of(self.cross, y, context, context_mask, onto, context_of), narrow=True)
        return x, branch_of(self.mlp, y)


class TransformerEncoder(Module):
    """A stack of `Block`s: (B, N, C) -> (B, N, C); a final layer norm follows pre-norm blocks."""

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
        self.norm = LayerNorm(dim, eps) if norm == "pre" else None

    def forward(self, x: Tensor, attn_mask: Any = None) -> Tensor:
        x, branch = advance_all(self.blocks, x, attn_mask=attn_mask)
        return joined(x, branch) if self.norm is None else self.norm.after_sum(x, branch)[1]


class TransformerDecoder(Module):
    """A stack of `DecoderBlock`s: (B, N, C), (B, S, context_dim) -> (B, N, C), token n seeing tokens up to n.

    Without `causal`, every token sees all. `context_of`: see `CrossAttention`.
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
        self.norm = LayerNorm(dim, eps) if norm == "pre" else None

    def new_caches(self) -> list[tuple[KeyValueCache, KeyValueCache]]:
        """What `forward` takes as `caches` to be called with a few tokens at a time."""
        return [(KeyValueCache(), KeyValueCache()) for _ in self.blocks]

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        attn_mask: Any = None,
        context_mask: Any = None,
        caches: Sequence[BlockCache] | None = None,
        context_of: Any = None,
    ) -> Tensor:
        branch = None
        pairs: Iterable[Any] = zip(self.blocks, caches or [(None, None)] * len(self.blocks), strict=True)
        for block, cache in pairs:
            x, branch = block.advance(x, branch, context, attn_mask, context_mask, cache, context_of)
        return joined(x, branch) if self.norm is None else self.norm.after_sum(x, branch)[1]
