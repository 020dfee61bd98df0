"""Triton on a GPU: a fused layer norm and a fused attention, forward and backward.

They follow Triton's tutorials: forward keeps what backward needs, sums over rows are computed in parts, and the
gradients of queries and of keys have a kernel each. (Dao et al., FlashAttention, 2022. Tillet et al., Triton, 2019.)
With TRITON_INTERPRET=1 everything runs on a CPU, where a test compares it with PyTorch.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

Run = Callable[[], Any]
EPS = 1e-5
PROGRAMS = 512  # each sums a part of the rows for the gradients of weight and bias
ALLOWED = {
    "float32": 1e-4,
    "float16": 2e-3,
    "bfloat16": 2e-2,
}  # relative to the largest value: four times the errors seen


# Layer norm ----------------------------------------------------------------------------------------------------------


@triton.jit
def _normalize(x, weight, bias, y, means, rstds, columns, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / columns
    centered = tl.where(inside, values - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / columns + eps)
    scaled = centered * rstd * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shifted = scaled + tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + at, shifted.to(y.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(rstds + row, rstd)


@triton.jit
def _normalize_back(dy, x, weight, means, rstds, dx, parts, rows, columns, WIDTH: tl.constexpr):
    """dx of the rows part, part + programs, part + 2 programs ..., and their part of dweight and dbias."""
    part, programs, at = tl.program_id(0), tl.num_programs(0), tl.arange(0, WIDTH)
    inside = at < columns
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for row in range(part, rows, programs):
        d = tl.load(dy + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstds + row)
        # y = xhat * weight + bias
        xhat, g = (values - tl.load(means + row)) * rstd, d * factor
        dweight += d * xhat
        dbias += d
        # xhat = (x - mean) * rstd, and mean and rstd both depend on x
        shift, slope = tl.sum(g, axis=0) / columns, tl.sum(g * xhat, axis=0) / columns
        back = rstd * (g - shift - xhat * slope)
        tl.store(dx + row * columns + at, back.to(dx.dtype.element_ty), mask=inside)
    tl.store(parts + part * columns + at, dweight, mask=inside)
    tl.store(parts + (programs + part) * columns + at, dbias, mask=inside)


@triton.jit
def _sum_parts(parts, totals, count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum parts (2, count, columns) into totals (2, columns), always in the same order."""
    which, at = tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        part = start + tl.arange(0, ROWS)
        inside = (part[:, None] < count) & (at[None, :] < columns)
        total += tl.load(parts + (which * count + part[:, None]) * columns + at[None, :], mask=inside, other=0.0)
    summed = tl.sum(total, axis=0).to(totals.dtype.element_ty)
    tl.store(totals + which * columns + at, summed, mask=at < columns)


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (R, C) -> y (R, C), mean and rstd (R,). Each row has a program."""
    rows, columns = x.shape
    y, mean, rstd = torch.empty_like(x), *torch.empty(2, rows, device=x.device)
    _normalize[(rows,)](x, weight, bias, y, mean, rstd, columns, EPS, WIDTH=triton.next_power_of_2(columns))
    return y, mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy (R, C) -> dx (R, C), dweight and dbias (C,)."""
    rows, columns = x.shape
    count = min(rows, PROGRAMS)
    dx, totals = torch.empty_like(x), torch.empty(2, columns, device=x.device, dtype=weight.dtype)
    parts = torch.empty(2, count, columns, device=x.device)
    width = triton.next_power_of_2(columns)
    _normalize_back[(count,)](dy, x, weight, mean, rstd, dx, parts, rows, columns, WIDTH=width)
    _sum_parts[(triton.cdiv(columns, 16), 2)](parts, totals, count, columns, ROWS=64, COLUMNS=16)
    return dx, totals[0], totals[1]


# Attention -----------------------------------------------------------------------------------------------------------


def _tuned(*sizes: tuple[int, int, int, int]) -> Callable[[Any], Any]:
    """Tune a kernel over these ROWS, COLUMNS, warps and stages. The interpreter, which cannot time, takes the first."""
    configs = [triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=w, num_stages=s) for r, c, w, s in sizes]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return triton.autotune(configs[:1] if interpreted else configs, key=["length", "D"])


@triton.jit
def _tile(array, rows, depth, step, length):
    """Load these rows of one head, and 0 beyond the last row."""
    return tl.load(array + rows[:, None] * step + depth[None, :], mask=rows[:, None] < length, other=0.0)


@triton.jit
def _keep(array, values, rows, depth, step, length):
    """Store these rows of one head, except beyond the last row."""
    to = array + rows[:, None] * step + depth[None, :]
    tl.store(to, values.to(array.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _head(heads, step_b, step_h):
    """The offset of the head that this program computes."""
    return (tl.program_id(1) // heads).to(tl.int64) * step_b + tl.program_id(1) % heads * step_h


@_tuned((128, 64, 8, 3), (64, 64, 4, 3))
@triton.jit
def _attend(
    q,
    k,
    v,
    out,
    lse,
    scale,
    length,
    heads,
    step_b,
    step_n,
    step_h,
    out_b,
    out_n,
    out_h,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out and lse of a block of queries, with a running maximum."""
    from_, depth = _head(heads, step_b, step_h), tl.arange(0, D)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    queries = _tile(q + from_, rows, depth, step_n, length)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, length, COLUMNS):
        seen = start + tl.arange(0, COLUMNS)
        scores = tl.dot(queries, tl.trans(_tile(k + from_, seen, depth, step_n, length))) * scale
        scores = tl.where(seen[None, :] < length, scores, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, axis=1))
        shares, shrink = tl.exp2(scores - peak[:, None]), tl.exp2(top - peak)
        values = _tile(v + from_, seen, depth, step_n, length)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(values.dtype), values)
        total, top = total * shrink + tl.sum(shares, axis=1), peak
    _keep(out + _head(heads, out_b, out_h), mixed / total[:, None], rows, depth, out_n, length)
    tl.store(lse + tl.program_id(1) * length + rows, top + tl.log2(total), mask=rows < length)


@_tuned((128, 64, 8, 3), (64, 64, 4, 3), (128, 32, 8, 3))
@triton.jit
def _attend_back_to_queries(
    dout,
    out,
    q,
    k,
    v,
    lse,
    deltas,
    dq,
    scale,
    length,
    heads,
    step_b,
    step_n,
    step_h,
    out_b,
    out_n,
    out_h,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dq of a block of queries, and delta = sum(dout out) of each query for the other kernel."""
    from_, to, depth = _head(heads, step_b, step_h), _head(heads, out_b, out_h), tl.arange(0, D)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    queries = _tile(q + from_, rows, depth, step_n, length)
    upstream = _tile(dout + to, rows, depth, out_n, length)
    delta = tl.sum(upstream.to(tl.float32) * _tile(out + to, rows, depth, out_n, length).to(tl.float32), axis=1)
    norms = tl.load(lse + tl.program_id(1) * length + rows, mask=rows < length, other=0.0)
    gradient = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, length, COLUMNS):
        seen = start + tl.arange(0, COLUMNS)
        keys = _tile(k + from_, seen, depth, step_n, length)
        values = _tile(v + from_, seen, depth, step_n, length)
        shares = tl.exp2(tl.dot(queries, tl.trans(keys)) * scale - norms[:, None])
        shares = tl.where(seen[None, :] < length, shares, 0.0)
        # out = p v,  p = softmax(s)
        ds = shares * (tl.dot(upstream, tl.trans(values)) - delta[:, None])
        gradient += tl.dot(ds.to(keys.dtype), keys)
    _keep(dq + from_, gradient * (scale * 0.6931471805599453), rows, depth, step_n, length)
    tl.store(deltas + tl.program_id(1) * length + rows, delta, mask=rows < length)


@_tuned((64, 128, 8, 3), (64, 64, 4, 3), (32, 128, 8, 3), (32, 64, 4, 3))
@triton.jit
def _attend_back_to_keys(
    dout,
    q,
    k,
    v,
    lse,
    deltas,
    dk,
    dv,
    scale,
    length,
    heads,
    step_b,
    step_n,
    step_h,
    out_b,
    out_n,
    out_h,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dk and dv of a block of keys."""
    from_, to, depth = _head(heads, step_b, step_h), _head(heads, out_b, out_h), tl.arange(0, D)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    keys = _tile(k + from_, columns, depth, step_n, length)
    values = _tile(v + from_, columns, depth, step_n, length)
    to_keys, to_values = tl.zeros([COLUMNS, D], tl.float32), tl.zeros([COLUMNS, D], tl.float32)
    for start in range(0, length, ROWS):
        rows = start + tl.arange(0, ROWS)
        queries = _tile(q + from_, rows, depth, step_n, length)
        upstream = _tile(dout + to, rows, depth, out_n, length)
        norms = tl.load(lse + tl.program_id(1) * length + rows, mask=rows < length, other=0.0)
        delta = tl.load(deltas + tl.program_id(1) * length + rows, mask=rows < length, other=0.0)
        shares = tl.exp2(tl.dot(keys, tl.trans(queries)) * scale - norms[None, :])  # (COLUMNS, ROWS)
        # out = p v,  p = softmax(s)
        to_values += tl.dot(shares.to(upstream.dtype), upstream)
        ds = shares * (tl.dot(values, tl.trans(upstream)) - delta[None, :])
        to_keys += tl.dot(ds.to(queries.dtype), queries)
    _keep(dk + from_, to_keys * (scale * 0.6931471805599453), columns, depth, step_n, length)
    _keep(dv + from_, to_values, columns, depth, step_n, length)


def _sizes(q: Tensor, out: Tensor) -> tuple[Any, ...]:
    """The arguments of a kernel that describe shapes and strides. The scale is for powers of two instead of e."""
    _, n, h, d = q.shape
    return d**-0.5 * 1.4426950408889634, n, h, *q.stride()[:3], *out.stride()[:3]


def _blocks(q: Tensor, size: str) -> Callable[[dict[str, int]], tuple[int, int]]:
    """The grid: blocks of rows or columns (`size` says which), and heads."""
    b, n, h, _ = q.shape
    return lambda chosen: (triton.cdiv(n, chosen[size]), b * h)


def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v (B, N, H, D), views of one packed array -> out (B, N, H, D), and lse (B, H, N) to base 2."""
    b, n, h, d = q.shape
    out, lse = torch.empty(q.shape, device=q.device, dtype=q.dtype), torch.empty(b, h, n, device=q.device)
    _attend[_blocks(q, "ROWS")](q, k, v, out, lse, *_sizes(q, out), D=d)
    return out, lse


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dout (B, N, H, D), with the strides of out -> dq, dk and dv, again views of one packed array."""
    b, n, h, d = q.shape
    dq, dk, dv = torch.empty(b, n, 3, h, d, device=q.device, dtype=q.dtype).unbind(2)
    delta, sizes = torch.empty_like(lse), _sizes(q, out)
    _attend_back_to_queries[_blocks(q, "ROWS")](dout, out, q, k, v, lse, delta, dq, *sizes, D=d)
    _attend_back_to_keys[_blocks(q, "COLUMNS")](dout, q, k, v, lse, delta, dk, dv, *sizes, D=d)
    return dq, dk, dv


# Contenders ----------------------------------------------------------------------------------------------------------


def layer_norm(rows: int, columns: int, dtype: str, back: bool, device: str = "cuda") -> Run:
    """Layer norm of rows, forward or backward."""
    x, dy = torch.randn(2, rows, columns, device=device).to(getattr(torch, dtype))
    weight, bias = torch.rand(2, columns, device=device).to(x.dtype)

    def forward() -> tuple[Tensor, ...]:
        return layer_norm_forward(x, weight, bias)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias, EPS)

    _, mean, rstd = forward()
    run = (lambda: layer_norm_backward(dy, x, weight, mean, rstd)) if back else forward
    return checked(run, reference, (x, weight, bias), dy if back else None)


def attention(size: Sequence[int], dtype: str, back: bool, device: str = "cuda") -> Run:
    """Attention, forward or backward, on views of packed q, k and v."""
    b, h, n, d = size
    q, k, v = torch.randn(b, n, 3, h, d, device=device, dtype=getattr(torch, dtype)).unbind(2)  # (B, N, H, D)
    dout = torch.randn(b, n, h, d, device=device, dtype=q.dtype)

    def forward() -> tuple[Tensor, ...]:
        return attention_forward(q, k, v)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    out, lse = forward()
    run = (lambda: attention_backward(dout, q, k, v, out, lse)) if back else forward
    return checked(run, reference, (q, k, v), dout if back else None)


def checked(run: Run, reference: Callable[..., Tensor], operands: Sequence[Tensor], dout: Tensor | None) -> Run:
    """Return `run` if its result agrees with PyTorch's `reference` of these operands in float32, or its gradients."""
    leaves = [x.detach().float().requires_grad_() for x in operands]
    out = reference(*leaves)
    expected = (out,) if dout is None else torch.autograd.grad(out, leaves, dout.float())
    allowed = ALLOWED[str(operands[0].dtype).removeprefix("torch.")]
    for actual, exact in zip(run(), expected, strict=False):
        error = ((actual.float() - exact).abs().max() / exact.abs().max()).item()
        if not error <= allowed:
            raise ArithmeticError(f"Triton's result has an error of {error:.2g}; {allowed} is allowed")
    return run
