"""`python -m benchmarks gpu --first-look`: what to find out in the first half hour on a GPU, in order, in one command.

Each step is a process of its own with a limit on its time; a step that fails, or takes too long, does not stop those
after it. The result file has a line for each step, and in the end one for each prediction, with what was measured.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..machine import ROOT, describe_commit, describe_sources

LOOKS = "benchmarks.gpu.looks"
NUMBERS = "gpu-benchmarks.jsonl"  # what the step `numbers` writes
FOUND = "FOUND "  # begins the lines of a step's output that are results, in JSON
_TAIL = 6000  # characters of a step's output that are kept


@dataclass(frozen=True)
class Step:
    """A step: a command, and how long it may take.

    Attributes
    ----------
    tool : a program that the step needs; without it the step is left out.
    settings : environment variables.
    """

    name: str
    seconds: float
    command: Sequence[str]
    about: str
    tool: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What one field of a line of the benchmarks is expected to be, between two numbers, on an H200."""

    case: str
    contender: str
    field: str
    low: float
    high: float
    dtype: str = "bfloat16"


def _attention(n: int, way: str, **expected: tuple[float, float]) -> list[Prediction]:
    case = f"attention B=256 H=12 N={n} D=64 {way}"
    return [Prediction(case, name.replace("_", " ", 1), "cold_us", *times) for name, times in expected.items()]


# Estimated from instructions, bytes and usual latencies, before any kernel ran on a GPU. Those of `raw` are for version
# 5 of attention, and that of a captured step is for norms, products and copies of weights without casts. Where a
# measurement is far from its prediction, the model of that kernel was wrong: look there first.
PREDICTIONS = [
    *_attention(65, "forward", raw=(25, 28), torch_flash_attention=(45, 55), torch_cudnn_attention=(40, 50)),
    *_attention(197, "forward", raw=(85, 100), torch_flash_attention=(150, 165), torch_cudnn_attention=(110, 130)),
    *_attention(257, "forward", raw=(115, 135), torch_flash_attention=(180, 220), torch_cudnn_attention=(135, 165)),
    *_attention(65, "backward", raw=(60, 90), torch_flash_attention=(170, 200), torch_cudnn_attention=(130, 150)),
    *_attention(197, "backward", raw=(280, 350), torch_flash_attention=(520, 640), torch_cudnn_attention=(400, 450)),
    Prediction("vit-s step, batch 1024", "captured", "step_us", 5500, 7000),
    Prediction("vit-s step, batch 1024", "captured", "host_us", 0, 300),
    Prediction("vit-s step, batch 1024", "torch.compile max-autotune", "step_us", 6000, 6500),
]

_ON_GPU = {"TINYVIT_TRIALS": "gpu", "TINYVIT_COMPILE_AHEAD": "0", "TINYVIT_EXAMPLES": "24"}


def steps(minutes: float = 7.0) -> list[Step]:
    """Return the steps in order; `minutes` is the time of the benchmarks among them."""
    numbers = _python("benchmarks", "gpu", "--minutes", str(minutes), "--out", NUMBERS)
    return [
        Step("machine", 60, _python(LOOKS, "machine"), "which GPU, driver, tools and libraries"),
        Step("primitives", 90, _trials("primitive_trials.py"), "instructions, barriers and copies", settings=_ON_GPU),
        Step("kernels", 180, _trials("kernel_trials.py"), "every kernel against the plain rules", settings=_ON_GPU),
        Step("products", 90, _python(LOOKS, "products"), "cuBLASLt: which algorithms, how exact, how fast"),
        Step(
            "training", 180, _trials("training_trials.py", "task_trials.py"), "training and captures", settings=_ON_GPU
        ),
        Step("gpu tests", 120, _marked(), "equal bits in thirty runs, and the twins in Python"),
        *(_sanitized(tool) for tool in ("memcheck", "racecheck", "synccheck", "initcheck")),
        Step("numbers", 60 * minutes + 60, numbers, "the benchmarks, to be held against the predictions"),
        Step("graph", 90, _python(LOOKS, "graph"), "the kernels of one captured step"),
        *map(_profiled, ("attention_backward", "attention_forward", "layer_norm_backward|sum_parts", "gelu_forward")),
    ]


def _sanitized(tool: str) -> Step:
    """Run the kernels with barriers, copies and shared memory under a tool of the sanitizer."""
    sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command = [*sanitizer, *_trials("kernel_trials.py", "exact and (attention or layer_norm)")]
    settings = {**_ON_GPU, "TINYVIT_EXAMPLES": "2", "TINYVIT_SANITIZE": "1"}
    return Step(tool, 150, command, f"{tool} of compute-sanitizer", sanitizer[0], settings)


def _profiled(kernel: str) -> Step:
    """Say why a kernel is as slow as it is."""
    profiler = ["ncu", "--clock-control", "none", "--set", "full", "-k", f"regex:{kernel}", "-c", "2"]
    about = "stalls, issue slots, occupancy, bank conflicts, bytes"
    return Step(f"why {kernel}", 120, [*profiler, *_python(LOOKS, "kernels")], about, profiler[0])


def _trials(*files: str) -> list[str]:
    """Return the command for files of trials; a last argument that is no file selects among them."""
    chosen = ["-k", files[-1]] if not files[-1].endswith(".py") else []
    paths = [str(ROOT / "tests" / "cuda" / file) for file in files if file.endswith(".py")]
    return _python("pytest", *paths, "-q", "-p", "no:cacheprovider", *chosen, "--hypothesis-profile=first-failure")


def _marked() -> list[str]:
    tests = str(ROOT / "tests" / "cuda" / "test_gpu.py")
    return _python("pytest", tests, "-m", "gpu", "-q", "-k", "agree or thirty")


def _python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module; `made` lets it find those of the checkout."""
    return [sys.executable, "-P", "-m", module, *arguments]


# Running them ---------------------------------------------------------------------------------------------------------


def run(path: Path, say: Callable[[str], None], planned: Iterable[Step], folder: Path = ROOT) -> int:
    """Make the steps, append a line for each to the file, and return how many were not passed."""
    known = {"commit": describe_commit(), "sources": describe_sources(("kernels", "tinyvit", "benchmarks", "tests"))}
    failed = 0

    def add(line: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | known) + "\n")

    for step in planned:
        line = made(step, folder)
        failed += line["outcome"] in ("failed", "out of time")
        add(line)
        say(f"{line['outcome']:12}{step.name:40}{line['seconds']:6.0f} of {step.seconds:.0f} s   {step.about}")
    for line in compared(folder / NUMBERS):
        add(line)
        measured = "not measured" if line["measured"] is None else f"{line['measured']:.0f}"
        say(f"{line['prediction']:70}{line['low']:8.0f} to {line['high']:.0f}, {measured}")
    return failed


def made(step: Step, folder: Path) -> dict[str, Any]:
    """Make a step and return its line: outcome, seconds, results, and the end of its output."""
    line: dict[str, Any] = {"step": step.name, "limit": step.seconds, "command": list(step.command), "seconds": 0.0}
    if step.tool and not shutil.which(step.tool, path=_path()):
        return line | {"outcome": "left out", "says": f"{step.tool} is not installed"}
    settings = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "PATH": _path(), **step.settings}
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            step.command,
            cwd=folder,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return line | {"outcome": "failed", "says": str(error)}
    try:
        output, _ = process.communicate(timeout=step.seconds)
        outcome = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = "out of time"
    lines = output.decode("utf-8", "replace").splitlines()
    found = [json.loads(text.removeprefix(FOUND)) for text in lines if text.startswith(FOUND)]
    says = "\n".join(text for text in lines if not text.startswith(FOUND))[-_TAIL:]
    return line | {
        "outcome": outcome,
        "status": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "found": found,
        "says": says,
    }


def _path() -> str:
    """Return where programs are looked for: the tools of a CUDA toolkit are often not on PATH."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])


def compared(numbers: Path) -> list[dict[str, Any]]:
    """Return a line for each prediction, with the last measurement in the file `numbers`, None without one."""
    lines = [json.loads(line) for line in numbers.read_text("utf-8").splitlines()] if numbers.exists() else []
    last = {(line["case"], line["dtype"], line["contender"]): line for line in lines}
    found = []
    for p in PREDICTIONS:
        measured = last.get((p.case, p.dtype, p.contender), {}).get(p.field)
        held = None if measured is None else p.low <= measured <= p.high
        name = f"{p.case} {p.dtype} {p.contender} {p.field}"
        found.append({"prediction": name, "low": p.low, "high": p.high, "measured": measured, "held": held})
    return found
