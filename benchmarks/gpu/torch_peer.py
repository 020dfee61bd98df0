"""PyTorch on a GPU: its attention, its layer norm, a training step. Tests run them on a CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..cases import ModelShape
from ..contenders.pytorch_vit import ViT
from ..inputs import LEARNING_RATE, WEIGHT_DECAY

Run = Callable[[], Any]


def attention(size: Sequence[int], dtype: str, back: bool, backend: str, device: str = "cuda") -> Run:
    """Attention, forward or backward, by one of PyTorch's backends, on views of packed q, k and v (B, H, N, D)."""
    b, h, n, d = size
    packed = torch.randn(b, n, 3, h, d, device=device, dtype=getattr(torch, dtype))
    q, k, v = (x.detach().requires_grad_(back) for x in packed.permute(2, 0, 3, 1, 4).unbind(0))

    def forward() -> torch.Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v)

    return _backward(forward(), q, k, v) if back else forward


def layer_norm(rows: int, columns: int, dtype: str, back: bool, compiled: bool, device: str = "cuda") -> Run:
    """Layer norm of rows, forward or backward, with `compiled` through torch.compile."""
    x = torch.randn(rows, columns, device=device, dtype=getattr(torch, dtype), requires_grad=back)
    weight = torch.ones(columns, device=device, dtype=x.dtype, requires_grad=back)
    bias = torch.zeros_like(weight, requires_grad=back)

    def forward() -> torch.Tensor:
        return F.layer_norm(x, (columns,), weight, bias)

    run = torch.compile(forward) if compiled else forward
    return _backward(run(), x, weight, bias) if back else run


def _backward(y: torch.Tensor, *inputs: torch.Tensor) -> Run:
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def train_step(shape: ModelShape, compiled: bool, device: str = "cuda") -> Run:
    """Forward in bfloat16, cross-entropy, backward and a fused AdamW; with `compiled` through max-autotune."""
    torch.manual_seed(0)
    model = ViT(shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    images = torch.randn(shape.batch, shape.channels, shape.image, shape.image, device=device)
    labels = torch.arange(shape.batch, device=device) % shape.classes

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return F.cross_entropy(model(images), labels)

    run = torch.compile(loss_of, mode="max-autotune") if compiled else loss_of

    def step() -> torch.Tensor:
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        loss = run(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
