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
    """Tell whether arrays are the same objects as in the last two calls of `note`; they are not kept alive.

    Steps that are made from a record have their gradients where the step before had them. Their addresses need not be
    looked up again then, which would take longer than a small update itself. Usual steps have new gradients each time.
    So only the first array is remembered until the same one comes again; then all are.
    """

    def __init__(self) -> None:
        self._first: Callable[[], Any] = _absent
        self._found: list[Callable[[], Any]] = []

    def note(self, arrays: Sequence[Array | None]) -> None:
        """Note arrays, to compare others with them. An array that each usual step replaces should come first."""
        first = next((a for a in arrays if a is not None), None)
        is_repeated = first is not None and self._first() is first
        self._first = _reference(first)
        self._found = list(map(_reference, arrays)) if is_repeated else []

    def are(self, arrays: Sequence[Array | None]) -> bool:
        """Return whether these are the arrays of the last two calls of `note`, all of them and in the same order."""
        if not len(arrays) == len(self._found) > 0:
            return False
        # A reference to an array that is gone gives None, as does one to an absent array.
        pairs = zip(arrays, self._found, strict=True)
        return all(find is _absent if a is None else find() is a for a, find in pairs)


def _reference(array: Array | None) -> Callable[[], Any]:
    return _absent if array is None else weakref.ref(array)


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
        self._shapes = [kept["m"].shape for _, kept, _ in members]
        self._last = SameArrays()  # gradients and parameters of the last step, if the kernel reached all of them
        self._updated = np.zeros(len(members), bool)  # which parameters the last step updated
        self._groups = self.table[:, 4].copy()
        self._last_group = int(self._groups.max())

    def step(self, kernel: Kernel, settings_of: Callable[[int, int], Sequence[float]]) -> list[Member]:
        """Update all parameters that the kernel can reach, and return the others that have a gradient.

        `settings_of(group, updates)` returns the kernel's settings for the parameters of a group that have had so many
        updates.
        """
        parameters = [t.data for t in self._tensors]
        gradients = [None if (g := t.grad) is None else g.data for t in self._tensors]
        if self._last.are(gradients + parameters):
            for tensor, g in zip(self._tensors, gradients, strict=True):
                if g is not None:
                    tensor.mark_modified()
            self.updates += self._updated
            kernel.forward(None, None, self.table, self._settings(settings_of), *self.moments)
            return []
        moved: list[Array | None] = [None] * len(parameters)  # parameters whose addresses are not in the table yet
        reached: list[Array | None] = [None] * len(parameters)
        rest = []
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            is_placed = p is self._placed[i]
            if g is not None and self._fits(i, g) and self._fits(i, p):
                reached[i] = g
                self._tensors[i].mark_modified()
                if not is_placed:
                    moved[i] = self._placed[i] = p
            elif g is not None:
                rest.append(self.members[i])
        self._updated = np.array([g is not None for g in reached])
        self.updates += self._updated
        self._last.note([] if rest else gradients + parameters)
        kernel.forward(moved, reached, self.table, self._settings(settings_of), *self.moments)
        return rest

    def _fits(self, i: int, array: Array) -> bool:
        """Return whether the kernel can reach an array, parameter number `i` or its gradient."""
        return array.shape == self._shapes[i] and array.dtype == self.dtype and array.flags.carray

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
