"""Bundles: the parameters of one dtype, laid out so that a kernel updates all of them in one call."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Array, namespace_of
from ..dispatch import Kernel
from ..engine import Tensor

Member = tuple[Tensor, dict[str, Array], int]  # a parameter, its moments, the number of its group

MOMENTS = ("m", "v")
UPDATES = "updates"  # beside its moments: how often a parameter was updated


_MOST_GROUPS = 2**24


class SameArrays:
    """Tells whether arrays are the very ones of an earlier call, which it does not keep alive.

    Steps that are made from a record have their gradients where the step before had them. Their addresses need not be
    looked up again then, which would take longer than a small update itself.
    """

    def __init__(self) -> None:
        self._found: list[Callable[[], Any]] = []

    def note(self, arrays: Sequence[Array | None]) -> None:
        """Note arrays, to compare others with them."""
        self._found = [_absent if a is None else weakref.ref(a) for a in arrays]

    def are(self, arrays: Sequence[Array | None]) -> bool:
        """Return whether these are the arrays that were noted last, all of them and in the same order."""
        if not len(arrays) == len(self._found) > 0:
            return False
        # A reference to an array that is gone gives None, as does one to an absent array.
        pairs = zip(arrays, self._found, strict=True)
        return all(find is _absent if a is None else find() is a for a, find in pairs)


def _absent() -> None:
    return None


class Bundle:
    """Parameters of one dtype on one device, whose moments are views of two flat arrays.

    Attributes
    ----------
    moments : the two flat arrays; each holds the moments of all parameters, one after the other.
    updates : int64 (T,), how often each parameter was updated; also in one flat array.
    table : int64 (T, 5), for each parameter the addresses of the parameter and of its gradient, which are 0 until a
        step, the element at which its moments begin, its size, and the number of its group.
    """

    def __init__(self, dtype: Any, members: list[Member]) -> None:
        self.dtype, self.members = dtype, members
        sizes = [p.size for p, _, _ in members]
        *starts, total = np.cumsum([0, *sizes]).tolist()
        zeros = namespace_of(members[0][0].data).zeros
        self.moments = [zeros(total, dtype) for _ in MOMENTS]
        self.updates = zeros(len(members), np.int64)
        for i, ((p, kept, _), start) in enumerate(zip(members, starts, strict=True)):
            own = self.updates[i : i + 1].reshape(())
            own[...] = int(kept[UPDATES])
            kept[UPDATES] = own
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
        self._tensors = [tensor for tensor, _, _ in members]
        self._last = SameArrays()  # parameters and gradients of the last step, if the kernel reached all of them
        self._updated = np.zeros(len(members), bool)  # which parameters the last step updated
        self._groups = self.table[:, 4].copy()
        self._last_group = int(self._groups.max())

    def step(self, kernel: Kernel, settings_of: Callable[[int, int], Sequence[float]]) -> list[Member]:
        """Update all parameters that the kernel can reach, and return the others that have a gradient.

        `settings_of(group, updates)` returns the settings of the kernel for the parameters of a group that are updated
        for this number of times.
        """
        now = [t.data for t in self._tensors] + [None if (g := t.grad) is None else g.data for t in self._tensors]
        if self._last.are(now):
            for tensor, g in zip(self._tensors, now[len(self.members) :], strict=True):
                if g is not None:
                    tensor.mark_modified()
            self.updates += self._updated
            kernel.forward(None, None, self.table, self._settings(settings_of), *self.moments)
            return []
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
        self._updated = np.array([g is not None for g in gradients])
        self.updates += self._updated
        self._last.note([] if rest else now)
        kernel.forward(moved, gradients, self.table, self._settings(settings_of), *self.moments)
        return rest

    def _settings(self, settings_of: Callable[[int, int], Sequence[float]]) -> Array:
        """Return a row of settings for each group and number of updates, and enter the numbers of rows in the table."""
        first = self.updates.item(0)
        if self.updates.tolist().count(first) == len(self.updates):  # the usual case, quickly
            self.table[:, 4] = self._groups
            return np.array([settings_of(group, first) for group in range(self._last_group + 1)])
        kinds = self._groups + self.updates * _MOST_GROUPS
        different, rows = np.unique(kinds, return_inverse=True)
        self.table[:, 4] = rows
        return np.array([settings_of(int(kind % _MOST_GROUPS), int(kind // _MOST_GROUPS)) for kind in different])
