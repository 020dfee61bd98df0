"""The ViT of `tinyvit.models` in PyTorch, whose weights have the same names (those of timm)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cases import ModelShape, TextShape
from ..inputs import MODEL_EPS


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden or 4 * dim)
        self.fc2 = nn.Linear(hidden or 4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float = MODEL_EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches through a reshape and one matrix product, which equals the convolution whose weights are kept here."""

    def __init__(self, shape: ModelShape | TextShape) -> None:
        super().__init__()
        self.patch = shape.patch
        self.proj = nn.Conv2d(shape.channels, shape.dim, shape.patch, shape.patch)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(patches(images, self.patch), self.proj.weight.flatten(1), self.proj.bias)


class ViT(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.N, shape.dim))
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.Sequential(*(Block(shape.dim, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.dim, MODEL_EPS)
        self.head = nn.Linear(shape.dim, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))


def patches(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, C P P), row by row."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (h // patch) * (w // patch), c * patch * patch)
