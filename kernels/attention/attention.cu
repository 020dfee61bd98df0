// Attention with fused multiply-adds in float32, for every dtype.
#include "attention/attention.cuh"

// v1: one warp for each query, or for each key. ----------------------------------------------------------------------

// The product of x, which is spread over the lanes (x[i] is element lane + 32 i), with a row in memory.
template <typename T, int PER_LANE> DEVICE float product(const float (&x)[PER_LANE], const T* row, int depth) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    int d = threadIdx.x + WARP * i;
    if (d < depth) sum += x[i] * to_float(row[d]);
  }
  return warp_sum(sum);
}
template <typename T, int PER_LANE> DEVICE void spread(float (&x)[PER_LANE], const T* row, int depth) {
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    int d = threadIdx.x + WARP * i;
    x[i] = d < depth ? to_float(row[d]) : 0.f;
  }
}
template <typename T, int PER_LANE> DEVICE void gather(T* row, const float (&x)[PER_LANE], float factor, int depth) {
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    int d = threadIdx.x + WARP * i;
    if (d < depth) row[d] = from_float<T>(x[i] * factor);
  }
}
constexpr int MOST = 256 / WARP;  // elements in a lane, for head sizes up to 256

// One query, all scores of which are in shared memory.
template <typename T> __global__ void attention_forward_1(Attention a) {
  DYNAMIC_SHARED(memory);
  float* p = reinterpret_cast<float*>(memory);  // (S)
  int n = blockIdx.x, lane = threadIdx.x;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  const T *k = matrix<T>(a.k, head), *v = matrix<T>(a.v, head);
  float q[MOST], out[MOST] = {};
  spread(q, matrix<T>(a.q, head) + n * a.q.row, a.depth);
  float peak = -INFINITY, total = 0;
  for (int s = 0; s < a.keys; s++) {
    float x = score<T, true>(a, head, n, s, product(q, k + s * a.k.row, a.depth));
    peak = larger(peak, x);
    if (lane == 0) p[s] = x;
  }
  __syncwarp();
  float shift = shift_of(peak);
  for (int s = 0; s < a.keys; s++) {
    float e = expf(p[s] - shift);
    total += e;
    e *= kept<true>(a, head, n, s);
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      int d = lane + WARP * i;
      if (d < a.depth) out[i] += e * to_float(v[s * a.v.row + d]);
    }
  }
  gather(matrix<T>(a.out, head) + n * a.out.row, out, total == 0 ? 0.f : 1 / total, a.depth);
  if (lane == 0) a.lse[head.row + n] = shift + logf(total);
}

// For each query r = sum(dout out), and the numbers with which its probabilities are computed again: shift = lse and
// rest = 0. If lse is so large that its rounding error would show in them, shift is the largest score, and rest is the
// logarithm of the sum of exponentials relative to it. The scores must then have the same rounding errors as in
// backward, so their products are summed in the same order: with IN_ORDER, by one lane for each key.
constexpr float EXACT = 16;
template <typename T, bool IN_ORDER> __global__ void attention_products(Attention a) {
  int n = blockIdx.x, lane = threadIdx.x;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  float dout[MOST];
  spread(dout, matrix<T>(a.dout, head) + n * a.dout.row, a.depth);
  float r = product(dout, matrix<T>(a.out, head) + n * a.out.row, a.depth);
  float shift = shift_of(a.lse[head.row + n]), rest = 0;
  if (fabsf(shift) > EXACT && fabsf(shift) < INFINITY) {
    const T* row = matrix<T>(a.q, head) + n * a.q.row;
    float q[MOST], peak = -INFINITY, total = 0;
    spread(q, row, a.depth);
    for (int s = IN_ORDER ? lane : 0; s < a.keys; s += IN_ORDER ? WARP : 1) {
      const T* key = matrix<T>(a.k, head) + s * a.k.row;
      float qk = 0;
      if (IN_ORDER)
        for (int d = 0; d < a.depth; d++) qk += to_float(row[d]) * to_float(key[d]);
      else
        qk = product(q, key, a.depth);
      float x = score<T, true>(a, head, n, s, qk);
      float top = larger(peak, x);
      total = total * expf(peak - shift_of(top)) + expf(x - shift_of(top));
      peak = top;
    }
    shift = IN_ORDER ? warp_max(peak) : peak;
    rest = logf(IN_ORDER ? warp_sum(total * expf(peak - shift)) : total);
  }
  if (threadIdx.x == 0) a.r[head.row + n] = r, a.shift[head.row + n] = shift, a.rest[head.row + n] = rest;
}

// For query n and key s, p with dropout and the gradient of the score.
struct Slopes {
  float p, ds;
};
template <typename T, bool EXTRAS>
DEVICE Slopes slopes(const Attention& a, const Head& head, int n, int s, float qk, float dov) {
  long long row = head.row + n;
  float p = expf(score<T, EXTRAS>(a, head, n, s, qk) - a.shift[row] - a.rest[row]), r = a.r[row];
  float factor = kept<EXTRAS>(a, head, n, s);
  // out = (p * m) @ v and p = softmax(s)
  return {p * factor, p * (dov * factor - r)};
}

template <typename T> __global__ void attention_dq_1(Attention a) {
  int n = blockIdx.x;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  const T *k = matrix<T>(a.k, head), *v = matrix<T>(a.v, head);
  float q[MOST], dout[MOST], dq[MOST] = {};
  spread(q, matrix<T>(a.q, head) + n * a.q.row, a.depth);
  spread(dout, matrix<T>(a.dout, head) + n * a.dout.row, a.depth);
  for (int s = 0; s < a.keys; s++) {
    float qk = product(q, k + s * a.k.row, a.depth), dov = product(dout, v + s * a.v.row, a.depth);
    float ds = slopes<T, true>(a, head, n, s, qk, dov).ds;
    if (a.ds && threadIdx.x == 0) a.ds[(head.row + n) * a.keys + s] = ds;
    // s = scale * q @ k.T + bias
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      int d = threadIdx.x + WARP * i;
      if (d < a.depth) dq[i] += ds * to_float(k[s * a.k.row + d]);
    }
  }
  gather(matrix<T>(a.dq, head) + n * a.dq.row, dq, a.scale, a.depth);
}

template <typename T> __global__ void attention_dkv_1(Attention a) {
  int s = blockIdx.x;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  const T *q = matrix<T>(a.q, head), *dout = matrix<T>(a.dout, head);
  float k[MOST], v[MOST], dk[MOST] = {}, dv[MOST] = {};
  spread(k, matrix<T>(a.k, head) + s * a.k.row, a.depth);
  spread(v, matrix<T>(a.v, head) + s * a.v.row, a.depth);
  for (int n = 0; n < a.queries; n++) {
    float qk = product(k, q + n * a.q.row, a.depth), dov = product(v, dout + n * a.dout.row, a.depth);
    Slopes slope = slopes<T, true>(a, head, n, s, qk, dov);
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      int d = threadIdx.x + WARP * i;
      if (d >= a.depth) continue;
      dk[i] += slope.ds * to_float(q[n * a.q.row + d]);
      dv[i] += slope.p * to_float(dout[n * a.dout.row + d]);
    }
  }
  gather(matrix<T>(a.dk, head) + s * a.dk.row, dk, a.scale, a.depth);
  gather(matrix<T>(a.dv, head) + s * a.dv.row, dv, 1.f, a.depth);
}

// v2: tiles of rows against tiles of columns, both in shared memory. -------------------------------------------------

// 128 threads as 16 x 8: thread (y, x) has the rows 16 i + y and the columns 8 j + x of the scores, and likewise of a
// result with D columns. The 8 threads of a row are neighbours in a warp.
constexpr int TILE_Y = 16, TILE_X = 8, TILE_THREADS = TILE_Y * TILE_X;

// Rows and columns of scores in a thread, by head size, such that the tiles fit in 64 KB of shared memory.
template <int D> constexpr int ROWS = D <= 128 ? 2 : 1;
template <int D> constexpr int COLUMNS = D <= 64 ? 4 : D <= 128 ? 2 : 1;

template <typename T, int D, int COUNT>
DEVICE void stage_rows(float* tile, const T* source, long long stride, int first, int total, int depth) {
  for (int i = threadIdx.x; i < COUNT * D; i += TILE_THREADS) {
    int row = first + i / D, d = i % D;
    tile[i / D * (D + 1) + d] = row < total && d < depth ? to_float(source[row * stride + d]) : 0.f;
  }
}

// products[i][j] = row i of this thread times column j.
template <int D, int I, int J> DEVICE void multiply(float (&products)[I][J], const float* rows, const float* columns) {
  int y = threadIdx.x / TILE_X, x = threadIdx.x % TILE_X;
#pragma unroll
  for (int i = 0; i < I; i++)
#pragma unroll
    for (int j = 0; j < J; j++) products[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < D; d++) {
    float left[I], right[J];
#pragma unroll
    for (int i = 0; i < I; i++) left[i] = rows[(TILE_Y * i + y) * (D + 1) + d];
#pragma unroll
    for (int j = 0; j < J; j++) right[j] = columns[(TILE_X * j + x) * (D + 1) + d];
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
      for (int j = 0; j < J; j++) products[i][j] += left[i] * right[j];
  }
}

// result += weights @ columns. Each of the 8 threads of a row holds some of its weights, and passes them to the others.
template <int D, int I, int J>
DEVICE void accumulate(float (&result)[I][D / TILE_X], const float (&weights)[I][J], const float* columns) {
  int x = threadIdx.x % TILE_X, group = threadIdx.x % WARP - x;
#pragma unroll
  for (int j = 0; j < J; j++) {
    for (int from = 0; from < TILE_X; from++) {
      float weight[I];
#pragma unroll
      for (int i = 0; i < I; i++) weight[i] = __shfl_sync(ALL_LANES, weights[i][j], group + from);
      const float* column = columns + (TILE_X * j + from) * (D + 1);
#pragma unroll
      for (int e = 0; e < D / TILE_X; e++)
#pragma unroll
        for (int i = 0; i < I; i++) result[i][e] += weight[i] * column[TILE_X * e + x];
    }
  }
}

template <typename T, int D, int I>
DEVICE void write_rows(T* target, long long stride, const float (&result)[I][D / TILE_X], const float (&factor)[I],
                       int first, int total, int depth) {
  int y = threadIdx.x / TILE_X, x = threadIdx.x % TILE_X;
#pragma unroll
  for (int i = 0; i < I; i++)
#pragma unroll
    for (int e = 0; e < D / TILE_X; e++) {
      int row = first + TILE_Y * i + y, d = TILE_X * e + x;
      if (row < total && d < depth) target[row * stride + d] = from_float<T>(result[i][e] * factor[i]);
    }
}

template <typename T, int D> __global__ void __launch_bounds__(TILE_THREADS, 2) attention_forward_2(Attention a) {
  constexpr int I = ROWS<D>, J = COLUMNS<D>;
  DYNAMIC_SHARED(memory);
  float* q = reinterpret_cast<float*>(memory);  // (16 I, D + 1)
  float* k = q + TILE_Y * I * (D + 1);          // (8 J, D + 1)
  float* v = k + TILE_X * J * (D + 1);
  int y = threadIdx.x / TILE_X, x = threadIdx.x % TILE_X, first = blockIdx.x * TILE_Y * I;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  stage_rows<T, D, TILE_Y * I>(q, matrix<T>(a.q, head), a.q.row, first, a.queries, a.depth);
  float peak[I], total[I], out[I][D / TILE_X] = {};
#pragma unroll
  for (int i = 0; i < I; i++) peak[i] = -INFINITY, total[i] = 0;
  int end = a.is_causal ? min(a.keys, first + TILE_Y * I) : a.keys;
  for (int start = 0; start < end; start += TILE_X * J) {
    __syncthreads();  // until the previous tiles have been used
    stage_rows<T, D, TILE_X * J>(k, matrix<T>(a.k, head), a.k.row, start, a.keys, a.depth);
    stage_rows<T, D, TILE_X * J>(v, matrix<T>(a.v, head), a.v.row, start, a.keys, a.depth);
    __syncthreads();
    float p[I][J];
    multiply<D>(p, q, k);
#pragma unroll
    for (int i = 0; i < I; i++) {
      int n = first + TILE_Y * i + y;
      float top = peak[i];
#pragma unroll
      for (int j = 0; j < J; j++) {
        p[i][j] = score<T, true>(a, head, n, start + TILE_X * j + x, p[i][j]);
        top = fmaxf(top, p[i][j]);
      }
      top = warp_max(top, TILE_X);
      float shift = shift_of(top), fade = expf(peak[i] - shift), sum = 0;
      peak[i] = top;
#pragma unroll
      for (int j = 0; j < J; j++) {
        p[i][j] = expf(p[i][j] - shift);
        sum += p[i][j];
        p[i][j] *= kept<true>(a, head, n, start + TILE_X * j + x);
      }
      total[i] = total[i] * fade + warp_sum(sum, TILE_X);
#pragma unroll
      for (int e = 0; e < D / TILE_X; e++) out[i][e] *= fade;
    }
    accumulate<D>(out, p, v);
  }
  float share[I];
#pragma unroll
  for (int i = 0; i < I; i++) {
    int n = first + TILE_Y * i + y;
    share[i] = total[i] == 0 ? 0.f : 1 / total[i];
    if (x == 0 && n < a.queries) a.lse[head.row + n] = shift_of(peak[i]) + logf(total[i]);
  }
  write_rows<T, D>(matrix<T>(a.out, head), a.out.row, out, share, first, a.queries, a.depth);
}

// The gradient of a tile of queries (dq) or, with OF_KEYS, of a tile of keys (dk and dv). These are the rows, and the
// others are the columns. Each product is computed twice, once for dq and once for dk and dv, so that no two blocks add
// to the same element.
template <typename T, int D, bool OF_KEYS>
__global__ void __launch_bounds__(TILE_THREADS, 2) attention_backward_2(Attention a) {
  constexpr int I = ROWS<D>, J = COLUMNS<D>, PITCH = D + 1;
  DYNAMIC_SHARED(memory);
  float* left = reinterpret_cast<float*>(memory);  // q, or k
  float* right = left + TILE_Y * I * PITCH;        // dout, or v
  float* left_columns = right + TILE_Y * I * PITCH;
  float* right_columns = left_columns + TILE_X * J * PITCH;
  int y = threadIdx.x / TILE_X, x = threadIdx.x % TILE_X, first = blockIdx.x * TILE_Y * I;
  Head head = head_of(a, blockIdx.y + gridDim.y * blockIdx.z);
  const View &mine = OF_KEYS ? a.k : a.q, &my_other = OF_KEYS ? a.v : a.dout;
  const View &theirs = OF_KEYS ? a.q : a.k, &their_other = OF_KEYS ? a.dout : a.v;
  int rows = OF_KEYS ? a.keys : a.queries, columns = OF_KEYS ? a.queries : a.keys;
  stage_rows<T, D, TILE_Y * I>(left, matrix<T>(mine, head), mine.row, first, rows, a.depth);
  stage_rows<T, D, TILE_Y * I>(right, matrix<T>(my_other, head), my_other.row, first, rows, a.depth);
  float dleft[I][D / TILE_X] = {}, dright[I][D / TILE_X] = {};
  int begin = OF_KEYS && a.is_causal ? first / (TILE_X * J) * (TILE_X * J) : 0;
  int end = !OF_KEYS && a.is_causal ? min(columns, first + TILE_Y * I) : columns;
  for (int start = begin; start < end; start += TILE_X * J) {
    __syncthreads();
    stage_rows<T, D, TILE_X * J>(left_columns, matrix<T>(theirs, head), theirs.row, start, columns, a.depth);
    stage_rows<T, D, TILE_X * J>(right_columns, matrix<T>(their_other, head), their_other.row, start, columns, a.depth);
    __syncthreads();
    float p[I][J], ds[I][J];
    multiply<D>(p, left, left_columns);
    multiply<D>(ds, right, right_columns);
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
      for (int j = 0; j < J; j++) {
        int row = first + TILE_Y * i + y, column = start + TILE_X * j + x;
        int n = OF_KEYS ? column : row, s = OF_KEYS ? row : column;
        bool real = row < rows && column < columns;
        Slopes slope = {};
        if (real) slope = slopes<T, true>(a, head, n, s, p[i][j], ds[i][j]);
        p[i][j] = slope.p, ds[i][j] = slope.ds;
        if (!OF_KEYS && a.ds && real) a.ds[(head.row + n) * a.keys + s] = slope.ds;
      }
    accumulate<D>(dleft, ds, left_columns);
    if (OF_KEYS) accumulate<D>(dright, p, right_columns);
  }
  float scale[I], one[I];
#pragma unroll
  for (int i = 0; i < I; i++) scale[i] = a.scale, one[i] = 1;
  const View &dmine = OF_KEYS ? a.dk : a.dq;
  write_rows<T, D>(matrix<T>(dmine, head), dmine.row, dleft, scale, first, rows, a.depth);
  if (OF_KEYS) write_rows<T, D>(matrix<T>(a.dv, head), a.dv.row, dright, one, first, rows, a.depth);
}
