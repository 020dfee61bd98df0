// Sums over rows in a fixed order: blocks write parts, which are then added from the first to the last.
#pragma once
#include "cuda/common.cuh"

// out (C,) = the sum of parts (G, C).
template <typename T> __global__ void sum_parts(const float* parts, T* out, int count, int columns) {
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  float sum = 0;
  for (int g = 0; g < count; g++) sum += parts[(long long)g * columns + c];
  out[c] = from_float<T>(sum);
}

// Adds the values of all warps of a block, V neighbouring columns in each lane; the first warp gets the sums.
// `scratch` is 32 V floats for each warp.
template <int V> DEVICE void add_warps(float (&values)[V], float* scratch) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  __syncthreads();  // until the previous sums have been read
#pragma unroll
  for (int i = 0; i < V; i++) scratch[(warp * WARP + lane) * V + i] = values[i];
  __syncthreads();
  if (warp == 0)
    for (int w = 1; w < warps; w++)
#pragma unroll
      for (int i = 0; i < V; i++) values[i] += scratch[(w * WARP + lane) * V + i];
}
