"""Arrays as a trace keeps them: whole while there is room, else their statistics and some chosen elements."""

from dataclasses import dataclass
from typing import Any

import numpy as np

CHOSEN = 64  # elements kept of an array that is not kept whole


@dataclass(frozen=True)
class Statistics:
    """What is kept of every array; of a boolean or integer array too. A NaN makes mean and norm NaN."""

    shape: tuple[int, ...]
    dtype: str
    smallest: float  # of the finite elements, for scales; 0 where there is none
    largest: float
    mean: float  # of all elements; 0 where there is none
    norm: float
    zeros: int
    nans: int
    infinities: int

    @classmethod
    def of(cls, array: np.ndarray) -> "Statistics":
        values = array.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        some = finite if finite.size else np.zeros(1)
        scale = max(np.abs(some).max(), np.finfo(np.float64).tiny)  # so that no square overflows
        with np.errstate(invalid="ignore"):
            scaled = values / scale
            mean, norm = scale * (scaled.sum() / max(1, values.size)), scale * np.sqrt(np.sum(scaled * scaled))
        return cls(
            shape=array.shape,
            dtype=str(array.dtype),
            smallest=float(some.min()),
            largest=float(some.max()),
            mean=float(mean),
            norm=float(norm),
            zeros=int(values.size - np.count_nonzero(values)),
            nans=int(np.isnan(values).sum()),
            infinities=int(np.isinf(values).sum()),
        )

    @property
    def is_finite(self) -> bool:
        return self.nans == self.infinities == 0

    @property
    def trouble(self) -> str:
        """How many elements are not finite, in words; empty if all are."""
        counts = ((self.nans, "NaN"), (self.infinities, "infinite"))
        return ", ".join(f"{count:,} {word}" for count, word in counts if count)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a value came from.

    kind : "leaf" (a parameter, an input, a number), "output" (of `source`, an Entry), "gradient" (given by `source`, a
        Backward, to its input `index`), "sum" (of `source`, gradients that met), "hook" (what a hook made of that sum),
        "seed" (what backward started from).
    """

    kind: str
    source: Any = None
    index: int = 0


@dataclass(eq=False)
class Value:
    """An array that was seen by an operation: its name, where it came from, and what was kept of it.

    Attributes
    ----------
    array : a copy, or None if there was no room.
    chosen : flat indices and values of some elements, if there was no room: the largest, and evenly spread ones.
    """

    name: str
    origin: Origin
    statistics: Statistics
    array: np.ndarray | None
    chosen: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.statistics.shape

    def __repr__(self) -> str:
        s = self.statistics
        trouble = f", {s.trouble}" if s.trouble else ""
        return f"{self.name} {s.dtype}{list(s.shape)} norm {s.norm:.4g}{trouble}"


class Keeper:
    """Makes values, and keeps their arrays whole until `max_bytes` of them are kept."""

    def __init__(self, max_bytes: int) -> None:
        self.room = max_bytes

    def keep(self, name: str, origin: Origin, array: np.ndarray) -> Value:
        statistics = Statistics.of(array)
        if array.nbytes <= self.room:
            self.room -= array.nbytes
            return Value(name, origin, statistics, np.array(array, order="C"))
        flat = array.ravel()
        spread = np.linspace(0, flat.size - 1, min(CHOSEN // 2, flat.size)).astype(np.int64)
        magnitude = np.abs(flat.astype(np.float64))
        largest = np.argpartition(-magnitude, min(CHOSEN // 2, flat.size - 1))[: CHOSEN // 2]
        picked = np.unique(np.concatenate([spread, largest]))
        return Value(name, origin, statistics, None, (picked, flat[picked]))
