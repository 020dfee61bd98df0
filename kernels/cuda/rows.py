"""How the columns of a row are spread over the 32 lanes of a warp: P runs of V neighbours in each, all in registers."""

from collections.abc import Iterator

import numpy as np

LANES = 32
RUN_BYTES = 16  # what one instruction moves
PER_LANE = 32  # elements a lane may hold, at most
RUNS = (1, 2, 3, 4, 6, 8)


def spread(columns: int, itemsize: int, aligned: bool) -> tuple[int, int] | None:
    """V and P for rows of this many columns; None if they do not fit, or are not aligned to 16 bytes."""
    v = RUN_BYTES // itemsize
    if not aligned or columns % v:
        return None
    return next(((v, p) for p in RUNS if p * v <= PER_LANE and p * v * LANES >= columns), None)


def spreads(itemsize: int) -> Iterator[tuple[int, int]]:
    """All V and P there are."""
    v = RUN_BYTES // itemsize
    yield from ((v, p) for p in RUNS if p * v <= PER_LANE)


def itemsize_of(ctype: str) -> int:
    return 4 if ctype == "float" else 2


def parts_of(rows: int, at_once: int, most: int = 512) -> int:
    """How many parts rows are added up in: it depends on their number only, and so do the bits of the sum."""
    return int(np.clip(-(-rows // (4 * at_once)), 1, most))
