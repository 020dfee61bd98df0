"""Compile the kernels of a training step: the program of the helper process that `cpu.claims` starts.

    python -P -m tinyvit.kernels.precompile DTYPE FOLDER

The first process compiles the kernels in the order in which its step calls them. This one begins with those that take
longest and come last, and skips what the first has claimed in FOLDER, so both have about as much to do.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes "bfloat16" the name of a dtype)
import numpy as np

from .adamw import numba_cpu as adamw
from .attention import numba_cpu as attention
from .conv2d import numba_cpu as conv2d
from .cpu import claims
from .cpu.bfloat16 import sum_dtype
from .cross_entropy import numba_cpu as cross_entropy
from .layer_norm import numba_cpu as layer_norm
from .linear import numba_cpu as linear
from .registry import SPECS


def kernels(dtype: Any, convolves: bool) -> Iterator[Callable[[], Any]]:
    """Yield calls that compile the kernels of a ViT's training step, with those of a convolution if it has one."""
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
        table, settings = np.zeros((1, 5), np.int64), np.zeros((1, 7))
        adamw.step([None], [None], table, settings, vector, vector.copy(), **version("adamw"))

    def cross_entropy_both() -> None:
        _, *kept = cross_entropy.forward(wide_rows, None, ids=classes, **version("cross_entropy"))
        given = (np.ones((), wide), wide_rows, None, *kept)
        cross_entropy.backward(*given, ids=classes, needs=(True, False), **version("cross_entropy"))

    def conv2d_backward() -> None:
        images, window = np.zeros((1, 1, 2, 2), wide), {"stride": (1, 1), "padding": (0, 0)}
        conv2d.backward(images, images, images[..., :1, :1], **window, **every, **version("conv2d"))

    yield attention_backward
    yield cross_entropy_both
    if convolves:
        yield conv2d_backward
    yield adamw_step
    yield layer_norm_backward
    yield lambda: linear.backward(rows, rows, weight, **every, **version("linear"))
    yield lambda: attention.forward(heads, heads, heads, None, scale=1.0, **version("attention"))
    yield lambda: layer_norm.forward(wide_rows, vector, vector, eps=1e-5, y_dtype=dtype, **version("layer_norm"))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    claims.join(folder)
    for compile_one in kernels(np.dtype(sys.argv[1]), (folder / "conv2d._forward_2").exists()):
        with contextlib.suppress(claims.Claimed):
            compile_one()
