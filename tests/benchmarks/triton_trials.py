"""The Triton kernels of the benchmarks in Triton's interpreter, against PyTorch's gradients.

`test_benchmarks_gpu.py` runs this file in a process of its own, because TRITON_INTERPRET=1 must be set before Triton is
imported.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import triton_peer

EPSILON = 2.0**-23


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def results(
    function: Callable[..., Tensor], operands: Sequence[Tensor], dout: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The result of `function` and its gradients, computed by PyTorch in this dtype."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in operands]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]


def assert_as_exact_as_pytorch(
    found: Sequence[Tensor], function: Callable[..., Tensor], operands: Sequence[Tensor], dout: Tensor, roundings: float
) -> None:
    """Errors are at most twice those of PyTorch in float32, plus this number of roundings of the largest value."""
    plain, exact = (results(function, operands, dout, dtype) for dtype in (torch.float32, torch.float64))
    for y, p, e in zip(found, plain, exact, strict=True):
        assert y.shape == e.shape
        worst, allowed = (y - e).abs().max(), 2 * (p - e).abs().max() + roundings * EPSILON * e.abs().max()
        assert worst.item() <= allowed.item()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def attention_of(n: int, d: int, size: float = 1, shift: float = 0) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """q (of standard deviation `size`), k and v; dout; and Triton's out, dq, dk and dv."""
    shifts = torch.tensor([-shift, shift, 0])[:, None, None]
    q, k, v = (torch.randn(2, n, 3, 2, d) * torch.tensor([size, 1, 1])[:, None, None] + shifts).unbind(2)
    dout = torch.randn(2, n, 2, d)
    out, lse = triton_peer.attention_forward(q, k, v)
    return [q, k, v], dout, [out, *triton_peer.attention_backward(dout, q, k, v, out, lse)]


SIZES = [(n, d, 1, 0) for n in (17, 65, 197) for d in (32, 64)]


@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")  # in rows beyond the last, which are not stored
@pytest.mark.parametrize(("n", "d", "size", "shift"), [*SIZES, (65, 32, 12, 0), (65, 32, 1, 6)])
def test_attention(n: int, d: int, size: float, shift: float) -> None:
    operands, dout, found = attention_of(n, d, size, shift)
    q, k, _ = operands
    logits = torch.einsum("bnhd,bshd->bhns", q, k) * d**-0.5
    assert_as_exact_as_pytorch(found, attend, operands, dout, 16 + logits.abs().max().item())  # e^s magnifies roundings


def layer_norm_of(rows: int, columns: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """x, weight and bias; dy; and Triton's y, dx, dweight and dbias."""
    x, dy = torch.randn(2, rows, columns) + 1
    weight, bias = torch.randn(2, columns)
    y, mean, rstd = triton_peer.layer_norm_forward(x, weight, bias)
    return [x, weight, bias], dy, [y, *triton_peer.layer_norm_backward(dy, x, weight, mean, rstd)]


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (17, 33), (200, 96)])
def test_layer_norm(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_peer, "PROGRAMS", 80)  # fewer than the rows, and more than one step of the sum takes
    operands, dy, found = layer_norm_of(rows, columns)

    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), weight, bias, triton_peer.EPS)

    assert_as_exact_as_pytorch(found, normalize, operands, dy, 16)


@pytest.mark.parametrize("back", [False, True])
def test_what_is_timed_has_been_checked(back: bool) -> None:
    for run in (
        triton_peer.attention((1, 2, 33, 16), "float16", back, "cpu"),
        triton_peer.layer_norm(6, 40, "bfloat16", back, "cpu"),
    ):
        assert all(y.isfinite().all() for y in run())


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_what_is_wrong_is_not_timed(factor: float) -> None:
    x = torch.randn(3)
    with pytest.raises(ArithmeticError, match="has an error of"):
        triton_peer.checked(lambda: (factor * x,), lambda x: 1 * x, (x,), None)
