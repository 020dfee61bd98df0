"""Initial values of parameters, each drawn from its own place in the default random stream."""

import math
import operator

import numpy as np

from ..functional.tensors import default_generator, is_drawing
from .module import Parameter

__all__ = ["check_optional_sizes", "check_sizes", "he_normal", "ones", "trunc_normal", "uniform_fan_in", "zeros"]


def check_sizes(what: str, least: int = 1, **sizes: int) -> None:
    """Raise ValueError, naming the argument, unless each of `sizes` is an integer, at least `least`."""
    for name, value in sizes.items():
        try:
            fits = not isinstance(value, bool) and operator.index(value) >= least
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"{what}: {name} is {value!r}; it must be an integer, at least {least}")


def check_optional_sizes(what: str, **sizes: int | None) -> None:
    """Raise ValueError, naming the argument, unless each of `sizes` is None or an integer, at least 1."""
    check_sizes(what, **{name: value for name, value in sizes.items() if value is not None})


def trunc_normal(shape: tuple[int, ...], std: float = 0.02) -> np.ndarray:
    """Normal with mean 0, redrawn outside [-2, 2] (an absolute bound, as in timm), float32."""
    if not is_drawing():
        return np.zeros(shape, np.float32)
    rng = default_generator.numpy()
    x = rng.normal(0.0, std, shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.normal(0.0, std, int(outside.sum()))
    return x.astype(np.float32)


def uniform_fan_in(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Uniform in +-1 / sqrt(fan_in), float32: the variance of a sum of fan_in terms becomes 1/3 of an input's."""
    if not is_drawing():
        return np.zeros(shape, np.float32)
    bound = 1 / math.sqrt(fan_in)
    return default_generator.numpy().uniform(-bound, bound, shape).astype(np.float32)


def he_normal(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Normal with variance 2 / fan_in, float32: activations keep their size through ReLUs (He et al., 2015)."""
    return trunc_normal(shape, math.sqrt(2 / fan_in))


def zeros(*shape: int) -> Parameter:
    """Return a float32 parameter of zeros."""
    return Parameter(np.zeros(shape, np.float32))


def ones(*shape: int) -> Parameter:
    """Return a float32 parameter of ones."""
    return Parameter(np.ones(shape, np.float32))
