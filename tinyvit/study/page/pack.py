"""Arrays in a page: equal contents once, and all arrays of one dtype in one blob, byte-shuffled and deflated."""

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..record.values import Statistics

MAX_VALUES = 1_200_000  # elements that a page contains; of any further arrays it has the statistics
_CODES = {"float32": "f4", "float64": "f8", "int32": "i4", "uint8": "u1"}


@dataclass
class Packer:
    """Collects arrays and numbers them; arrays with equal contents share a number.

    Attributes
    ----------
    entries : for each array [code, offset in the blob of its code or None, shape, statistics, dtype].
    left_out : after `blobs`, how many arrays did not fit: those of the highest rank, and among equals the later ones.
    """

    entries: list[list[Any]] = field(default_factory=list)
    left_out: int = 0
    _numbers: dict[Any, int] = field(default_factory=dict)
    _arrays: dict[int, np.ndarray] = field(default_factory=dict)
    _ranks: dict[int, int] = field(default_factory=dict)

    def add(self, array: np.ndarray, rank: int = 0) -> int:
        """The number of an array. If not all arrays fit, those of a low rank are packed first."""
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
        """The number of an array of which only the statistics are known."""
        return self._enter("f4", statistics.dtype, statistics)

    def _enter(self, code: str, dtype: str, s: Statistics) -> int:
        numbers = [s.smallest, s.largest, s.mean, s.norm, s.zeros, s.nans, s.infinities]
        self.entries.append([code, None, list(s.shape), [json_number(x, brief=True) for x in numbers], dtype])
        return len(self.entries) - 1

    def blobs(self) -> dict[str, str]:
        """For each code, all its arrays: base64 of the deflated bytes, grouped by significance."""
        room = MAX_VALUES
        parts: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, int] = {}
        order = list(self._arrays)  # consecutive arrays resemble each other, so they deflate well together
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


def json_number(x: float, brief: bool = False) -> float | str:
    """A number for JSON, to twelve digits if `brief`; NaN and infinities become texts for JavaScript's Number."""
    x = float(f"{x:.12g}") if brief else x
    return x if np.isfinite(x) else "NaN" if np.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def _packed(flat: np.ndarray) -> str:
    planes = flat.astype(flat.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, flat.itemsize).T
    return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()


def _storable(array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that has a code."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.name in _CODES:
        return array
    if array.dtype.kind in "iu":
        fits = array.size == 0 or -(2**31) <= array.min() <= array.max() < 2**31
        return array.astype(np.int32 if fits else np.float64)
    return array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
