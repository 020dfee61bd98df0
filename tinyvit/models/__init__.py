"""Models, made of `tinyvit.nn`.

Order: text, vit, captioner, clip, encoder_decoder, generate, masked, vqa.
"""

from .captioner import Captioner
from .clip import TwoTowers
from .encoder_decoder import EncoderDecoder
from .generate import beam_search, greedy, sample
from .masked import MaskedModel
from .text import TextDecoder, TextEmbedding, TextEncoder
from .vit import ViT
from .vqa import VQA, ConvEncoder, CrossFusion, JointFusion, ProductFusion

__all__ = [
    "VQA",
    "Captioner",
    "ConvEncoder",
    "CrossFusion",
    "EncoderDecoder",
    "JointFusion",
    "MaskedModel",
    "ProductFusion",
    "TextDecoder",
    "TextEmbedding",
    "TextEncoder",
    "TwoTowers",
    "ViT",
    "beam_search",
    "greedy",
    "sample",
]
