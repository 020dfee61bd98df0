"""Models, made of `tinyvit.nn`."""

from .encoder_decoder import EncoderDecoder
from .generate import beam_search, greedy, sample
from .text import TextDecoder, TextEmbedding, TextEncoder
from .vit import ViT

__all__ = [
    "EncoderDecoder", "TextDecoder", "TextEmbedding", "TextEncoder", "ViT", "beam_search", "greedy", "sample",
]  # fmt: skip
