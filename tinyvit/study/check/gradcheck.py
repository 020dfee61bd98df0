"""Check the gradient of any function of tensors against finite differences."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backend.checks import listed
from ...engine import Tensor, grad

DIRECTIONS = 4
_SEED = 20_170_612


class GradcheckError(AssertionError):
    """A gradient that finite differences contradict; the message says of which input and by how much."""


def gradcheck(
    fn: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    order: int = 1,
) -> bool:
    """Check the gradient of `fn(*inputs)` in random directions over all inputs at once.

    The outputs are weighted with fixed random numbers u. For random directions v over all inputs that require a
    gradient, the derivative of <u, fn(x)> along v by the tape must agree with its central difference,
    |analytic - numeric| <= atol + rtol |numeric|.

    Parameters
    ----------
    fn : deterministic function of the inputs; returns a tensor or a sequence of tensors.
    inputs : what `fn` takes; those with requires_grad=True, float64 tensors, are varied.
    eps : step of the central difference.
    order : 1, or 2 to check the gradients of the gradient as well.

    Returns True, or raises GradcheckError, which names the worst input, element and both values; TypeError if an input
    that requires a gradient is not float64, ValueError if none requires one or `order` is neither 1 nor 2.
    """
    inputs = listed("gradcheck: inputs", inputs)
    varied = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not varied:
        raise ValueError("gradcheck: no input has requires_grad=True; tv.tensor(x, requires_grad=True) makes one")
    for i in varied:
        if inputs[i].dtype != np.float64:
            raise TypeError(f"gradcheck: inputs[{i}] is {inputs[i].dtype}; finite differences need float64")
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order is {order}; it must be 1 or 2")
    _check(fn, inputs, varied, eps, atol, rtol, "gradient")
    if order == 2:
        _check(*_gradient_function(fn, inputs, varied), eps, atol, rtol, "second-order gradient")
    return True


def _gradient_function(
    fn: Callable[..., Any], inputs: list[Tensor], varied: list[int]
) -> tuple[Callable[..., Any], list[Tensor], list[int]]:
    """Return the gradient of <u, fn(x)> as a function of x and u, whose own gradient can then be checked."""
    rng = np.random.default_rng(_SEED + 1)
    live = [y for y in listed("gradcheck: fn(*inputs)", fn(*inputs), Tensor) if y.requires_grad]
    weights = [Tensor(rng.standard_normal(y.shape), requires_grad=True) for y in live]

    def gradient(*arguments: Tensor) -> list[Tensor]:
        x, u = arguments[: len(inputs)], arguments[len(inputs) :]
        outputs = [y for y in listed("gradcheck: fn(*inputs)", fn(*x), Tensor) if y.requires_grad]
        found = grad(outputs, [x[i] for i in varied], list(u), create_graph=True, allow_unused=True)
        return [g for g in found if g is not None]

    return gradient, inputs + weights, varied + list(range(len(inputs), len(inputs) + len(weights)))


def _check(
    fn: Callable[..., Any], inputs: list[Tensor], varied: list[int], eps: float, atol: float, rtol: float, what: str
) -> None:
    rng = np.random.default_rng(_SEED)
    outputs = listed("gradcheck: fn(*inputs)", fn(*inputs), Tensor)
    weights = [rng.standard_normal(y.shape) for y in outputs]
    live = [(y, u) for y, u in zip(outputs, weights, strict=True) if y.requires_grad]
    analytic = grad([y for y, _ in live], [inputs[i] for i in varied], [u for _, u in live], allow_unused=True)
    gradients = [np.zeros(inputs[i].shape) if g is None else g.numpy() for i, g in zip(varied, analytic, strict=True)]

    def difference(directions: list[np.ndarray]) -> float:
        """The central difference of <weights, fn(inputs)> along `directions` of the varied inputs."""
        sides = []
        for sign in (+1, -1):
            moved = list(inputs)
            for i, v in zip(varied, directions, strict=True):
                moved[i] = Tensor(inputs[i].numpy() + sign * eps * v, requires_grad=True)
            sides.append([y.numpy() for y in listed("gradcheck: fn(*inputs)", fn(*moved), Tensor)])
        return sum(float(np.sum(u * (a - b))) for u, a, b in zip(weights, *sides, strict=True)) / (2 * eps)

    for _ in range(DIRECTIONS):
        directions = [rng.standard_normal(inputs[i].shape) for i in varied]
        slope = sum(float(np.sum(g * v)) for g, v in zip(gradients, directions, strict=True))
        numeric = difference(directions)
        if not abs(slope - numeric) <= atol + rtol * abs(numeric):
            raise GradcheckError(
                f"{what} disagrees with finite differences along a random direction: {slope:.6g} by the tape, "
                f"{numeric:.6g} numerically; {_worst(varied, gradients, difference)}"
            )


def _worst(varied: list[int], gradients: list[np.ndarray], difference: Callable[[list[np.ndarray]], float]) -> str:
    """Return the element where the two differ most (of the first 1,000 of each input), as text."""
    worst = (-1.0, "")
    for k, i in enumerate(varied):
        for flat in range(min(gradients[k].size, 1000)):
            directions = [np.zeros(g.shape) for g in gradients]
            directions[k].reshape(-1)[flat] = 1
            a, n = float(gradients[k].reshape(-1)[flat]), difference(directions)
            place = [int(j) for j in np.unravel_index(flat, gradients[k].shape)]
            error = abs(a - n) if np.isfinite(a - n) else np.inf
            worst = max(worst, (error, f"worst at inputs[{i}]{place}: {a:.6g} by the tape, {n:.6g} numerically"))
    return worst[1]
