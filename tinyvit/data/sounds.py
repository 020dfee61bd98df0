"""Folders of the user's own sounds: .wav files in the layouts of folders of images, see `tinyvit.data.folders`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.files import open_file
from ..backend.words import counted
from ..errors import DataError
from .folders import FolderOptions, ImageFolder
from .image_files import FoundFiles, Refuse, find_files, find_images, stop
from .tables import is_table, read_lines
from .waves import LONGEST, RATES, Header, WaveReader, read_header

SOUND_SUFFIXES = (".wav", ".wave")
_OTHERS = (".mp3", ".flac", ".ogg", ".m4a", ".aac", ".aif", ".aiff", ".opus", ".wma")
_LOOKED_AT = 300  # files whose length is read to choose one
_LENGTH = 90  # percent of the files that are not longer than the length that is chosen


@dataclass(frozen=True)
class SoundOptions(FolderOptions):
    """How a folder of sounds is read: `image_size` is the number of bands and of columns of spectrograms.

    Attributes
    ----------
    sample_rate : samples per second, to which every file is converted; 0 if all have the same.
    seconds : the length of every sound; 0 takes one that nine of ten training files do not exceed.
    """

    sample_rate: int = 0
    seconds: float = 0.0


class SoundFolder(ImageFolder):
    """The user's own sounds: the classes and the files of each split. Its images are spectrograms.

    Raises DataError if the layout is none of those of `tinyvit.data.folders`, or the options are out of range.
    """

    options: SoundOptions
    what = "sounds"

    def __init__(self, path: str | Path, options: SoundOptions | None = None, refuse: Refuse = stop) -> None:
        super().__init__(path, options or SoundOptions(image_size=64), refuse)
        given = self.options
        if given.image_size < 2:
            raise DataError(f"image_size is {given.image_size}; spectrograms have 2 bands and columns or more")
        if given.sample_rate and not RATES[0] <= given.sample_rate <= RATES[1]:
            raise DataError(f"sample_rate is {given.sample_rate}; it must be from {RATES[0]} to {RATES[1]}, or 0")
        if not 0 <= given.seconds <= LONGEST:
            raise DataError(f"seconds is {given.seconds}; it must be from 0 to {LONGEST}")

    def find(self, folder: Path) -> FoundFiles:
        return find_sounds(folder)

    @property
    def channels(self) -> int:
        return 1

    @cached_property
    def headers(self) -> list[Header]:
        """The headers of the training files that have one and are not truncated."""
        return list(headers_of(self.parts["train"].files))

    @cached_property
    def rate(self) -> int:
        """The rate of the options or, by their headers, that of all training files."""
        if self.options.sample_rate:
            return self.options.sample_rate
        counts = Counter(header.rate for header in self.headers)
        if not counts:
            raise DataError(f"{self.root} has no training sound that can be read")
        if len(counts) > 1:
            rates = ", ".join(f"{rate:,} ({counted(count, 'files')})" for rate, count in counts.most_common(5))
            raise DataError(
                f"{self.root} has files with different numbers of samples per second: {rates}; set "
                f"data.sample_rate={min(counts)} to convert all of them"
            )
        return next(iter(counts))

    @cached_property
    def seconds(self) -> float:
        """The length of the options, or one that nine of ten training files do not exceed."""
        if self.options.seconds:
            return self.options.seconds
        headers = self.headers[:: max(1, len(self.headers) // _LOOKED_AT)]
        if not headers:
            raise DataError(f"{self.root} has no training sound that can be read")
        length = float(np.percentile([header.seconds for header in headers], _LENGTH, method="higher"))
        return float(f"{min(max(length, 0.001), LONGEST):.4g}")

    def reader(self, like: Any = None) -> WaveReader:
        """The reader of the files: that of the model's data `like`, if it was trained on sounds."""
        size, sound = self.options.image_size, getattr(like, "sound", ())
        if sound:
            return WaveReader(like.shape[-1] if hasattr(like, "shape") else size, *sound)
        return WaveReader(size, self.rate, self.seconds, bool(self.options.sample_rate))


def find_sounds(folder: Path) -> FoundFiles:
    """Return the .wav files in `folder` and in all folders below it. Raises DataError if it cannot be listed."""
    return find_files(folder, _judged, SOUND_SUFFIXES)


def _judged(path: Path) -> str:
    """Return the reason why a file is not used, or nothing."""
    suffix = path.suffix.lower()
    if suffix in SOUND_SUFFIXES:
        return ""
    if suffix in _OTHERS:
        return f"{suffix[1:]}, which is not read: save it as .wav"
    try:
        with open_file(path) as file:
            head = file.read(12)
    except OSError:
        head = b""
    return "" if head[:4] == b"RIFF" and head[8:] == b"WAVE" else "not a .wav file"


def headers_of(files: Iterable[Path]) -> Iterable[Header]:
    """Yield the headers of those files that can be read, and that are as long as their headers say."""
    for file in files:
        try:
            header = read_header(file)
        except DataError:  # it is counted and named when the sounds are read
            continue
        if header.is_whole:  # any number may stand in the header of a truncated file, which is left out too
            yield header


def has_sounds(path: str | Path) -> bool:
    """Return whether a folder, or a table of files, holds sounds and no images, by the names of its files."""
    place = Path(path)
    if is_table(place):
        lines = read_lines(place)[1:2] if place.is_file() else []
        return any(cell.strip().lower().endswith(SOUND_SUFFIXES) for line in lines for cell in line.cells)
    if not place.is_dir():
        return False
    return any(file.suffix.lower() in SOUND_SUFFIXES for file in place.rglob("*")) and not find_images(place).images
