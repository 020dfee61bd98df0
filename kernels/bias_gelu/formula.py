"""GELU and its slope, for an element and for a row; this kernel and that of the linear map call them.

The exact formula is y = x P(x) (`vector_math`), the other is y = x s with s = 1 / (1 + e^(-2 u)) = (1 + tanh u) / 2 and
u = sqrt(2 / pi) (x + 0.044715 x^3).
"""

from ..cpu.bfloat16 import real, rounded, widened
from ..cpu.compiler import body, exact
from ..cpu.vector_math import exp, gelu_slope, normal

_MINUS_TWO_ROOT, _CUBIC = -1.5957691216057308, 0.044715  # -2 sqrt(2 / pi)


@body
def tanh_constants(row):
    """Return the constants c of `gelu_tanh` and `gelu_tanh_slope`, in the dtype in which the row is computed."""
    return real(1, row), real(_MINUS_TWO_ROOT, row), real(_CUBIC, row), real(3 * _CUBIC, row)


@exact
def gelu_tanh(v, c):
    """Return v s."""
    return v / (c[0] + exp(c[1] * (v + c[2] * (v * v * v))))


@exact
def gelu_tanh_slope(v, c):
    """Return s + v s (1 - s) 2 u'."""
    s = c[0] / (c[0] + exp(c[1] * (v + c[2] * (v * v * v))))
    return s - v * s * (c[0] - s) * c[1] * (c[0] + c[3] * (v * v))


@body
def gelu_row(x, out, tanh):
    """Set out = gelu(x)."""
    c = tanh_constants(x)
    if tanh:
        for j in range(x.size):
            out[j] = rounded(gelu_tanh(widened(x[j]), c), out)
    else:
        for j in range(x.size):
            v = widened(x[j])
            out[j] = rounded(v * normal(v), out)


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
