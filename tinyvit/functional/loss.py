"""Losses."""

import math
from typing import Any

import numpy as np

from ..backend import namespace_of
from ..backend.checks import integer, number
from ..engine import Op, Tensor
from .arguments import one_of, refuse_arguments
from .constants import as_floating, constant
from .indexing import check_ids
from .linalg import matmul
from .samples import Sample, sample
from .teaching import SIGN, Fault, Question

REDUCTIONS = ("mean", "sum", "none")


class CrossEntropy(Op):
    """loss = -sum over classes of t log p,  p = softmax(logits)        dlogits = dloss (p sum(t) - t)

    t is the target distribution: the one given, or 1 at the class id, with label smoothing s: (1 - s) t + s / K. An
    ignored row has loss = 0. "mean" divides the sum by the number of rows that are not ignored.
    """

    autocast = "wide"
    saves = ("logits", "target for logits")
    copies = ("ids",)
    kernel = "cross_entropy"
    letters = ("logits target: ... K",)
    fault = Fault(
        right="xp.sum(t, axis=-1, keepdims=True) - t)",
        wrong="xp.sum(t, axis=-1, keepdims=True) - 0.5 * t)",
        mistake="half of the target is forgotten",
    )
    questions = (
        Question(
            "the target is class {index[1]}. Which sign does the gradient of that class's logit have?",
            "dlogits is p - t: the probability minus 1 at the right class, so the loss falls if that logit grows.",
            "dlogits",
            options=SIGN,
            element=lambda ctx, gradient: (0, ctx.ids[0]) if ctx.ids is not None and gradient.ndim == 2 else None,
        ),
    )

    @staticmethod
    def forward(xp, logits, target, *, ids=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
        t = _distribution(xp, logits, target, ids, ignore_index, label_smoothing)
        log_p = xp.where(t == 0, 0.0, xp.log_softmax(logits))  # 0 log 0 = 0
        loss = -xp.sum(t * log_p, axis=-1)
        return _reduced(xp, loss, _row_count(loss.size, ids, ignore_index), reduction)

    def backward(ctx, xp, dloss):
        logits, target = ctx.saved
        if ctx.reduction != "none":
            divisor = (
                _row_count(math.prod(logits.shape[:-1]), ctx.ids, ctx.ignore_index) if ctx.reduction == "mean" else 1
            )
            dloss = xp.broadcast_to(dloss / divisor, logits.shape[:-1])
        dloss = xp.reshape(dloss, (*logits.shape[:-1], 1))
        # loss = -sum(t * log_softmax(logits))
        log_p, dlogits = xp.log_softmax(logits), None
        if ctx.needs[0]:
            t = _distribution(xp, logits, target, ctx.ids, ctx.ignore_index, ctx.label_smoothing)
            dlogits = dloss * (xp.exp(log_p) * xp.sum(t, axis=-1, keepdims=True) - t)
        dtarget = (1 - ctx.label_smoothing) * -dloss * log_p if ctx.needs[1] else None
        return dlogits, dtarget

    @staticmethod
    def samples():
        yield sample((4, 5), None, ids=np.array([0, 4, 2, 2]))
        yield sample((2, 3, 4), None, ids=np.array([[0, 2, 3], [1, 1, 2]]), ignore_index=2, label_smoothing=0.1)
        yield sample((4, 5), None, ids=np.array([0, 4, 2, 2]), reduction="none")
        logits, weights = sample((3, 4), (3, 4)).inputs
        probabilities = np.exp(weights) / np.exp(weights).sum(-1, keepdims=True)
        yield Sample((logits, probabilities), {"label_smoothing": 0.2, "reduction": "sum"})


def _distribution(xp, logits, target, ids, ignore_index, label_smoothing):
    """t of `CrossEntropy`, (..., K); a row of zeros where ignored."""
    classes = logits.shape[-1]
    if ids is None:
        return (1 - label_smoothing) * target + label_smoothing / classes if label_smoothing else target
    kept = ids != ignore_index
    lib = namespace_of(ids)
    hot = (lib.where(kept, ids, 0)[..., None] == lib.arange(classes)) * (
        1 - label_smoothing
    ) + label_smoothing / classes
    return xp.where(kept[..., None], xp.zeros_like(logits) + hot.astype(logits.dtype), 0.0)


def _row_count(rows: int, ids: np.ndarray | None, ignore_index: int) -> int:
    """How many rows take part in the mean; at least 1, so that a batch without any has loss 0."""
    return max(1, rows if ids is None else int((ids != ignore_index).sum()))


def _reduced(xp, loss, count, reduction):
    return loss if reduction == "none" else xp.sum(loss) / count if reduction == "mean" else xp.sum(loss)


class MseLoss(Op):
    """loss = (x - t)^2, averaged        dx = dloss 2 (x - t) / n,  dt = -dx"""

    autocast = "wide"
    saves = ("x", "target")

    @staticmethod
    def forward(xp, x, target, *, reduction="mean"):
        return _reduced(xp, (x - target) * (x - target), x.size, reduction)

    def backward(ctx, xp, dloss):
        x, target = ctx.saved
        # l = (x - target)^2
        dx = dloss * ((2 / max(x.size, 1) if ctx.reduction == "mean" else 2) * (x - target))
        return dx, -dx

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((3, 4), (3, 4), reduction="none")


class BinaryCrossEntropyWithLogits(Op):
    """loss = max(x, 0) - x t + log(1 + exp(-|x|)), averaged

    dx = dloss (sigmoid(x) - t) / n,  dt = -dloss x / n
    """

    autocast = "wide"
    saves = ("logits", "target for logits")

    @staticmethod
    def forward(xp, logits, target, *, reduction="mean"):
        loss = xp.maximum(logits, 0) - logits * target + xp.log1p(xp.exp(-xp.abs(logits)))
        return _reduced(xp, loss, logits.size, reduction)

    def backward(ctx, xp, dloss):
        logits, target = ctx.saved
        scale = dloss / max(logits.size, 1) if ctx.reduction == "mean" else dloss
        # l = log(1 + exp(x)) - x * target
        dlogits = scale * (xp.sigmoid(logits) - target) if ctx.needs[0] else None
        return dlogits, -scale * logits if ctx.needs[1] else None

    @staticmethod
    def samples():
        yield sample((3, 4), (3, 4))
        yield sample((3, 4), (3, 4), reduction="sum")


# What users call ----------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    target: Any,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The cross-entropy of softmax(logits) against class ids or probabilities.

    Parameters
    ----------
    logits : (..., K), classes on the last axis.
    target : integers (...), or probabilities (..., K) in the dtype of logits.
    ignore_index : rows with this class id count for nothing.
    label_smoothing : weight s in [0, 1) of the uniform distribution mixed into the target.
    reduction : {"mean", "sum", "none"}
        "mean" averages over the rows that are not ignored; without any, the loss is 0.
    """
    one_of("cross_entropy: reduction", reduction, REDUCTIONS)
    if not 0 <= number("cross_entropy: label_smoothing", label_smoothing) < 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; it must be in [0, 1)")
    ignore_index = integer("cross_entropy: ignore_index", ignore_index)
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    values = constant(target, "cross_entropy: target")
    try:
        if logits.ndim == 0 or values.dtype.kind == "b":
            raise ValueError(
                f"cross_entropy: logits has shape {logits.shape} and target is {values.dtype}; logits must be (..., K) "
                "and target integers or probabilities"
            )
    except AttributeError as error:
        refuse_arguments("cross_entropy", error, {"logits": logits})
    if values.dtype.kind not in "iu":
        _check_shapes("cross_entropy", "logits", logits, "target", values.shape)
        return CrossEntropy.apply(logits, target, **options)
    if values.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: target has shape {values.shape}; for logits {logits.shape} it must be {logits.shape[:-1]}"
        )
    check_ids("cross_entropy: target", values, logits.shape[-1], ignore_index)
    return CrossEntropy.apply(as_floating(logits), None, ids=values, **options)


def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The mean ("sum", "none") of (x - target)^2; both of one shape."""
    one_of("mse_loss: reduction", reduction, REDUCTIONS)
    values = constant(target, "mse_loss: target")
    _check_shapes("mse_loss", "x", x, "target", values.shape)
    return MseLoss.apply(*as_floating(x, target), reduction=reduction)


def binary_cross_entropy_with_logits(logits: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The mean ("sum", "none") of -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)), without overflow."""
    one_of("binary_cross_entropy_with_logits: reduction", reduction, REDUCTIONS)
    values = constant(target, "binary_cross_entropy_with_logits: target")
    _check_shapes("binary_cross_entropy_with_logits", "logits", logits, "target", values.shape)
    return BinaryCrossEntropyWithLogits.apply(*as_floating(logits, target), reduction=reduction)


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Any) -> Tensor:
    """The symmetric contrastive loss of pairs: row i of `image` belongs to row i of `text`.

    Parameters
    ----------
    image, text : (B, C), each row of unit length.
    logit_scale : number or tensor that multiplies the cosines (exp of the learned logarithm, 1 / temperature).

    The mean of the cross-entropies of image-to-text and text-to-image (Radford et al., Learning transferable visual
    models from natural language supervision, 2021, figure 3).
    """
    try:
        if image.ndim != 2:
            raise ValueError(f"contrastive_loss: image has shape {image.shape}; it must be (B, C)")
        _check_shapes("contrastive_loss", "image", image, "text", text.shape)
        image, text = as_floating(image, text, logit_scale)[:2]
        cosines = matmul(image, text.T)
    except (AttributeError, TypeError) as error:
        refuse_arguments("contrastive_loss", error, {"image": image, "text": text})
    scale = logit_scale if isinstance(logit_scale, Tensor) else number("contrastive_loss: logit_scale", logit_scale)
    if isinstance(scale, Tensor) and scale.size != 1:
        raise ValueError(f"contrastive_loss: logit_scale has shape {scale.shape}; it must be one number")
    logits = cosines * scale
    pairs = namespace_of(image.data).arange(image.shape[0])
    return 0.5 * (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs))


def _check_shapes(name: str, first: str, x: Tensor, second: str, shape: tuple[int, ...]) -> None:
    try:
        if x.shape != shape:
            raise ValueError(f"{name}: {first} has shape {x.shape} and {second} {shape}; they must be equal")
    except AttributeError as error:
        refuse_arguments(name, error, {first: x})
