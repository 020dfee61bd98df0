"""Bundles on a GPU: the moments of parameters, and the state that a step needs, in the memory of the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..dispatch import Kernel
from .bundle import Bundle, Member

_STATE = ("step", "max_norm", "norm", "scale", "growth", "good", "skipped", "factor")


class DeviceBundle(Bundle):
    """A bundle of parameters on a GPU, where the kernel also clips gradients and scales losses.

    Attributes
    ----------
    state : (8,) float64 on the device, which steps read and write: the number of steps, the norm to clip to (0: no
        clipping), the scale of the losses (0: no scaling) and others, see the kernel `adamw`.
    groups : (G, 5) float64 on the device: lr, b1, b2, eps and decay of each group.
    rows : the table that the device holds, or that `upload_table` will copy to it.
    """

    def __init__(self, dtype: Any, members: list[Member], groups: int) -> None:
        super().__init__(dtype, members)
        xp = backend.namespace_of(members[0][0].data)
        self.state = xp.zeros(len(_STATE), "float64")
        self.groups = xp.zeros((groups, 5), "float64")
        self._settings: list[tuple[float, ...]] = []  # the content of `groups`
        self._table = xp.zeros(self.table.shape, "int64")
        self.rows: np.ndarray | None = None

    def __getitem__(self, name: str) -> float:
        """Return a field of the state; waits for the device."""
        return float(self.state[_STATE.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.state[_STATE.index(name)] = value

    def scale_of_losses(self) -> Any:
        """Return the scale as a float32 scalar on the device."""
        return self._scalar("scale")

    def norm(self) -> Any:
        """Return the joint norm of the last gradients, divided by the scale, as a float32 scalar on the device."""
        return self._scalar("norm")

    def _scalar(self, name: str) -> Any:
        at = _STATE.index(name)
        return self.state[at : at + 1].astype("float32").reshape(())

    def set_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        """Copy the settings of the groups to the device if they have changed."""
        rows = [(g["lr"], *g["betas"], g["eps"], g["weight_decay"]) for g in groups]
        if rows != self._settings:
            self._settings = rows
            self.groups[...] = backend.to_device_of(np.array(rows, np.float64), self.groups)

    def step(self, kernel: Kernel, decoupled: bool) -> list[Member]:
        """Update all parameters that the kernel can reach, and return the others that have a gradient."""
        addresses, rest = [], []
        for member in self.members:
            p, gradient = member[0].data, member[0].grad
            if gradient is not None and not gradient.data.flags.c_contiguous:
                gradient.data = gradient.data.copy()
            g = None if gradient is None else gradient.data
            fits = g is not None and p.shape == g.shape and p.dtype == g.dtype and p.flags.c_contiguous
            if g is not None and not fits:
                rest.append(member)
            addresses.append((backend.address_of(p), backend.address_of(g) if fits else 0))
        self._write_table(addresses)
        kernel.forward(self._table, self.updates, self.groups, self.state, *self.moments, decoupled=decoupled)
        for tensor, _, _ in self.members:
            tensor.mark_modified()
        return rest

    def _write_table(self, addresses: list[tuple[int, int]]) -> None:
        rows = self.table.copy()
        rows[:, :2] = addresses
        if self.rows is None or (rows != self.rows).any():
            self.rows = rows
            if not backend.is_capturing():
                self.upload_table()

    def upload_table(self) -> None:
        """Copy the table to the device. After a capture, which cannot copy it, the caller must do so."""
        self._table[...] = backend.to_device_of(self.rows, self._table)
