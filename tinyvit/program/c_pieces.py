"""Pieces of C: constants of the header, numbers, and the loops over arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

GROUP = 32  # numbers of a vector that share a factor


class Weight:
    """A constant as it stands in the header: float, or in 8 bits with a factor for each row.

    The rows of a vector, or of another constant that is read as floats, are groups of `GROUP` numbers.

    Attributes
    ----------
    form : "float", "rows" or "groups".
    values : the stored numbers, flat.
    scales : uint16 for each row: its factor is scale * unit. Empty for floats.
    """

    def __init__(self, name: str, array: np.ndarray, form: str) -> None:
        self.name, self.form = name, form
        flat = np.asarray(array, np.float32).reshape(-1)
        self.values: np.ndarray = flat
        self.scales, self.unit = np.zeros(0, np.uint16), 1.0
        if form != "float":
            length = GROUP if form == "groups" else max(1, flat.size // max(1, len(array)))
            rows = np.pad(flat, (0, -flat.size % length)).reshape(-1, length).astype(np.float64)
            largest = np.abs(rows).max(axis=1, initial=0) / 127
            self.unit = float(np.float32(largest.max(initial=0) / (2**16 - 1))) or 1.0
            # Factors are rounded up, so that the largest number of a row still fits.
            self.scales = np.clip(np.ceil(largest / self.unit), 1, 2**16 - 1).astype(np.uint16)
            numbers = np.clip(np.rint(rows / (self.scales[:, None] * self.unit)), -127, 127)
            self.values = numbers.astype(np.int8).reshape(-1)[: flat.size]

    @property
    def bytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)


def base(cells: np.ndarray) -> np.ndarray:
    """Return the array whose memory a view shows."""
    while isinstance(cells.base, np.ndarray):
        cells = cells.base
    return cells


def literal(x: Any) -> str:
    """Return a number as C writes it; anything else as it is."""
    if isinstance(x, float):
        return "INFINITY" if x == np.inf else "-INFINITY" if x == -np.inf else f"{np.float32(x):.9e}f"
    return str(x)


def pieces(formula: str) -> list[Any]:
    """Return a formula as texts, and numbers for the places of the elements."""
    pieces: list[Any] = []
    for i, part in enumerate(formula.replace("}", "{").split("{")):
        pieces.append(int(part) if i % 2 else part)
    return pieces


def loops(cells: Sequence[np.ndarray]) -> list[tuple[int, list[int]]]:
    """Return lengths and strides of the loops over arrays of one shape; axes that lie one after the other are one."""
    loops: list[tuple[int, list[int]]] = []
    for axis, n in enumerate(cells[0].shape):
        steps = [x.strides[axis] for x in cells]
        if n == 1 and cells[0].size:
            continue
        if loops and all(before == n * s for before, s in zip(loops[-1][1], steps, strict=True)):
            loops[-1] = (loops[-1][0] * n, steps)
        else:
            loops.append((n, steps))
    return loops
