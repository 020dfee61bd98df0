"""Images to texts: a ViT reads, a Transformer decoder writes."""

from typing import Any

from ..functional.tensors import Tensor
from ..nn import Module
from ..nn.attention import select_rows
from .text import TextDecoder
from .vit import ViT


class Captioner(Module):
    """Images and the token ids of their captions so far (B, N) -> logits of the next tokens (B, N, vocabulary).

    `vision` and `decoder` may be any that fit: features (B, S, dim), and a decoder with that `context_dim`.
    """

    def __init__(self, vision: ViT, decoder: TextDecoder) -> None:
        self.vision, self.decoder = vision, decoder

    def encode(self, images: Any, image_of: Any = None) -> tuple[Tensor, None]:
        """Return what the decoder attends to: the features of all tokens of the images (B, S, dim).

        Where several captions are about one image, `image_of` (B,) says which of the images each is about.
        """
        return select_rows(self.vision.features(images), image_of), None

    def forward(self, images: Any, ids: Any, image_of: Any = None) -> Tensor:
        return self.decoder(ids, *self.encode(images, image_of))
