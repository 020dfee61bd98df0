"""Random programs over all of `tinyvit.functional`: plain rules against kernels, and gradients against differences.

A disagreement counts unless the program itself is to blame: where a change of every intermediate value by one rounding
error, or by a number next to zero, moves the result of the plain rule as much. (So it is with the square root of
gelu(-9), which is -0 or -1e-18 by the rounding of a logistic function, with 1 / 0 by the sign of 0, and where large
numbers cancel.) The programs that disagree for another reason stand in EXCUSED. `TINYVIT_PROGRAMS` sets the number of
programs of the slow tests: `TINYVIT_PROGRAMS=20000 python -m pytest -m slow tests/functional/test_random_programs.py`.
"""

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from programs import Program, program_of
from tiers import quick_first

import tinyvit as tv
from tinyvit.engine import Tensor

SLOW_COUNT = int(os.environ.get("TINYVIT_PROGRAMS", "1500"))
COUNTS = [pytest.param(60, id="few"), pytest.param(SLOW_COUNT, id="many", marks=pytest.mark.slow)]
Results = list[np.ndarray]

EXCUSED = {
    (12813, "float64"): "a softmax gives 1 - 3e-8: in its gradient, y (dy - sum(dy y)), all but 8 digits of dy cancel, "
    "within the rule, where no change of an intermediate value of the program shows it",
}


def results(program: Program, choice: str, dtype: Any, jitter: int = 0) -> Results | Exception:
    """Return the value of a program and the gradients of its leaves, or the error that it raised."""
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        try:
            leaves = [Tensor(x.astype(dtype), requires_grad=True) for x in program.leaves]
            y = program.run(leaves, jitter)
            if not y.requires_grad:
                return [y.numpy()]
            upstream = Tensor(np.random.default_rng(1).normal(size=y.shape).astype(dtype))
            found = tv.grad(y, leaves, upstream, allow_unused=True)
        except (ValueError, TypeError, IndexError) as error:
            return error
    return [
        y.numpy(),
        *(np.zeros(x.shape, dtype) if g is None else g.numpy() for g, x in zip(found, leaves, strict=True)),
    ]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the largest element; infinity if other ones are finite."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return np.inf
    tiny = float(ml_dtypes.finfo(expected.dtype).tiny)
    found, expected = (x.astype(float) for x in (found, expected))
    regular = np.isfinite(expected)
    if (np.isfinite(found) != regular).any():
        return np.inf
    largest = max(float(np.abs(expected[regular]).max(initial=0)), tiny**0.5)
    apart = float(np.abs(found[regular] - expected[regular]).max(initial=0)) / largest
    return apart if apart < 1e6 else np.inf


def disagreement(program: Program, dtype: Any) -> str | None:
    """Return how plain rules and kernels disagree about a program."""
    plain, fused = results(program, "numpy", dtype), results(program, "auto", dtype)
    if isinstance(plain, Exception) or isinstance(fused, Exception):
        return None if type(plain) is type(fused) else f"{plain!r} and {fused!r}"
    moved: list[Results] = []
    for i, (p, f) in enumerate(zip(plain, fused, strict=True)):
        found, eps = difference(f, p), float(ml_dtypes.finfo(dtype).eps)
        if f.shape == p.shape and np.allclose(f.astype(float), p.astype(float), 0, 2 * eps, equal_nan=True):
            continue  # numbers around 1 may cancel, as in 0.9 + 0.1 - 1
        if not moved:
            runs = [results(program, "numpy", dtype, jitter) for jitter in (1, 2, 3, 4)]
            moved = [run for run in runs if not isinstance(run, Exception)]
        allowed = 30 * max(difference(m[i], p) for m in moved)
        floor = (1e3 if p.itemsize > 2 else 8) * eps  # plain rules and kernels round results of 16 bits once
        if allowed != np.inf and found > allowed + floor:
            return f"{'the value' if i == 0 else f'gradient {i}'} differs by {found:.2g}, allowed is {allowed:.2g}"
    return None


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", quick_first([np.float32, np.float16, np.float64, ml_dtypes.bfloat16], 2))
def test_plain_rules_and_kernels_agree(count: int, dtype: Any) -> None:
    found = {}
    for seed in range(count):
        program = program_of(seed)
        if (seed, np.dtype(dtype).name) not in EXCUSED and (said := disagreement(program, dtype)):
            found[seed] = f"{program}: {said}"
    assert not found, "\n".join(f"program {seed}: {text}" for seed, text in found.items())


def slope(function: Any, leaves: Results, directions: Results, step: float) -> float:
    up, down = (function([x + s * step * v for x, v in zip(leaves, directions, strict=True)]) for s in (1, -1))
    return (up - down) / (2 * step)


def check_slope(function: Any, gradient: float, leaves: Results, directions: Results) -> str | None:
    """Return how a directional derivative differs from differences; None too where these do not converge."""
    coarse, fine = (slope(function, leaves, directions, h) for h in (2e-5, 5e-6))
    size = max(abs(coarse), abs(fine), 1e-3)
    if not np.isfinite([coarse, fine, gradient]).all() or abs(coarse - fine) > 1e-4 * size or size > 1e6:
        return None
    return None if abs(gradient - fine) <= 1e-3 * size else f"{gradient:.6g} where differences give {fine:.6g}"


def weighted(program: Program, values: Results, weights: Results | None) -> Any:
    """Return the weighted sum of the results at these leaves and, with weights for them, that of the gradients."""
    leaves = [Tensor(v, requires_grad=True) for v in values]
    y = program.run(leaves)
    upstream = np.random.default_rng(1).normal(size=y.shape)
    total = (y * upstream).sum()
    if weights is None or not total.requires_grad:
        return leaves, total
    grads = tv.grad(total, leaves, create_graph=True, allow_unused=True)
    parts = [(g * w).sum() for g, w in zip(grads, weights, strict=True) if g is not None]
    return leaves, sum(parts, start=Tensor(np.zeros(())))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_and_gradients_of_gradients_agree_with_differences(count: int, order: int) -> None:
    wrong, checked = {}, 0
    for seed in range(count):
        program = program_of(seed)
        if program.is_special:
            continue
        rng = np.random.default_rng(seed)
        weights = [rng.normal(size=x.shape) for x in program.leaves] if order == 2 else None
        directions = [rng.normal(size=x.shape) for x in program.leaves]
        with np.errstate(all="ignore"), tv.use_kernels("numpy"):
            leaves, total = weighted(program, program.leaves, weights)
            if not total.requires_grad:
                continue
            found = tv.grad(total, leaves, allow_unused=True)
            gradient = sum(
                float((g.numpy() * v).sum()) for g, v in zip(found, directions, strict=True) if g is not None
            )
            function = lambda values, p=program, w=weights: weighted(p, values, w)[1].item()  # noqa: E731
            said = check_slope(function, gradient, program.leaves, directions)
        checked += 1
        if said:
            wrong[seed] = f"{program}: {said}"
    assert not wrong, "\n".join(f"program {seed}: {text}" for seed, text in wrong.items())
    assert checked > count / 4
