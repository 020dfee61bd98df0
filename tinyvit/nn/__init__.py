"""Layers and the modules that hold them.

Order: module, containers, init, layers, rotary, attention, lora, mlp, patches, resample, transformer.
"""

from . import init
from .attention import Attention, CrossAttention, KeyValueCache, keep_attention
from .containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from .layers import (
    GELU,
    Conv2d,
    DepthwiseConv,
    Dropout,
    DropPath,
    Embedding,
    Identity,
    LayerNorm,
    LayerScale,
    Linear,
    MaxPool2d,
    ReLU,
    RMSNorm,
    initialize_conv,
    initialize_linear,
)
from .lora import LoRALinear, add_lora, merge_lora
from .mlp import LocalMlp, Mlp, QuickGELU, SiLU, SwiGLU
from .module import LoadResult, Module, Parameter
from .patches import PatchEmbed, PatchProjection
from .rotary import RotaryPositions
from .transformer import Block, DecoderBlock, TransformerDecoder, TransformerEncoder

__all__ = [
    "GELU",
    "Attention",
    "Block",
    "Conv2d",
    "CrossAttention",
    "DecoderBlock",
    "DepthwiseConv",
    "DropPath",
    "Dropout",
    "Embedding",
    "Identity",
    "KeyValueCache",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "LoRALinear",
    "LoadResult",
    "LocalMlp",
    "MaxPool2d",
    "Mlp",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "PatchEmbed",
    "PatchProjection",
    "QuickGELU",
    "RMSNorm",
    "ReLU",
    "RotaryPositions",
    "Sequential",
    "SiLU",
    "SwiGLU",
    "TransformerDecoder",
    "TransformerEncoder",
    "add_lora",
    "init",
    "initialize_conv",
    "initialize_linear",
    "keep_attention",
    "merge_lora",
]
