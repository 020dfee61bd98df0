"""Transformer blocks and stacks of them. B batch, N tokens, S tokens of a context, C channels.

A stack whose result is needed for one token only takes that token's number as `read`. It passes `read` to its last
block, which attends with all tokens and computes everything after the attention for that token alone: (B, C) instead
of (B, N, C).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..functional.tensors import Tensor, check_flags
from . import init
from .attention import Attention, CrossAttention, KeyValueCache, of_token
from .containers import ModuleList
from .layers import DropPath, Identity, LayerNorm, LayerScale, normalization
from .mlp import Mlp, new_mlp
from .module import Module

# Blocks -------------------------------------------------------------------------------------------------------------


def check_norm(norm: str) -> None:
    """Raise ValueError unless `norm` is a form of block that exists."""
    if norm not in ("pre", "post"):
        raise ValueError(f"norm is {norm!r}; it must be 'pre' or 'post'")


class Block(Module):
    """Self-attention and MLP, each with a residual sum: (B, N, C) -> (B, N, C), or (B, C) of the token `read`.

    norm="pre": x + f(norm(x)) (Dosovitskiy et al., 2021); norm="post": norm(x + f(x)) (Vaswani et al., 2017).
    `proj_bias` is the bias of all linear maps but `qkv`; `act` names the activation, see `tinyvit.nn.mlp.activation`.

    Parameters
    ----------
    norm_layer : {"layernorm", "rmsnorm"}, see `LayerNorm` and `RMSNorm`.
    mlp_layer : {"mlp", "local", "swiglu"}, see `Mlp`, `LocalMlp` and `SwiGLU`.
    grid, prefix : of `LocalMlp`, which cannot compute the token `read` alone: such a block computes all.
    qk_norm, lsa, rope : see `Attention`.
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
        qk_norm: bool = False,
        proj_bias: bool = True,
        act: str = "gelu",
        *,
        norm_layer: str = "layernorm",
        mlp_layer: str = "mlp",
        lsa: bool = False,
        rope: Module | None = None,
        grid: tuple[int, ...] = (),
        prefix: int = 0,
    ) -> None:
        check_norm(norm)
        init.check_optional_sizes("Block", mlp_dim=mlp_dim)
        self.post = norm == "post"
        narrow = not self.post  # then only linear maps read what a layer norm gives
        self.norm1 = normalization(norm_layer, dim, eps, narrow)
        self.attn = Attention(
            dim, heads, qkv_bias, dropout, qk_norm, proj_bias, eps, norm_layer=norm_layer, lsa=lsa, rope=rope
        )
        self.ls1 = Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = normalization(norm_layer, dim, eps, narrow)
        self.mlp = new_mlp(mlp_layer, dim, mlp_dim, dropout, proj_bias, act, grid, prefix)
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
        check_flags("DecoderBlock", causal=causal)
        init.check_optional_sizes("DecoderBlock", mlp_dim=mlp_dim)
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
        init.check_sizes("TransformerEncoder", 0, depth=depth)
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
        init.check_sizes("TransformerDecoder", 0, depth=depth)
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
