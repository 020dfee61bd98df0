// Each primitive by itself, for the tests that hold the CPU's stand-ins and a GPU to the same results.
#include "cuda/common.cuh"

// d (16, 8) = a (16, 16) b (16, 8), all row-major, by one warp: fragments loaded element by element.
template <typename T> __global__ void product(const T* a, const T* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned left[4], right[2];
  float sum[4] = {};
  for (int i = 0; i < 4; i++) {
    const T* pair = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    left[i] = unsigned(pair[0].bits) | unsigned(pair[1].bits) << 16;
  }
  for (int i = 0; i < 2; i++) {
    const T* pair = b + (2 * t + i * 8) * 8 + g;
    right[i] = unsigned(pair[0].bits) | unsigned(pair[8].bits) << 16;
  }
  mma(sum, left, right, T());
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

// What ldmatrix gives each lane: out (2, 32, 4), plain then transposed, of x (32, 8) copied asynchronously.
template <typename T> __global__ void matrices(const T* x, unsigned* out, int rows) {
  DYNAMIC_SHARED(memory);
  T* tile = reinterpret_cast<T*>(memory);
  int lane = threadIdx.x;
  copy_async(tile + lane * 8, x + (lane < rows ? lane : 0) * 8, lane < rows);
  copy_commit();
  copy_wait<0>();
  __syncwarp();
  unsigned r[4];
  load_matrices(r, tile + lane * 8);
  for (int i = 0; i < 4; i++) out[lane * 4 + i] = r[i];
  load_matrices_transposed(r, tile + lane * 8);
  for (int i = 0; i < 4; i++) out[128 + lane * 4 + i] = r[i];
}

// float -> T -> float, by itself and in pairs, and 2^x.
template <typename T> __global__ void convert(const float* x, float* single, unsigned* pairs, float* power, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    single[i] = to_float(from_float<T>(x[i]));
    pairs[i] = pack<T>(x[i], -x[i]);
    power[i] = exp2_fast(x[i]);
  }
}

// Sums over the warp, over the block, and the largest of the block.
template <typename T> __global__ void reduce(const T* x, float* out) {
  DYNAMIC_SHARED(memory);
  float v = to_float(x[threadIdx.x]);
  float* mine = out + 4 * threadIdx.x;
  mine[0] = warp_sum(v);
  mine[1] = warp_sum(v, 4);
  mine[2] = block_sum(v, reinterpret_cast<float*>(memory));
  mine[3] = block_max(v, reinterpret_cast<float*>(memory));
}

// The random words of counters 0 ... n - 1.
template <typename T> __global__ void random_words(unsigned* out, unsigned long long offset, unsigned long long seed) {
  Words words = philox(threadIdx.x, offset, seed);
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = words.at[i];
}
