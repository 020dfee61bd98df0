"""Layer normalization, by itself and fused with the residual sum before it, and RMS normalization."""

import math
from typing import Any

from ..backend import BFLOAT16
from ..backend.checks import finite_number, flag
from ..engine import Op, Tensor
from .arguments import refuse_arguments
from .constants import as_floating
from .elementwise import rounds_to_bfloat16
from .samples import sample
from .teaching import Fault, Question


def _normalized(xp, x, eps):
    """xhat and rstd of each row of x, with the variance in two passes."""
    centered = x - xp.mean(x, axis=-1, keepdims=True)
    rstd = 1 / xp.sqrt(xp.mean(centered * centered, axis=-1, keepdims=True) + eps)
    return centered * rstd, rstd


def row_statistics(xp: Any, x: Any, eps: float) -> tuple[Any, Any]:
    """mean and rstd of each row of x (..., C): (...)."""
    return xp.mean(x, axis=-1), _normalized(xp, x, eps)[1][..., 0]


def _backward(ctx, xp, dy, x, weight, dx_before=None):
    """dx, dweight, dbias. After a residual sum, `dx_before` is the gradient of the sum; it or dy may be None."""
    if dy is None:
        none = xp.zeros(x.shape[-1:], x.dtype)
        return dx_before, none, none
    dy = dy if ctx.y_dtype is None else xp.cast(dy, x.dtype)
    xhat, rstd = _normalized(xp, x, ctx.eps)
    # y = xhat * weight + bias
    if weight is not None:  # it is saved if the gradient of x is wanted
        g = dy * weight
    dweight = xp.sum_to_shape(dy * xhat, x.shape[-1:])
    dbias = xp.sum_to_shape(dy, x.shape[-1:])
    if weight is None:
        return None, dweight, dbias
    # xhat = (x - mean) * rstd, and mean and rstd both depend on x
    mean_g = xp.mean(g, axis=-1, keepdims=True)
    mean_gx = xp.mean(g * xhat, axis=-1, keepdims=True)
    dx = rstd * (g - mean_g - xhat * mean_gx)
    return dx if dx_before is None else dx + dx_before, dweight, dbias


_FAULT = Fault(
    right="rstd * (g - mean_g - xhat * mean_gx)",
    wrong="rstd * (g - xhat * mean_gx)",
    mistake="the mean of g is not subtracted: the rule forgets that the mean of x depends on x",
    function="_backward",
)


class LayerNorm(Op):
    """y = xhat w + b,  xhat = (x - mean) rstd,  rstd = 1 / sqrt(var + eps)

    g = dy w,  dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw = sum(dy xhat),  db = sum(dy)

    (Ba, Kiros and Hinton, Layer normalization, 2016, equation 4.)
    """

    autocast = "wide"
    saves = ("x", "weight for x")
    kernel = "layer_norm"
    fault = _FAULT
    questions = (
        Question(
            "what is the mean of a row of dx?",
            "Adding a number to the whole row does not change the output, so no gradient can point in that direction.",
            "dx",
            options=("the mean of that row of dy", "0", "1"),
            answer=1,
        ),
    )

    @staticmethod
    def forward(xp, x, weight, bias, *, eps=1e-5, y_dtype=None):
        y = _normalized(xp, x, eps)[0] * weight + bias
        return y if y_dtype is None else xp.cast(y, y_dtype)

    def backward(ctx, xp, dy):
        x, weight = ctx.saved
        return _backward(ctx, xp, dy, x, weight)

    @classmethod
    def residuals(cls, xp, inputs, outputs, params):
        return row_statistics(xp, inputs[0], params["eps"])

    @staticmethod
    def samples():
        yield sample((3, 5), (5,), (5,))
        yield sample((2, 3, 4), (4,), (4,), eps=1e-3)


class AddLayerNorm(Op):
    """sum = x + residual,  y = layer_norm(sum) w + b

    d(x) = d(residual) = dsum + the gradient of layer_norm with respect to its input; dw and db as there.
    """

    autocast = "wide"
    saves = ("sum", "weight")
    outputs = ("sum", "y")
    kernel = "add_layer_norm"
    fault = _FAULT
    narrow = ("residual",)

    @staticmethod
    def forward(xp, x, residual, weight, bias, *, eps=1e-5, y_dtype=None):
        total = x + residual
        y = _normalized(xp, total, eps)[0] * weight + bias
        return total, y if y_dtype is None else xp.cast(y, y_dtype)

    def backward(ctx, xp, dsum, dy):
        total, weight = ctx.saved
        dtotal, dweight, dbias = _backward(ctx, xp, dy, total, weight, dsum)
        # sum = x + residual
        return dtotal, dtotal, dweight, dbias

    @classmethod
    def residuals(cls, xp, inputs, outputs, params):
        return row_statistics(xp, outputs[0], params["eps"])

    @staticmethod
    def samples():
        yield sample((3, 5), (3, 5), (5,), (5,))
        yield sample((2, 1, 4), (2, 1, 4), (4,), (4,), eps=1e-3)


class RmsNorm(Op):
    """y = xhat w,  xhat = x rrms,  rrms = 1 / sqrt(mean(x^2) + eps)

    g = dy w,  dx = rrms (g - xhat mean(g xhat)),  dw = sum(dy xhat)

    (Zhang and Sennrich, Root mean square layer normalization, 2019, equation 4.)
    """

    autocast = "wide"
    saves = ("x", "weight for x")
    fault = Fault(
        right="rrms * (g - xhat * xp.mean(g * xhat, axis=-1, keepdims=True))",
        wrong="rrms * g",
        mistake="the rule forgets that the root mean square of x depends on x",
    )

    @staticmethod
    def forward(xp, x, weight, *, eps=1e-5):
        return x * _inverse_rms(xp, x, eps) * weight

    def backward(ctx, xp, dy):
        x, weight = ctx.saved
        rrms = _inverse_rms(xp, x, ctx.eps)
        xhat = x * rrms
        dx = None
        # y = xhat * weight
        dweight = xp.sum_to_shape(dy * xhat, x.shape[-1:])
        if ctx.needs[0]:
            g = dy * weight
            # xhat = x * rrms, and rrms depends on x
            dx = rrms * (g - xhat * xp.mean(g * xhat, axis=-1, keepdims=True))
        return dx, dweight

    @staticmethod
    def samples():
        yield sample((3, 5), (5,))
        yield sample((2, 3, 4), (4,), eps=1e-3)


def _inverse_rms(xp, x, eps):
    """1 / sqrt(mean(x^2) + eps) of each row of x (..., C): (..., 1)."""
    return 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)


# What users call ----------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, narrow: bool = False) -> Tensor:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    x : (..., C).  weight, bias : (C,).
    eps : added to the variance.
    narrow : round the result to bfloat16 if `autocast` would do so before a matrix product; this saves a pass over
        memory.
    """
    eps = checked_eps("layer_norm: eps", eps)
    try:
        _check("layer_norm", x, weight, bias)
        return LayerNorm.apply(*as_floating(x, weight, bias), eps=eps, **_narrowed("layer_norm", x, narrow))
    except AttributeError as error:
        refuse_arguments("layer_norm", error, {"x": x, "weight": weight, "bias": bias})


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide the last axis of x (..., C) by its root mean square, then scale it by weight (C,).

    `eps` is added to the mean square. (Zhang and Sennrich, 2019.)
    """
    eps = checked_eps("rms_norm: eps", eps)
    try:
        if x.ndim == 0 or weight.shape != x.shape[-1:]:
            raise ValueError(
                f"rms_norm: x has shape {x.shape} and weight {weight.shape}; they must be (..., C) and (C,)"
            )
        return RmsNorm.apply(*as_floating(x, weight), eps=eps)
    except AttributeError as error:
        refuse_arguments("rms_norm", error, {"x": x, "weight": weight})


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, narrow: bool = False
) -> tuple[Tensor, Tensor]:
    """The residual sum x + residual and its layer norm, in one operation: (..., C), (..., C) -> (sum, y).

    `narrow` is about y, as in `layer_norm`. The residual may be bfloat16 beside x of float32.
    """
    eps = checked_eps("add_layer_norm: eps", eps)
    try:
        if x.shape != residual.shape:
            raise ValueError(f"add_layer_norm: x has shape {x.shape} and residual {residual.shape}; they must be equal")
        _check("add_layer_norm", x, weight, bias)
        inputs = as_floating(x, residual, weight, bias)
        return AddLayerNorm.apply(*inputs, eps=eps, **_narrowed("add_layer_norm", x, narrow))
    except AttributeError as error:
        refuse_arguments("add_layer_norm", error, {"x": x, "residual": residual, "weight": weight, "bias": bias})


def checked_eps(what: str, eps: Any) -> float:
    """Return what is added to the variance: a finite number, 0 or more. A constant row gives NaN where it is 0."""
    return eps if type(eps) is float and 0 <= eps < math.inf else finite_number(what, eps, 0)


def _narrowed(name: str, x: Tensor, narrow: bool) -> dict[str, Any]:
    """The parameter that says so; none where it would be the dtype of x."""
    return {"y_dtype": BFLOAT16} if flag(f"{name}: narrow", narrow) and rounds_to_bfloat16(x) else {}


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if not weight.shape == bias.shape == x.shape[-1:] != ():
        raise ValueError(
            f"{name}: x has shape {x.shape}, weight {weight.shape} and bias {bias.shape}; "
            "they must be (..., C), (C,) and (C,)"
        )
