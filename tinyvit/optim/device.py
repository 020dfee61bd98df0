"""The optimizer's part for parameters on a GPU: their moments, and what a step needs, in the device's memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..dispatch import Kernel
from ..engine import Tensor

_Member = tuple[Tensor, dict[str, Any], int]  # a parameter, its moments, the number of its group
_STATE = ("step", "max_norm", "norm", "scale", "growth", "good", "skipped", "factor")


class DeviceBundle:
    """Parameters of one dtype on one GPU; m and v are views of two flat arrays.

    Attributes
    ----------
    state : (8,) float64 on the device: the number of steps, the norm to clip to (0: none), the scale of the losses (0:
        they are not scaled) and the to_device_of, see the kernel `adamw`. Steps read and write it there.
    groups : (G, 5) float64 on the device: lr, b1, b2, eps and decay of each group.
    """

    def __init__(self, dtype: Any, members: list[_Member], groups: int) -> None:
        self.dtype, self.members = dtype, members
        xp = backend.namespace_of(members[0][0].data)
        sizes = [p.size for p, _, _ in members]
        starts = np.cumsum([0, *sizes]).tolist()
        self.moments = [xp.zeros(starts[-1], dtype) for _ in range(2)]
        for (p, kept, _), start in zip(members, starts, strict=False):
            for slot, flat in zip(("m", "v"), self.moments, strict=True):
                view = flat[start : start + p.size].reshape(p.shape)
                view[...] = kept[slot]
                kept[slot] = view
        self.state = xp.zeros(len(_STATE), "float64")
        self.groups = xp.zeros((groups, 5), "float64")
        self._settings: list[tuple[float, ...]] = []  # what is in them
        self._table = xp.zeros((len(members), 5), "int64")
        self.rows: np.ndarray | None = None  # what is, or shall be, in the table

    def __getitem__(self, name: str) -> float:
        """A field of the state; waits for the device."""
        return float(self.state[_STATE.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.state[_STATE.index(name)] = value

    def scale_of_losses(self) -> Any:
        """The scale as a float32 scalar, on the device."""
        return self._scalar("scale")

    def norm(self) -> Any:
        """The joint norm of the gradients of the last step, divided by the scale, likewise."""
        return self._scalar("norm")

    def _scalar(self, name: str) -> Any:
        at = _STATE.index(name)
        return self.state[at : at + 1].astype("float32").reshape(())

    def set_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        """Bring the settings of the groups to the device, where they have changed."""
        rows = [(g["lr"], *g["betas"], g["eps"], g["weight_decay"]) for g in groups]
        if rows != self._settings:
            self._settings = rows
            self.groups[...] = backend.to_device_of(np.array(rows, np.float64), self.groups)

    def step(self, kernel: Kernel, decoupled: bool) -> list[_Member]:
        """Have the kernel update all it can, and return the members it cannot reach."""
        reached, rest = [], []
        for member in self.members:
            p, gradient = member[0].data, member[0].grad
            if gradient is not None and not gradient.data.flags.c_contiguous:
                gradient.data = gradient.data.copy()
            g = None if gradient is None else gradient.data
            fits = g is not None and p.shape == g.shape and p.dtype == g.dtype and p.flags.c_contiguous
            if g is not None and not fits:
                rest.append(member)
            reached.append((p, g if fits else None, member[2]))
        self._write_table(reached)
        kernel.forward(self._table, self.groups, self.state, *self.moments, decoupled=decoupled)
        for tensor, _, _ in self.members:
            tensor.mark_modified()
        return rest

    def _write_table(self, reached: list[tuple[Any, Any, int]]) -> None:
        from ..kernels.adamw.cupy_raw import table_of

        rows = table_of(*zip(*reached, strict=True))
        if self.rows is None or (rows != self.rows).any():
            self.rows = rows
            if not backend.is_capturing():
                self.upload_table()

    def upload_table(self) -> None:
        """Bring the addresses of parameters and gradients to the device; after a capture, which cannot do so itself."""
        self._table[...] = backend.to_device_of(self.rows, self._table)
