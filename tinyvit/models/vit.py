"""The Vision Transformer (Dosovitskiy et al., An image is worth 16x16 words, 2021)."""

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor
from ..nn import (
    Block,
    Dropout,
    Identity,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    PatchEmbed,
    init,
    initialize_linear,
)
from ..nn.patches import Sizes, sincos1d, sincos2d
from ..nn.transformer import apply_blocks

EPS = 1e-6  # of every layer norm, as in timm
POOLS = ("cls", "mean", "first")
POSITIONS = ("learned", "sincos1d", "sincos2d", "none")


class ViT(Module):
    """Images to class logits: (B, in_channels, H, W) -> (B, num_classes).

    Parameter names and shapes are those of timm's `vision_transformer`, so `state_dict` exchanges with it.

    Parameters
    ----------
    image_size, patch_size : int or (height, width)
        Three numbers, (frames, height, width), for videos (B, T, in_channels, H, W).
    num_classes : 0 for no head: the model then returns the pooled features (B, dim).
    dim, depth, heads, mlp_dim : width, number of blocks, attention heads, width of the MLP (4 x dim by default).
    pool : {"cls", "mean", "first"}
        Read the class from a class token, the mean of the patches (then `fc_norm`), or the first patch.
    norm : {"pre", "post"}
        Layer norm before each branch and once at the end, or after each residual sum.
    pos_embed : {"learned", "sincos1d", "sincos2d", "none"}
        sincos1d counts all tokens in order, the class token first; sincos2d counts rows and columns of patches, and
        leaves the other tokens without a position.
    dropout : on attention probabilities, projection and MLP.  emb_dropout : on the embedded tokens.
    drop_path : rate of the last block; it grows linearly from 0.
    layer_scale : initial factor of each residual branch, or None for none.
    register_tokens : extra tokens that no class is read from (Darcet et al., 2024).
    stem : {"linear", "conv"}, see `PatchEmbed`.
    """

    def __init__(
        self,
        image_size: int | Sizes,
        patch_size: int | Sizes,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        in_channels: int = 3,
        pool: str = "cls",
        norm: str = "pre",
        pos_embed: str = "learned",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        register_tokens: int = 0,
        stem: str = "linear",
    ) -> None:
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
        if pos_embed not in POSITIONS:
            raise ValueError(f"pos_embed is {pos_embed!r}; it must be one of {', '.join(POSITIONS)}")
        init.check_sizes("ViT", dim=dim, heads=heads, in_channels=in_channels)
        init.check_sizes("ViT", 0, num_classes=num_classes, depth=depth, register_tokens=register_tokens)
        self.pool = pool
        self.cls_token = Parameter(init.trunc_normal((1, 1, dim), 1e-6)) if pool == "cls" else None
        self.reg_token = Parameter(init.trunc_normal((1, register_tokens, dim), 1e-6)) if register_tokens else None
        self.prefix = (pool == "cls") + register_tokens
        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, dim, stem)
        self.pos_embed = self._positions(pos_embed, dim)
        self.pos_drop = Dropout(emb_dropout)
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = ModuleList(
            Block(dim, heads, mlp_dim, norm, qkv_bias, dropout, rate, layer_scale, EPS) for rate in rates
        )
        self.norm = LayerNorm(dim, EPS) if norm == "pre" and pool != "mean" else Identity()
        self.fc_norm = LayerNorm(dim, EPS) if pool == "mean" else Identity()
        self.head = Linear(dim, num_classes) if num_classes else Identity()
        initialize_linear(self)

    def _positions(self, kind: str, dim: int) -> Parameter | Tensor | None:
        """What is added to the tokens, (1, N, dim): a parameter, a constant, or nothing."""
        grid = self.patch_embed.grid
        tokens = self.prefix + math.prod(grid)
        if kind == "none":
            return None
        if kind == "learned":
            return Parameter(init.trunc_normal((1, tokens, dim)))
        if kind == "sincos1d":
            return Tensor(sincos1d(tokens, dim)[None])
        return Tensor(np.concatenate([np.zeros((self.prefix, dim), np.float32), sincos2d(grid, dim)])[None])

    def embed(self, images: Any) -> Tensor:
        """Tokens with their positions, class token and registers first: (B, C, H, W) -> (B, N, dim)."""
        x = self.patch_embed(self.as_input(images))
        prefix = [
            t.broadcast_to(x.shape[0], t.shape[1], t.shape[2])
            for t in (self.cls_token, self.reg_token)
            if t is not None
        ]
        x = F.concatenate([*prefix, x], axis=1) if prefix else x
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return self.pos_drop(x)

    def features(self, images: Any) -> Tensor:
        """The tokens after the last block and the final norm (if the form has one): (B, N, dim)."""
        return self.encode(self.embed(images))

    def encode(self, tokens: Tensor, read: int | None = None) -> Tensor:
        """Do the same for embedded tokens (B, N, dim), or some of them; with `read`, only for that token: (B, dim)."""
        return self.norm(apply_blocks(self.blocks, tokens, read=read))

    def forward(self, images: Any) -> Tensor:
        x = self.embed(images)
        if self.pool == "mean":
            x = self.encode(x)
            x = (x[:, self.prefix :] if self.prefix else x).mean(axis=1)
        else:
            x = self.encode(x, read=0 if self.pool == "cls" else self.prefix)
        return self.head(self.fc_norm(x))
