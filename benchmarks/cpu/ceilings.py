"""The process that measures the limits of the machine: `python -m benchmarks.cpu.ceilings`.

The GEMM peak is the rate of the fastest of a few float32 products. The copy bandwidth counts the bytes read and written
while all threads copy arrays that are larger than the caches.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .channel import limit_processors, serve

# Functions (a, b, out=c). The product of another library joins by a line here.
GEMMS: dict[str, Callable[..., Any]] = {"NumPy": np.matmul}
_SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (8320, 768, 192))  # M, N, K; the last is of vit-s
_COPIED = 96 * 2**20  # bytes; larger than most last-level caches
_CALLS, _FIRST_CALLS = 4, 2


class Ceilings:
    """Measures again and again with the same arrays and with the product that was fastest at first."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        source = np.ones(_COPIED // 4, np.float32)
        targets = np.array_split(np.zeros_like(source), threads)
        self._parts = list(zip(np.array_split(source, threads), targets, strict=True))
        products = [self._product(gemm, *size) for gemm in GEMMS.values() for size in _SIZES]
        rates = [flops / _least_seconds(multiply, _FIRST_CALLS) for flops, multiply in products]
        self._flops, self._multiply = products[rates.index(max(rates))]

    @staticmethod
    def _product(gemm: Callable[..., Any], m: int, n: int, k: int) -> tuple[int, Callable[[], Any]]:
        random = np.random.default_rng(0)
        a, b = random.random((m, k), np.float32), random.random((k, n), np.float32)
        c = np.empty((m, n), np.float32)
        return 2 * m * n * k, lambda: gemm(a, b, out=c)

    def _copy(self) -> None:
        list(self._pool.map(lambda part: np.copyto(part[1], part[0]), self._parts))

    def measure(self) -> dict[str, Any]:
        """Floating-point operations and copied bytes (read and written), each per second."""
        return {
            "gemm": self._flops / _least_seconds(self._multiply),
            "copy": 2 * _COPIED / _least_seconds(self._copy),
        }


def _least_seconds(run: Callable[[], Any], calls: int = _CALLS) -> float:
    run()  # wakes the threads and touches the memory
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    count = int(os.environ["OMP_NUM_THREADS"])
    limit_processors(count)
    serve({"measure": Ceilings(count).measure})
