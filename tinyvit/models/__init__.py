"""Models, made of `tinyvit.nn`.

Order: text, vit, rollout, captioner, clip, encoder_decoder, generate, masked, segmenter, detr, vqa.
"""

from collections.abc import Callable
from pathlib import Path

from .captioner import Captioner
from .clip import TwoTowers
from .detr import Detr, corners_of
from .encoder_decoder import EncoderDecoder
from .generate import beam_search, greedy, sample
from .masked import MaskedModel
from .rollout import attention_rollout
from .segmenter import LinearHead, QueryHead, Segmenter
from .text import TextDecoder, TextEmbedding, TextEncoder
from .vit import ViT
from .vqa import VQA, ConvEncoder, CrossFusion, JointFusion, ProductFusion

# The package adds these two, from `tinyvit.interop`, which stands above this one.
from_pretrained: Callable[..., ViT]
save_pretrained: Callable[..., Path]

__all__ = [
    "VQA",
    "Captioner",
    "ConvEncoder",
    "CrossFusion",
    "Detr",
    "EncoderDecoder",
    "JointFusion",
    "LinearHead",
    "MaskedModel",
    "ProductFusion",
    "QueryHead",
    "Segmenter",
    "TextDecoder",
    "TextEmbedding",
    "TextEncoder",
    "TwoTowers",
    "ViT",
    "attention_rollout",
    "beam_search",
    "corners_of",
    "greedy",
    "sample",
]
