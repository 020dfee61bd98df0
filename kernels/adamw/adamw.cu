// One step of Adam or AdamW over all parameters. The norm of the gradients, their scale and the step counter are on the
// device, so nothing waits for the host, and a captured graph can be replayed.
#include "cuda/common.cuh"

// A parameter, its gradient (null: the parameter stays as it is), and where its moments begin in the flat arrays m and
// v.
struct Parameter {
  float *p, *g;
  long long start, size, group;
};
struct Group {
  double lr, b1, b2, eps, decay;
};
// The values that change from step to step.
struct State {
  double step, max_norm, norm;  // max_norm: 0 does not clip
  double scale, growth, good;   // gradients are `scale` times too large; it doubles after `growth` good steps; 0: never
  double skipped, factor;       // whether the last step was skipped; the factor by which it multiplied gradients
};
// The coefficients of a parameter's update, as in kernels/adamw/numba_cpu.py.
struct Setting {
  float keep, l2, b1, b2, new1, new2, rate, c2, eps;
};
constexpr int CHUNK = 8192;  // elements of a block

DEVICE void update(float& p, float g, float& m, float& v, const Setting& s) {
  if (s.l2 != 0) g += s.l2 * p;
  m = s.b1 * m + s.new1 * g;
  v = s.b2 * v + s.new2 * g * g;
  p = s.keep * p - s.rate * m / (sqrtf(s.c2 * v) + s.eps);
}

// parts[b] = the sum of squares of the gradients of chunk b, in float64: the square of 1e20 is no float32.
template <typename T> __global__ void adamw_squares(const Parameter* table, int count, double* parts) {
  DYNAMIC_SHARED(memory);
  double* sums = reinterpret_cast<double*>(memory);  // one of each thread
  long long begin = (long long)blockIdx.x * CHUNK, end = begin + CHUNK;
  double sum = 0;
  for (int t = 0; t < count; t++) {
    const Parameter& a = table[t];
    long long from = begin > a.start ? begin : a.start, to = end < a.start + a.size ? end : a.start + a.size;
    if (!a.g) continue;
    for (long long i = from + threadIdx.x; i < to; i += blockDim.x) {
      double g = a.g[i - a.start];
      sum += g * g;
    }
  }
  sums[threadIdx.x] = sum;
  for (int step = blockDim.x / 2; step; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}

// One thread computes the norm from its parts, and the state. If the norm is not finite and the gradients are scaled, the
// step is skipped and the scale halved; if they are not scaled, they are not clipped.
DEVICE void advance(State* state, const double* parts, int chunks) {
  double squares = 0;
  for (int i = 0; i < chunks; i++) squares += parts[i];
  bool scaled = state->scale != 0, finite = squares < INFINITY;
  double scale = scaled ? state->scale : 1.0, norm = sqrt(squares) / scale;
  state->norm = norm;
  state->skipped = scaled && !finite;
  state->factor = 1 / scale;
  if (finite && state->max_norm > 0 && norm > state->max_norm) state->factor *= state->max_norm / norm;
  if (scaled) {
    state->good = finite ? state->good + 1 : 0;
    if (!finite) state->scale *= 0.5;
    if (state->growth > 0 && state->good >= state->growth) state->scale *= 2, state->good = 0;
  }
  if (!state->skipped) state->step += 1;
}

// Then each thread counts the updates of some parameters and computes their settings.
template <typename T>
__global__ void adamw_settings(const Parameter* table, long long* updates, State* state, const Group* groups,
                               Setting* settings, const double* parts, int chunks, int count, int decoupled) {
  if (threadIdx.x == 0) advance(state, parts, chunks);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (table[i].g && !state->skipped) updates[i] += 1;
    double t = updates[i] > 1 ? double(updates[i]) : 1.0;
    const Group& g = groups[table[i].group];
    Setting& s = settings[i];
    s.keep = decoupled ? float(1 - g.lr * g.decay) : 1.f;
    s.l2 = decoupled ? 0.f : float(g.decay);
    s.b1 = float(g.b1), s.b2 = float(g.b2), s.new1 = float(1 - g.b1), s.new2 = float(1 - g.b2);
    s.rate = float(g.lr / (1 - pow(g.b1, t))), s.c2 = float(1 / (1 - pow(g.b2, t))), s.eps = float(g.eps);
  }
}

// v1: one block for each parameter.
template <typename T>
__global__ void adamw_step_1(const Parameter* table, int count, const State* state, const Setting* settings, float* m,
                             float* v) {
  const Parameter& a = table[blockIdx.x];
  if (!a.g || state->skipped) return;
  float factor = float(state->factor);
  for (long long i = threadIdx.x; i < a.size; i += blockDim.x)
    update(a.p[i], a.g[i] * factor, m[a.start + i], v[a.start + i], settings[blockIdx.x]);
}

// v2: one block for each `CHUNK` elements, which may span several small parameters or be a part of a large one.
template <typename T>
__global__ void adamw_step_2(const Parameter* table, int count, const State* state, const Setting* settings, float* m,
                             float* v) {
  long long begin = (long long)blockIdx.x * CHUNK, end = begin + CHUNK;
  if (state->skipped) return;
  float factor = float(state->factor);
  for (int t = 0; t < count; t++) {
    const Parameter& a = table[t];
    long long from = begin > a.start ? begin : a.start, to = end < a.start + a.size ? end : a.start + a.size;
    if (!a.g || from >= to) continue;
    Setting setting = settings[t];
    for (long long i = from + threadIdx.x; i < to; i += blockDim.x)
      update(a.p[i - a.start], a.g[i - a.start] * factor, m[i], v[i], setting);
  }
}
