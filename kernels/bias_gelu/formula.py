"""GELU and its slope, for an element and for a row; this kernel and that of the linear map call them.

The exact formula is y = x P(x) (`vector_math`), the other is y = x s with s = 1 / (1 + e^(-2 u)) = (1 + tanh u) / 2 and
u = sqrt(2 / pi) (x + 0.044715 x^3). Beyond +-`EDGE` P(x) and s are 0 or 1 to the last bit, also in float64; x is cut
there, because its powers would overflow, and -inf P(-inf) is NaN.
"""

from ..cpu.bfloat16 import real, rounded, widened
from ..cpu.compiler import body, exact
from ..cpu.vector_math import exp, gelu_slope, normal

_MINUS_TWO_ROOT, _CUBIC = -1.5957691216057308, 0.044715  # -2 sqrt(2 / pi)
EDGE = 64.0


@body
def tanh_constants(row):
    """Return the constants c of `gelu_tanh` and `gelu_tanh_slope`, in the dtype in which the row is computed."""
    powers = real(_MINUS_TWO_ROOT, row), real(_MINUS_TWO_ROOT * _CUBIC, row), real(3 * _MINUS_TWO_ROOT * _CUBIC, row)
    return (real(1, row), *powers, real(-EDGE, row), real(EDGE, row))


@body
def gelu_exact(v, c):
    """Return v P(v)."""
    v = c[4] if v < c[4] else v  # a comparison keeps NaN
    return v * normal(v)


@exact
def gelu_tanh(v, c):
    """Return v s. A large v needs no edge: its cube may be infinite, and s is 1."""
    v = c[4] if v < c[4] else v
    return v / (c[0] + exp(v * (c[1] + c[2] * (v * v))))


@exact
def gelu_tanh_slope(v, c):
    """Return s + v s (1 - s) 2 u'."""
    v = c[4] if v < c[4] else v
    v = c[5] if v > c[5] else v
    s = c[0] / (c[0] + exp(v * (c[1] + c[2] * (v * v))))
    return s - v * s * (c[0] - s) * (c[1] + c[3] * (v * v))


@body
def gelu_row(x, out, tanh):
    """Set out = gelu(x)."""
    c = tanh_constants(x)
    if tanh:
        for j in range(x.size):
            out[j] = rounded(gelu_tanh(widened(x[j]), c), out)
    else:
        for j in range(x.size):
            out[j] = rounded(gelu_exact(widened(x[j]), c), out)


@body
def gelu_row_backward(dy, x, dx, tanh):
    """Set dx = dy gelu'(x)."""
    c = tanh_constants(x)
    if tanh:
        for j in range(x.size):
            dx[j] = rounded(widened(dy[j]) * gelu_tanh_slope(widened(x[j]), c), dx)
    else:
        for j in range(x.size):
            dx[j] = rounded(widened(dy[j]) * gelu_slope(widened(x[j])), dx)
