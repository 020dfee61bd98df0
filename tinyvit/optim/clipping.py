"""Gradient clipping, and the joint norm of arrays."""

import math
from collections.abc import Iterable

import numpy as np

from .. import dispatch
from ..backend import Array, is_on_gpu, widened
from ..backend.checks import number
from ..engine import Tensor
from .bundle import SameArrays
from .parameters import tensors_of

_PART = 16384  # elements that are widened to float64 at once: they stay in the cache until they are summed


def clip_grad_norm(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> float:
    """Scale all gradients so that their joint Euclidean norm is at most `max_norm`; return the norm before scaling.

    `parameters` are tensors, or one tensor. If the norm is NaN or infinite, the gradients are not changed. Raises
    TypeError or ValueError if there are no parameters, or something among them that gets no gradient.
    (Pascanu et al., On the difficulty of training recurrent neural networks, 2013.)
    """
    _check_norm(max_norm)
    return Clipping(parameters)(max_norm)


class Clipping:
    """`clip_grad_norm` for the same parameters again and again, which it checks once."""

    def __init__(self, parameters: Iterable[Tensor] | Tensor) -> None:
        given = [parameters] if isinstance(parameters, Tensor) else parameters
        self._tensors = list({id(p): p for p in tensors_of("clip_grad_norm", given, "parameters")}.values())
        self._last = SameArrays()  # the gradients whose addresses the table holds
        self._table = np.zeros((0, 3), np.int64)

    def __call__(self, max_norm: float) -> float:
        """Scale the gradients that the parameters have now, and return their norm before."""
        _check_norm(max_norm)
        tensors = [g for p in self._tensors if (g := p.grad) is not None]
        norm = self._scale([g.data for g in tensors], max_norm)
        if max_norm < norm and math.isfinite(norm):
            for g in tensors:
                g.mark_modified()
        return norm

    def _scale(self, gradients: list[Array], max_norm: float) -> float:
        kernel = dispatch.select_update("clip", np.dtype(np.float32), "cpu")
        if kernel is not None:
            if self._last.are(gradients):
                return float(kernel.forward(None, self._table, max_norm))
            if gradients and all(map(_is_reached, gradients)):
                if len(self._table) != len(gradients):
                    self._table = np.zeros((len(gradients), 3), np.int64)
                self._last.note(gradients)
                return float(kernel.forward(gradients, self._table, max_norm))
        norm = joint_norm(gradients)
        if max_norm < norm < math.inf:
            for g in gradients:
                scale_in_place(g, max_norm / norm)
        return norm


def _check_norm(max_norm: float) -> None:
    if not number("clip_grad_norm: max_norm", max_norm) > 0:
        raise ValueError(f"clip_grad_norm: max_norm is {max_norm}; it must be above 0")


def _is_reached(gradient: Array) -> bool:
    """Return whether the kernel can read and write a gradient."""
    return type(gradient) is np.ndarray and gradient.dtype == np.float32 and gradient.flags.carray


def scale_in_place(gradient: Array, factor: float) -> None:
    """Multiply a gradient with a factor that its dtype may not hold: 1e-5 has two digits in float16."""
    if gradient.dtype.itemsize == 2 or not 1e-30 < factor < 1e30:
        gradient[...] = gradient.astype(np.float64) * factor
    else:
        gradient *= factor


def joint_norm(arrays: Iterable[Array]) -> float:
    """Return the Euclidean norm of all elements, also where their squares overflow or vanish in their dtype."""
    with np.errstate(over="ignore", under="ignore"):
        return math.hypot(*map(_norm, arrays))


def _norm(a: Array) -> float:
    if is_on_gpu(a):
        wide = a.astype(np.float64)
        return math.sqrt(float((wide * wide).sum()))  # CuPy's `vdot` needs cuBLAS
    flat = widened(a).ravel(order="K")
    squares = 0.0
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART].astype(np.float64, copy=False)
        squares += float(np.vdot(part, part))
    if 1e-290 < squares < math.inf:
        return math.sqrt(squares)
    largest = float(np.abs(flat).max(initial=0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    scaled = flat / largest  # float64: squares of narrower dtypes neither overflow nor vanish in it
    return largest * math.sqrt(float(np.vdot(scaled, scaled)))
