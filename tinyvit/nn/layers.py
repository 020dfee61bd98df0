"""Layers of one operation each. B batch, C channels, H x W pixels."""

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Pair, Tensor, as_pair, check_flags, check_probability, checked_eps
from . import init
from .module import Module, Parameter


class Linear(Module):
    """y = x W^T + b: (..., in_features) -> (..., out_features); weight (out, in), bias (out,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        check_flags("Linear", bias=bias)
        init.check_sizes("Linear", in_features=in_features, out_features=out_features)
        self.weight = Parameter(init.uniform_fan_in((out_features, in_features), in_features))
        self.bias = Parameter(init.uniform_fan_in((out_features,), in_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Identity(Module):
    """Return the input: stands where a model has no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def initialize_linear(module: Module, std: float = 0.02) -> None:
    """Every `Linear` below `module`: weights truncated normal, biases 0 (Dosovitskiy et al., 2021; timm)."""
    for m in module.modules():
        if isinstance(m, Linear):
            m.weight.assign(init.trunc_normal(m.weight.shape, std))
            if m.bias is not None:
                m.bias.assign(np.zeros(m.bias.shape, np.float32))


def initialize_conv(module: Module) -> None:
    """Every `Conv2d` below `module`: weights for a ReLU after them, biases 0 (He et al., 2015)."""
    for m in module.modules():
        if isinstance(m, Conv2d):
            m.weight.assign(init.he_normal(m.weight.shape, math.prod(m.weight.shape[1:])))
            if m.bias is not None:
                m.bias.assign(np.zeros(m.bias.shape, np.float32))


class LayerNorm(Module):
    """Layer normalization of the last axis: (..., dim) -> (..., dim).

    `narrow` says that only matrix products read the result: under `autocast` to bfloat16 it is then rounded in the
    same pass over memory, see `functional.layer_norm`.
    """

    def __init__(self, dim: int, eps: float = 1e-5, narrow: bool = False) -> None:
        check_flags("LayerNorm", narrow=narrow)
        init.check_sizes("LayerNorm", dim=dim)
        self.weight, self.bias, self.narrow = init.ones(dim), init.zeros(dim), narrow
        self.eps = checked_eps("LayerNorm: eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps, self.narrow)

    def describe(self) -> str:
        return f"{super().describe()}, eps={self.eps}"


class RMSNorm(Module):
    """Divide the last axis by its root mean square: (..., dim) -> (..., dim). A layer norm without mean and bias.

    (Zhang and Sennrich, Root mean square layer normalization, 2019.)
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        init.check_sizes("RMSNorm", dim=dim)
        self.weight, self.eps = init.ones(dim), checked_eps("RMSNorm: eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)

    def describe(self) -> str:
        return f"{super().describe()}, eps={self.eps}"


NORMS = ("layernorm", "rmsnorm")  # by the names of timm


def normalization(name: str, dim: int, eps: float = 1e-5, narrow: bool = False) -> LayerNorm | RMSNorm:
    """Return a new normalization of one of the `NORMS`. Raises ValueError for another name."""
    if name not in NORMS:
        raise ValueError(f"norm_layer is {name!r}; it must be one of {', '.join(NORMS)}")
    return LayerNorm(dim, eps, narrow) if name == "layernorm" else RMSNorm(dim, eps)


class Embedding(Module):
    """Rows of a table: integers (...) -> (..., dim); weight (num_embeddings, dim), truncated normal 0.02."""

    def __init__(self, num_embeddings: int, dim: int) -> None:
        init.check_sizes("Embedding", num_embeddings=num_embeddings, dim=dim)
        self.weight = Parameter(init.trunc_normal((num_embeddings, dim)))

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(ids, self.weight)


class Dropout(Module):
    """In training, zero each element with probability p and divide the others by 1 - p."""

    def __init__(self, p: float = 0.5) -> None:
        check_probability("p", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p) if self.training and self.p else x

    def describe(self) -> str:
        return f"p={self.p}"


class DropPath(Module):
    """In training, drop a residual branch (B, ...) for whole samples with probability p (Huang et al., 2016)."""

    def __init__(self, p: float = 0.0) -> None:
        check_probability("p", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        first_of_each = x.data[(slice(None), *[slice(1)] * (x.ndim - 1))]  # (B, 1, ...)
        return x * F.dropout(Tensor(np.ones_like(first_of_each)), self.p)

    def describe(self) -> str:
        return f"p={self.p}"


class LayerScale(Module):
    """y = x * gamma: a learned factor for each channel of a residual branch (Touvron et al., 2021)."""

    def __init__(self, dim: int, value: float) -> None:
        init.check_sizes("LayerScale", dim=dim)
        self.gamma = Parameter(np.full(dim, value, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Conv2d(Module):
    """Filters over images: (B, in_channels, H, W) -> (B, out_channels, OH, OW); weight (out, in, KH, KW)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
    ) -> None:
        check_flags("Conv2d", bias=bias)
        kernel = as_pair("Conv2d", "kernel_size", kernel_size, 1)
        init.check_sizes("Conv2d", in_channels=in_channels, out_channels=out_channels)
        fan_in = in_channels * kernel[0] * kernel[1]
        self.weight = Parameter(init.uniform_fan_in((out_channels, in_channels, *kernel), fan_in))
        self.bias = Parameter(init.uniform_fan_in((out_channels,), fan_in)) if bias else None
        as_pair("Conv2d", "stride", stride, 1)
        as_pair("Conv2d", "padding", padding, 0)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def describe(self) -> str:
        return f"{super().describe()}, stride={self.stride}, padding={self.padding}"


class DepthwiseConv(Module):
    """A filter of its own over each channel of a grid of tokens: (B, H, W, C) -> (B, H, W, C); weight (C, 1, K, K).

    There are zeros around the grid. Weights are normal with variance 2 / K^2, as of PVT v2.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        init.check_sizes("DepthwiseConv", channels=channels, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"DepthwiseConv: kernel_size is {kernel_size}; it must be odd, so that each window has a centre"
            )
        self.weight = Parameter(init.he_normal((channels, 1, kernel_size, kernel_size), kernel_size**2))
        self.bias = init.zeros(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.depthwise_conv(x, self.weight, self.bias)


class MaxPool2d(Module):
    """The largest value of each window: (B, C, H, W) -> (B, C, OH, OW)."""

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> None:
        window = as_pair("MaxPool2d", "kernel_size", kernel_size, 1)
        as_pair("MaxPool2d", "stride", window if stride is None else stride, 1)
        zeros = as_pair("MaxPool2d", "padding", padding, 0)
        if any(2 * n > size for n, size in zip(zeros, window, strict=True)):
            raise ValueError(f"MaxPool2d: padding is {padding}; it must be at most half of kernel_size, {kernel_size}")
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def describe(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GELU(Module):
    """The Gaussian error linear unit, exact ("none") or approximated ("tanh")."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, self.approximate)

    def describe(self) -> str:
        return f"approximate={self.approximate!r}"
