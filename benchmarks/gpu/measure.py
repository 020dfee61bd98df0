"""`python -m benchmarks gpu`: the kernels on an NVIDIA GPU beside their peers and the limits of the device.

Every case is verified, then timed by the device's own clock, with a cold and with a warm second-level cache; whole
training steps are timed one after the other, and beside that how long Python is busy with each. A result
is a line of one file, written when it is there; started again for the same commit, what is in the file is not measured
again. What there was no time for has a line that says so, until it is measured by a later start.
"""

import importlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases import VIT_S, ModelShape
from ..inputs import LEARNING_RATE, WEIGHT_DECAY
from ..machine import describe_commit
from .budget import LEFT_OUT, Budget, OutOfTime

_ROUNDS, _FLUSHED = 20, 256 << 20  # times each; bytes that no second-level cache holds
ATTENTION = [(256, 12, n, 64) for n in (65, 197, 257)]
ATTENTION += [(max(1, 16384 // n), h, n, d) for n in (1024, 2048, 4096, 8192) for h, d in ((12, 64), (8, 128))]
ROWS = [(50432, 384), (50432, 768)]
STEPS = [replace(VIT_S, batch=1024)]
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


Make = Callable[[], Callable[[], Any]]  # what makes the function that is timed
Contender = tuple[str, Make]  # with its name
_LATE = ("torch.compile", "torch.compile max-autotune")  # take seconds, and minutes, to compile


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
    def ours(implementation: str) -> Make:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import attention_backward, attention_forward

            packed = _normal((b, n, 3, h, d), dtype)
            q, k, v = packed.transpose(2, 0, 3, 1, 4)
            forward = _bound(attention_forward, q, k, v, implementation=implementation)
            if not back:
                return forward
            out, lse = forward()
            out = out.astype(q.dtype)  # where the plain rule leaves it in float32
            return _bound(attention_backward, out, q, k, v, out, lse, implementation=implementation)

        return make

    peers = [(f"torch {name.lower()}", _peer("torch", "attention", (b, h, n, d), dtype, back, name)) for name in
             ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")]  # fmt: skip
    if dtype != "float32":
        peers.append(("triton", _peer("triton", "attention", (b, h, n, d), dtype, back)))
    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" and n <= 257 else []
    composed = [("composed", ours("numpy"))] if n <= 1024 else []
    return [("raw", ours("cupy")), *twins, *composed, *peers]


def _rows(rows: int, columns: int, dtype: str, back: bool) -> list[Contender]:
    def ours(implementation: str) -> Make:
        def make() -> Callable[[], Any]:
            from tinyvit.kernels import layer_norm_backward, layer_norm_forward

            x, w = _normal((rows, columns), dtype), _normal((columns,), dtype)
            forward = _bound(layer_norm_forward, x, w, w, implementation=implementation)
            if not back:
                return forward
            y, mean, rstd = forward()
            y = y.astype(x.dtype)
            return _bound(layer_norm_backward, y, x, w, mean, rstd, implementation=implementation)

        return make

    twins = [("numba-cuda", ours("numba-cuda"))] if dtype == "float32" else []
    peers = [("torch", _peer("torch", "layer_norm", rows, columns, dtype, back, False)),
             ("torch.compile", _peer("torch", "layer_norm", rows, columns, dtype, back, True)),
             ("triton", _peer("triton", "layer_norm", rows, columns, dtype, back))]  # fmt: skip
    return [("raw", ours("cupy")), *twins, ("composed", ours("numpy")), *peers]


def _peer(library: str, function: str, *arguments: Any) -> Make:
    """What gpu_torch.py or gpu_triton.py offers; imported where it is timed, since the library may be missing."""
    return lambda: getattr(importlib.import_module(f".{library}_peer", __package__), function)(*arguments)


def step_cases() -> Iterator[tuple[Case, list[Contender]]]:
    """Training steps of a ViT in bfloat16: forward, cross-entropy, backward, AdamW."""
    for shape in STEPS:
        yield (
            Case(f"{shape.name} step, batch {shape.batch}", "bfloat16", 0, 0),
            [
                ("captured", lambda shape=shape: _step(shape, captured=True)),
                ("usual", lambda shape=shape: _step(shape, captured=False)),
                ("torch", _peer("torch", "train_step", shape, False)),
                ("torch.compile max-autotune", _peer("torch", "train_step", shape, True)),
            ],
        )


def _step(shape: ModelShape, captured: bool) -> Callable[[], Any]:
    import tinyvit as tv
    import tinyvit.functional as F
    from tinyvit.run.captured import CapturedStep

    size = {"dim": shape.dim, "depth": shape.depth, "heads": shape.heads, "in_channels": shape.channels}
    model = tv.models.ViT(shape.image, shape.patch, shape.classes, **size).to("cuda")
    optimizer = tv.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    images = _normal((shape.batch, shape.channels, shape.image, shape.image), "float32")
    labels = _array(np.arange(shape.batch) % shape.classes)
    step = CapturedStep(lambda x, y: F.cross_entropy(model(tv.Tensor(x)), y), optimizer, "bfloat16")
    if not captured:
        step.reason = "it is timed without"
    for _ in range(5):
        step((images, labels))
    if captured and step.reason:
        raise RuntimeError(step.reason)
    return _bound(step, (images, labels))


def _bound(function: Callable[..., Any], *arrays: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: function(*arrays, **settings)


def _array(x: np.ndarray) -> Any:
    import tinyvit as tv

    return tv.tensor(x, device="cuda").data


def _normal(shape: tuple[int, ...], dtype: str) -> Any:
    import tinyvit as tv
    from tinyvit.backend import namespace_of

    # So many numbers again and again: to draw all of them would take seconds for each contender.
    some = tv.tensor(np.random.default_rng(0).standard_normal(1_000_003, np.float32), device="cuda").to(dtype).data
    return some[namespace_of(some).arange(math.prod(shape)) % some.size].reshape(shape)


# Measuring -----------------------------------------------------------------------------------------------------------


_WAIT = """extern "C" __global__ void wait(long long cycles) {
  for (long long start = clock64(); clock64() - start < cycles;) {}
}"""


class Clock:
    """Times functions by events on the device.

    The device is kept waiting until all of a call has been asked of it, so that short kernels are not timed at the pace
    of Python.

    Attributes
    ----------
    limit : seconds after which a function is called no more times than it must be.
    """

    limit = float("inf")

    def __init__(self) -> None:
        import cupy

        self._cuda, self._flushed = cupy.cuda, cupy.empty(_FLUSHED, "uint8")
        self._wait = cupy.RawKernel(_WAIT, "wait")

    def seconds(self, function: Callable[[], Any], cold: bool) -> float:
        """The median time of a call; `cold` empties the second-level cache before each."""
        for _ in range(3):
            function()
        cycles = np.int64(2e9 * min(1e-4 + 2 * self.host_seconds(function, 1), 0.05))
        times: list[float] = []
        began = time.monotonic()
        while len(times) < 3 or (len(times) < _ROUNDS and time.monotonic() - began < self.limit / 2):
            start, stop = self._cuda.Event(), self._cuda.Event()
            if cold:
                self._flushed.fill(0)
            self._wait((1,), (1,), (cycles,))
            start.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(self._cuda.get_elapsed_time(start, stop) / 1e3)
        return statistics.median(times)

    def host_seconds(self, function: Callable[[], Any], calls: int) -> float:
        """The time until a call returns, the device having nothing else to do."""
        self._cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    def seconds_each(self, function: Callable[[], Any], calls: int) -> float:
        """The time of each of many calls, one after the other, till the last is done: the median of a few rounds."""
        times: list[float] = []
        began = time.monotonic()
        while not times or (len(times) < 5 and time.monotonic() - began < self.limit / 2):
            self._cuda.Device().synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            self._cuda.Device().synchronize()
            times.append((time.perf_counter() - start) / calls)
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


def measured(case: Case, name: str, make: Make, clock: Clock, best: dict[str, float]) -> dict[str, Any]:
    """The line of one contender: its times, or why there are none."""
    line: dict[str, Any] = {"case": case.name, "dtype": case.dtype, "contender": name}
    try:
        function = make()
        return line | (_times(case, function, clock, best) if case.floor_bytes else _times_of_steps(function, clock))
    except ModuleNotFoundError as error:
        return line | {"refused": f"{error.name} is not installed"}
    except Exception as error:  # a peer that cannot do this
        return line | {"refused": f"{type(error).__name__}: {error}"}


def _times(case: Case, function: Callable[[], Any], clock: Clock, best: dict[str, float]) -> dict[str, float]:
    cold, warm = clock.seconds(function, True), clock.seconds(function, False)
    shares = {
        "share_of_copy": case.floor_bytes / best["copy_bytes_per_s"] / cold,
        "share_of_gemm": case.flops / best["gemm_flop_per_s"] / cold,
    }
    return {"cold_us": 1e6 * cold, "warm_us": 1e6 * warm} | shares


def _times_of_steps(function: Callable[[], Any], clock: Clock) -> dict[str, float]:
    """Of whole training steps: what each takes, and how long Python is busy between two of them."""
    for _ in range(5):
        function()
    return {"step_us": 1e6 * clock.seconds_each(function, 20), "host_us": 1e6 * clock.host_seconds(function, 10)}


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
    try:
        error = error_of(*(made[name]()() for name in ("raw", "composed")))
    except Exception as failure:  # of either: then nothing is known of the raw one
        return f"raw and the plain rule cannot be compared ({type(failure).__name__}: {failure})"
    allowed = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}[dtype]
    return None if error <= allowed else f"raw differs from the plain rule by {error:.3g}; {allowed} is allowed"


@dataclass(frozen=True)
class Task:
    """One contender of a case, which is measured in its turn."""

    case: Case
    name: str
    make: Make
    contenders: list[Contender]

    def line(self, clock: Clock, best: dict[str, float]) -> dict[str, Any]:
        wrong = verified(self.contenders, self.case.dtype) if self.name == "raw" else None
        return self.told(wrong) if wrong else measured(self.case, self.name, self.make, clock, best)

    def told(self, refused: str) -> dict[str, Any]:
        return {"case": self.case.name, "dtype": self.case.dtype, "contender": self.name, "refused": refused}


def tasks(done: set[tuple[str, str, str]]) -> list[Task]:
    """What is not done yet: the first contenders of all cases, then the second ones ...; at the end what compiles."""
    found = []
    for source in (attention_cases, layer_norm_cases, step_cases):
        for case, contenders in source():
            for place, (name, make) in enumerate(contenders):
                if (case.name, case.dtype, name) not in done:
                    turn = _LATE.index(name) + 1 if name in _LATE else 0, place
                    found.append((turn, Task(case, name, make, contenders)))
    return [task for _, task in sorted(found, key=lambda pair: pair[0])]


def run(path: Path, say: Callable[[str], None], minutes: float) -> int:
    """Measure what is not in the file yet, and add it; give the number of contenders that there was no time for."""
    from tinyvit.checkpoint import atomic_write

    # numba.cuda would wait for the device before each launch; here all is on one stream.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    budget, commit = Budget(minutes), describe_commit()
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    lines = [line for line in lines if line["commit"] != commit or line.get("refused") != LEFT_OUT]
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(line: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"commit": commit}) + "\n")
        say(json.dumps(line))

    clock = Clock()
    best = ceilings(clock)
    add({"case": "ceilings", "dtype": "", "contender": "", **best})
    done = {(line["case"], line["dtype"], line["contender"]) for line in lines if line["commit"] == commit}
    work, left_out = tasks(done), 0
    for number, task in enumerate(work, 1):
        others = len(work) - number
        clock.limit = budget.share(others + 1)
        try:
            with budget.enforced(0.5 if others else 1.0):  # who never ends takes no more than that
                line = task.line(clock, best)
        except OutOfTime:
            left_out, line = left_out + 1, task.told(LEFT_OUT)
        add(line)
    return left_out
