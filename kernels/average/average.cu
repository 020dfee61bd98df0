// The moving average of all parameters, a <- d a + (1 - d) p. Its decay d depends on the number of updates, which is on the
// device, so that a captured graph can be replayed.
#include "cuda/common.cuh"

// A parameter, and where its average begins in the flat array of averages.
struct Averaged {
  const float* p;
  long long start, size;
};
struct State {
  double steps, decay, d;  // `decay` is the largest d
};
constexpr int CHUNK = 8192;  // elements of a block

template <typename T> __global__ void average_settings(State* state) {
  double t = state->steps + 1, early = (1 + t) / (10 + t);
  state->steps = t;
  state->d = early < state->decay ? early : state->decay;
}

// One block for each `CHUNK` elements, which may span several small parameters or be a part of a large one.
template <typename T>
__global__ void average_1(const Averaged* table, int count, const State* state, float* averages) {
  long long begin = (long long)blockIdx.x * CHUNK, end = begin + CHUNK;
  float d = float(state->d), rest = float(1 - state->d);
  for (int t = 0; t < count; t++) {
    const Averaged& a = table[t];
    long long from = begin > a.start ? begin : a.start, to = end < a.start + a.size ? end : a.start + a.size;
    for (long long i = from + threadIdx.x; i < to; i += blockDim.x) averages[i] = d * averages[i] + rest * a.p[i - a.start];
  }
}
