"""tinyvit's engine with one of its fusions taken apart: `--without linear_gelu`. What it then loses, the fusion gains.

All else runs as ever, in our kernels. What has no kernel of its own is NumPy's, on one thread but for products:
additions, sums over rows, products of stacks of matrices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor
from tinyvit.functional.linalg import linear
from tinyvit.functional.normalization import add_layer_norm, layer_norm

from .engine import Engine


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = linear(x, weight)
    return y if bias is None else (y + bias).to(y.dtype)  # beside bfloat16 the addition is one in float32


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return F.bias_gelu(linear(x, weight), bias, approximate)


def _add_layer_norm(x: Tensor, residual: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, layer_norm(total, *parameters)


def _after_linear(add: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`linear_add_layer_norm` by a linear map, and `add` for the rest."""
    return lambda residual, x, weight, bias, *rest: add(residual, linear(x, weight, bias), *rest)


def _wide_add_layer_norm(x: Tensor, residual: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, residual.to(x.dtype), *parameters)


def _float32_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, narrow: bool) -> Tensor:
    return layer_norm(x, weight, bias, eps)


def _float32_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, narrow: bool
) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, residual, weight, bias, eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout_p: float, is_causal: bool) -> Tensor:
    assert (mask, dropout_p, is_causal) == (None, 0.0, False), "the models of images have none of these"
    with tv.autocast("float32"):  # NumPy multiplies no bfloat16
        scores = (q.to("float32") * q.shape[-1] ** -0.5) @ k.to("float32").swapaxes(-1, -2)
        return (F.softmax(scores) @ v.to("float32")).to(q.dtype)


# What a fusion is called, and by what the functions of F that offer it are replaced.
FUSIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "linear_bias": {"linear": _linear},
    "linear_gelu": {"linear_gelu": _linear_gelu},
    "linear_add_layer_norm": {"linear_add_layer_norm": _after_linear(add_layer_norm)},
    "add_layer_norm": {
        "add_layer_norm": _add_layer_norm,
        "linear_add_layer_norm": _after_linear(_add_layer_norm),
    },
    "narrow_branch": {  # what joins the residual stream is cast before
        "add_layer_norm": _wide_add_layer_norm,
        "linear_add_layer_norm": _after_linear(_wide_add_layer_norm),
    },
    "narrow": {  # layer norm gives float32, and a cast follows
        "layer_norm": _float32_layer_norm,
        "add_layer_norm": _float32_add_layer_norm,
        "linear_add_layer_norm": _after_linear(_float32_add_layer_norm),
    },
    "attention": {"scaled_dot_product_attention": _attention},
}


class TakenApart(Engine):
    """option : that of `Engine`, and the name of a fusion."""

    def __init__(self, option: str) -> None:
        kernels, fusion = option.split()
        super().__init__(kernels)
        for name, apart in FUSIONS[fusion].items():  # in this process, which is its own
            setattr(F, name, apart)
