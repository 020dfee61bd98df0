"""Compiling ahead, in a second process, what a training step needs: `python -m tinyvit.kernels.ahead float32`.

Compiling holds the interpreter's lock, so threads would not help. When the first kernel has to be compiled on a
machine, `compiler` starts this beside it. The step compiles from its first kernel on, this from the last one back;
each finds in the cache what the other has done.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes  # noqa: F401  (names bfloat16)
import numpy as np


def last_to_first(dtype: Any) -> Iterator[Callable[[], Any]]:
    """Calls that compile the kernels of a training step of a ViT, in the opposite order of the step."""
    from .adamw import numba_cpu as adamw
    from .attention import numba_cpu as attention
    from .bfloat16 import sum_dtype
    from .cross_entropy import numba_cpu as cross_entropy
    from .layer_norm import numba_cpu as layer_norm
    from .linear import numba_cpu as linear
    from .registry import SPECS

    versions = {spec.operation: spec.versions for spec in SPECS if spec.technology == "numba"}
    wide = sum_dtype(dtype)
    rows, heads = np.zeros((2, 4), dtype), np.zeros((1, 1, 2, 4), dtype)
    wide_rows, vector, scores = np.zeros((2, 4), wide), np.zeros(4, wide), np.zeros((1, 1, 2), wide)
    weight = np.zeros((4, 4), wide)
    statistics, classes = np.ones(2, wide), np.zeros(2, np.int64)
    every: dict[str, Any] = {"needs": (True, True, True, False)}

    def version(operation: str) -> dict[str, Any]:
        return {"version": versions[operation]}

    def attention_backward() -> None:
        attention.backward(heads, heads, heads, heads, None, heads, scores, scale=1.0, **every, **version("attention"))

    def layer_norm_backward() -> None:
        given = (rows, wide_rows, vector, statistics, statistics)
        layer_norm.backward(*given, eps=1e-5, needs=(True, True, True), **version("layer_norm"))

    def adamw_step() -> None:
        adamw.forward(np.zeros((1, 5), np.int64), np.zeros((1, 7)), vector, vector.copy(), **version("adamw"))

    def cross_entropy_both() -> None:
        _, *kept = cross_entropy.forward(wide_rows, None, ids=classes, **version("cross_entropy"))
        given = (np.ones((), wide), wide_rows, None, *kept)
        cross_entropy.backward(*given, ids=classes, needs=(True, False), **version("cross_entropy"))

    yield attention_backward
    yield lambda: linear.backward(rows, rows, weight, **every, **version("linear"))
    yield layer_norm_backward
    yield adamw_step
    yield cross_entropy_both
    yield lambda: attention.forward(heads, heads, heads, None, scale=1.0, **version("attention"))
    yield lambda: layer_norm.forward(wide_rows, vector, vector, eps=1e-5, y_dtype=dtype, **version("layer_norm"))


if __name__ == "__main__":
    for compile_one in last_to_first(np.dtype(sys.argv[1])):
        compile_one()
