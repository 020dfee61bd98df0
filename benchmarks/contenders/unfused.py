"""tinyvit's engine without one of its fusions: `--without attention`. The time that this adds is what the fusion gains.

One fused operation is replaced by separate ones; everything else is unchanged. Operations without a kernel are then
NumPy's, on one thread except for products: additions, sums over rows, products of stacks of matrices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor
from tinyvit.functional.elementwise import add
from tinyvit.functional.linalg import linear
from tinyvit.functional.normalization import layer_norm

from .engine import Engine


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = linear(x, weight)
    return y if bias is None else (y + bias).to(y.dtype)  # a bias in float32 makes the sum float32


def _float32_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, narrow: bool) -> Tensor:
    return layer_norm(x, weight, bias, eps)


def _float32_add(x: Any, y: Any) -> Tensor:
    is_narrow = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == np.float32 and y.dtype != x.dtype
    return add(x, y.to(x.dtype) if is_narrow else y)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout_p: float, is_causal: bool) -> Tensor:
    assert (mask, dropout_p, is_causal) == (None, 0.0, False), "the models of images have none of these"
    with tv.autocast("float32"):  # NumPy has no products in bfloat16
        scores = (q.to("float32") * q.shape[-1] ** -0.5) @ k.to("float32").swapaxes(-1, -2)
        return (F.softmax(scores) @ v.to("float32")).to(q.dtype)


# For each fusion, replacements of functions of F or of operators of Tensor.
FUSIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "linear_bias": {"linear": _linear},
    "narrow_branch": {"__add__": _float32_add},  # a branch is cast before it is added
    "narrow": {"layer_norm": _float32_layer_norm},  # its result is float32, and a cast follows
    "attention": {"scaled_dot_product_attention": _attention},
}


def owner(name: str) -> Any:
    """The object that has the function or operator of this name."""
    return Tensor if name.startswith("__") else F


class Unfused(Engine):
    """The option is that of `Engine`, a space, and the name of a fusion."""

    def __init__(self, option: str) -> None:
        kernels, fusion = option.split()
        super().__init__(kernels)
        for name, replacement in FUSIONS[fusion].items():  # for the whole process, which belongs to this contender
            setattr(owner(name), name, replacement)
