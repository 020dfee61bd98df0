"""Scaled dot-product attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import NUMPY, Generator, Namespace, default_generator, is_floating, is_on_gpu, namespace_of, to_host
from ..backend.checks import flag, integer, number
from ..context import now
from ..engine import Op, Tensor
from .arguments import is_array, refuse_arguments
from .constants import as_floating, constant
from .conversion import autocast_inputs
from .random import check_probability, drawn_from
from .reduction import largest
from .samples import sample
from .shape import stack
from .teaching import SHAPE, Fault, Question


class Attention(Op):
    """out = kept v,  kept = p * m,  p = softmax(s) over the keys,  s = scale q k^T + bias, -inf where masked

    dv = kept^T dout,  dp = (dout v^T) * m,  r = sum(dp p) over the keys,
    ds = p (dp - r),  dq = scale ds k,  dk = scale ds^T q,  dbias = ds

    m is the mask of dropout (1 without it). A query that may attend to no key has p = 0, and gradients of 0.
    r is computed as sum(dout out) over the head, which is the same and shorter.
    (Vaswani et al., Attention is all you need, 2017, equation 1.)
    """

    autocast = "narrow"
    saves = ("q", "k", "v", "bias", "out")
    copies = ("mask",)
    kernel = "attention"
    draws = "dropout_p"
    letters = ("q out: B H N D", "k v: B H S D", "bias: B H N S | H N S | N S")
    attention_maps = ("p", "dp", "ds")
    fault = Fault(
        right="ds = p * (dp - r)",
        wrong="ds = p * dp",
        mistake="the sum over the keys is not subtracted: softmax was differentiated as if its divisor were a constant",
    )
    questions = (
        Question(
            "what is the sum of a row of ds, the gradient of the scores of one query?",
            "ds = p (dp - r) with r = sum(p dp), and p sums to 1: adding a number to all scores alike changes nothing.",
            "ds",
            options=("1", "the sum of that row of dp", "0"),
            answer=2,
        ),
        Question("which shape does dv have?", "A gradient has the shape of its variable.", "dv", options=SHAPE),
    )

    @staticmethod
    def forward(xp, q, k, v, bias, *, mask=None, is_causal=False, scale, dropout_p=0.0, seed=0, offset=0):
        p = attention_probabilities(xp, q, k, bias, mask, is_causal, scale)
        if dropout_p:
            p = p * xp.dropout_mask(p.shape, dropout_p, seed, offset, p.dtype)
        return xp.matmul(p, v)

    def backward(ctx, xp, dout):
        q, k, v, bias, out = ctx.saved
        p = attention_probabilities(xp, q, k, bias, ctx.mask, ctx.is_causal, ctx.scale)
        # out = (p * m) @ v
        dp, kept = xp.matmul(dout, xp.swapaxes(v, -1, -2)), p
        if ctx.dropout_p:
            m = xp.dropout_mask(p.shape, ctx.dropout_p, ctx.seed, ctx.offset, p.dtype)
            dp, kept = dp * m, p * m
        dv = xp.matmul(xp.swapaxes(kept, -1, -2), dout)
        # p = softmax(s)
        r = xp.sum(dout * out, axis=-1, keepdims=True)
        ds = p * (dp - r)
        # s = scale * q @ k.T + bias
        dq = ctx.scale * xp.matmul(ds, k)
        dk = ctx.scale * xp.matmul(xp.swapaxes(ds, -1, -2), q)
        dbias = xp.sum_to_shape(ds, ctx.shapes[3]) if ctx.needs[3] else None
        return dq, dk, dv, dbias

    @classmethod
    def residuals(cls, xp, inputs, outputs, params):
        q, k, _, bias = inputs
        return (attention_lse(xp, q, k, bias, params["mask"], params["is_causal"], params["scale"]),)

    @staticmethod
    def samples():
        yield sample((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4), None, scale=0.5)
        yield sample((1, 2, 4, 3), (1, 2, 4, 3), (1, 2, 4, 3), (2, 4, 4), scale=0.6, is_causal=True)
        masked = np.array([[True, False, True], [False, False, False]])  # the second query sees nothing
        yield sample((2, 1, 2, 3), (2, 1, 3, 3), (2, 1, 3, 3), (1, 1, 2, 3), scale=0.4, mask=masked)
        yield sample((1, 2, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2), None, scale=0.7, dropout_p=0.4, seed=3, offset=5)


class SplitHeads(Op):
    """y_0, y_1, ... (B, H, N, D) = the parts of x (B, N, parts H D), head-major within each

    dx = their gradients, side by side

    If they already lie side by side in memory, as fused attention leaves them, dx is that memory and not a copy.
    """

    view = True
    is_sequence = True
    letters = ("out: B H N D",)

    @staticmethod
    def forward(xp, x, *, parts, heads):
        b, n, c = x.shape
        return tuple(xp.transpose(xp.reshape(x, (b, n, parts, heads, c // (parts * heads))), (2, 0, 3, 1, 4)))

    def backward(ctx, xp, *dys):
        some = next(dy for dy in dys if dy is not None)
        return xp.join_heads([xp.zeros_like(some) if dy is None else dy for dy in dys])

    @staticmethod
    def samples():
        yield sample((2, 3, 12), parts=3, heads=2)
        yield sample((1, 2, 4), parts=1, heads=4)


class MergeHeads(Op):
    """y (B, N, H D) = the heads of x (B, H, N, D) side by side        dx = dy, split into heads"""

    view = True
    letters = ("x: B H N D",)

    @staticmethod
    def forward(xp, x):
        b, h, n, d = x.shape
        return xp.reshape(xp.transpose(x, (0, 2, 1, 3)), (b, n, h * d))

    def backward(ctx, xp, dy):
        b, h, n, d = ctx.shapes[0]
        return xp.transpose(xp.reshape(dy, (b, n, h, d)), (0, 2, 1, 3))

    @staticmethod
    def samples():
        yield sample((2, 3, 4, 5))


def _join_heads(xp: Any, parts: Any) -> Any:
    """Arrays (B, H, N, D) side by side: (B, N, parts H D)."""
    b, h, n, d = parts[0].shape
    base = parts[0].base
    if base is not None and base.shape == (b, n, len(parts), h, d) and base.flags.c_contiguous:
        step, start = d * h * base.itemsize, _address(base)
        if all(part.base is base and _address(part) == start + i * step for i, part in enumerate(parts)):
            return base.reshape(b, n, len(parts) * h * d)
    return xp.reshape(
        xp.stack([xp.transpose(part, (0, 2, 1, 3)) for part in parts], axis=2), (b, n, len(parts) * h * d)
    )


def _address(array: Any) -> int:
    return array.data.ptr if is_on_gpu(array) else array.__array_interface__["data"][0]


Namespace.extend("join_heads", _join_heads)


def attention_probabilities(xp: Any, q: Any, k: Any, bias: Any, mask: Any, is_causal: bool, scale: float) -> Any:
    """p of `Attention`, (B, H, N, S): softmax over the visible keys; 0 for a query that sees none."""
    e, _ = _exponentials(xp, q, k, bias, mask, is_causal, scale)
    total = xp.sum(e, axis=-1, keepdims=True)
    return e / xp.where(total == 0, 1.0, total)


def attention_lse(xp: Any, q: Any, k: Any, bias: Any, mask: Any, is_causal: bool, scale: float) -> Any:
    """The logarithm of the sum of e^s over the visible keys, (B, H, N); -inf for a query that sees none."""
    e, shift = _exponentials(xp, q, k, bias, mask, is_causal, scale)
    return (shift + xp.log(xp.sum(e, axis=-1, keepdims=True)))[..., 0]


def _exponentials(xp, q, k, bias, mask, is_causal, scale):
    """e^(s - m) with m = max(s), or 0 where nothing is visible; and m."""
    scores = xp.matmul(scale * q, xp.swapaxes(k, -1, -2))
    if bias is not None:
        scores = scores + bias
    visible = mask
    if is_causal:
        lib = namespace_of(constant(scores))
        causal = lib.tril(lib.ones(scores.shape[-2:], bool))  # key s is visible to query n iff s <= n
        visible = causal if mask is None else mask & causal
    if visible is not None:
        scores = xp.where(visible, scores, -np.inf)
    peak = xp.stop_gradient(largest(xp, scores, -1))
    shift = xp.where(peak == -np.inf, 0.0, peak)
    return xp.exp(scores - shift), shift


# What users call ----------------------------------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int, parts: int = 3) -> tuple[Tensor, ...]:
    """(B, N, parts H D), the output of a packed projection -> `parts` views (B, H, N, D), as q, k and v."""
    heads = heads if type(heads) is int else integer("split_heads: heads", heads)
    parts = parts if type(parts) is int else integer("split_heads: parts", parts)
    try:
        if x.ndim != 3 or heads < 1 or parts < 1 or x.shape[2] % (parts * heads):
            raise ValueError(
                f"split_heads: x has shape {x.shape}; for {parts} parts of {heads} heads it must be (B, N, parts H D)"
            )
    except (AttributeError, TypeError) as error:
        refuse_arguments("split_heads", error, {"x": x})
    return SplitHeads.apply(x, parts=parts, heads=heads)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H D)."""
    try:
        if x.ndim != 4:
            raise ValueError(f"merge_heads: x has shape {x.shape}; it must be (B, H, N, D)")
    except AttributeError as error:
        refuse_arguments("merge_heads", error, {"x": x})
    return MergeHeads.apply(x)


def join_heads(parts: Sequence[Tensor]) -> Tensor:
    """Tensors (B, H, N, D), as q, k and v, side by side: (B, N, parts H D); the opposite of `split_heads`."""
    try:
        b, h, n, d = parts[0].shape
        if any(part.shape != (b, h, n, d) for part in parts):
            raise ValueError("the shapes differ")
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise TypeError("join_heads: parts must be Tensors (B, H, N, D), all of one shape, in a list") from error
    return stack([part.transpose(0, 2, 1, 3) for part in parts], axis=2).reshape(b, n, len(parts) * h * d)


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(scale q k^T + mask) v for each head.

    Parameters
    ----------
    q : (B, H, N, D).  k, v : (B, H, S, D).
    attn_mask : broadcastable to (B, H, N, S), optional
        Boolean: True where attention is allowed. Floating: added to the scores, and differentiable.
    dropout_p : probability of dropping an attention weight; applies whenever it is not 0.
    is_causal : bool
        Key s is visible to query n only if s <= n; combines with either kind of mask.
    scale : 1 / sqrt(D) by default.
    generator : random stream of the dropout, the default one if omitted.

    Returns
    -------
    out : (B, H, N, D); 0 for a query that may attend to nothing.

    Notes
    -----
    A key that a query may not see, by a boolean mask or by is_causal, has the weight 0 for it. What its k holds does
    not change out. NaN or infinity in its v, and for gradients in its k too, may turn results of that query and
    gradients of keys into NaN, because 0 x NaN is NaN. Whether it does depends on the implementation, for some skip
    hidden keys; a result that is not NaN is the one that zeros in their place would give. If padding may hold such
    numbers, replace them: `F.where(seen, v, 0.0)`, and the same for k. A floating mask of -inf is added to the score,
    so it does not hide a k that is NaN.
    """
    try:
        _check_heads(q, k, v)
    except (AttributeError, TypeError) as error:
        refuse_arguments("attention", error, {"q": q, "k": k, "v": v})
    check_probability("attention: dropout_p", dropout_p)
    mask, bias = (None, None) if attn_mask is None else _mask_and_bias(attn_mask, q, k)
    seed, offset = drawn_from("attention", generator) if dropout_p else (0, 0)
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else number("attention: scale", scale)
    return Attention.apply(
        *as_floating(q, k, v, bias),
        mask=mask,
        is_causal=flag("attention: is_causal", is_causal),
        scale=scale,
        dropout_p=dropout_p,
        seed=seed,
        offset=offset,
    )


def other_keys(q: Tensor, k: Tensor) -> Any:
    """Return which keys are of another token than the query, bool (N, S) on their device.

    q (B, H, N, D) are the last N of the S tokens of k (B, H, S, D).
    """
    count, keys, xp = q.shape[2], k.shape[2], namespace_of(k.data)
    return xp.arange(keys) != xp.arange(keys - count, keys)[:, None]


def attention_weights(
    q: Tensor, k: Tensor, attn_mask: Any = None, is_causal: bool = False, dropout_p: float = 0.0
) -> np.ndarray:
    """Return what the next call of `scaled_dot_product_attention` will weigh the values with: (B, H, N, S).

    The arguments are those of that call, and `autocast` rounds them as it does there. With dropout, the weights that
    the next draw of the default random stream drops are 0, and the others are divided by 1 - dropout_p. The result is
    on the host: float64 for float64 inputs, else float32.
    """
    values = None if attn_mask is None else constant(attn_mask)
    mask = values if values is not None and values.dtype == bool else None
    bias = None if values is None or mask is not None else Tensor(values)
    inputs: tuple[Any, ...] = (q, k, q, bias)
    if (precision := now().precision) is not None:
        inputs = autocast_inputs(Attention, inputs, precision, lambda x, dtype: Tensor(x.data.astype(dtype)))
    exact_q, exact_k, _, exact_bias = (None if x is None else to_host(x.data).astype(np.float64) for x in inputs)
    visible = None if mask is None else to_host(mask)
    p = attention_probabilities(NUMPY, exact_q, exact_k, exact_bias, visible, is_causal, q.shape[-1] ** -0.5)
    if dropout_p:
        p = p * NUMPY.dropout_mask(p.shape, dropout_p, default_generator.seed, default_generator.offset, p.dtype)
    return p if q.dtype == np.float64 else p.astype(np.float32)


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    fits = of_q == of_k == of_v or (of_k[:-1] == of_v[:-1] and of_q[:-2] == of_k[:-2] and of_q[-1:] == of_k[-1:])
    if not fits or min(len(of_q), len(of_k)) < 2:
        raise ValueError(
            f"attention: q has shape {of_q}, k {of_k} and v {of_v}; "
            "they must be (B, H, N, D), (B, H, S, D) and (B, H, S, D)"
        )


def _mask_and_bias(attn_mask: Any, q: Tensor, k: Tensor) -> tuple[Any, Tensor | None]:
    """Return a boolean mask and no bias, or no mask and a floating bias; numbers of Python have the dtype of q."""
    values = constant(attn_mask, "attention: attn_mask")
    _check_mask(values.shape, q.shape[:-1] + k.shape[-2:-1])
    if values.dtype == bool:
        return values, None
    if is_floating(values):
        if isinstance(attn_mask, Tensor):
            return None, attn_mask  # autocast converts tensors
        return None, Tensor(values if is_array(attn_mask) or not is_floating(q.data) else values.astype(q.dtype))
    raise TypeError(f"attention: attn_mask has dtype {values.dtype}; it must be boolean or floating")


def _check_mask(shape: tuple[int, ...], scores: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(shape, scores) == scores
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"attention: attn_mask has shape {shape}; it must broadcast to (B, H, N, S) = {scores}")
