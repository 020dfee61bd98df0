"""The handwritten digits that come with the package, so that a first training needs no network.

They are 1,797 images of 8 x 8 pixels. ``DIGITS_LICENSE.txt`` beside this file names their source and licence.
"""

import functools
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGITS_FILE = Path(__file__).with_name("digits.csv.gz")


def read_digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one split of the embedded digits.

    The file holds values v from 0 to 16; a pixel is the byte ``v * 255 // 16``. Different values give different bytes,
    so a digit that is saved as an 8-bit PNG and read back is the same input.

    Parameters
    ----------
    split : {"train", "test"}
        Every fifth image (index % 5 == 4) is in the test split, 359 in all; the other 1,438 are in the train split.

    Returns
    -------
    images : uint8 (n, 1, 8, 8)
    labels : int64 (n,)
    """
    table = _table()
    is_test = np.arange(len(table)) % 5 == 4
    table = table[is_test if split == "test" else ~is_test]
    images = (table[:, :-1] * 255 // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, table[:, -1].copy()


@functools.cache
def _table() -> NDArray[np.int64]:
    """Return the values and the label of each digit, int64 (1797, 65). Parsing takes 20 ms."""
    with gzip.open(DIGITS_FILE, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
