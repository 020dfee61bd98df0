"""Questions about images, three ways behind one interface.

A model is a vision module, a text module and a fusion module; any may be replaced by another of its kind, or frozen
with `requires_grad_(False)`:

- vision has `features`: images -> (B, S, dim). `ConvEncoder`, or a `ViT` (with depth 0: nothing but patches);
- text: token ids (B, N), the first of them `<cls>` -> (B, N, dim). `TextEncoder`, or a `TextEmbedding`;
- fusion: both, the mask of the padding, and which of the images each question is about (None: each has its own)
  -> (B, dim). `ProductFusion`, `CrossFusion` or `JointFusion`.
"""

from typing import Any, Protocol

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor, as_pair, is_sequence, on_device_of
from ..nn import (
    Conv2d,
    LayerNorm,
    Linear,
    MaxPool2d,
    Mlp,
    Module,
    ReLU,
    Sequential,
    TransformerDecoder,
    TransformerEncoder,
    init,
    initialize_conv,
)
from ..nn.attention import select_rows
from .text import padding_mask


class Vision(Protocol):
    """A module that computes features of images."""

    def features(self, images: Any) -> Tensor: ...


class VQA(Module):
    """Images (B, C, H, W) and questions (B, N) -> logits of the answers (B, num_answers).

    Where several questions are about one image, `image_of` (B,) says which of the images each is about: an image is
    looked at once, however much is asked.
    """

    def __init__(self, vision: Vision, text: Module, fusion: Module, dim: int, num_answers: int) -> None:
        init.check_sizes("VQA", dim=dim, num_answers=num_answers)
        self.vision, self.text, self.fusion = vision, text, fusion
        self.head = Linear(dim, num_answers)

    def forward(self, images: Any, questions: Any, image_of: Any = None) -> Tensor:
        features = self.vision.features(images)
        return self.head(self.fusion(features, self.text(questions), padding_mask(questions), image_of))


class ConvEncoder(Module):
    """Convolutions and pooling: images (B, in_channels, H, W) -> one token (B, 1, dim).

    A 7 x 7 convolution of stride 2, ReLU and 3 x 3 pooling of stride 2; then twice a 3 x 3 convolution, ReLU and 2 x 2
    pooling; all that is left of the image is flattened, and projected.
    """

    def __init__(self, image_size: tuple[int, int], in_channels: int, dim: int, channels: int = 16) -> None:
        init.check_sizes("ConvEncoder", in_channels=in_channels, dim=dim, channels=channels)
        if not is_sequence(image_size) or any(n % 16 for n in as_pair("ConvEncoder", "image_size", image_size, 1)):
            raise ValueError(
                f"image_size is {image_size}; it must be (height, width), and both sides must be multiples of 16"
            )
        self.layers = Sequential(
            *(Conv2d(in_channels, channels, 7, stride=2, padding=3), ReLU(), MaxPool2d(3, stride=2, padding=1)),
            *(Conv2d(channels, 2 * channels, 3, padding=1), ReLU(), MaxPool2d(2)),
            *(Conv2d(2 * channels, 2 * channels, 3, padding=1), ReLU(), MaxPool2d(2)),
        )
        self.proj = Linear(2 * channels * image_size[0] * image_size[1] // 256, dim)
        initialize_conv(self)

    def features(self, images: Any) -> Tensor:
        """Return one vector for each image: (B, C, H, W) -> (B, 1, dim)."""
        x = self.layers(self.as_input(images))
        return F.relu(self.proj(x.reshape(x.shape[0], 1, -1)))


class ProductFusion(Module):
    """The means v and t of all tokens of image and text, side by side with their product: an MLP of [v, t, v * t]."""

    def __init__(self, dim: int) -> None:
        init.check_sizes("ProductFusion", dim=dim)
        self.fc, self.mlp = Linear(3 * dim, dim), Mlp(dim, 2 * dim)

    def forward(self, features: Tensor, text: Tensor, mask: Any, image_of: Any = None) -> Tensor:
        weights = (mask / mask.sum(axis=-1, keepdims=True)).reshape(*text.shape[:2], 1).astype(text.dtype)
        v, t = select_rows(features.mean(axis=1), image_of), (text * on_device_of(weights, text)).sum(axis=1)
        return self.mlp(F.relu(self.fc(F.concatenate([v, t, v * t], axis=-1))))


class CrossFusion(Module):
    """Tokens of the text attend to one another and to the image, in `depth` blocks; the result is that of `<cls>`."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int | None = None, dropout: float = 0.0) -> None:
        self.decoder = TransformerDecoder(dim, depth, heads, mlp_dim, dropout=dropout, causal=False)

    def forward(self, features: Tensor, text: Tensor, mask: Any, image_of: Any = None) -> Tensor:
        return self.decoder(text, features, mask, context_of=image_of, read=0)


class JointFusion(Module):
    """Tokens of image and text go through one Transformer; the result is that of `<cls>`, the text's first token.

    Each kind of token has a learned vector added, after a layer norm of its own.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int | None = None, dropout: float = 0.0) -> None:
        self.norm_image, self.norm_text = LayerNorm(dim), LayerNorm(dim)
        self.kind_image, self.kind_text = init.zeros(dim), init.zeros(dim)
        self.encoder = TransformerEncoder(dim, depth, heads, mlp_dim, dropout=dropout)

    def forward(self, features: Tensor, text: Tensor, mask: Any, image_of: Any = None) -> Tensor:
        image = select_rows(self.norm_image(features) + self.kind_image, image_of)
        tokens = F.concatenate([self.norm_text(text) + self.kind_text, image], axis=1)
        patches = np.ones_like(mask, shape=(*mask.shape[:3], image.shape[1]))  # all of them are visible
        return self.encoder(tokens, np.concatenate([mask, patches], axis=-1), read=0)
