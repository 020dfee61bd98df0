"""The process of one contender: `python -m benchmarks.cpu.worker MODULE:CLASS OPTION LIBRARY`.

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
from ..peers import reason_to_skip
from ..verify import Deviation, WrongOutputError, verify
from .channel import limit_processors, serve
from .reference import load_expected


class Worker:
    """Holds one contender and the case that it works on.

    Parameters
    ----------
    factory, option : as in `Spec`.
    library : the one that the contender needs; "" if none.
    """

    def __init__(self, factory: str, option: str, library: str) -> None:
        self._factory, self._option, self._library = factory, option, library
        self.contender: Contender | None = None
        self.case: Case
        self.task: Task
        self.result: Any

    def prepare(self, case: str, folder: str) -> dict[str, Any]:
        """Build the case, call it, and verify the outputs; answer the reason if the library cannot be used."""
        if self.contender is None:
            reason = reason_to_skip(self._library) if self._library else None
            if reason:
                return {"skip": reason}
            self.contender = self._make_contender()
        reset_peak_memory()
        self.case = find_case(case)
        self.inputs = load_inputs(self.case, Path(folder, "inputs.npz"))
        self.expected, self.plain = load_expected(Path(folder))
        try:
            self.task = self.contender.prepare(self.case, self.inputs)
        except WrongOutputError as error:  # of the forward pass that a backward pass begins with
            return {"wrong": str(error)}
        for buffer in self.task.buffers:
            buffer.fill(np.nan)
        _fill_free_memory_with_nan(self.expected)
        for _ in range(self.case.calls):
            self.result = self.task.run()
        return self._verified()

    def _make_contender(self) -> Contender:
        module, _, name = self._factory.partition(":")
        return getattr(importlib.import_module(module), name)(self._option)

    def time(self, calls: int) -> dict[str, Any]:
        """The seconds of each of `calls` calls."""
        run, clock, seconds = self.task.run, time.perf_counter, []
        for _ in range(calls):
            start = clock()
            self.result = run()
            seconds.append(clock() - start)
        return {"seconds": seconds}

    def finish(self) -> dict[str, Any]:
        """Verify the outputs of the last timed call, unless calls change a state; answer the peak memory, in bytes."""
        peak = peak_memory()
        answer = self._verified() if self.case.calls == 1 else {}
        del self.task, self.result
        return answer | {"peak_memory": peak}

    def _verified(self) -> dict[str, Any]:
        """The largest error of the outputs, or what is wrong with them (as text, for JSON has no NaN)."""
        assert self.contender is not None
        try:
            outputs = {name: np.asarray(array) for name, array in self.task.outputs(self.result).items()}
        except WrongOutputError as error:
            return {"wrong": str(error)}
        found = verify(self.case, self.inputs, outputs, self.expected, self.plain, self.contender.dtype)
        wrong = [self._complaint(name, outputs[name], d) for name, d in found.items() if not d.is_small]
        if wrong:
            return {"wrong": wrong[0] + (f" (and {len(wrong) - 1} more outputs)" if wrong[1:] else "")}
        return {"error": max(d.error for d in found.values())}

    def _complaint(self, name: str, output: np.ndarray, found: Deviation) -> str:
        if output.shape != self.expected[name].shape:
            return f"{name} has shape {output.shape}, not {self.expected[name].shape}"
        unusable = ~np.isfinite(output)
        if unusable.any() and np.isfinite(self.expected[name]).all():
            first = [int(index) for index in np.argwhere(unusable)[0]]
            return (
                f"{unusable.sum():,} of {output.size:,} values of {name} are NaN or infinite, the first at {first}: "
                "look for an overflow in exp, a division by zero, or elements that were never written"
            )
        return f"error of {name} is {found.error:.1e}, allowed {found.allowed:.1e}"


def _fill_free_memory_with_nan(expected: Arrays) -> None:
    """Leave NaN in the memory that the next arrays of these shapes are likely to get."""
    junk = [np.full(array.shape, np.nan, np.float32) for array in expected.values() for _ in range(2)]
    del junk


def reset_peak_memory() -> None:
    """Make the operating system count the peak from here on, where it can (Linux)."""
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


if __name__ == "__main__":
    limit_processors(int(os.environ["OMP_NUM_THREADS"]))
    worker = Worker(*sys.argv[1:4])
    serve({"prepare": worker.prepare, "time": worker.time, "finish": worker.finish})
