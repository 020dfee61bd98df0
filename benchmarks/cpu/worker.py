"""The process of one contender: `python -m benchmarks.cpu.worker MODULE:CLASS OPTION`.

It verifies, then times, on the same buffers: `prepare` a case, `time` it as often as asked, `finish` it.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..cases import Case, find_case
from ..contenders.base import Contender, Task
from ..inputs import Arrays, load_inputs
from ..verify import Deviation, verify
from .channel import serve
from .reference import load_expected


class Worker:
    """Holds one contender, and the case that it is at."""

    def __init__(self, factory: str, option: str) -> None:
        module, _, name = factory.partition(":")
        self.contender: Contender = getattr(importlib.import_module(module), name)(option)
        self.case: Case
        self.task: Task
        self.result: Any

    def prepare(self, case: str, folder: str) -> dict[str, Any]:
        """Build the case and verify what its first calls give."""
        reset_peak_memory()
        self.case = find_case(case)
        self.inputs = load_inputs(self.case, Path(folder, "inputs.npz"))
        self.expected, self.plain = load_expected(Path(folder))
        self.task = self.contender.prepare(self.case, self.inputs)
        for buffer in self.task.buffers:
            buffer.fill(np.nan)
        _poison(self.expected)
        for _ in range(self.case.calls):
            self.result = self.task.run()
        return self._verified()

    def time(self, calls: int) -> dict[str, Any]:
        """The seconds of each of `calls` calls."""
        run, clock, seconds = self.task.run, time.perf_counter, []
        for _ in range(calls):
            start = clock()
            self.result = run()
            seconds.append(clock() - start)
        return {"seconds": seconds}

    def finish(self) -> dict[str, Any]:
        """Verify what the last timed call gave (of what keeps no state), and tell the peak memory, in bytes."""
        peak = peak_memory()
        answer = self._verified() if self.case.calls == 1 else {}
        del self.task, self.result
        return answer | {"peak_memory": peak}

    def _verified(self) -> dict[str, Any]:
        outputs = {name: np.asarray(array) for name, array in self.task.outputs(self.result).items()}
        found = verify(self.case, self.inputs, outputs, self.expected, self.plain, self.contender.dtype)
        wrong = [self._complaint(name, outputs[name], d) for name, d in found.items() if not d.is_small]
        if wrong:  # told in words: JSON has no NaN
            return {"wrong": wrong[0] + (f" (and {len(wrong) - 1} more outputs)" if wrong[1:] else "")}
        return {"deviations": found}

    def _complaint(self, name: str, output: np.ndarray, found: Deviation) -> str:
        if output.shape != self.expected[name].shape:
            return f"{name} has shape {output.shape}, not {self.expected[name].shape}"
        return f"error of {name} is {found.error:.1e}, allowed {found.allowed:.1e}"


def _poison(expected: Arrays) -> None:
    """Leave NaN in the memory that the next arrays of these shapes are likely to get."""
    junk = [np.full(array.shape, np.nan, np.float32) for array in expected.values() for _ in range(2)]
    del junk


def reset_peak_memory() -> None:
    """Let the kernel count the peak from here on, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_processors(threads: int) -> None:
    """Keep this process to as many processors as it may have threads: some pools look at nothing else."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    limit_processors(int(os.environ["OMP_NUM_THREADS"]))
    worker = Worker(*sys.argv[1:3])
    serve({"prepare": worker.prepare, "time": worker.time, "finish": worker.finish})
