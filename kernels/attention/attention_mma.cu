// Attention on tensor cores, for float16 and bfloat16 with sums in float32: v3 and v4.
#include "attention/tiles.cuh"

// Forward ------------------------------------------------------------------------------------------------------------

template <int D> struct Softmax : RunningSums<D> {
  using RunningSums<D>::out, RunningSums<D>::peak, RunningSums<D>::total;

  // Turns products into probabilities, for the keys from `start` on. FIRST: there were no keys before.
  template <typename T, int C, bool EXTRAS, bool FIRST>
  DEVICE void add(float (&s)[C / 8][4], const Attention& a, const Head& head, int row, int start) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int n = row + lane / 4 + 8 * i;
      float top = peak[i];
#pragma unroll
      for (int j = 0; j < C / 8; j++)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++) {
          s[j][e] = LOG2_E * score<T, EXTRAS>(a, head, n, start + 8 * j + lane % 4 * 2 + e % 2, s[j][e]);
          top = fmaxf(top, s[j][e]);
        }
      top = warp_max(top, 4);
      float shift = shift_of(top), sum = 0;
#pragma unroll
      for (int j = 0; j < C / 8; j++)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++) {
          s[j][e] = exp2_fast(s[j][e] - shift);
          sum += s[j][e];
          s[j][e] *= kept<EXTRAS>(a, head, n, start + 8 * j + lane % 4 * 2 + e % 2);
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
};

// v3: a block has 16 queries for each warp; it copies the next tile of C keys while it uses the one before.
template <typename T, int D, int C, bool EXTRAS>
__global__ void __launch_bounds__(128, 2) attention_forward_3(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, first = blockIdx.x * warps * ROWS;
  T* queries = reinterpret_cast<T*>(memory);          // (16 warps, PITCH)
  T* tiles = queries + warps * ROWS * PITCH<D>;       // 2 x (k, v) x (C, PITCH)
  T* mine = queries + warp * ROWS * PITCH<D>;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  auto fetch = [&](int start) {
    T* tile = tiles + start / C % 2 * (2 * C * PITCH<D>);
    stage<T, D>(tile, a, a.k, head, start, C, a.keys, threadIdx.x, blockDim.x);
    stage<T, D>(tile + C * PITCH<D>, a, a.v, head, start, C, a.keys, threadIdx.x, blockDim.x);
    copy_commit();
  };
  int end = a.is_causal ? min(a.keys, first + warps * ROWS) : a.keys;
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
    const T* tile = tiles + start / C % 2 * (2 * C * PITCH<D>);
    float s[C / 8][4];
    multiply<T, D, C>(s, mine, tile, a.keys - start);
    softmax.template add<T, C, EXTRAS, false>(s, a, head, first + warp * ROWS, start);
    accumulate<T, D, C>(softmax.out, s, tile + C * PITCH<D>, a.keys - start);
    __syncthreads();  // before this tile is overwritten
  }
  softmax.finish(mine, a, head, first + warp * ROWS);
}

// v4: all keys of a head are in shared memory, and all scores of a query in registers, so nothing is rescaled; each
// warp takes one group of 16 queries after the other. C is the most keys there may be. Without mask, bias and dropout,
// as in most ViTs.
template <typename T, int D, int C> __global__ void __launch_bounds__(128, 2) attention_forward_4(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, padded = (a.keys + 15) / 16 * 16;
  T* k = reinterpret_cast<T*>(memory);  // (padded, PITCH)
  T* v = k + padded * PITCH<D>;
  T* mine = v + padded * PITCH<D> + warp * ROWS * PITCH<D>;
  Head head = head_of(a, blockIdx.x);
  stage<T, D>(k, a, a.k, head, 0, padded, a.keys, threadIdx.x, blockDim.x);
  stage<T, D>(v, a, a.v, head, 0, padded, a.keys, threadIdx.x, blockDim.x);
  // Every warp does at least one round of this loop, and so its barrier, because none is launched without rows.
  bool waiting = true;
  for (int row = warp * ROWS; row < a.queries; row += warps * ROWS) {
    stage<T, D>(mine, a, a.q, head, row, ROWS, a.queries, threadIdx.x % WARP, WARP);
    copy_commit();
    copy_wait<0>();
    if (waiting) __syncthreads();  // the first time also for k and v, which all threads copy
    waiting = false;
    __syncwarp();
    float s[C / 8][4];
    Softmax<D> softmax;
    multiply<T, D, C>(s, mine, k, a.keys);
    softmax.template add<T, C, false, true>(s, a, head, row, 0);
    accumulate<T, D, C>(softmax.out, s, v, a.keys);
    softmax.finish(mine, a, head, row);
  }
}

// Backward -----------------------------------------------------------------------------------------------------------

// Turns products into p with dropout, and ds, for C columns from `start` on. `shift`, `r` and `rest` (null: 0) are
// those of the queries from the first row of the warp on or, with OF_KEYS, from column `start` on.
template <typename T, int C, bool OF_KEYS, bool EXTRAS>
DEVICE void slopes(float (&p)[C / 8][4], float (&ds)[C / 8][4], const Attention& a, const Head& head, int row,
                   int start, const float* shift, const float* r, const float* rest) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int y = lane / 4 + 8 * i;
#pragma unroll
    for (int j = 0; j < C / 8; j++)
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; e++) {
        int x = 8 * j + lane % 4 * 2 + e % 2;
        int n = OF_KEYS ? start + x : row + y, s = OF_KEYS ? row + y : start + x;
        if (n >= a.queries || s >= a.keys) {
          p[j][e] = ds[j][e] = 0;
          continue;
        }
        int query = OF_KEYS ? x : y;
        float power = score<T, EXTRAS>(a, head, n, s, p[j][e]) - shift_of(shift[query]);
        float weight = exp2_fast(LOG2_E * (rest ? power - rest[query] : power));
        float factor = kept<EXTRAS>(a, head, n, s);
        // out = (p * m) @ v and p = softmax(s)
        ds[j][e] = weight * (ds[j][e] * factor - r[query]);
        p[j][e] = weight * factor;
        if (EXTRAS && !OF_KEYS && a.ds) a.ds[(head.row + n) * a.keys + s] = ds[j][e];
      }
  }
}

template <int D, bool DLEFT, bool DRIGHT> struct Gradients : GradientSums<D, DLEFT, DRIGHT> {
  using GradientSums<D, DLEFT, DRIGHT>::dleft, GradientSums<D, DLEFT, DRIGHT>::dright;

  template <typename T, int C, bool OF_KEYS, bool EXTRAS>
  DEVICE void add(const Attention& a, const Head& head, int row, int start, const T* left, const T* right,
                  const T* left_columns, const T* right_columns, const float* shift, const float* r,
                  const float* rest) {
    int count = (OF_KEYS ? a.queries : a.keys) - start;
    float p[C / 8][4], ds[C / 8][4];
    multiply<T, D, C>(p, left, left_columns, count);
    multiply<T, D, C>(ds, right, right_columns, count);
    slopes<T, C, OF_KEYS, EXTRAS>(p, ds, a, head, row, start, shift, r, rest);
    if constexpr (DLEFT) accumulate<T, D, C>(dleft, ds, left_columns, count);
    if constexpr (DRIGHT) accumulate<T, D, C>(dright, p, right_columns, count);
  }
};

// v3: a block has 16 rows for each warp; it copies the next tile of C columns while it uses the one before.
template <typename T, int D, int C, bool OF_KEYS, bool DLEFT, bool DRIGHT, bool EXTRAS>
__global__ void __launch_bounds__(128, 2) attention_backward_3(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, first = blockIdx.x * warps * ROWS;
  int rows = OF_KEYS ? a.keys : a.queries, columns = OF_KEYS ? a.queries : a.keys;
  T* left = reinterpret_cast<T*>(memory);                // (16 warps, PITCH)
  T* right = left + warps * ROWS * PITCH<D>;
  T* tiles = right + warps * ROWS * PITCH<D>;            // 2 x (left, right) x (C, PITCH)
  float* of_queries = reinterpret_cast<float*>(tiles + 4 * C * PITCH<D>);  // shift, r, rest: of rows, or 2 x of a tile
  int span = OF_KEYS ? C : warps * ROWS;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  auto fetch_scalars = [&](float* target, int start) {
    for (int i = threadIdx.x; i < span; i += blockDim.x) {
      bool real = start + i < a.queries;
      target[i] = real ? a.shift[head.row + start + i] : 0.f;
      target[span + i] = real ? a.r[head.row + start + i] : 0.f;
      target[2 * span + i] = real ? a.rest[head.row + start + i] : 0.f;
    }
  };
  auto fetch = [&](int start) {
    int half = start / C % 2;
    T* tile = tiles + half * (2 * C * PITCH<D>);
    stage<T, D>(tile, a, left_rows<!OF_KEYS>(a), head, start, C, columns, threadIdx.x, blockDim.x);
    stage<T, D>(tile + C * PITCH<D>, a, right_rows<!OF_KEYS>(a), head, start, C, columns, threadIdx.x, blockDim.x);
    copy_commit();
    if (OF_KEYS) fetch_scalars(of_queries + half * 3 * C, start);
  };
  int begin = OF_KEYS && a.is_causal ? first / C * C : 0;
  int end = !OF_KEYS && a.is_causal ? min(columns, first + warps * ROWS) : columns;
  stage<T, D>(left, a, left_rows<OF_KEYS>(a), head, first, warps * ROWS, rows, threadIdx.x, blockDim.x);
  stage<T, D>(right, a, right_rows<OF_KEYS>(a), head, first, warps * ROWS, rows, threadIdx.x, blockDim.x);
  if (!OF_KEYS) fetch_scalars(of_queries, first);
  fetch(begin);
  Gradients<D, DLEFT, DRIGHT> gradients;
  int offset = warp * ROWS * PITCH<D>;
  for (int start = begin; start < end; start += C) {
    if (start + C < end) {
      fetch(start + C);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T* tile = tiles + start / C % 2 * (2 * C * PITCH<D>);
    const float* shift = of_queries + (OF_KEYS ? start / C % 2 * 3 * C : warp * ROWS);
    gradients.template add<T, C, OF_KEYS, EXTRAS>(a, head, first + warp * ROWS, start, left + offset, right + offset,
                                                  tile, tile + C * PITCH<D>, shift, shift + span, shift + 2 * span);
    __syncthreads();  // before this tile is overwritten
  }
  copy_wait<0>();
  __syncthreads();  // where no query sees these keys, the loop has not waited for the copies of other warps
  gradients.template finish<T, OF_KEYS>(left + offset, a, head, first + warp * ROWS);
}

// v4: q, k, v and dout of a head are in shared memory, r is computed from them, and warps take groups of 16 queries,
// then groups of 16 keys.
template <typename T, int D, int C> __global__ void __launch_bounds__(128, 2) attention_backward_4(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int padded_q = (a.queries + 15) / 16 * 16, padded_k = (a.keys + 15) / 16 * 16;
  T* q = reinterpret_cast<T*>(memory);
  T* dout = q + padded_q * PITCH<D>;
  T* k = dout + padded_q * PITCH<D>;
  T* v = k + padded_k * PITCH<D>;
  T* scratch = v + padded_k * PITCH<D> + warp * ROWS * PITCH<D>;
  float* lse = reinterpret_cast<float*>(v + padded_k * PITCH<D> + warps * ROWS * PITCH<D>);
  float* r = lse + padded_q;
  Head head = head_of(a, blockIdx.x);
  stage<T, D>(q, a, a.q, head, 0, padded_q, a.queries, threadIdx.x, blockDim.x);
  stage<T, D>(dout, a, a.dout, head, 0, padded_q, a.queries, threadIdx.x, blockDim.x);
  stage<T, D>(k, a, a.k, head, 0, padded_k, a.keys, threadIdx.x, blockDim.x);
  stage<T, D>(v, a, a.v, head, 0, padded_k, a.keys, threadIdx.x, blockDim.x);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  for (int n = warp; n < padded_q; n += warps) {
    float sum = 0;
    if (n < a.queries) {
      const T* out = matrix<T>(a.out, head) + n * a.out.row;
      for (int d = lane; d < a.depth; d += WARP) sum += to_float(out[d]) * to_float(dout[n * PITCH<D> + d]);
    }
    sum = warp_sum(sum);
    if (lane == 0) r[n] = sum, lse[n] = n < a.queries ? a.lse[head.row + n] : 0.f;
  }
  __syncthreads();
  for (int row = warp * ROWS; row < a.queries; row += warps * ROWS) {
    Gradients<D, true, false> gradients;
    for (int start = 0; start < a.keys; start += C)
      gradients.template add<T, C, false, false>(a, head, row, start, q + row * PITCH<D>, dout + row * PITCH<D>,
                                                 k + start * PITCH<D>, v + start * PITCH<D>, lse + row, r + row,
                                                 nullptr);
    gradients.template finish<T, false>(scratch, a, head, row);
  }
  for (int row = warp * ROWS; row < a.keys; row += warps * ROWS) {
    Gradients<D, true, true> gradients;
    for (int start = 0; start < a.queries; start += C)
      gradients.template add<T, C, true, false>(a, head, row, start, k + row * PITCH<D>, v + row * PITCH<D>,
                                                q + start * PITCH<D>, dout + start * PITCH<D>, lse + start, r + start,
                                                nullptr);
    gradients.template finish<T, true>(scratch, a, head, row);
  }
}
