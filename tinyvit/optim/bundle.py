"""Bundles: the parameters of one dtype, laid out so that a kernel updates all of them in one call."""

from typing import Any

import numpy as np

from ..backend import Array, namespace_of
from ..dispatch import Kernel
from ..engine import Tensor

Member = tuple[Tensor, dict[str, Array], int]  # a parameter, its moments, the number of its group

MOMENTS = ("m", "v")


class Bundle:
    """Parameters of one dtype on one device, whose moments are views of two flat arrays.

    Attributes
    ----------
    moments : the two flat arrays; each holds the moments of all parameters, one after the other.
    table : int64 (T, 5), for each parameter the addresses of the parameter and of its gradient, which are 0 until a
        step, the element at which its moments begin, its size, and the number of its group.
    """

    def __init__(self, dtype: Any, members: list[Member]) -> None:
        self.dtype, self.members = dtype, members
        sizes = [p.size for p, _, _ in members]
        *starts, total = np.cumsum([0, *sizes]).tolist()
        zeros = namespace_of(members[0][0].data).zeros
        self.moments = [zeros(total, dtype) for _ in MOMENTS]
        for (p, kept, _), start in zip(members, starts, strict=True):
            for name, flat in zip(MOMENTS, self.moments, strict=True):
                view = flat[start : start + p.size].reshape(p.shape)
                view[...] = kept[name]
                kept[name] = view
        self.table = np.zeros((len(members), 5), np.int64)
        self.table[:, 2], self.table[:, 3], self.table[:, 4] = starts, sizes, [group for _, _, group in members]


class HostBundle(Bundle):
    """A bundle of parameters on the CPU."""

    def __init__(self, dtype: Any, members: list[Member]) -> None:
        super().__init__(dtype, members)
        self._placed: list[Array | None] = [None] * len(members)  # the parameters whose addresses the table holds

    def step(self, kernel: Kernel, settings: Array) -> list[Member]:
        """Update all parameters that the kernel can reach, and return the others that have a gradient."""
        moved: list[Array | None] = []  # the parameters whose addresses the table does not hold yet
        gradients: list[Array | None] = []
        rest = []
        for i, member in enumerate(self.members):
            tensor, kept, _ = member
            p, gradient = tensor.data, tensor.grad
            g = None if gradient is None else gradient.data
            fits = g is not None and p.shape == g.shape == kept["m"].shape and p.dtype == g.dtype == self.dtype
            reached = g is not None and fits and p.flags.carray and g.flags.carray
            moved.append(p if reached and p is not self._placed[i] else None)
            gradients.append(g if reached else None)
            if reached:
                self._placed[i] = p
                tensor.mark_modified()
            elif g is not None:
                rest.append(member)
        kernel.forward(moved, gradients, self.table, settings, *self.moments)
        return rest
