"""GELU and its slope for one row, as the loops of this kernel and of the linear map before it call them."""

from ..compiler import body
from ..vector_math import exp, gelu_slope, normal


@body
def gelu_row(x, out, tanh):
    """out = gelu(x): x P(x), or x s(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3) and s the sigmoid."""
    one, slope = x.dtype.type(1), x.dtype.type(-1.5957691216057308)
    cubic = x.dtype.type(0.044715)
    if tanh:
        for j in range(x.size):
            v = x[j]
            # (1 + tanh u) / 2 = 1 / (1 + e^(-2 u))
            out[j] = v / (one + exp(slope * (v + cubic * (v * v * v))))
    else:
        for j in range(x.size):
            out[j] = x[j] * normal(x[j])


@body
def gelu_row_backward(dy, x, dx, tanh):
    """dx = dy gelu'(x): dy (P + x P'), or the same with s(2 u)."""
    real = x.dtype.type
    one, slope, cubic, triple = real(1), real(-1.5957691216057308), real(0.044715), real(3 * 0.044715)
    if tanh:
        for j in range(x.size):
            v = x[j]
            s = one / (one + exp(slope * (v + cubic * (v * v * v))))
            # y = x s(2 u):  s + x s (1 - s) 2 u'
            dx[j] = dy[j] * (s - v * s * (one - s) * slope * (one + triple * (v * v)))
    else:
        for j in range(x.size):
            dx[j] = dy[j] * gelu_slope(x[j])
