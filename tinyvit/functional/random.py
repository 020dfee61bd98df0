"""Dropout, and the counter-based random bits it is drawn from."""

import math
from typing import Any

import numpy as np

from ..backend import (
    NUMPY,
    Array,
    Generator,
    Namespace,
    default_device,
    default_generator,
    is_floating,
    namespace_of,
    to_device,
)
from ..backend.checks import flag, integer, number
from ..engine import Op, Tensor
from .arguments import integers, real_dtype
from .constants import constant
from .samples import sample

_PHILOX_M = (0xD2511F53, 0xCD9E8D57)
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Array, key: tuple[int, int]) -> Array:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).

    `counter` is (4, n) uint32 and `key` two 32-bit words; returns (4, n) uint32 random words. The kernels compute the
    same function, bit for bit.
    """
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(_PHILOX_M[0]), c2 * np.uint64(_PHILOX_M[1])
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + _PHILOX_W[0]) & 0xFFFFFFFF, (k1 + _PHILOX_W[1]) & 0xFFFFFFFF
    return namespace_of(counter).stack([c0, c1, c2, c3]).astype(np.uint32)


def _dropout_mask(xp: Namespace, shape: tuple[int, ...], p: float, seed: int, offset: int, dtype: Any) -> Array:
    """The factors of dropout: 0 with probability `p`, else 1 / (1 - p), from the stream (seed, offset).

    Element e (in row-major order) takes word e % 4 of Philox at counter (e // 4, offset) and key `seed`, and is kept
    where that word is at least p * 2**32: every implementation of dropout draws the same mask.
    """
    if p == 1:
        return xp.zeros(shape, dtype)
    size = math.prod(shape)
    block = xp.arange(-(-size // 4), dtype=np.uint64)
    counter = xp.empty((4, block.size), np.uint32)
    counter[0], counter[1] = block & np.uint64(0xFFFFFFFF), block >> np.uint64(32)
    counter[2], counter[3] = offset & 0xFFFFFFFF, offset >> 32
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    kept = words.T.reshape(-1)[:size] >= np.uint64(round(p * 2**32))
    return (kept.astype(dtype) * np.dtype(dtype).type(1 / (1 - p))).reshape(shape)


Namespace.extend("dropout_mask", _dropout_mask)


class Dropout(Op):
    """y = x * m,  m = 0 with probability p, else 1 / (1 - p)        dx = dy * m

    m is drawn from the stream (seed, offset), again in backward instead of being saved.
    """

    kernel = "dropout"
    draws = "p"

    @staticmethod
    def forward(xp, x, *, p, seed, offset):
        return x * xp.dropout_mask(x.shape, p, seed, offset, x.dtype)

    def backward(ctx, xp, dy):
        return dy * xp.dropout_mask(ctx.shapes[0], ctx.p, ctx.seed, ctx.offset, dy.dtype)

    @staticmethod
    def samples():
        yield sample((3, 5), p=0.3, seed=7, offset=2)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Tensor:
    """Zero each element with probability p and divide the others by 1 - p; x itself if not training.

    The mask is drawn from `generator`, the default random stream if omitted (Srivastava et al., 2014). Raises TypeError
    for integers, which cannot be divided by 1 - p.
    """
    if not is_floating(constant(x, "dropout: x")):
        raise TypeError(f"dropout: x is {constant(x).dtype}; it must be floating: convert it with .to('float32')")
    check_probability("dropout: p", p)
    if not (flag("dropout: training", training)) or p == 0:
        return x
    seed, offset = drawn_from("dropout", generator)
    return Dropout.apply(x, p=float(p), seed=seed, offset=offset)


def drawn_from(name: str, generator: Generator | None) -> tuple[int, int]:
    """Draw a stream (seed, offset) from a generator, the default one if None."""
    try:
        return (default_generator if generator is None else generator).draw()
    except AttributeError:
        raise TypeError(f"{name}: generator is {generator!r}; it must be a tinyvit.Generator or None") from None


def check_probability(name: str, p: float) -> None:
    """Raise TypeError unless p is a number, ValueError unless it is in [0, 1]."""
    if not 0 <= (p if type(p) is float else number(name, p)) <= 1:
        raise ValueError(f"{name} is {p}; a probability is in [0, 1]")


def dropout_mask(shape: tuple[int, ...], p: float, seed: int, offset: int, dtype: Any) -> Tensor:
    """The factors of dropout, on the default device; a constant."""
    check_probability("dropout_mask: p", p)
    shape, dtype = integers("dropout_mask: shape", shape), real_dtype("dropout_mask", dtype)
    stream = integer("dropout_mask: seed", seed), integer("dropout_mask: offset", offset)
    if not all(0 <= word < 2**64 for word in stream) or math.prod(shape) > 2**48:
        raise ValueError(
            f"dropout_mask: seed and offset are {stream} and shape is {shape}; seed and offset must be in [0, 2**64), "
            "and shape may have at most 2**48 elements"
        )
    return Tensor(to_device(NUMPY.dropout_mask(shape, p, *stream, dtype), default_device()))
