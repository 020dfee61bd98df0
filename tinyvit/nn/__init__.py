"""Layers and the modules that hold them.

Order: module, containers, init, layers, patches, transformer.
"""

from . import init
from .containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from .layers import (
    GELU,
    Conv2d,
    Dropout,
    DropPath,
    Embedding,
    Identity,
    LayerNorm,
    LayerScale,
    Linear,
    MaxPool2d,
    ReLU,
    initialize_conv,
    initialize_linear,
)
from .module import LoadResult, Module, Parameter
from .patches import PatchEmbed, PatchProjection
from .transformer import (
    Attention,
    Block,
    CrossAttention,
    DecoderBlock,
    KeyValueCache,
    Mlp,
    TransformerDecoder,
    TransformerEncoder,
    keep_attention,
)

__all__ = [
    "GELU",
    "Attention",
    "Block",
    "Conv2d",
    "CrossAttention",
    "DecoderBlock",
    "DropPath",
    "Dropout",
    "Embedding",
    "Identity",
    "KeyValueCache",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "LoadResult",
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
    "ReLU",
    "Sequential",
    "TransformerDecoder",
    "TransformerEncoder",
    "init",
    "initialize_conv",
    "initialize_linear",
    "keep_attention",
]
