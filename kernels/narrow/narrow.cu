// Copies of many arrays of float32 in another dtype, one after the other in a flat array.
#include "cuda/common.cuh"

// An array, and where its copy begins in the flat array.
struct Source {
  const float* data;
  long long start, size;
};
constexpr int CHUNK = 8192;  // elements of a block

// One block for each `CHUNK` elements, which may span several small arrays or be a part of a large one.
template <typename T> __global__ void narrow_1(const Source* table, int count, T* copies) {
  long long begin = (long long)blockIdx.x * CHUNK, end = begin + CHUNK;
  for (int t = 0; t < count; t++) {
    const Source& a = table[t];
    long long from = begin > a.start ? begin : a.start, to = end < a.start + a.size ? end : a.start + a.size;
    for (long long i = from + threadIdx.x; i < to; i += blockDim.x) copies[i] = from_float<T>(a.data[i - a.start]);
  }
}
