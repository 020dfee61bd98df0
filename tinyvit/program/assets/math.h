/* The functions of <math.h> that exported models call, for WebAssembly, where there is no C library.

   They compute in double and round once, so that a result is within 0.51 units in the last place of a float, and is the
   same in every browser. */
#ifndef TINYVIT_MATH_H
#define TINYVIT_MATH_H

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define fabsf __builtin_fabsf
#define sqrtf __builtin_sqrtf
#define truncf __builtin_truncf

/* e^x for |x| < 700: e^x = 2^k e^r with |r| <= ln(2) / 2, and e^r by its Taylor series. */
static inline double exp_double(double x)
{
    static const double inverse_factorial[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0};
    union { double number; long long bits; } power;
    double k = __builtin_floor(x * 1.4426950408889634 + 0.5), r = x - k * 0.6931471805599453, sum = 0;
    for (int i = 0; i < 14; i++) sum = sum * r + inverse_factorial[i];
    power.bits = (1023 + (long long)k) << 52;
    return sum * power.number;
}

/* ln(x) for finite x > 0: x = 2^k m with sqrt(1/2) <= m < sqrt(2), and ln(m) = 2 artanh((m - 1) / (m + 1)). */
static inline double log_double(double x)
{
    union { double number; long long bits; } parts = {x};
    long long k = (parts.bits >> 52) - 1023;
    parts.bits = (parts.bits & 0xfffffffffffffLL) | 0x3ff0000000000000LL;
    if (parts.number > 1.4142135623730951) parts.number /= 2, k++;
    double s = (parts.number - 1) / (parts.number + 1), sum = 0;
    for (int n = 23; n > 0; n -= 2) sum = sum * s * s + 1.0 / n;
    return 2 * s * sum + (double)k * 0.6931471805599453;
}

static inline float expf(float x)
{
    if (x != x) return x;
    return x > 89 ? INFINITY : x < -104 ? 0 : (float)exp_double(x);
}

static inline float logf(float x)
{
    if (x != x || x == INFINITY) return x;
    return x > 0 ? (float)log_double(x) : x == 0 ? -INFINITY : NAN;
}

static inline float tanhf(float x)
{
    if (x != x) return x;
    if (fabsf(x) < 1e-3f) return (float)(x - (double)x * x * x / 3);
    if (fabsf(x) > 10) return x > 0 ? 1 : -1;
    double e = exp_double(2 * (double)x);
    return (float)((e - 1) / (e + 1));
}

/* erf(x) = 2 / sqrt(pi) e^(-x^2) (x + 2 x^3 / 3 + 4 x^5 / 15 + ...), whose terms have one sign. */
static inline float erff(float x)
{
    if (x != x) return x;
    if (fabsf(x) >= 4) return x > 0 ? 1 : -1;
    double square = 2 * (double)x * x, term = x, sum = x;
    for (int n = 3; __builtin_fabs(term) > 1e-11 * __builtin_fabs(sum); n += 2) sum += term *= square / n;
    return (float)(1.1283791670955126 * exp_double(-square / 2) * sum);
}

static inline float powf(float x, float y)
{
    if (y == 0 || x == 1) return 1;
    if (x != x || y != y) return NAN;
    double whole = __builtin_trunc(y);
    int is_odd = whole == y && __builtin_trunc(whole / 2) * 2 != whole;
    float sign = x < 0 && is_odd ? -1.0f : 1.0f, size = fabsf(x);
    if (x < 0 && whole != y && x != -INFINITY) return NAN;
    if (size == 0 || size == INFINITY) return sign * ((size == 0) == (y > 0) ? 0.0f : INFINITY);
    double exponent = y * log_double(size);
    if (exponent > 89) return sign * INFINITY;
    return exponent < -104 ? sign * 0.0f : sign * (float)exp_double(exponent);
}

#endif
