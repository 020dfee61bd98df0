"""The cases of the GPU, each with its contenders: functions that make the function to be timed."""

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..cases import VIT_S, ModelShape
from ..inputs import LEARNING_RATE, WEIGHT_DECAY
from ..peers import reason_to_skip

ATTENTION = [(256, 12, n, 64) for n in (65, 197, 257)]  # B, H, N, D
ATTENTION += [(max(1, 16384 // n), h, n, d) for n in (1024, 2048, 4096, 8192) for h, d in ((12, 64), (8, 128))]
ROWS = [(50432, 384), (50432, 768)]
STEPS = [replace(VIT_S, batch=1024)]
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Case:
    """Something that all its contenders compute.

    Attributes
    ----------
    floor_bytes : the bytes that must be read or written at least; 0 for training steps.
    flops : multiplications and additions.
    """

    name: str
    dtype: str
    floor_bytes: float
    flops: float


Make = Callable[[], Callable[[], Any]]  # makes the function to be timed
Contender = tuple[str, Make]  # with its name


class PeerError(Exception):
    """A peer library is not installed, or is broken; the message says which."""


def attention_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """Attention forward and backward, on packed q, k and v."""
    for b, h, n, d in ATTENTION:
        for dtype in DTYPES:
            size = 4 if dtype == "float32" else 2
            elements = b * h * n * d
            name = f"attention B={b} H={h} N={n} D={d}"
            forward = Case(f"{name} forward", dtype, 4 * elements * size, 4 * elements * n)
            backward = Case(f"{name} backward", dtype, 8 * elements * size, 10 * elements * n)
            yield forward, _attention(b, h, n, d, dtype, back=False)
            yield backward, _attention(b, h, n, d, dtype, back=True)


def layer_norm_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """Layer norm forward and backward."""
    for rows, columns in ROWS:
        for dtype in DTYPES:
            size = rows * columns * (4 if dtype == "float32" else 2)
            name = f"layer norm {rows} x {columns}"
            yield Case(f"{name} forward", dtype, 2 * size, 8 * rows * columns), _rows(rows, columns, dtype, False)
            yield Case(f"{name} backward", dtype, 3 * size, 14 * rows * columns), _rows(rows, columns, dtype, True)


def step_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """Training steps of a ViT in bfloat16: forward, cross-entropy, backward, AdamW."""
    for shape in STEPS:
        yield (
            Case(f"{shape.name} step, batch {shape.batch}", "bfloat16", 0, 0),
            [
                ("captured", lambda shape=shape: _step(shape, captured=True)),
                ("usual", lambda shape=shape: _step(shape, captured=False)),
                ("torch", peer("torch", "train_step", shape, False)),
                ("torch.compile max-autotune", peer("torch", "train_step", shape, True)),
            ],
        )


# Contenders -----------------------------------------------------------------------------------------------------------


def _attention(b: int, h: int, n: int, d: int, dtype: str, back: bool) -> list[Contender]:
    def ours(implementation: str) -> Make:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import attention_backward, attention_forward

            packed = normal((b, n, 3, h, d), dtype)
            q, k, v = packed.transpose(2, 0, 3, 1, 4)
            forward = _bound(attention_forward, q, k, v, implementation=implementation)
            if not back:
                return forward
            out, lse = forward()
            out = out.astype(q.dtype)  # the plain rule leaves it in float32
            return _bound(attention_backward, out, q, k, v, out, lse, implementation=implementation)

        return make

    backends = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
    peers = [
        (f"torch {name.lower()}", peer("torch", "attention", (b, h, n, d), dtype, back, name)) for name in backends
    ]
    if dtype != "float32":
        peers.append(("triton", peer("triton", "attention", (b, h, n, d), dtype, back)))
    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" and n <= 257 else []
    composed = [("composed", ours("numpy"))] if n <= 1024 else []
    return [("raw", ours("cupy")), *twins, *composed, *peers]


def _rows(rows: int, columns: int, dtype: str, back: bool) -> list[Contender]:
    def ours(implementation: str) -> Make:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import layer_norm_backward, layer_norm_forward

            x, w = normal((rows, columns), dtype), normal((columns,), dtype)
            forward = _bound(layer_norm_forward, x, w, w, implementation=implementation)
            if not back:
                return forward
            y, mean, rstd = forward()
            y = y.astype(x.dtype)
            return _bound(layer_norm_backward, y, x, w, mean, rstd, implementation=implementation)

        return make

    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" else []
    peers = [
        ("torch", peer("torch", "layer_norm", rows, columns, dtype, back, False)),
        ("torch.compile", peer("torch", "layer_norm", rows, columns, dtype, back, True)),
        ("triton", peer("triton", "layer_norm", rows, columns, dtype, back)),
    ]
    return [("raw", ours("cupy")), *twins, ("composed", ours("numpy")), *peers]


def peer(library: str, function: str, *arguments: Any) -> Make:
    """A contender of torch_peer.py or triton_peer.py, imported when its turn comes: PeerError if the library fails."""

    def make() -> Callable[[], Any]:
        reason = reason_to_skip(library)
        if reason:
            raise PeerError(reason)
        return getattr(importlib.import_module(f".{library}_peer", __package__), function)(*arguments)

    return make


def training_step(shape: ModelShape, precision: str) -> tuple[Any, tuple[Any, Any]]:
    """A step of a ViT, which becomes a CUDA graph, and a batch for it."""
    import tinyvit as tv
    import tinyvit.functional as F
    from tinyvit.run.captured import CapturedStep

    size = {"dim": shape.dim, "depth": shape.depth, "heads": shape.heads, "in_channels": shape.channels}
    model = tv.models.ViT(shape.image, shape.patch, shape.classes, **size).to("cuda")
    optimizer = tv.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    images = normal((shape.batch, shape.channels, shape.image, shape.image), "float32")
    labels = tv.tensor(np.arange(shape.batch) % shape.classes, device="cuda").data
    step = CapturedStep(lambda x, y: F.cross_entropy(model(tv.Tensor(x)), y), optimizer, precision)
    return step, (images, labels)


def _step(shape: ModelShape, captured: bool) -> Callable[[], Any]:
    step, batch = training_step(shape, "bfloat16")
    if not captured:
        step.reason = "this contender is timed without a graph"
    for _ in range(5):
        step(batch)
    if captured and step.reason:
        raise RuntimeError(step.reason)
    return _bound(step, batch)


def _bound(function: Callable[..., Any], *arrays: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: function(*arrays, **settings)


def normal(shape: tuple[int, ...], dtype: str) -> Any:
    """Normal numbers on the GPU. A million of them are repeated, for drawing all would take seconds per contender."""
    import tinyvit as tv
    from tinyvit.backend import namespace_of

    some = tv.tensor(np.random.default_rng(0).standard_normal(1_000_003, np.float32), device="cuda").to(dtype).data
    return some[namespace_of(some).arange(math.prod(shape)) % some.size].reshape(shape)
