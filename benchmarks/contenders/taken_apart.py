"""tinyvit's engine with one of its fusions taken apart: `--without attention`. What it then loses, the fusion gains.

All else runs as ever, in our kernels. What has no kernel of its own is NumPy's, on one thread but for products:
additions, sums over rows, products of stacks of matrices.
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
    return y if bias is None else (y + bias).to(y.dtype)  # beside bfloat16 the addition is one in float32


def _float32_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, narrow: bool) -> Tensor:
    return layer_norm(x, weight, bias, eps)


def _wide_add(x: Any, y: Any) -> Tensor:
    narrow = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == np.float32 and y.dtype != x.dtype
    return add(x, y.to(x.dtype) if narrow else y)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout_p: float, is_causal: bool) -> Tensor:
    assert (mask, dropout_p, is_causal) == (None, 0.0, False), "the models of images have none of these"
    with tv.autocast("float32"):  # NumPy multiplies no bfloat16
        scores = (q.to("float32") * q.shape[-1] ** -0.5) @ k.to("float32").swapaxes(-1, -2)
        return (F.softmax(scores) @ v.to("float32")).to(q.dtype)


# What a fusion is called, and by what the functions of F, or the operators of Tensor, that offer it are replaced.
FUSIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "linear_bias": {"linear": _linear},
    "narrow_branch": {"__add__": _wide_add},  # what joins the residual stream is cast before
    "narrow": {"layer_norm": _float32_layer_norm},  # layer norm gives float32, and a cast follows
    "attention": {"scaled_dot_product_attention": _attention},
}


def owner(name: str) -> Any:
    """What has the function or operator of this name."""
    return Tensor if name.startswith("__") else F


class TakenApart(Engine):
    """option : that of `Engine`, and the name of a fusion."""

    def __init__(self, option: str) -> None:
        kernels, fusion = option.split()
        super().__init__(kernels)
        for name, apart in FUSIONS[fusion].items():  # in this process, which is its own
            setattr(owner(name), name, apart)
