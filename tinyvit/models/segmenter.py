"""Segmentation: a class for every pixel, from the tokens of a ViT (Strudel et al., Segmenter, 2021)."""

import math
from typing import Any

from .. import functional as F
from ..functional.tensors import Tensor
from ..nn import Linear, Module, Parameter, PatchEmbed, TransformerDecoder, init
from .vit import ViT


class Segmenter(Module):
    """Images to logits of the class of every pixel: (B, C, H, W) -> (B, H, W, num_classes).

    `vision` may have a class token and registers, which are not read. `head` takes the features of the patches
    (B, N, dim): a `LinearHead` or a `QueryHead`.
    """

    def __init__(self, vision: ViT, head: Module) -> None:
        self.vision, self.head = vision, head

    def forward(self, images: Any) -> Tensor:
        return self.head(patch_features(self.vision, images))


def patch_features(vision: ViT, images: Any) -> Tensor:
    """Return the features of the patches of a ViT without a head, after its last norm, if any: (B, N, dim)."""
    features = vision.fc_norm(vision.features(images))
    return features[:, vision.prefix :] if vision.prefix else features


class ToPixels(Module):
    """One linear map for each patch, to `channels` values of each of its pixels: (B, N, dim) -> (B, H, W, channels).

    This is a pixel shuffle with the channels last.
    """

    def __init__(self, patches: PatchEmbed, dim: int, channels: int) -> None:
        init.check_sizes("ToPixels", dim=dim)
        self.grid, self.patch, self.channels = patches.grid, patches.patch_size, channels
        self.proj = Linear(dim, math.prod(self.patch) * channels)

    def forward(self, features: Tensor) -> Tensor:
        b, (h, w), (p, q), k = features.shape[0], self.grid, self.patch, self.channels
        pixels = self.proj(features).reshape(b, h, w, p, q, k).transpose(0, 1, 3, 2, 4, 5)
        return pixels.reshape(b, h * p, w * q, k)


class LinearHead(Module):
    """Logits by a linear map of each patch: (B, N, dim) -> (B, H, W, num_classes)."""

    def __init__(self, patches: PatchEmbed, dim: int, num_classes: int) -> None:
        init.check_sizes("LinearHead", num_classes=num_classes)
        self.to_pixels = ToPixels(patches, dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.to_pixels(features)


class QueryHead(Module):
    """A learned query for each class reads the patches, and is compared with every pixel.

    The queries go through `depth` decoder blocks, in which they see each other and attend to the patches. The logit of
    a class at a pixel is the product of its query and an embedding of the pixel, both of `width` numbers:
    (B, N, dim) -> (B, H, W, num_classes).
    """

    def __init__(
        self,
        patches: PatchEmbed,
        dim: int,
        num_classes: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        width: int = 16,
    ) -> None:
        init.check_sizes("QueryHead", num_classes=num_classes, dim=dim, width=width)
        self.queries = Parameter(init.trunc_normal((num_classes, dim)))
        self.decoder = TransformerDecoder(dim, depth, heads, mlp_dim, norm=norm, dropout=dropout, causal=False)
        self.to_mask = Linear(dim, width)
        self.to_pixels = ToPixels(patches, dim, width)

    def forward(self, features: Tensor) -> Tensor:
        queries = self.queries.broadcast_to(features.shape[0], *self.queries.shape)
        masks = self.to_mask(self.decoder(queries, features))  # (B, K, width)
        pixels = self.to_pixels(features)  # (B, H, W, width)
        b, h, w, width = pixels.shape
        logits = F.matmul(pixels.reshape(b, h * w, width), masks.swapaxes(1, 2)) * width**-0.5
        return logits.reshape(b, h, w, masks.shape[1])
