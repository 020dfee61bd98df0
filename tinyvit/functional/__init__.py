"""Every differentiable operation, as functions of tensors: `import tinyvit.functional as F`.

One file for each family; one class for each operation, with its formula, forward, backward and samples. This module is
itself the namespace in which gradient rules run when their result must be differentiable too.
"""

import sys

from .. import engine
from ..dispatch import PlainKernel
from ..kernels.registry import PLAIN
from . import methods, special  # noqa: F401  (operators of Tensor; erf for the array namespaces)
from .activation import bias_gelu, gelu, log_softmax, relu, silu, softmax
from .attention import join_heads, merge_heads, scaled_dot_product_attention, split_heads
from .boxes import generalized_iou
from .constants import ones_like, sign, stop_gradient, zeros, zeros_like
from .conversion import autocast_inputs, cast, to_device  # noqa: F401  (the engine calls autocast_inputs)
from .convolution import avg_pool2d, col2im, conv2d, im2col, max_pool2d
from .depthwise import depthwise_conv
from .elementwise import abs, add, divide, multiply, negative, power, subtract
from .indexing import add_rows, embedding, index, index_add, index_put, take, take_rows
from .linalg import einsum, linear, matmul
from .loss import binary_cross_entropy_with_logits, contrastive_loss, cross_entropy, mse_loss
from .normalization import add_layer_norm, layer_norm, rms_norm
from .patches import patches
from .random import dropout, dropout_mask
from .reduction import broadcast_to, cumsum, logsumexp, max, mean, min, sum, sum_to_shape, var
from .resizing import interpolate, pixel_shuffle
from .selection import clip, maximum, minimum, where
from .shape import concatenate, flip, pad, reshape, split, stack, swapaxes, transpose, unbind
from .smooth import erf, exp, log, sigmoid, sqrt, tanh

__all__ = [
    "abs",
    "add",
    "add_layer_norm",
    "add_rows",
    "avg_pool2d",
    "bias_gelu",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "cast",
    "clip",
    "col2im",
    "concatenate",
    "contrastive_loss",
    "conv2d",
    "cross_entropy",
    "cumsum",
    "depthwise_conv",
    "divide",
    "dropout",
    "dropout_mask",
    "einsum",
    "embedding",
    "erf",
    "exp",
    "flip",
    "gelu",
    "generalized_iou",
    "im2col",
    "index",
    "index_add",
    "index_put",
    "interpolate",
    "join_heads",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "merge_heads",
    "min",
    "minimum",
    "mse_loss",
    "multiply",
    "negative",
    "ones_like",
    "pad",
    "patches",
    "pixel_shuffle",
    "power",
    "relu",
    "reshape",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "sign",
    "silu",
    "softmax",
    "split",
    "split_heads",
    "sqrt",
    "stack",
    "stop_gradient",
    "subtract",
    "sum",
    "sum_to_shape",
    "swapaxes",
    "take",
    "take_rows",
    "tanh",
    "to_device",
    "transpose",
    "unbind",
    "var",
    "where",
    "zeros",
    "zeros_like",
]

engine.op.tensor_namespace = sys.modules[__name__]
PLAIN.update({op.kernel: PlainKernel(op) for op in engine.Op.registry.values() if op.kernel})
