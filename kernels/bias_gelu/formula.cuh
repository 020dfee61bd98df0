// GELU and its slope, exact or by the tanh formula, for the kernels of gelu(x) and of gelu(x + bias).
#pragma once
#include "cuda/common.cuh"

constexpr float ROOT_HALF = 0.70710678f, ROOT_TWO_PI_INVERSE = 0.39894228f, ROOT_TWO_OVER_PI = 0.79788456f;
constexpr float CUBIC = 0.044715f, EDGE = 64;  // beyond +-EDGE P and s are 0 or 1 to the last bit

template <bool TANH> DEVICE float gelu(float h) {
  h = h < -EDGE ? -EDGE : h;  // -inf P(-inf) would be NaN; a comparison keeps NaN, which fmaxf does not
  if (TANH) return h / (1 + expf(-2 * ROOT_TWO_OVER_PI * (h + CUBIC * h * h * h)));
  return 0.5f * h * (1 + erff(h * ROOT_HALF));  // erfcf takes twice as many instructions as erff
}
template <bool TANH> DEVICE float gelu_slope(float h) {
  h = h < -EDGE ? -EDGE : h > EDGE ? EDGE : h;  // so that powers of h are finite
  if (TANH) {
    // y = h s,  s = 1 / (1 + e^(-2 u))
    float s = 1 / (1 + expf(-2 * ROOT_TWO_OVER_PI * (h + CUBIC * h * h * h)));
    return s + h * s * (1 - s) * 2 * ROOT_TWO_OVER_PI * (1 + 3 * CUBIC * h * h);
  }
  // y = h P(h)
  return 0.5f * (1 + erff(h * ROOT_HALF)) + h * ROOT_TWO_PI_INVERSE * expf(-0.5f * h * h);
}
