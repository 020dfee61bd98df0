// Functions of several kernels: runs of 16 bytes, reductions in a fixed order, the random bits of dropout.
#pragma once
#include "cuda/prims.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// V neighbouring elements, moved by one instruction if they are 16 bytes.
template <typename T, int V> struct alignas(sizeof(T) * V) Run {
  T at[V];
};

template <typename T, int V> DEVICE void load(float (&values)[V], const T* source) {
  Run<T, V> run = *reinterpret_cast<const Run<T, V>*>(source);
#pragma unroll
  for (int i = 0; i < V; i++) values[i] = to_float(run.at[i]);
}

template <typename T, int V> DEVICE void store(T* target, const float (&values)[V]) {
  Run<T, V> run;
#pragma unroll
  for (int i = 0; i < V; i++) run.at[i] = from_float<T>(values[i]);
  *reinterpret_cast<Run<T, V>*>(target) = run;
}

// Every lane gets the sum, or the largest, of the values of all 32 lanes, or of its group of `width` neighbours.
DEVICE float warp_sum(float v, int width = WARP) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2)
    if (step < width) v += __shfl_xor_sync(ALL_LANES, v, step);
  return v;
}
DEVICE float warp_max(float v, int width = WARP) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2)
    if (step < width) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
  return v;
}
// fmaxf drops NaN; `larger` keeps it.
DEVICE float larger(float a, float b) { return a >= b || a != a ? a : b; }

// Every thread of the block gets the sum of all their values; `scratch` is 32 floats of shared memory.
DEVICE float block_sum(float v, float* scratch) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  v = warp_sum(v);
  __syncthreads();  // until the previous sum has been read
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return warp_sum(lane < int(blockDim.x) / WARP ? scratch[lane] : 0.f);
}
DEVICE float block_max(float v, float* scratch) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, step));
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = lane < int(blockDim.x) / WARP ? scratch[lane] : -INFINITY;
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, step));
  return v;
}

// Dropout: `threshold` = p 2^32, `factor` = 1 / (1 - p). `stream` may point to a seed and an offset in device memory,
// so that a captured graph draws other numbers in each step; `offset` is then added to that offset.
struct Dropout {
  unsigned long long threshold;
  const unsigned long long* stream;
  unsigned long long seed, offset;  // the seed is used if `stream` is null
  float factor;
};

struct Words {
  unsigned at[4];
};

// Philox4x32-10 of the counter (block, offset) under the key `seed`. (Salmon et al., SC 2011.)
DEVICE Words philox(unsigned long long block, unsigned long long offset, unsigned long long seed) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32), c2 = unsigned(offset), c3 = unsigned(offset >> 32);
  unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll 1  // to keep the code short, because this is inlined for each element of a tile
  for (int i = 0; i < 10; i++) {
    unsigned high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
    unsigned high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The factors of the elements first, first + 1, ...: `factor` if the element is kept, else 0. Four neighbours share a
// counter.
template <int V> DEVICE void dropout_factors(float (&factors)[V], unsigned long long first, const Dropout& how) {
  unsigned long long seed = how.stream ? how.stream[0] : how.seed;
  unsigned long long offset = how.stream ? how.stream[1] + how.offset : how.offset;
  Words words = {};
#pragma unroll
  for (int i = 0; i < V; i++) {
    unsigned long long element = first + i;
    unsigned word = unsigned(element & 3);
    if (i == 0 || word == 0) words = philox(element >> 2, offset, seed);
    unsigned drawn = word == 0 ? words.at[0] : word == 1 ? words.at[1] : word == 2 ? words.at[2] : words.at[3];
    factors[i] = drawn >= how.threshold ? how.factor : 0.f;
  }
}
