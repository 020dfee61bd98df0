"""The moving average of the weights."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..backend import to_device_of, to_host
from ..engine import Tensor
from .parameters import require_keys, tensors_of


class EMA:
    """An exponential moving average of parameters: a <- d a + (1 - d) p after each step.

    In the first steps d is min(decay, (1 + t) / (10 + t)), so that the initial weights soon lose their influence.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}; it must be in [0, 1)")
        self.parameters, self.decay, self.steps = tensors_of("EMA", parameters, "parameters"), decay, 0
        self.averages = [p.data.copy() for p in self.parameters]

    def update(self) -> None:
        """Include the current values of the parameters in the average."""
        self.steps += 1
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for a, p in zip(self.averages, self.parameters, strict=True):
            a *= d
            a += (1 - d) * p.data

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
