"""`python -m benchmarks gpu`: the kernels on an NVIDIA GPU beside their peers and the limits of the device.

Every case is verified, then timed by the device's own clock, with a cold and with a warm second-level cache. A result
is a line of one file, written when it is there; started again for the same commit, what is in the file is not measured
again.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .machine import describe_commit

_ROUNDS, _FLUSHED = 20, 256 << 20  # times each; bytes that no second-level cache holds
ATTENTION = [(256, 12, n, 64) for n in (65, 197, 257)]
ATTENTION += [(max(1, 16384 // n), h, n, d) for n in (1024, 2048, 4096, 8192) for h, d in ((12, 64), (8, 128))]
ROWS = [(50432, 384), (50432, 768)]
STEPS = [("vit", 1024)]
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Case:
    """One thing to be measured, of which all contenders do the same.

    Attributes
    ----------
    floor_bytes : what must at least be read and written.
    flops : multiplications and additions.
    """

    name: str
    dtype: str
    floor_bytes: float
    flops: float


Contender = tuple[str, Callable[[], Callable[[], Any]]]  # its name, and what makes the function that is timed


# Cases ---------------------------------------------------------------------------------------------------------------


def attention_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """Attention forward and backward, over packed q, k and v."""
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


def _attention(b: int, h: int, n: int, d: int, dtype: str, back: bool) -> list[Contender]:
    def ours(implementation: str) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import attention_backward, attention_forward

            packed = _normal((b, n, 3, h, d), dtype)
            q, k, v = packed.transpose(2, 0, 3, 1, 4)
            forward = _bound(attention_forward, q, k, v, implementation=implementation)
            if not back:
                return forward
            out, lse = forward()
            return _bound(attention_backward, out, q, k, v, out, lse, implementation=implementation)

        return make

    def torch(backend: str) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            import torch as t
            from torch.nn.attention import SDPBackend, sdpa_kernel

            packed = t.randn(b, n, 3, h, d, device="cuda", dtype=getattr(t, dtype), requires_grad=back)
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            chosen = getattr(SDPBackend, backend)

            def forward() -> Any:
                with sdpa_kernel(chosen):
                    return t.nn.functional.scaled_dot_product_attention(q, k, v)

            if not back:
                return forward
            out = forward()
            return lambda: t.autograd.grad(out, packed, out.detach(), retain_graph=True)

        return make

    peers = [(f"torch {name.lower()}", torch(name)) for name in
             ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")]  # fmt: skip
    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" and n <= 257 else []
    composed = [("composed", ours("numpy"))] if n <= 1024 else []
    return [("raw", ours("cupy")), *twins, *composed, *peers]


def _rows(rows: int, columns: int, dtype: str, back: bool) -> list[Contender]:
    def ours(implementation: str) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import layer_norm_backward, layer_norm_forward

            x, w = _normal((rows, columns), dtype), _normal((columns,), dtype)
            forward = _bound(layer_norm_forward, x, w, w, implementation=implementation)
            if not back:
                return forward
            y, mean, rstd = forward()
            return _bound(layer_norm_backward, y, x, w, mean, rstd, implementation=implementation)

        return make

    def torch(compiled: bool) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            import torch as t

            x = t.randn(rows, columns, device="cuda", dtype=getattr(t, dtype), requires_grad=back)
            w = t.ones(columns, device="cuda", dtype=x.dtype, requires_grad=back)

            def forward() -> Any:
                return t.nn.functional.layer_norm(x, (columns,), w, w)

            run = t.compile(forward) if compiled else forward
            if not back:
                return run
            y = run()
            return lambda: t.autograd.grad(y, (x, w), y.detach(), retain_graph=True)

        return make

    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" else []
    peers = [("torch", torch(False)), ("torch.compile", torch(True))]
    return [("raw", ours("cupy")), *twins, ("composed", ours("numpy")), *peers]


def step_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """A training step of a ViT: forward, cross-entropy, backward, AdamW."""
    for name, batch in STEPS:
        yield Case(f"{name} step, batch {batch}", "bfloat16", 0, 0), [("captured", _step(batch))]


def _step(batch: int) -> Callable[[], Callable[[], Any]]:
    def make() -> Callable[[], Any]:
        import tinyvit as tv
        import tinyvit.functional as F
        from tinyvit.captured import CapturedStep

        model = tv.models.ViT(32, 4, 10, dim=192, depth=6, heads=3).to("cuda")
        optimizer = tv.optim.AdamW(model.parameters())
        images, labels = _normal((batch, 3, 32, 32), "float32"), _array(np.arange(batch) % 10)
        step = CapturedStep(lambda x, y: F.cross_entropy(model(tv.Tensor(x)), y), optimizer, "bfloat16")
        for _ in range(5):
            step(images, labels)
        if step.reason:
            raise RuntimeError(step.reason)
        return _bound(step, images, labels)

    return make


def _bound(function: Callable[..., Any], *arrays: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: function(*arrays, **settings)


def _array(x: np.ndarray) -> Any:
    import tinyvit as tv

    return tv.tensor(x, device="cuda").data


def _normal(shape: tuple[int, ...], dtype: str) -> Any:
    import tinyvit as tv

    rng = np.random.default_rng(0)
    return tv.tensor(rng.standard_normal(shape, np.float32), device="cuda").to(dtype).data


# Measuring -----------------------------------------------------------------------------------------------------------


class Clock:
    """Times functions by events on the device."""

    def __init__(self) -> None:
        import cupy

        self._cuda, self._flushed = cupy.cuda, cupy.empty(_FLUSHED, "uint8")

    def seconds(self, function: Callable[[], Any], cold: bool) -> float:
        """The median time of a call; `cold` empties the second-level cache before each."""
        for _ in range(3):
            function()
        times = []
        for _ in range(_ROUNDS):
            if cold:
                self._flushed.fill(0)
            start, stop = self._cuda.Event(), self._cuda.Event()
            start.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(self._cuda.get_elapsed_time(start, stop) / 1e3)
        return statistics.median(times)


def ceilings(clock: Clock) -> dict[str, float]:
    """What this device reaches: bytes a second of a copy, operations a second of a large product in bfloat16."""
    import cupy
    from tinyvit.kernels.linear import cublaslt

    source = cupy.zeros(1 << 28, "float32")
    target, n = cupy.empty_like(source), 8192
    matrix = _normal((n, n), "bfloat16")
    return {
        "copy_bytes_per_s": 2 * source.nbytes / clock.seconds(lambda: cupy.copyto(target, source), False),
        "gemm_flop_per_s": 2 * n**3 / clock.seconds(lambda: cublaslt.matmul(matrix, matrix), False),
    }


def measured(case: Case, name: str, make: Callable[[], Callable[[], Any]], clock: Clock, best: dict[str, float]) -> Any:
    """The line of one contender: its times, or why there are none."""
    line: dict[str, Any] = {"case": case.name, "dtype": case.dtype, "contender": name}
    try:
        function = make()
        cold, warm = clock.seconds(function, True), clock.seconds(function, False)
    except Exception as error:  # a peer that is missing, or cannot do this
        return line | {"refused": f"{type(error).__name__}: {error}"}
    line |= {"cold_us": 1e6 * cold, "warm_us": 1e6 * warm}
    if case.floor_bytes:
        line["share_of_copy"] = case.floor_bytes / best["copy_bytes_per_s"] / cold
        line["share_of_gemm"] = case.flops / best["gemm_flop_per_s"] / cold
    return line


def error_of(ours: Any, plain: Any) -> float:
    """The largest difference of two results, relative to the largest value; NaN counts as infinite."""
    worst = 0.0
    for y, e in zip(ours, plain, strict=True):
        if e is not None:
            y, e = (np.asarray(x.get(), np.float64) for x in (y, e))
            error = float(np.abs(y - e).max() / max(np.abs(e).max(), 1e-30))
            worst = max(worst, error if error == error else float("inf"))
    return worst


def verified(contenders: list[Contender], dtype: str) -> str | None:
    """What is wrong with our kernel beside the plain rule; None if nothing is, or there is no plain rule beside it."""
    made = dict(contenders)
    if "composed" not in made or "raw" not in made:
        return None
    error = error_of(*(made[name]()() for name in ("raw", "composed")))
    allowed = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}[dtype]
    return None if error <= allowed else f"raw differs from the plain rule by {error:.3g}; {allowed} is allowed"


def run(path: Path, say: Callable[[str], None]) -> None:
    """Measure what is not in the file yet, and add it."""
    commit = describe_commit()
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    done = {(line["case"], line["dtype"], line["contender"]) for line in lines if line["commit"] == commit}

    def add(line: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"commit": commit}) + "\n")
        say(json.dumps(line))

    clock = Clock()
    best = ceilings(clock)
    add({"case": "ceilings", "dtype": "", "contender": "", **best})
    for source in (attention_cases, layer_norm_cases, step_cases):
        for case, contenders in source():
            left = [(name, make) for name, make in contenders if (case.name, case.dtype, name) not in done]
            wrong = verified(contenders, case.dtype) if left else None
            for name, make in left:
                wrong_here = wrong if name == "raw" else None
                line = {"case": case.name, "dtype": case.dtype, "contender": name, "refused": wrong_here}
                add(line if wrong_here else measured(case, name, make, clock, best))
