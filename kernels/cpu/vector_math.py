"""exp, the normal distribution and the slope of GELU, written so that loops over them become vector instructions.

Numba has no vector versions of the mathematical functions: a call of `math.exp` in a loop leaves the loop scalar, 20 to
40 times slower. The functions here are polynomials for float32. For float64, which is there to be exact, they call the
library's functions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, overload

from .compiler import body, exact

_f = np.float32
_SQRT_HALF, _DENSITY = 0.7071067811865476, 0.3989422804014327  # the second is 1 / sqrt(2 pi)
_FAR = 64.0


def _coefficients(*values):
    """Return the coefficients of a polynomial, that of the lowest power first, in float32."""
    return tuple(_f(value) for value in values)


# e^r - 1 - r = r^2 p(r) for |r| <= log(2) / 2
_EXP = _coefficients(
    *(5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
# P(x) - 1/2 = x p(x^2) / q(x^2) to 1e-8 for |x| <= 5.6; beyond that P(x) is 0 or 1 to 1e-8
_CDF_EDGE = 5.6
_CDF_P = _coefficients(0.39894223, 0.034376226, 0.004707266, 0.00017385176, 6.3565253e-06, 2.2145152e-08)
_CDF_Q = _coefficients(1.0, 0.25283414, 0.028940154, 0.0019129843, 7.51021733e-05, 1.18020671e-06)
# (x P(x))' - 1/2 = x p(x^2) / q(x^2) to 3e-9 for |x| <= 5.9; beyond that the slope is 0 or 1 to 7e-8
_SLOPE_EDGE = 5.9
_SLOPE_P = _coefficients(
    *(0.797884538, -0.0242417889, 0.0139304402, 0.000168954097),
    *(3.40757027e-05, 8.33052818e-07, 1.63844849e-08),
)
_SLOPE_Q = _coefficients(
    *(1.0, 0.302950464, 0.0434435601, 0.00387526913),
    *(0.0002368625, 9.86508409e-06, 3.14511024e-07, 1.29671825e-09),
)

if config.DISABLE_JIT:

    def _bits_of(x):
        return np.asarray(x, np.float32).view(np.int32)[()]

    def _float_of(bits):
        return np.asarray(bits, np.int32).view(np.float32)[()]

else:

    @intrinsic
    def _bits_of(typing_context, x):
        def codegen(context, builder, signature, values):
            return builder.bitcast(values[0], ir.IntType(32))

        return types.int32(types.float32), codegen

    @intrinsic
    def _float_of(typing_context, bits):
        def codegen(context, builder, signature, values):
            return builder.bitcast(values[0], ir.FloatType())

        return types.float32(types.int32), codegen


@exact
def _polynomial(x, coefficients):
    """Evaluate a polynomial by Horner's rule. LLVM unrolls the loop, for the coefficients are constants."""
    total = coefficients[len(coefficients) - 1]
    for k in range(len(coefficients) - 2, -1, -1):
        total = total * x + coefficients[k]
    return total


@exact
def less(x, shift):
    """Return x - shift. The sum that this goes into may be reordered, but not with this difference."""
    return x - shift


@exact
def further_less(x, shift, rest):
    """Return (x - shift) - rest, in this order: shift and rest together would lose the digits of rest.

    (Sums that are written around `less` are not safe: where LLVM turns a difference around, it gives it new flags.)
    """
    return (x - shift) - rest


@exact
def inverse_root(one, x):
    """Return one / sqrt(x); 0 for infinity, for which an estimate that Newton's method refines would be NaN."""
    return one / np.sqrt(x)


@exact
def standardized(x, mean, rstd):
    """Return (x - mean) rstd, in this order, whatever it is multiplied with."""
    return (x - mean) * rstd


@exact
def exp_float32(x):
    """Return e^x to 1.3 units in the last place; 0 below -87.3, where results would be subnormal."""
    # x = n log 2 + r. Adding 1.5 * 2^23 rounds n to a whole number, which then stands in the last bits of the sum.
    shifted = x * _f(1.4426950408889634) + _f(12582912.0)
    n = shifted - _f(12582912.0)
    r = (x - n * _f(0.693359375)) - n * _f(-2.12194440e-4)
    p = _polynomial(r, _EXP) * r * r + r + _f(1.0)
    y = _float_of(np.int32(_bits_of(p) + (_bits_of(shifted) << np.int32(23))))  # p * 2^n
    y = _f(0.0) if x < _f(-87.3) else y
    y = _f(np.inf) if x > _f(88.7) else y
    return x if x != x else y


@body
def normal_float32(x):
    """Return P(x), the normal distribution function, to 2e-7."""
    y = _f(0.5) + x * _polynomial(x * x, _CDF_P) / _polynomial(x * x, _CDF_Q)
    y = _f(1.0) if x > _f(_CDF_EDGE) else y
    return _f(0.0) if x < _f(-_CDF_EDGE) else y


@body
def gelu_slope_float32(x):
    """Return P(x) + x P'(x) to 2e-7."""
    y = _f(0.5) + x * _polynomial(x * x, _SLOPE_P) / _polynomial(x * x, _SLOPE_Q)
    y = _f(1.0) if x > _f(_SLOPE_EDGE) else y
    return _f(0.0) if x < _f(-_SLOPE_EDGE) else y


def exp(x):
    """Return e^x in the type of x."""
    return exp_float32(x) if isinstance(x, np.float32) else math.exp(x) if x < 709.78 else x * math.inf


@overload(exp, inline="always")
def _exp(x):
    if x == types.float32:
        return lambda x: exp_float32(x)
    return lambda x: math.exp(x)


def normal(x):
    """Return P(x), the normal distribution function, in the type of x."""
    return normal_float32(x) if isinstance(x, np.float32) else 0.5 * math.erfc(-x * _SQRT_HALF)


@overload(normal, inline="always")
def _normal(x):
    if x == types.float32:
        return lambda x: normal_float32(x)
    return lambda x: 0.5 * math.erfc(-x * _SQRT_HALF)


@body
def gelu_slope_float64(x):
    """Return P(x) + x P'(x); beyond the edges P'(x) is 0, and infinity times 0 would be NaN."""
    x = -_FAR if x < -_FAR else _FAR if x > _FAR else x
    return 0.5 * math.erfc(-x * _SQRT_HALF) + x * _DENSITY * math.exp(-0.5 * x * x)


def gelu_slope(x):
    """Return P(x) + x P'(x) in the type of x."""
    if isinstance(x, np.float32):
        return gelu_slope_float32(x)
    return gelu_slope_float64(x)


@overload(gelu_slope, inline="always")
def _gelu_slope(x):
    if x == types.float32:
        return lambda x: gelu_slope_float32(x)
    return lambda x: gelu_slope_float64(x)
