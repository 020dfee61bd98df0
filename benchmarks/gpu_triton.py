"""Triton beside the kernels on a GPU: a fused layer norm and a fused attention, forward, as its tutorials have them.

(Dao et al., FlashAttention, 2022. Tillet et al., Triton, 2019.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

Run = Callable[[], Any]


@triton.jit
def _normalize(x, weight, bias, y, columns, eps, WIDTH: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * columns
    at = tl.arange(0, WIDTH)
    inside = at < columns
    values = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / columns
    centered = tl.where(inside, values - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / columns + eps)
    scaled = centered * rstd * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shifted = scaled + tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + start + at, shifted.to(y.dtype.element_ty), mask=inside)


@triton.autotune(
    [triton.Config({"ROWS": r, "COLUMNS": 64}, num_warps=w, num_stages=s) for r, w, s in ((128, 8, 3), (64, 4, 3))],
    key=["length"],
)
@triton.jit
def _attend(q, k, v, out, scale, length, heads, step_b, step_n, step_h, out_b, out_n, out_h,
            D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    from_ = batch * step_b + head * step_h
    rows, columns, depth = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, D)
    queries = tl.load(q + from_ + rows[:, None] * step_n + depth[None, :], mask=rows[:, None] < length, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, length, COLUMNS):
        seen = start + columns
        keys = tl.load(k + from_ + seen[None, :] * step_n + depth[:, None], mask=seen[None, :] < length, other=0.0)
        scores = tl.where(seen[None, :] < length, tl.dot(queries, keys) * scale, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, axis=1))
        shares, shrink = tl.exp2(scores - peak[:, None]), tl.exp2(top - peak)
        values = tl.load(v + from_ + seen[:, None] * step_n + depth[None, :], mask=seen[:, None] < length, other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(values.dtype), values)
        total, top = total * shrink + tl.sum(shares, axis=1), peak
    to = out + batch * out_b + head * out_h + rows[:, None] * out_n + depth[None, :]
    tl.store(to, (mixed / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < length)


def layer_norm(rows: int, columns: int, dtype: str) -> Run:
    """Layer norm of rows, a program for each."""
    x = torch.randn(rows, columns, device="cuda", dtype=getattr(torch, dtype))
    weight, bias, y = torch.ones_like(x[0]), torch.zeros_like(x[0]), torch.empty_like(x)
    width = triton.next_power_of_2(columns)

    def run() -> torch.Tensor:
        _normalize[(rows,)](x, weight, bias, y, columns, 1e-5, WIDTH=width)
        return y

    return _checked(run, F.layer_norm(x, (columns,), weight, bias))


def attention(size: Sequence[int], dtype: str) -> Run:
    """Attention over views of packed q, k and v (B, H, N, D), with a running maximum."""
    b, h, n, d = size
    packed = torch.randn(b, n, 3, h, d, device="cuda", dtype=getattr(torch, dtype))
    q, k, v = packed.unbind(2)  # (B, N, H, D)
    out = torch.empty(b, n, h, d, device="cuda", dtype=packed.dtype)
    scale = d**-0.5 * 1.4426950408889634  # of powers of two

    def run() -> torch.Tensor:
        def grid(chosen: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(n, chosen["ROWS"]), b * h

        _attend[grid](q, k, v, out, scale, n, h, *q.stride()[:3], *out.stride()[:3], D=d)
        return out

    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    return _checked(run, expected)


def _checked(run: Run, expected: torch.Tensor) -> Run:
    torch.testing.assert_close(run(), expected, rtol=2e-2, atol=2e-2)
    return run
