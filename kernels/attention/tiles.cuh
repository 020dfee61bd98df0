// Shared by the attention kernels on tensor cores: tiles in shared memory, their products, and the sums of a warp.
//
// A warp has 16 rows. In a 16 x 8 tile of scores or of a result, lane l holds the columns 2 (l % 4) and 2 (l % 4) + 1
// of the rows l / 4 and l / 4 + 8 (`mma` in prims.cuh). A tile of scores already has the layout of the left operand of
// the next product, so probabilities never leave registers. In shared memory the rows of a tile are padded by 8
// elements, so that the 8 rows of a small matrix are in different banks.
#pragma once
#include "attention/attention.cuh"

template <int D> constexpr int PITCH = D + 8;
constexpr int ROWS = 16;  // of a warp

// Tiles --------------------------------------------------------------------------------------------------------------

// Copies `count` rows, from row `first` on, by `threads` threads, of which this is number `thread`; zeros past the end.
template <typename T, int D>
DEVICE void stage(T* tile, const Attention& a, const View& view, const Head& head, int first, int count, int total,
                  int thread, int threads) {
  const T* source = matrix<T>(view, head);
  if (a.aligned) {
    for (int i = thread; i < count * (D / 8); i += threads) {
      int row = i / (D / 8), d = i % (D / 8) * 8;
      bool real = first + row < total && d < a.depth;
      copy_async(tile + row * PITCH<D> + d, real ? source + (first + row) * view.row + d : source, real);
    }
  } else {
    for (int i = thread; i < count * D; i += threads) {
      int row = i / D, d = i % D;
      bool real = first + row < total && d < a.depth;
      tile[row * PITCH<D> + d] = real ? source[(first + row) * view.row + d] : from_float<T>(0.f);
    }
  }
}

// s (16, C) = rows (16, D) columns (C, D)^T, of which `count` columns are real; the rest stays 0. The comparison with a
// constant `count` disappears; another one is a branch between the loads and the products that need them.
template <typename T, int D, int C>
DEVICE void multiply(float (&s)[C / 8][4], const T* rows, const T* columns, int count = C) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int j = 0; j < C / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[j][i] = 0;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    unsigned a[4];
    load_matrices(a, rows + lane % 16 * PITCH<D> + d + lane / 16 * 8);
#pragma unroll
    for (int c = 0; c < C; c += 16) {
      if (c >= count) continue;
      unsigned b[4];
      load_matrices(b, columns + (c + lane % 8 + lane / 16 * 8) * PITCH<D> + d + lane / 8 % 2 * 8);
      unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      mma(s[c / 8], a, left, T());
      mma(s[c / 8 + 1], a, right, T());
    }
  }
}

// result (16, D) += p (16, C) columns (C, D).
template <typename T, int D, int C>
DEVICE void accumulate(float (&result)[D / 8][4], const float (&p)[C / 8][4], const T* columns, int count = C) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int c = 0; c < C; c += 16) {
    if (c >= count) continue;
    const float(&x)[4] = p[c / 8], (&y)[4] = p[c / 8 + 1];
    unsigned a[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]), pack<T>(y[2], y[3])};
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      unsigned b[4];
      load_matrices_transposed(b, columns + (c + lane % 16) * PITCH<D> + d + lane / 16 * 8);
      unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      mma(result[d / 8], a, left, T());
      mma(result[d / 8 + 1], a, right, T());
    }
  }
}

// Writes a warp's result, with the two rows of each lane multiplied by `factor`; `scratch` (16, PITCH) is the warp's
// own.
template <typename T, int D>
DEVICE void write(T* scratch, const float (&result)[D / 8][4], const float (&factor)[2], const Attention& a,
                  const View& view, const Head& head, int first, int total) {
  int lane = threadIdx.x % WARP;
  __syncwarp();  // until scratch has been read
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int i = 0; i < 2; i++)
      *reinterpret_cast<unsigned*>(scratch + (lane / 4 + 8 * i) * PITCH<D> + 8 * j + lane % 4 * 2) =
          pack<T>(result[j][2 * i] * factor[i], result[j][2 * i + 1] * factor[i]);
  __syncwarp();
  T* target = matrix<T>(view, head);
  if (a.aligned) {
    for (int i = lane; i < ROWS * (D / 8); i += WARP) {
      int row = i / (D / 8), d = i % (D / 8) * 8;
      if (first + row < total && d < a.depth)
        *reinterpret_cast<uint4*>(target + (first + row) * view.row + d) =
            *reinterpret_cast<const uint4*>(scratch + row * PITCH<D> + d);
    }
  } else {
    for (int i = lane; i < ROWS * D; i += WARP) {
      int row = i / D, d = i % D;
      if (first + row < total && d < a.depth) target[(first + row) * view.row + d] = scratch[row * PITCH<D> + d];
    }
  }
  __syncwarp();
}

// Sums of a warp -----------------------------------------------------------------------------------------------------

// The softmax of 16 queries over the keys so far: for the two rows of this lane the largest score, in powers of 2, the
// sum of the exponentials relative to it, and their products with v.
template <int D> struct RunningSums {
  float out[D / 8][4] = {}, peak[2] = {-INFINITY, -INFINITY}, total[2] = {};

  template <typename T> DEVICE void finish(T* scratch, const Attention& a, const Head& head, int row) {
    int lane = threadIdx.x % WARP;
    float share[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = warp_sum(total[i], 4);
      int n = row + lane / 4 + 8 * i;
      share[i] = sum == 0 ? 0.f : 1 / sum;
      if (lane % 4 == 0 && n < a.queries) a.lse[head.row + n] = LN_2 * shift_of(peak[i]) + logf(sum);
    }
    write<T, D>(scratch, out, share, a, a.out, head, row, a.queries);
  }
};

// For dq the rows are queries and the columns keys; with OF_KEYS, for dk and dv, it is the other way round. The
// products are computed in both, so that no two warps add to the same element.
//   rows:     left = q or k, right = dout or v         columns: left = k or q, right = v or dout
//   p and dp: left left^T and right right^T            result:  dleft = ds left_columns, dright = p right_columns
template <bool OF_KEYS> DEVICE const View& left_rows(const Attention& a) { return OF_KEYS ? a.k : a.q; }
template <bool OF_KEYS> DEVICE const View& right_rows(const Attention& a) { return OF_KEYS ? a.v : a.dout; }

// The gradients of a warp's 16 rows. DLEFT, DRIGHT: which of the two are computed.
template <int D, bool DLEFT, bool DRIGHT> struct GradientSums {
  float dleft[DLEFT ? D / 8 : 1][4] = {}, dright[DRIGHT ? D / 8 : 1][4] = {};

  template <typename T, bool OF_KEYS> DEVICE void finish(T* scratch, const Attention& a, const Head& head, int row) {
    float scale[2] = {a.scale, a.scale}, one[2] = {1, 1};
    int total = OF_KEYS ? a.keys : a.queries;
    if constexpr (DLEFT) write<T, D>(scratch, dleft, scale, a, OF_KEYS ? a.dk : a.dq, head, row, total);
    if constexpr (DRIGHT) write<T, D>(scratch, dright, one, a, a.dv, head, row, total);
  }
};
