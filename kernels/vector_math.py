"""exp, the normal distribution, and random bits, written so that loops over them become vector instructions.

Numba has no vector versions of the mathematical functions: a call of `math.exp` in a loop leaves it scalar, 20 to 40
times slower. These are polynomials for float32; float64, whose purpose is exactness, takes the library's functions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, overload

from .compiler import body, exact

_f = np.float32

# e^(a^2) erfc(a) / 2 = t (P[0] + P[1] t + ...), t = 1 / (1 + a / 2), to a relative error of 4e-8 for 0 <= a <= 9.5
_P = (
    *(0.1410438429, 0.1411766703, 0.1216309514, 0.1010334299, -0.01258595106),
    *(0.1379856878, -0.2426894893, 0.141850074, -0.02944523692),
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
def exp_float32(x):
    """e^x to 1.3 units in the last place; 0 below -87.3, where results would be subnormal."""
    # x = n log 2 + r, with n rounded to a whole number by adding 1.5 * 2^23, in whose last bits it then stands
    shifted = x * _f(1.4426950408889634) + _f(12582912.0)
    n = shifted - _f(12582912.0)
    r = (x - n * _f(0.693359375)) - n * _f(-2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    p = p * r * r + r + _f(1.0)
    y = _float_of(np.int32(_bits_of(p) + (_bits_of(shifted) << np.int32(23))))  # p * 2^n
    y = _f(0.0) if x < _f(-87.3) else y
    y = _f(np.inf) if x > _f(88.7) else y
    return x if x != x else y


@exact
def normal_float32(x):
    """P(x), the normal distribution function, and e^(-x^2 / 2), each to a relative error of 1e-6 or 1e-37.

    For x < 0, P = e^(a^2) erfc(a) / 2 * e^(-x^2 / 2) with a = -x / sqrt 2; and P(x) = 1 - P(-x).
    """
    size = abs(x)
    size = _f(14.0) if size > _f(14.0) else size  # the tail is 0 beyond
    e = exp_float32(_f(-0.5) * size * size)
    t = _f(1.0) / (_f(1.0) + _f(0.35355339) * size)
    p = _f(_P[8])
    p = p * t + _f(_P[7])
    p = p * t + _f(_P[6])
    p = p * t + _f(_P[5])
    p = p * t + _f(_P[4])
    p = p * t + _f(_P[3])
    p = p * t + _f(_P[2])
    p = p * t + _f(_P[1])
    p = p * t + _f(_P[0])
    tail = p * t * e
    return (tail if x < _f(0.0) else _f(1.0) - tail), e


def exp(x):
    """e^x in the type of x."""
    return exp_float32(x) if isinstance(x, np.float32) else math.exp(x) if x < 709.78 else x * math.inf


@overload(exp, inline="always")
def _exp(x):
    if x == types.float32:
        return lambda x: exp_float32(x)
    return lambda x: math.exp(x)


def normal(x):
    """P(x) and e^(-x^2 / 2) in the type of x."""
    return normal_float32(x) if isinstance(x, np.float32) else (0.5 * math.erfc(-x / math.sqrt(2)), math.exp(-x * x / 2))


@overload(normal, inline="always")
def _normal(x):
    if x == types.float32:
        return lambda x: normal_float32(x)
    return lambda x: (0.5 * math.erfc(-x * 0.7071067811865476), math.exp(-0.5 * x * x))
