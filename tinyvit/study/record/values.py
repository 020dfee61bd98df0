"""Arrays as a trace stores them: complete while there is room, else statistics and some sampled elements."""

from dataclasses import dataclass
from typing import Any

import numpy as np

SAMPLED = 64  # elements stored of an array that is not stored completely


@dataclass(frozen=True)
class Statistics:
    """Statistics of an array, which may be boolean or integer. A NaN makes mean and norm NaN."""

    shape: tuple[int, ...]
    dtype: str
    smallest: float  # of the finite elements, for colour scales; 0 if there are none
    largest: float
    mean: float  # of all elements; 0 if there are none
    norm: float
    zeros: int
    nans: int
    infinities: int

    @classmethod
    def of(cls, array: np.ndarray) -> "Statistics":
        values = array.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        finite = finite if finite.size else np.zeros(1)
        scale = max(np.abs(finite).max(), np.finfo(np.float64).tiny)  # so that no square overflows
        with np.errstate(invalid="ignore"):
            scaled = values / scale
            mean, norm = scale * (scaled.sum() / max(1, values.size)), scale * np.sqrt(np.sum(scaled * scaled))
        return cls(
            shape=array.shape,
            dtype=str(array.dtype),
            smallest=float(finite.min()),
            largest=float(finite.max()),
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
        """The numbers of NaN and of infinite elements, in words; empty if all elements are finite."""
        counts = ((self.nans, "NaN"), (self.infinities, "infinite"))
        return ", ".join(f"{count:,} {word}" for count, word in counts if count)


@dataclass(frozen=True, eq=False)
class Origin:
    """The origin of a value.

    Attributes
    ----------
    kind : "leaf" (a parameter, an input, a number), "output" (of `source`, an Entry), "gradient" (of input `index`, by
        `source`, a Backward), "sum" (of `source`, several gradients), "hook" (what a hook returned for that sum), or
        "seed" (the gradient that backward started from).
    """

    kind: str
    source: Any = None
    index: int = 0


@dataclass(eq=False)
class Value:
    """An array that an operation read or wrote: its name, its origin, and what was stored of it.

    Attributes
    ----------
    array : a copy, or None if there was no room for it.
    sampled : if there was no room, flat indices and values of the largest elements and of evenly spread ones.
    variable : the variable of the user's program that held it, where that is certain; "#2" for a second one.
    of : for a gradient, the value whose gradient it is.
    """

    name: str
    origin: Origin
    statistics: Statistics
    array: np.ndarray | None
    sampled: tuple[np.ndarray, np.ndarray] | None = None
    variable: str | None = None
    of: "Value | None" = None

    @property
    def title(self) -> str | None:
        """The user's name for it: of a gradient, "d" and the name of its value. None if there is none."""
        if self.variable is None and self.of is not None:
            return self.of.title and f"d{self.of.title}"
        return self.variable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.statistics.shape

    @property
    def place(self) -> str:
        """The user's name for it, or else which operation's output it is, or the name of a leaf or gradient."""
        is_output = self.title is None and self.origin.kind == "output"
        return f"{self.name} of {self.origin.source.key}" if is_output else self.title or self.name

    @property
    def facts(self) -> str:
        """Its dtype, shape and norm, and whether numbers are not finite."""
        s = self.statistics
        return f"{s.dtype}{list(s.shape)} norm {s.norm:.4g}{f', {s.trouble}' if s.trouble else ''}"

    def __repr__(self) -> str:
        return f"{self.title or self.name} {self.facts}"


class Archive:
    """Makes values, and stores complete copies of their arrays until `max_bytes` are used."""

    def __init__(self, max_bytes: int) -> None:
        self.room = max_bytes

    def store(self, name: str, origin: Origin, array: np.ndarray) -> Value:
        statistics = Statistics.of(array)
        if array.nbytes <= self.room:
            self.room -= array.nbytes
            return Value(name, origin, statistics, np.array(array, order="C"))
        flat = array.ravel()
        spread = np.linspace(0, flat.size - 1, min(SAMPLED // 2, flat.size)).astype(np.int64)
        magnitude = np.abs(flat.astype(np.float64))
        largest = np.argpartition(-magnitude, min(SAMPLED // 2, flat.size - 1))[: SAMPLED // 2]
        indices = np.unique(np.concatenate([spread, largest]))
        return Value(name, origin, statistics, None, (indices, flat[indices]))
