"""Measure which linear maps of a recipe OpenBLAS makes faster than the tiles of our kernels, and keep the result.

Every shape is measured as it comes in a training step: forward and backward, with a kernel of ours before and after it,
because the threads of two pools can hinder each other while they wait for work. Tiles and OpenBLAS take turns, and the
median of the ratios decides. `tinyvit.kernels.linear.choice` keeps the result and says what it holds for.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from .. import functional as F
from ..context import autocast, no_grad
from ..dispatch import products_as, use_kernels
from ..engine import Tensor
from ..kernels.linear import choice
from ..kernels.linear.choice import Shape, Timing
from ..recipe import Recipe
from .state import Training

_SECONDS = 0.2  # for one shape
_ROUNDS = (9, 51)  # the least and the most, each with one call of either


def tune(recipe: Recipe) -> list[Timing]:
    """Measure the linear maps of a training step of `recipe`, keep the result for later runs, and return it.

    Raises RecipeError or DataError if the recipe or its data cannot be used, OSError if nothing can be kept.
    """
    choice.check_folder()  # before minutes are spent
    timings = [measure(shape) for shape in shapes_of(recipe)]
    with products_as(()):  # what this process has found out about shapes ends with this block
        choice.keep(timings)
    return timings


class _Seen:
    """Stands for the shapes that OpenBLAS multiplies: there are none, but those that are asked about are noted."""

    def __init__(self) -> None:
        self.shapes: dict[Shape, None] = {}

    def __contains__(self, shape: Any) -> bool:
        self.shapes[shape] = None
        return False

    def __iter__(self) -> Iterator[Shape]:
        return iter(())

    def __len__(self) -> int:
        return 1  # not empty, so that it is asked


def shapes_of(recipe: Recipe) -> list[Shape]:
    """Return the shapes (R, K, N) of the linear maps in float32 that a training step of `recipe` makes on the CPU."""
    training, seen = Training(recipe), _Seen()
    batch = next(training.groups())[0]
    if recipe.train.shards:
        batch = batch.parts[0]
    with products_as(seen), use_kernels("auto"), no_grad(), autocast(recipe.train.precision):
        training.task.loss(training.model, training.task.with_draws(training.model, batch))
    return sorted(seen.shapes)


def measure(shape: Shape) -> Timing:
    """Time a linear map, forward and backward, made by tiles and by OpenBLAS in turn."""
    steps = {"numba": _step(shape), "numpy": _step(shape)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        _timed(name, step)  # compiles, wakes threads, touches memory
    started = time.perf_counter()
    least, most = _ROUNDS
    while len(seconds["numpy"]) < least or (len(seconds["numpy"]) < most and time.perf_counter() - started < _SECONDS):
        for name, step in steps.items():
            seconds[name].append(_timed(name, step))
    return judged(shape, seconds["numba"], seconds["numpy"])


def judged(shape: Shape, tiles: Sequence[float], blas: Sequence[float]) -> Timing:
    """Return the medians of the seconds of several rounds, and of their ratios."""
    ratio = median(t / b for t, b in zip(tiles, blas, strict=True))
    return Timing(shape, median(tiles), median(blas), ratio)


def _timed(products: str, step: Any) -> float:
    """Return the seconds of a step whose products are made by the kernels, or by NumPy."""
    start = time.perf_counter()
    step(products)
    return time.perf_counter() - start


def _step(shape: Shape) -> Any:
    """Return a function that maps x (R, K) linearly to (R, N), there and back, between two kernels of ours."""
    rows, k, n = shape
    random = np.random.default_rng(0)

    def tensor(*size: int) -> Tensor:
        return Tensor(random.standard_normal(size, np.float32), requires_grad=True)

    x, weight, bias, upstream = tensor(rows, k), tensor(n, k), tensor(n), tensor(rows, n).data
    around, one, zero = tensor(256, 128), tensor(128), tensor(128)

    def step(products: str) -> None:
        F.layer_norm(around, one, zero)
        with use_kernels(products):
            y = F.linear(x, weight, bias)
            y.backward(upstream)
        F.layer_norm(around, one, zero)
        for each in (x, weight, bias):
            each.grad = None

    return step
