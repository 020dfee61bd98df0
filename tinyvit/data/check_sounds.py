"""A look at a folder of sounds before it is trained on: counts, lengths, rates, broken files, spectrograms."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backend.words import counted
from ..errors import DataError
from .check import ORDER, Checked, class_table, contradictions, fault_lines, left_out_lines, unreadable
from .datasets import checksum
from .folders import HELD_OUT
from .image_files import LeftOut, listed_files
from .sounds import SoundFolder, SoundOptions
from .waves import Header, WaveReader, read_header, read_wave

_FILES = "files"


def check_sounds(path: str | Path, options: SoundOptions | None = None, examples: int = 12) -> Checked:
    """Read all sounds of a folder, in any layout of `tinyvit.data.folders`, and describe them. Raises DataError."""
    faults: list[DataError] = []
    folder = SoundFolder(path, options or SoundOptions(image_size=64, validation=HELD_OUT), faults.append)
    labels: dict[str, list[int]] = {}
    good: list[tuple[Path, int, Header]] = []
    keys: dict[Path, str] = {}
    left_out: dict[str, list[LeftOut]] = {}
    for split in sorted(folder.parts, key=ORDER.index):
        part, labels[split], broken = folder.parts[split], [], []
        for file, label in zip(part.files, part.labels, strict=True):
            try:
                keys[file] = checksum(read_wave(file)[0])
                good.append((file, label, read_header(file)))
                labels[split].append(label)
            except DataError as error:
                broken.append(LeftOut(file, str(error).removeprefix(f"{file} ")))
        left_out[split] = [*broken, *part.left_out]
    if not good:
        raise DataError(f"{path} holds no sound that can be read: {listed_files(list(chain(*left_out.values())))}")
    cut = f"; {' and '.join(folder.cut)} sounds were cut by a seed" if folder.cut else ""
    lines = [
        f"{path}: {counted(len(good), 'sounds')} of {counted(len(folder.classes), 'classes')}{cut}",
        "",
        *class_table(folder.classes, labels),
        "",
        *_described([header for _, _, header in good], folder),
        *left_out_lines(left_out, {split: len(found) for split, found in labels.items()}, folder.what),
        contradictions((keys[file], folder.classes[label], str(file)) for file, label, _ in good),
    ]
    told = [*map(str, faults), *unreadable(folder, labels)]
    return Checked("\n".join([*lines, *fault_lines(told)]), _spectrograms(folder, good, examples), tuple(told))


def _described(headers: Sequence[Header], folder: SoundFolder) -> list[str]:
    """Return lines about rates, channels, bits and lengths."""
    lengths = np.array([header.seconds for header in headers])
    counts = [
        ("samples per second", Counter(f"{header.rate:,}" for header in headers)),
        ("channels", Counter(str(header.channels) for header in headers)),
        ("bits", Counter(str(8 * header.width) for header in headers)),
    ]
    lines = []
    for what, found in counts:
        lines.append(f"{what}: {', '.join(f'{name} ({counted(n, _FILES)})' for name, n in found.most_common())}")
    rates = sorted({header.rate for header in headers})
    if len(rates) > 1:
        lines[0] += f"; train with --set sample_rate={rates[0]}, which converts every file"
    lines.append(
        f"seconds: {lengths.min():.3g} to {lengths.max():.3g}, the median is {np.median(lengths):.3g}; "
        f"{folder.seconds:g} are used of each, unless data.seconds says how many"
    )
    return lines


def _spectrograms(
    folder: SoundFolder, good: Sequence[tuple[Path, int, Header]], most: int
) -> dict[str, list[NDArray[np.uint8]]]:
    read = WaveReader(folder.options.image_size, min(h.rate for _, _, h in good), folder.seconds, True)
    shown = {}
    for number, name in enumerate(folder.classes):
        files = [file for file, label, _ in good if label == number]
        shown[name] = [read(file) for file in files[:: max(1, len(files) // most)][:most]]
    return shown
