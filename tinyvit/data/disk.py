"""Images that are read from their files: all at once, or as they are needed, if they would take too much memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.threads import pool_of_threads
from ..errors import DataError
from .image_files import LeftOut, or_left_out
from .preprocessing import Resize

Read = Callable[[Path], NDArray[np.uint8]]
_AT_ONCE = 256  # files that are read before their pixels are put away


@dataclass(frozen=True)
class Reader:
    """Read an image file as pixels of one form, see `tinyvit.data.read_image`. It can be copied and pickled."""

    channels: int
    size: int | None
    resize: Resize | None = None

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        from .images import read_image

        return read_image(path, self.channels, self.size, self.resize)


class DiskImages:
    """Images uint8 (n, C, H, W) of which some are kept in memory; the others are read from their files when needed.

    It stands where a data set has an array: it has a shape, and its elements are taken by integers, slices and arrays
    of indices. The images that are kept stay the same: every epoch needs each image once, in a new order, so replacing
    them by those used last would find fewer of them in memory.

    Attributes
    ----------
    digests : uint8 (n, 16)
        A checksum of the pixels of each image.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self, files: Sequence[Path], read: Read, kept: NDArray[np.uint8], slots: NDArray[np.int64], digests: NDArray
    ) -> None:
        self._files, self._read, self._kept, self._slots = list(files), read, kept, slots
        self.digests = digests

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._files), *self._kept.shape[1:]

    def __len__(self) -> int:
        return len(self._files)

    def chosen(self, indices: NDArray[np.int64]) -> "DiskImages":
        """Return the images with these indices; none is read."""
        files = [self._files[i] for i in indices]
        return DiskImages(files, self._read, self._kept, self._slots[indices], self.digests[indices])

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        """Return an array of some images, or of one for an integer. Raises DataError if a file cannot be read."""
        numbers = np.arange(len(self))[indices]
        flat = np.atleast_1d(numbers)
        images = np.empty((len(flat), *self.shape[1:]), np.uint8)
        slots = self._slots[flat]
        images[slots >= 0] = self._kept[slots[slots >= 0]]
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            with pool_of_threads() as pool:
                for i, pixels in zip(missing, pool.map(self._again, flat[missing]), strict=True):
                    images[i] = pixels
        return images if np.ndim(numbers) else images[0]

    def _again(self, number: int) -> NDArray[np.uint8]:
        pixels = self._read(self._files[number])
        if pixels.shape != self.shape[1:] or not np.array_equal(digest(pixels), self.digests[number]):
            raise DataError(f"{self._files[number]} has changed since the run began; put it back, and resume the run")
        return pixels


@dataclass(frozen=True)
class ReadImages:
    """Images that were read, the indices of their files, the files that are left out, and sums over their pixels.

    `sums` and `squares` (C,) are those of the values and of their squares; `pixels` is the number of pixels in one
    channel of all images.
    """

    images: Any
    indices: list[int]
    left_out: list[LeftOut]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    pixels: int

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for pixels in 0..1; a deviation is 1/255 at least."""
        mean = self.sums / self.pixels
        spread = np.sqrt(np.maximum(self.squares / self.pixels - mean * mean, 1.0))
        return tuple(round(float(m) / 255, 6) for m in mean), tuple(round(float(s) / 255, 6) for s in spread)


def read_all(files: Sequence[Path], read: Read, cache_bytes: int) -> ReadImages:
    """Read all files, by several threads, and keep the pixels of as many as `cache_bytes` can hold.

    A file that cannot be read is left out. Raises DataError if two images differ in shape.
    """
    kept: NDArray[np.uint8] | None = None
    indices: list[int] = []
    digests: list[NDArray[np.uint8]] = []
    left_out: list[LeftOut] = []
    sums, squares, pixels, first = np.zeros(3, np.int64), np.zeros(3, np.int64), 0, files[0] if files else Path()

    with pool_of_threads() as pool:
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            for number, result in enumerate(pool.map(or_left_out(read), part), start):
                if isinstance(result, LeftOut):
                    left_out.append(result)
                    continue
                if kept is None:
                    room = min(len(files), max(1, cache_bytes // max(1, result.nbytes)))
                    kept, first = np.empty((room, *result.shape), np.uint8), files[number]
                    sums, squares = sums[: len(result)], squares[: len(result)]
                if result.shape != kept.shape[1:]:
                    raise DataError(
                        f"{files[number]} has the shape {result.shape} and {first} {kept.shape[1:]}; give image_size, "
                        "which resizes every image"
                    )
                if len(indices) < len(kept):
                    kept[len(indices)] = result
                indices.append(number)
                digests.append(digest(result))
                wide = result.astype(np.int64)
                sums, squares = sums + wide.sum((1, 2)), squares + (wide * wide).sum((1, 2))
                pixels += result[0].size
    images: Any = np.zeros((0, 1, 1, 1), np.uint8) if kept is None else kept[: len(indices)]
    if kept is not None and len(indices) > len(kept):
        slots = np.where(np.arange(len(indices)) < len(kept), np.arange(len(indices)), -1)
        images = DiskImages([files[i] for i in indices], read, kept, slots, np.stack(digests))
    return ReadImages(images, indices, left_out, sums, squares, pixels)


def digest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a checksum of the pixels of an image, uint8 (16,)."""
    return np.frombuffer(blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest(), np.uint8)
