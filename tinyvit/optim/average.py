"""The moving average of the weights."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import dispatch
from ..backend import address_of, device_of, is_on_gpu, namespace_of, to_device_of, to_host
from ..backend.checks import number
from ..dispatch import Kernel
from ..engine import Tensor
from .parameters import require_keys, tensors_of


class EMA:
    """An exponential moving average of parameters: a <- d a + (1 - d) p after each step.

    In the first steps d is min(decay, (1 + t) / (10 + t)), so that the initial weights soon lose their influence.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0 <= number("EMA: decay", decay) < 1:
            raise ValueError(f"EMA: decay is {decay}; it must be in [0, 1)")
        self.parameters, self.decay, self.steps = tensors_of("EMA", parameters, "parameters"), decay, 0
        self.averages = [p.data.copy() for p in self.parameters]
        self._on_device: _OnDevice | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has averages of its own on the device."""
        return {**self.__dict__, "_on_device": None}

    def update(self) -> None:
        """Include the current values of the parameters in the average."""
        self.steps += 1
        if kernel := self.kernel():
            self._on_device = self._on_device or _OnDevice(self)
            self._on_device.update(kernel)
            return
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for a, p in zip(self.averages, self.parameters, strict=True):
            a *= d
            a += (1 - d) * p.data

    def kernel(self) -> Kernel | None:
        """Return the kernel that updates all averages on a GPU, where a graph can hold it; None without one."""
        arrays = [p.data for p in self.parameters]
        fits = all(is_on_gpu(a) and a.dtype == np.float32 and a.flags.c_contiguous for a in arrays)
        if not fits or len({device_of(a) for a in arrays}) > 1:
            return None
        return dispatch.select_update("average", arrays[0].dtype, "cuda")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their average values within this block."""
        own = [p.data.copy() for p in self.parameters]
        for p, a in zip(self.parameters, self.averages, strict=True):
            p.assign(a)
        try:
            yield
        finally:
            for p, values in zip(self.parameters, own, strict=True):
                p.assign(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and copies of the averages."""
        return {"steps": self.steps, "averages": {str(i): to_host(a).copy() for i, a in enumerate(self.averages)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`. Raises ValueError if it belongs to other parameters."""
        require_keys("EMA", state, ("steps", "averages"))
        require_keys("EMA", state["averages"], tuple(map(str, range(len(state["averages"])))))
        averages = [state["averages"][str(i)] for i in range(len(state["averages"]))]
        if [a.shape for a in averages] != [a.shape for a in self.averages]:
            raise ValueError("EMA state belongs to other parameters: their number or shapes differ")
        self.steps = int(state["steps"])
        for own, a in zip(self.averages, averages, strict=True):
            own[...] = to_device_of(a, own)
        if self._on_device:
            self._on_device.steps[...] = self.steps


class _OnDevice:
    """The averages of parameters on a GPU as one flat array, and what a kernel needs to update it."""

    def __init__(self, ema: EMA) -> None:
        xp = namespace_of(ema.averages[0])
        sizes = [a.size for a in ema.averages]
        starts = np.cumsum([0, *sizes[:-1]])
        self._tensors = ema.parameters
        self._flat = xp.empty(sum(sizes), np.float32)
        for i, (average, start) in enumerate(zip(ema.averages, starts, strict=True)):
            view = self._flat[start : start + average.size].reshape(average.shape)
            view[...] = average
            ema.averages[i] = view
        self._rows = np.zeros((len(sizes), 3), np.int64)  # the table, as it was last copied to the device
        self._rows[:, 1], self._rows[:, 2] = starts, sizes
        self._table = to_device_of(self._rows, self._flat)
        self._state = to_device_of(np.array([ema.steps - 1, ema.decay, 0.0]), self._flat)
        self.steps = self._state[:1]  # the number of updates, on the device

    def update(self, kernel: Kernel) -> None:
        addresses = [address_of(p.data) for p in self._tensors]
        if (self._rows[:, 0] != addresses).any():
            self._rows[:, 0] = addresses
            self._table[...] = to_device_of(self._rows, self._table)
        kernel.forward(self._table, self._state, self._flat)
