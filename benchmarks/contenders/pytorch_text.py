"""The models of images and texts of `tinyvit.models` in PyTorch, whose weights have the same names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cases import TextShape
from ..inputs import LAYER_NORM_EPS, MODEL_EPS, PAD
from .pytorch_vit import Attention, Block, Mlp, PatchEmbed


class Vision(nn.Module):
    """The features of all patches, (B, N, dim)."""

    def __init__(self, shape: TextShape, depth: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.patches, shape.dim))
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.Sequential(*(Block(shape.dim, shape.heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(shape.dim, MODEL_EPS)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed(images) + self.pos_embed))


class TextEmbedding(nn.Module):
    """Vectors of token ids, with sinusoidal positions."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.dim)
        place = torch.arange(shape.length)[:, None] / 10000.0 ** (torch.arange(0, shape.dim, 2) / shape.dim)
        positions = torch.stack([place.sin(), place.cos()], dim=-1).reshape(shape.length, shape.dim)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) * self.words.embedding_dim**0.5 + self.positions[: ids.shape[1]]


class Encoder(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape.dim, shape.heads, LAYER_NORM_EPS) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class JointFusion(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.norm_image, self.norm_text = nn.LayerNorm(shape.dim), nn.LayerNorm(shape.dim)
        self.kind_image, self.kind_text = (nn.Parameter(torch.zeros(shape.dim)) for _ in range(2))
        self.encoder = Encoder(shape)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        tokens = [self.norm_text(text) + self.kind_text, self.norm_image(image) + self.kind_image]
        visible = torch.cat([mask, mask.new_ones(len(mask), image.shape[1])], 1)[:, None, None]
        return self.encoder(torch.cat(tokens, 1), visible)[:, 0]


class VQA(nn.Module):
    """Answers to questions, by one Transformer over patches and tokens."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.vision, self.text, self.fusion = Vision(shape, 0), TextEmbedding(shape), JointFusion(shape)
        self.head = nn.Linear(shape.dim, shape.answers)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.head(self.fusion(self.vision(images), self.text(ids), ids != PAD))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(context).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class DecoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, LAYER_NORM_EPS) for _ in range(3))
        self.attn, self.cross, self.mlp = Attention(dim, heads), CrossAttention(dim, heads), Mlp(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), is_causal=True)
        x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class Decoder(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(shape.dim, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)


class TextDecoder(nn.Module):
    """Logits of the next tokens. The output projection shares its weight with the embedding."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.embedding, self.decoder = TextEmbedding(shape), Decoder(shape)

    def forward(self, ids: Tensor, context: Tensor) -> Tensor:
        return F.linear(self.decoder(self.embedding(ids), context), self.embedding.words.weight)


class Captioner(nn.Module):
    """Captions: a ViT reads the image, and a decoder writes the text."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.vision, self.decoder = Vision(shape, shape.depth), TextDecoder(shape)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.decoder(ids, self.vision(images))


def text_model(shape: TextShape) -> nn.Module:
    return VQA(shape) if shape.answers else Captioner(shape)
