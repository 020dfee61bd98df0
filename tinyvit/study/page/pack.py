"""Arrays in a page: each content once, all of one dtype in one blob, shuffled by byte and deflated."""

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..record.values import Statistics

MAX_VALUES = 1_200_000  # of a page, whole; what does not fit is there by its statistics
_CODES = {"float32": "f4", "float64": "f8", "int32": "i4", "uint8": "u1"}


@dataclass
class Packer:
    """Collects arrays and gives each a number; equal contents have one.

    Attributes
    ----------
    entries : of each array [code, offset in the blob of its code or None, shape, statistics, dtype].
    left_out : how many arrays did not fit, once `blobs` was called: those of the highest rank, and the later ones.
    """

    entries: list[list[Any]] = field(default_factory=list)
    left_out: int = 0
    _numbers: dict[Any, int] = field(default_factory=dict)
    _arrays: dict[int, np.ndarray] = field(default_factory=dict)
    _ranks: dict[int, int] = field(default_factory=dict)

    def add(self, array: np.ndarray, rank: int = 0) -> int:
        """The number of an array; it is needed the more, the lower its rank."""
        dtype = np.asarray(array).dtype.name
        array = np.ascontiguousarray(_storable(np.asarray(array))).reshape(np.shape(array))
        key = dtype, array.shape, array.tobytes()
        number = self._numbers.get(key)
        if number is not None:
            self._ranks[number] = min(rank, self._ranks[number])
            return number
        number = self._numbers[key] = self._enter(_CODES[array.dtype.name], dtype, Statistics.of(array))
        self._arrays[number] = array
        self._ranks[number] = rank
        return number

    def add_statistics(self, statistics: Statistics) -> int:
        """The number of an array of which nothing else was kept."""
        return self._enter("f4", statistics.dtype, statistics)

    def _enter(self, code: str, dtype: str, s: Statistics) -> int:
        told = [s.smallest, s.largest, s.mean, s.norm, s.zeros, s.nans, s.infinities]
        self.entries.append([code, None, list(s.shape), [told_briefly(x) for x in told], dtype])
        return len(self.entries) - 1

    def blobs(self) -> dict[str, str]:
        """Of each dtype all arrays: base64 of the deflated bytes, those of equal significance together."""
        room = MAX_VALUES
        parts: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, int] = {}
        order = list(self._arrays)  # neighbours are alike, and deflate well together
        if sum(array.size for array in self._arrays.values()) > room:
            order.sort(key=lambda number: self._ranks[number])
        for number in order:
            array, code = self._arrays[number], self.entries[number][0]
            if array.size > room:
                self.left_out += 1
                continue
            room -= array.size
            self.entries[number][1] = sizes.get(code, 0)
            sizes[code] = sizes.get(code, 0) + array.size
            parts.setdefault(code, []).append(array.ravel())
        return {code: _packed(np.concatenate(arrays)) for code, arrays in parts.items()}


def told_number(x: float) -> float | str:
    """A number as JSON has it; one that JSON has not as a text that JavaScript's Number reads."""
    return x if np.isfinite(x) else "NaN" if np.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def told_briefly(x: float) -> float | str:
    """The same to twelve digits."""
    return told_number(float(f"{x:.12g}"))


def _packed(flat: np.ndarray) -> str:
    planes = flat.astype(flat.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, flat.itemsize).T
    return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()


def _storable(array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that the page knows."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.name in _CODES:
        return array
    if array.dtype.kind in "iu":
        fits = array.size == 0 or -(2**31) <= array.min() <= array.max() < 2**31
        return array.astype(np.int32 if fits else np.float64)
    return array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
