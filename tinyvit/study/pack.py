"""Arrays in a page: each content once, all of one dtype in one blob, shuffled by byte and deflated."""

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .values import Statistics

MAX_VALUES = 1_200_000  # of a page, whole; what does not fit is there by its statistics and its largest elements
_CODES = {"float32": "f4", "float64": "f8", "int32": "i4", "uint8": "u1"}


@dataclass
class Packer:
    """Collects arrays and gives each a number; equal contents have one."""

    room: int = MAX_VALUES
    entries: list[list[Any]] = field(default_factory=list)
    left_out: int = 0
    _numbers: dict[Any, int] = field(default_factory=dict)
    _parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> int:
        """The number of an array: its row in `entries`, [code, offset or null, shape, statistics]."""
        array = np.ascontiguousarray(_storable(np.asarray(array))).reshape(np.shape(array))
        key = array.dtype.name, array.shape, array.tobytes()
        if key in self._numbers:
            return self._numbers[key]
        number = self._numbers[key] = len(self.entries)
        s = Statistics.of(array)
        statistics = [s.smallest, s.largest, s.mean, s.norm, s.zeros, s.nans, s.infinities]
        code, offset = _CODES[array.dtype.name], None
        if array.size <= self.room:
            self.room -= array.size
            offset = self._sizes.get(code, 0)
            self._sizes[code] = offset + array.size
            self._parts.setdefault(code, []).append(array.ravel())
        else:
            self.left_out += 1
        self.entries.append([code, offset, list(array.shape), [float(f"{x:.9g}") for x in statistics]])
        return number

    def blobs(self) -> dict[str, str]:
        """Of each dtype all arrays: base64 of the deflated bytes, those of equal significance together."""
        out = {}
        for code, parts in self._parts.items():
            flat = np.concatenate(parts)
            planes = flat.astype(flat.dtype.newbyteorder("<")).view(np.uint8).reshape(flat.size, -1).T
            out[code] = base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()
        return out


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.name in _CODES:
        return array
    return array.astype(np.int32 if array.dtype.kind in "iu" else np.float64 if array.dtype.kind == "f" else np.float32)
