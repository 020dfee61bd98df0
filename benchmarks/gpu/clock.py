"""Times of functions on a GPU, by events on the device and by the host."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_ROUNDS = 20  # calls that are timed
_FLUSHED = 256 << 20  # bytes; larger than any second-level cache
_WAIT = """extern "C" __global__ void wait(long long cycles) {
  for (long long start = clock64(); clock64() - start < cycles;) {}
}"""


class Clock:
    """Times functions by events on the device.

    Before each call the device is kept waiting until the host has launched all kernels of the call; otherwise short
    kernels would be timed at the pace of Python.

    Attributes
    ----------
    limit : seconds after which a function is not called more often than necessary.
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
        """The mean time until a call returns on the host, beginning with an idle device."""
        self._cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    def seconds_each(self, function: Callable[[], Any], calls: int) -> float:
        """The mean time of many calls in a row, until the device has finished the last: the median of some rounds."""
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
