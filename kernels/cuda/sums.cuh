// Sums over rows in a fixed order: blocks write parts, which are then added from the first to the last.
#pragma once
#include "cuda/common.cuh"

// out (C,) = the sum of parts (G, C); with two rows of blocks, out and second (C,) = the sums of parts (G, 2, C). The warps
// of a block take turns with the parts of 32 columns, so that many loads are under way, and then add up their sums.
template <typename T>
__global__ void __launch_bounds__(512) sum_parts(const float* parts, T* out, T* second, int count, int columns) {
  DYNAMIC_SHARED(memory);
  float* sums = reinterpret_cast<float*>(memory);  // (warps, 32)
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP, c = blockIdx.x * WARP + lane;
  long long pitch = (long long)gridDim.y * columns, from = blockIdx.y * (long long)columns + c;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (int g = warp; g < count; g += warps) sum += parts[g * pitch + from];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
  for (int w = 1; w < warps; w++) sum += sums[w * WARP + lane];
  (blockIdx.y ? second : out)[c] = from_float<T>(sum);
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
