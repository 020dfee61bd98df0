// Attention on tensor cores, v5: forward, and the numbers of each query that backward starts from.
#include "attention/attention_5.cuh"

template <int D> struct Softmax : RunningSums<D> {
  using RunningSums<D>::out, RunningSums<D>::peak, RunningSums<D>::total;

  // Turns products into probabilities, for C keys from `start` on, of which the last UNSURE may lie past the end.
  // FIRST: there were no keys before.
  template <typename T, int C, int EXTRAS, int UNSURE, bool FIRST>
  DEVICE void add(float (&s)[C / 8][4], const Attention& a, const Head& head, int row, int start) {
    int lane = threadIdx.x % WARP;
    float unit = unit_of(a);
    KeptOf<C, false, EXTRAS> kept(a, head, row, start);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < C / 8; j++)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++) {
          int n = row + lane / 4 + 8 * i, key = start + 8 * j + lane % 4 * 2 + e % 2;
          if constexpr (EXTRAS != 0) s[j][e] = score_of<T, EXTRAS>(a, head, n, key, s[j][e]);
          if (8 * j >= C - UNSURE) s[j][e] = key < a.keys ? s[j][e] : -INFINITY;
          top = fmaxf(top, s[j][e]);
        }
      top = fmaxf(peak[i], warp_max(EXTRAS ? top : top * unit, 4));
      float shift = shift_of(top), sum = 0;
#pragma unroll
      for (int j = 0; j < C / 8; j++)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++) {
          s[j][e] = exp2_fast(EXTRAS ? s[j][e] - shift : fmaf(s[j][e], unit, -shift));
          sum += s[j][e];
          if (EXTRAS & DROPOUT) s[j][e] *= kept.of(j, e);
        }
      if (!FIRST) {
        float fade = exp2_fast(peak[i] - shift);
        total[i] *= fade;
#pragma unroll
        for (int j = 0; j < D / 8; j++) out[j][2 * i] *= fade, out[j][2 * i + 1] *= fade;
      }
      total[i] += sum;
      peak[i] = top;
    }
  }

  // Adds C keys from `start` on, which are staged in `k` and `v`.
  template <typename T, int C, int EXTRAS, int UNSURE, bool FIRST = false>
  DEVICE void attend(const Attention& a, const Head& head, int row, int start, const T* q, const T* k, const T* v) {
    float s[C / 8][4];
    multiply<T, D, C>(s, q, k);
    add<T, C, EXTRAS, UNSURE, FIRST>(s, a, head, row, start);
    accumulate<T, D, C>(out, s, v);
  }
};

// All keys of a head are in shared memory. Warps go over them in tiles of TILE, and a last one of TAIL; with TILE = 0
// there is only that one, and nothing is rescaled. With at most 6 warps, two blocks have enough registers.
template <typename T, int D, int TILE, int TAIL>
__global__ void __launch_bounds__(6 * WARP, 2) attention_forward_5(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int padded = (a.keys + ROWS - 1) / ROWS * ROWS;
  T* k = reinterpret_cast<T*>(memory);  // (padded, PITCH)
  T* v = k + padded * PITCH<D>;
  T* mine = v + padded * PITCH<D> + warp * ROWS * PITCH<D>;
  Head head = head_of(a, blockIdx.x);
  const T* queries = matrix<T>(a.q, head);
  stage<T, D>(k, a, a.k, head, 0, padded, a.keys, threadIdx.x, blockDim.x);
  stage<T, D>(v, a, a.v, head, 0, padded, a.keys, threadIdx.x, blockDim.x);
  // Every warp does at least one round of this loop, and so its barrier, because none is launched without rows.
  bool waiting = true;
  for (int row = warp * ROWS; row < a.queries; row += warps * ROWS) {
    stage<T, D>(mine, a, a.q, head, row, ROWS, a.queries, lane, WARP);
    copy_commit();
    copy_wait<0>();
    if (waiting)
      __syncthreads();  // for k and v, which all threads copy
    else
      __syncwarp();
    waiting = false;
    int next = row + warps * ROWS + lane % ROWS;  // two lanes for the ends of a row, which may be in two cache lines
    if (next < a.queries) prefetch(queries + next * a.q.row + (lane < ROWS ? 0 : a.depth - 1));
    Softmax<D> softmax;
    int start = 0;
    if constexpr (TILE > 0)
      for (; start + TAIL < padded; start += TILE)
        softmax.template attend<T, TILE, 0, 0>(a, head, row, start, mine, k + start * PITCH<D>, v + start * PITCH<D>);
    softmax.template attend<T, TAIL, 0, ROWS, TILE == 0>(a, head, row, start, mine, k + start * PITCH<D>,
                                                         v + start * PITCH<D>);
    softmax.finish(mine, a, head, row);
  }
}

// Any number of keys: a block has 16 queries for each warp; it copies the next tile of C keys while it uses the one
// before.
template <typename T, int D, int C, int EXTRAS>
__global__ void __launch_bounds__(128, 2) attention_forward_tiles_5(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, first = blockIdx.x * warps * ROWS;
  int row = first + warp * ROWS;
  T* queries = reinterpret_cast<T*>(memory);     // (16 warps, PITCH)
  T* tiles = queries + warps * ROWS * PITCH<D>;  // 2 x (k, v) x (C, PITCH)
  T* mine = queries + warp * ROWS * PITCH<D>;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  auto fetch = [&](int start) {
    T* tile = tiles + start / C % 2 * (2 * C * PITCH<D>);
    stage<T, D>(tile, a, a.k, head, start, C, a.keys, threadIdx.x, blockDim.x);
    stage<T, D>(tile + C * PITCH<D>, a, a.v, head, start, C, a.keys, threadIdx.x, blockDim.x);
    copy_commit();
  };
  int end = EXTRAS & CAUSAL ? min(a.keys, first + warps * ROWS) : a.keys;
  stage<T, D>(queries, a, a.q, head, first, warps * ROWS, a.queries, threadIdx.x, blockDim.x);
  fetch(0);
  Softmax<D> softmax;
  for (int start = 0; start < end; start += C) {
    if (start + C < end) {
      fetch(start + C);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T *k = tiles + start / C % 2 * (2 * C * PITCH<D>), *v = k + C * PITCH<D>;
    if (start + C <= a.keys)
      softmax.template attend<T, C, EXTRAS, 0>(a, head, row, start, mine, k, v);
    else
      softmax.template attend<T, C, EXTRAS, C>(a, head, row, start, mine, k, v);
    __syncthreads();  // before this tile is overwritten
  }
  softmax.finish(mine, a, head, row);
}

// For each query r, and the numbers with which its probabilities are computed again: shift = lse and rest = 0. A bias
// can make lse so large that its rounding error would show in them; shift is then the largest score, and rest is the
// logarithm of the sum of exponentials relative to it. A block has 16 queries for each warp.
template <typename T, int D, int C, int EXTRAS>
__global__ void __launch_bounds__(128, 2) attention_products_5(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int first = blockIdx.x * warps * ROWS, row = first + warp * ROWS;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  products_with_out<T, D>(a.r + head.row + first, a, head, first, warps * ROWS, min(warps * ROWS, a.queries - first));
  constexpr float EXACT = 16;  // the most that lse may be for its rounding error not to show
  float large = 0;
  for (int n = first + lane; n < min(first + warps * ROWS, a.queries); n += WARP) {
    float lse = fabsf(shift_of(a.lse[head.row + n]));
    large = (EXTRAS & BIAS) && lse > EXACT && lse < INFINITY ? 1.f : large;
    if (n / ROWS * ROWS == row) {
      a.shift[head.row + n] = LOG2_E * shift_of(a.lse[head.row + n]);
      a.rest[head.row + n] = 0;
    }
  }
  if constexpr ((EXTRAS & BIAS) != 0) {
    if (warp_max(large) == 0) return;  // all warps of the block, as they have looked at the same queries
    T* queries = reinterpret_cast<T*>(memory);   // (16 warps, PITCH)
    T* k = queries + warps * ROWS * PITCH<D>;    // (C, PITCH)
    stage<T, D>(queries, a, a.q, head, first, warps * ROWS, a.queries, threadIdx.x, blockDim.x);
    Softmax<8> softmax;  // of which the result is not used
    int end = EXTRAS & CAUSAL ? min(a.keys, first + warps * ROWS) : a.keys;
    for (int start = 0; start < end; start += C) {
      stage<T, D>(k, a, a.k, head, start, C, a.keys, threadIdx.x, blockDim.x);
      copy_commit();
      copy_wait<0>();
      __syncthreads();
      float s[C / 8][4];
      multiply<T, D, C>(s, queries + warp * ROWS * PITCH<D>, k);
      softmax.template add<T, C, EXTRAS & ~DROPOUT, C, false>(s, a, head, row, start);
      __syncthreads();  // before this tile is overwritten
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int n = row + lane / 4 + 8 * i;
      float sum = warp_sum(softmax.total[i], 4);
      if (lane % 4 == 0 && n < a.queries && sum > 0) {
        a.shift[head.row + n] = softmax.peak[i];
        a.rest[head.row + n] = log2f(sum);
      }
    }
  }
}
