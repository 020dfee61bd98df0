// Attention on tensor cores, v5: backward.
#include "attention/attention_5.cuh"

// The numbers of queries that backward needs, in shared memory.
struct OfQueries {
  const float *shift, *r, *rest;
  DEVICE OfQueries from(int query) const { return {shift + query, r + query, rest + query}; }
};

// The sums of a warp, as in `GradientSums`.
template <int D, bool DLEFT, bool DRIGHT> struct Gradients : GradientSums<D, DLEFT, DRIGHT> {
  using GradientSums<D, DLEFT, DRIGHT>::dleft, GradientSums<D, DLEFT, DRIGHT>::dright;

  // Turns products into p with dropout, and ds, for C columns from `start` on, of which the last UNSURE may lie past
  // the end. `those` are of the queries from the first row of the warp on or, with OF_KEYS, from column `start` on.
  template <typename T, int C, bool OF_KEYS, int EXTRAS, int UNSURE>
  DEVICE void slopes(float (&p)[C / 8][4], float (&ds)[C / 8][4], const Attention& a, const Head& head, int row,
                     int start, OfQueries those) {
    int lane = threadIdx.x % WARP, y = lane / 4, columns = OF_KEYS ? a.queries : a.keys;
    float unit = unit_of(a), shift[2], r[2], rest[2] = {};
    KeptOf<C, OF_KEYS, EXTRAS> kept(a, head, row, start);
    auto take = [&](int i, int query) {
      shift[i] = those.shift[query], r[i] = those.r[query];
      if constexpr ((EXTRAS & BIAS) != 0) rest[i] = those.rest[query];
    };
    if constexpr (!OF_KEYS) take(0, y), take(1, y + 8);
#pragma unroll
    for (int j = 0; j < C / 8; j++) {
      int x = 8 * j + lane % 4 * 2;
      if constexpr (OF_KEYS) take(0, x), take(1, x + 1);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int query = OF_KEYS ? e % 2 : e / 2, column = start + x + e % 2, line = row + y + e / 2 * 8;
        int n = OF_KEYS ? column : line, s = OF_KEYS ? line : column;
        float power = fmaf(p[j][e], unit, -shift[query]);
        if constexpr (EXTRAS != 0) power = score_of<T, EXTRAS>(a, head, n, s, p[j][e]) - shift[query] - rest[query];
        float weight = exp2_fast(power), factor = kept.of(j, e);
        // What lies past the end is zero, and so is its part of the sums unless p is infinite there.
        if (8 * j >= C - UNSURE) weight = column < columns ? weight : 0.f;
        // out = (p * m) @ v and p = softmax(s)
        ds[j][e] = weight * (ds[j][e] * factor - r[query]);
        p[j][e] = weight * factor;
        if constexpr ((EXTRAS & BIAS) != 0 && !OF_KEYS)
          if (a.ds && n < a.queries && s < a.keys) a.ds[(head.row + n) * a.keys + s] = ds[j][e];
      }
    }
  }

  template <typename T, int C, bool OF_KEYS, int EXTRAS, int UNSURE>
  DEVICE void add(const Attention& a, const Head& head, int row, int start, const T* left, const T* right,
                  const T* left_columns, const T* right_columns, OfQueries those) {
    float p[C / 8][4], ds[C / 8][4];
    multiply<T, D, C>(p, left, left_columns);
    multiply<T, D, C>(ds, right, right_columns);
    slopes<T, C, OF_KEYS, EXTRAS, UNSURE>(p, ds, a, head, row, start, those);
    if constexpr (DLEFT) accumulate<T, D, C>(dleft, ds, left_columns);
    if constexpr (DRIGHT) accumulate<T, D, C>(dright, p, right_columns);
  }
};

// q, k, v and dout of a head are in shared memory. Warps take groups of 16 queries, then groups of 16 keys, and go over
// the others in tiles of 64 and a last one of KEYS_TAIL, or QUERIES_TAIL.
template <typename T, int D, int KEYS_TAIL, int QUERIES_TAIL>
__global__ void __launch_bounds__(8 * WARP, 1) attention_backward_5(Attention a) {
  constexpr int C = 64;
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
  int padded_q = (a.queries + ROWS - 1) / ROWS * ROWS, padded_k = (a.keys + ROWS - 1) / ROWS * ROWS;
  T* q = reinterpret_cast<T*>(memory);
  T* dout = q + padded_q * PITCH<D>;
  T* k = dout + padded_q * PITCH<D>;
  T* v = k + padded_k * PITCH<D>;
  T* scratch = v + padded_k * PITCH<D> + warp * ROWS * PITCH<D>;
  float* shift = reinterpret_cast<float*>(v + padded_k * PITCH<D> + warps * ROWS * PITCH<D>);
  float* r = shift + padded_q;
  OfQueries those = {shift, r, nullptr};
  Head head = head_of(a, blockIdx.x);
  stage<T, D>(q, a, a.q, head, 0, padded_q, a.queries, threadIdx.x, blockDim.x);
  stage<T, D>(dout, a, a.dout, head, 0, padded_q, a.queries, threadIdx.x, blockDim.x);
  stage<T, D>(k, a, a.k, head, 0, padded_k, a.keys, threadIdx.x, blockDim.x);
  stage<T, D>(v, a, a.v, head, 0, padded_k, a.keys, threadIdx.x, blockDim.x);
  copy_commit();
  products_with_out<T, D>(r, a, head, 0, padded_q, padded_q);  // while the copies are under way
  for (int n = threadIdx.x; n < padded_q; n += blockDim.x)
    shift[n] = n < a.queries ? LOG2_E * shift_of(a.lse[head.row + n]) : 0.f;
  copy_wait<0>();
  __syncthreads();
  for (int row = warp * ROWS; row < a.queries; row += warps * ROWS) {
    Gradients<D, true, false> sums;
    const T *left = q + row * PITCH<D>, *right = dout + row * PITCH<D>;
    int start = 0;
    for (; start + KEYS_TAIL < padded_k; start += C)
      sums.template add<T, C, false, 0, 0>(a, head, row, start, left, right, k + start * PITCH<D>,
                                           v + start * PITCH<D>, those.from(row));
    sums.template add<T, KEYS_TAIL, false, 0, ROWS>(a, head, row, start, left, right, k + start * PITCH<D>,
                                                    v + start * PITCH<D>, those.from(row));
    sums.template finish<T, false>(scratch, a, head, row);
  }
  for (int row = warp * ROWS; row < a.keys; row += warps * ROWS) {
    Gradients<D, true, true> sums;
    const T *left = k + row * PITCH<D>, *right = v + row * PITCH<D>;
    int start = 0;
    for (; start + QUERIES_TAIL < padded_q; start += C)
      sums.template add<T, C, true, 0, 0>(a, head, row, start, left, right, q + start * PITCH<D>,
                                          dout + start * PITCH<D>, those.from(start));
    sums.template add<T, QUERIES_TAIL, true, 0, 0>(a, head, row, start, left, right, q + start * PITCH<D>,
                                                   dout + start * PITCH<D>, those.from(start));
    sums.template finish<T, true>(scratch, a, head, row);
  }
}

// Any number of queries and keys: a block has 16 rows for each warp; it copies the next tile of C columns while it uses
// the one before.
template <typename T, int D, int C, bool OF_KEYS, bool DLEFT, bool DRIGHT, int EXTRAS>
__global__ void __launch_bounds__(128, 2) attention_backward_tiles_5(Attention a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, first = blockIdx.x * warps * ROWS;
  int row = first + warp * ROWS;
  int rows = OF_KEYS ? a.keys : a.queries, columns = OF_KEYS ? a.queries : a.keys;
  T* left = reinterpret_cast<T*>(memory);        // (16 warps, PITCH)
  T* right = left + warps * ROWS * PITCH<D>;
  T* tiles = right + warps * ROWS * PITCH<D>;    // 2 x (left, right) x (C, PITCH)
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
  int begin = OF_KEYS && (EXTRAS & CAUSAL) ? first / C * C : 0;
  int end = !OF_KEYS && (EXTRAS & CAUSAL) ? min(columns, first + warps * ROWS) : columns;
  Gradients<D, DLEFT, DRIGHT> sums;
  T *my_left = left + warp * ROWS * PITCH<D>, *my_right = right + warp * ROWS * PITCH<D>;
  if (begin < end) {  // else no query sees these keys
    stage<T, D>(left, a, left_rows<OF_KEYS>(a), head, first, warps * ROWS, rows, threadIdx.x, blockDim.x);
    stage<T, D>(right, a, right_rows<OF_KEYS>(a), head, first, warps * ROWS, rows, threadIdx.x, blockDim.x);
    if (!OF_KEYS) fetch_scalars(of_queries, first);
    fetch(begin);
  }
  for (int start = begin; start < end; start += C) {
    if (start + C < end) {
      fetch(start + C);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    int half = start / C % 2;
    const T *left_tile = tiles + half * (2 * C * PITCH<D>), *right_tile = left_tile + C * PITCH<D>;
    const float* those = of_queries + (OF_KEYS ? half * 3 * C : warp * ROWS);
    OfQueries given = {those, those + span, those + 2 * span};
    if (start + C <= columns)
      sums.template add<T, C, OF_KEYS, EXTRAS, 0>(a, head, row, start, my_left, my_right, left_tile, right_tile, given);
    else
      sums.template add<T, C, OF_KEYS, EXTRAS, C>(a, head, row, start, my_left, my_right, left_tile, right_tile, given);
    __syncthreads();  // before this tile is overwritten
  }
  sums.template finish<T, OF_KEYS>(my_left, a, head, row);
}
