"""Images and texts in one space, in which matching pairs are close to each other (Radford et al., CLIP, 2021)."""

from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor
from ..nn import Linear, Module, Parameter, init
from .text import TextEncoder
from .vit import ViT

LARGEST_SCALE = 100.0  # of the cosines, as published


class TwoTowers(Module):
    """A tower for images and one for texts: each to rows of unit length, (B, embedding_dim).

    The features of all tokens of an image, a class token and registers among them, are averaged; a text is read at its
    first token. `logit_scale` is the logarithm of the learned factor of the cosines, 1 / 0.07 at first.
    """

    def __init__(self, vision: ViT, text: TextEncoder, dim: int, embedding_dim: int | None = None) -> None:
        init.check_sizes("TwoTowers", dim=dim)
        init.check_optional_sizes("TwoTowers", embedding_dim=embedding_dim)
        self.vision, self.text = vision, text
        self.image_proj = Linear(dim, embedding_dim or dim, bias=False)
        self.text_proj = Linear(dim, embedding_dim or dim, bias=False)
        self.logit_scale = Parameter(np.full((), np.log(1 / 0.07), np.float32))

    def encode_images(self, images: Any) -> Tensor:
        """Return vectors of length 1 for images: (B, C, H, W) -> (B, embedding_dim)."""
        return _unit(self.image_proj(self.vision.features(images).mean(axis=1)))

    def encode_texts(self, ids: Any) -> Tensor:
        """Return vectors of length 1 for texts: token ids (B, N) -> (B, embedding_dim)."""
        return _unit(self.text_proj(self.text(ids, read=0)))

    def forward(self, images: Any, ids: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Images and texts as rows of unit length, and the factor of their cosines."""
        scale = F.minimum(F.exp(self.logit_scale), LARGEST_SCALE)
        return self.encode_images(images), self.encode_texts(ids), scale


def _unit(x: Tensor) -> Tensor:
    return x / F.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-12)
