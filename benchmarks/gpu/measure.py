"""`python -m benchmarks gpu`: our kernels on an NVIDIA GPU, compared with their peers and the limits of the device.

Our kernels are verified, and all contenders are timed with a cold and with a warm second-level cache. Training steps
are timed in a row, and so is the time that Python is busy with one. Each result is appended to a file of JSON lines as
soon as it is known. A later start with the same sources measures only what the file lacks, which includes the
contenders that there was no time for.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import describe_commit, describe_sources
from .budget import LEFT_OUT, Budget, OutOfTime
from .cases import Case, Contender, Make, PeerError, attention_cases, layer_norm_cases, normal, step_cases
from .clock import Clock

_FOLDERS = ("kernels", "tinyvit", "benchmarks")  # whose sources decide the results
_LATE = ("torch.compile", "torch.compile max-autotune")  # their compilation takes seconds, and minutes
# For the difference between our kernel and the plain rule, relative to the largest value.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


def ceilings(clock: Clock) -> dict[str, float]:
    """The limits of this device: bytes per second of a copy, operations per second of a large product in bfloat16."""
    import cupy
    from tinyvit.kernels.linear import cublaslt

    source = cupy.zeros(1 << 28, "float32")
    target, n = cupy.empty_like(source), 8192
    matrix = normal((n, n), "bfloat16")
    return {
        "copy_bytes_per_s": 2 * source.nbytes / clock.seconds(lambda: cupy.copyto(target, source), False),
        "gemm_flop_per_s": 2 * n**3 / clock.seconds(lambda: cublaslt.matmul(matrix, matrix), False),
    }


# One contender --------------------------------------------------------------------------------------------------------


def measured(case: Case, name: str, make: Make, clock: Clock, limits: dict[str, float]) -> dict[str, Any]:
    """The line of one contender: its times, or why it has none."""
    line: dict[str, Any] = {"case": case.name, "dtype": case.dtype, "contender": name}
    try:
        function = make()
        return line | (_times(case, function, clock, limits) if case.floor_bytes else _times_of_steps(function, clock))
    except PeerError as reason:
        return line | {"refused": str(reason)}
    except ModuleNotFoundError as error:
        return line | {"refused": f"{error.name} is not installed"}
    except Exception as error:  # this contender does not serve this case
        return line | {"refused": f"{type(error).__name__}: {error}"}


def _times(case: Case, function: Callable[[], Any], clock: Clock, limits: dict[str, float]) -> dict[str, float]:
    cold, warm = clock.seconds(function, True), clock.seconds(function, False)
    shares = {
        "share_of_copy": case.floor_bytes / limits["copy_bytes_per_s"] / cold,
        "share_of_gemm": case.flops / limits["gemm_flop_per_s"] / cold,
    }
    return {"cold_us": 1e6 * cold, "warm_us": 1e6 * warm} | shares


def _times_of_steps(function: Callable[[], Any], clock: Clock) -> dict[str, float]:
    """The time of a training step, and how long Python is busy with it."""
    for _ in range(5):
        function()
    return {"step_us": 1e6 * clock.seconds_each(function, 20), "host_us": 1e6 * clock.host_seconds(function, 10)}


def error_of(ours: Any, plain: Any) -> float:
    """The largest difference of two results, relative to the largest value; infinite if a value is NaN."""
    worst = 0.0
    for y, e in zip(ours, plain, strict=True):
        if e is not None:
            y, e = (np.asarray(x.get(), np.float64) for x in (y, e))
            error = float(np.abs(y - e).max() / max(np.abs(e).max(), 1e-30))
            worst = max(worst, error if error == error else float("inf"))
    return worst


def complaint(contenders: list[Contender], dtype: str) -> str | None:
    """How our kernel differs from the plain rule; None if it does not, or if the case has no plain rule."""
    made = dict(contenders)
    if "composed" not in made or "raw" not in made:
        return None
    try:
        error = error_of(*(made[name]()() for name in ("raw", "composed")))
    except Exception as failure:  # whichever of the two failed, the kernel is not verified
        return f"raw and the plain rule cannot be compared ({type(failure).__name__}: {failure})"
    allowed = _TOLERANCES[dtype]
    return None if error <= allowed else f"raw differs from the plain rule by {error:.3g}; {allowed} is allowed"


# All of them ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One contender of a case, to be measured in its turn."""

    case: Case
    name: str
    make: Make
    contenders: list[Contender]

    def line(self, clock: Clock, limits: dict[str, float]) -> dict[str, Any]:
        wrong = complaint(self.contenders, self.case.dtype) if self.name == "raw" else None
        return self.refused(wrong) if wrong else measured(self.case, self.name, self.make, clock, limits)

    def refused(self, reason: str) -> dict[str, Any]:
        return {"case": self.case.name, "dtype": self.case.dtype, "contender": self.name, "refused": reason}


def tasks(done: set[tuple[str, str, str]]) -> list[Task]:
    """What is not done yet: the first contender of each case, then the second of each ..., at last what compiles."""
    found = []
    for source in (attention_cases, layer_norm_cases, step_cases):
        for case, contenders in source():
            for place, (name, make) in enumerate(contenders):
                if (case.name, case.dtype, name) not in done:
                    turn = _LATE.index(name) + 1 if name in _LATE else 0, place
                    found.append((turn, Task(case, name, make, contenders)))
    return [task for _, task in sorted(found, key=lambda pair: pair[0])]


def run(path: Path, say: Callable[[str], None], minutes: float) -> int:
    """Measure what the file lacks, and append it; return the number of contenders that there was no time for."""
    from tinyvit.checkpoint import atomic_write

    # Without this, numba.cuda would wait for the device before each launch. One stream orders everything here.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    budget, known = Budget(minutes), {"commit": describe_commit(), "sources": describe_sources(_FOLDERS)}
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    lines = [line for line in lines if line.get("sources") != known["sources"] or line.get("refused") != LEFT_OUT]
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(line: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | known) + "\n")
        say(json.dumps(line))

    clock = Clock()
    limits = ceilings(clock)
    add({"case": "ceilings", "dtype": "", "contender": "", **limits})
    current = [line for line in lines if line.get("sources") == known["sources"]]
    done = {(line["case"], line["dtype"], line["contender"]) for line in current}
    work, left_out = tasks(done), 0
    for number, task in enumerate(work, 1):
        others = len(work) - number
        clock.limit = budget.share(others + 1)
        try:
            # A contender that never ends takes at most half of the remaining time, if others still wait for theirs.
            with budget.enforced(0.5 if others else 1.0):
                line = task.line(clock, limits)
        except OutOfTime:
            left_out, line = left_out + 1, task.refused(LEFT_OUT)
        add(line)
    return left_out
