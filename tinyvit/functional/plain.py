"""Plain rules in the form of kernels, for those who call `tinyvit.kernels` directly: the reference beside them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import namespace_of
from ..engine.autograd import _widened
from ..kernels import registry
from .attention import Attention, attention_lse
from .normalization import AddLayerNorm, LayerNorm, row_statistics


def _entry(cls: Any, saved: tuple[Any, ...], needs: tuple[bool, ...], **attributes: Any) -> Any:
    """An entry of a tape that was never recorded, to call `backward` of."""
    entry = cls()
    entry.__dict__.update(attributes, saved=saved, needs=needs)
    return entry


def _attention_forward(q, k, v, bias, *, mask, is_causal, scale, **dropout):
    out = Attention.forward(namespace_of(q), q, k, v, bias, mask=mask, is_causal=is_causal, scale=scale, **dropout)
    return out, attention_lse(namespace_of(q), q, k, bias, mask, is_causal, scale)


def _attention_backward(dout, q, k, v, bias, out, lse, *, needs, **params):
    shapes = [np.shape(x) for x in (q, k, v, bias)]
    return _entry(Attention, (q, k, v, bias, out), needs, shapes=shapes, **params).backward(namespace_of(dout), dout)


def _layer_norm_forward(x, weight, bias, *, eps):
    return LayerNorm.forward(namespace_of(x), x, weight, bias, eps=eps), *row_statistics(namespace_of(x), x, eps)


def _layer_norm_backward(dy, x, weight, mean, rstd, *, eps, needs):
    return _entry(LayerNorm, (x, weight), needs, eps=eps).backward(namespace_of(dy), dy)


def _add_layer_norm_forward(x, residual, weight, bias, *, eps):
    total, y = AddLayerNorm.forward(namespace_of(x), x, residual, weight, bias, eps=eps)
    return total, y, *row_statistics(namespace_of(total), total, eps)


def _add_layer_norm_backward(dsum, dy, total, weight, mean, rstd, *, eps, needs):
    return _entry(AddLayerNorm, (total, weight), needs, eps=eps).backward(namespace_of(total), dsum, dy)


def _in_float32(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that is given float32 where there are 16 bits, as on the tape; its results stay so."""
    return lambda *arrays, **params: rule(*map(_widened, arrays), **params)


registry.PLAIN.update(
    attention=(_in_float32(_attention_forward), _in_float32(_attention_backward)),
    layer_norm=(_in_float32(_layer_norm_forward), _in_float32(_layer_norm_backward)),
    add_layer_norm=(_in_float32(_add_layer_norm_forward), _in_float32(_add_layer_norm_backward)),
)
