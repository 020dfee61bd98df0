"""A look at a folder of images before it is trained on: counts, sizes, broken files, duplicates, and examples."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.threads import pool_of_threads
from ..backend.words import counted
from ..errors import DataError
from .disk import digest
from .folders import HELD_OUT, FolderOptions, ImageFolder
from .image_files import LeftOut, about_left_out, kind_of, listed, listed_files
from .images import open_image, read_image

ORDER = ("train", "validation", "test")
_SIDE = 64  # pixels; images that are equal at this size are reported as duplicates


@dataclass(frozen=True)
class Look:
    """An image file as it was found: width and height in pixels, mode, format, a small copy, and a checksum of it."""

    path: Path
    size: tuple[int, int]
    mode: str
    kind: str
    small: NDArray[np.uint8]
    key: bytes


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes
    ----------
    text : the report, with the faults.
    examples : for each class some small images, uint8 (n, 3, 64, 64).
    faults : at which training would stop.
    """

    text: str
    examples: dict[str, list[NDArray[np.uint8]]]
    faults: tuple[str, ...] = ()


def check_folder(path: str | Path, options: FolderOptions | None = None, examples: int = 12) -> Checked:
    """Read all images of a folder, in any layout of `tinyvit.data.folders`, and describe them.

    Raises DataError if there is nothing to describe; all other faults are reported together.
    """
    faults: list[DataError] = []
    folder = ImageFolder(path, options or FolderOptions(validation=HELD_OUT), faults.append)
    looks: dict[str, list[Look]] = {}
    labels: dict[str, list[int]] = {}
    left_out: dict[str, list[LeftOut]] = {}
    with pool_of_threads() as pool:
        for split, part in sorted(folder.parts.items(), key=lambda item: ORDER.index(item[0])):
            found = list(pool.map(_look, part.files))
            looks[split] = [look for look in found if isinstance(look, Look)]
            labels[split] = [label for look, label in zip(found, part.labels, strict=True) if isinstance(look, Look)]
            left_out[split] = [*(entry for entry in found if isinstance(entry, LeftOut)), *part.left_out]
    everything = [look for found in looks.values() for look in found]
    if not everything:
        raise DataError(f"{path} holds no image that can be read: {listed_files(list(chain(*left_out.values())))}")
    cut = f"; {' and '.join(folder.cut)} images were cut by a seed" if folder.cut else ""
    lines = [
        f"{path}: {counted(len(everything), 'images')} of {counted(len(folder.classes), 'classes')}{cut}",
        "",
        *class_table(folder.classes, labels),
        "",
        *_sizes(everything),
        f"modes: {_frequencies(Counter(look.mode for look in everything))}",
        f"formats: {_frequencies(Counter(look.kind for look in everything))}",
        *left_out_lines(left_out, {split: len(found) for split, found in looks.items()}),
        *duplicates({split: [(look.path, look.key) for look in found] for split, found in looks.items()}),
        contradictions(
            (look.key, folder.classes[label], str(look.path))
            for split, found in looks.items()
            for look, label in zip(found, labels[split], strict=True)
        ),
    ]
    missing = {split: [name for i, name in enumerate(folder.classes) if i not in labels[split]] for split in looks}
    lines += [f"without {split} images: {listed(names)}" for split, names in missing.items() if names]
    told = [*map(str, faults), *unreadable(folder, labels)]
    text = "\n".join([*lines, *fault_lines(told)])
    return Checked(text, _examples(folder.classes, looks, labels, examples), tuple(told))


def unreadable(folder: ImageFolder, labels: dict[str, list[int]]) -> list[str]:
    """Return the faults of classes that have files, of which none can be read, in splits that were not cut."""
    return [
        f"of the files in {folder.parts[split].place / name} none can be read; repair them, or remove the class"
        for split in labels
        if split not in folder.cut
        for i, name in enumerate(folder.classes)
        if i in folder.parts[split].labels and i not in labels[split]
    ]


def fault_lines(faults: Sequence[str]) -> list[str]:
    """Return the lines of a report about faults at which training would stop; none if there are no faults."""
    if not faults:
        return []
    return ["", f"training would stop at {counted(len(faults), 'faults')}:", *(f"  {fault}" for fault in faults)]


def _look(path: Path) -> Look | LeftOut:
    try:
        small = read_image(path, 3, _SIDE)
        with open_image(path) as image:
            return Look(path, image.size, image.mode, kind_of(path) or "other", small, digest(small).tobytes())
    except DataError as error:
        return LeftOut(path, str(error).removeprefix(f"{path} "))


def small_copy(path: Path) -> NDArray[np.uint8] | LeftOut:
    """Return an image as uint8 (3, 64, 64), or the reason why it cannot be read."""
    found = _look(path)
    return found if isinstance(found, LeftOut) else found.small


def class_table(classes: Sequence[str], labels: dict[str, list[int]]) -> list[str]:
    """Return the lines of a table that counts the samples of each class in each split, by their labels."""
    width = max(5, *map(len, classes))
    counts = {split: np.bincount(found, minlength=len(classes)) for split, found in labels.items()}
    lines = [f"{'class':{width}}" + "".join(f"  {split:>10}" for split in counts)]
    for i, name in enumerate(classes):
        lines.append(f"{name:{width}}" + "".join(f"  {count[i]:10,}" for count in counts.values()))
    return [*lines, f"{'all':{width}}" + "".join(f"  {count.sum():10,}" for count in counts.values())]


def _sizes(looks: Sequence[Look]) -> list[str]:
    widths, heights = (np.array([look.size[axis] for look in looks]) for axis in (0, 1))
    if len({look.size for look in looks}) == 1:
        return [f"sizes: all {widths[0]} x {heights[0]} pixels"]
    return [
        f"sizes: {widths.min()} to {widths.max()} pixels wide, {heights.min()} to {heights.max()} high; "
        f"the medians are {np.median(widths):.0f} x {np.median(heights):.0f}"
    ]


def left_out_lines(left_out: dict[str, list[LeftOut]], used: dict[str, int], what: str = "images") -> list[str]:
    """Return a line for each split that counts and names the files that training leaves out, beside those in use."""
    lines = [about_left_out(files, used[split], what, split, 20) for split, files in left_out.items() if files]
    return lines or ["no files are left out"]


def contradictions(samples: Iterable[tuple[Hashable, str, str]], what: str = "contradictory labels") -> str:
    """Return a line that counts and names samples that are equal, but have different labels.

    Each of `samples` is what it is (equal for samples that are the same), its label, and its name.
    """
    named: dict[Hashable, dict[str, str]] = {}
    for sample, label, name in samples:
        named.setdefault(sample, {}).setdefault(label, name)
    found = [
        " = ".join(f"{name} ({label})" for label, name in by_label.items())
        for by_label in named.values()
        if len(by_label) > 1
    ]
    return f"{what}: {len(found)}{': ' if found else ''}{listed(found, 20)}"


def _frequencies(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def duplicates(keys: dict[str, list[tuple[Path, bytes]]]) -> list[str]:
    """Return lines about images of each split that are equal, by their checksums: between splits, and within one."""
    places: dict[bytes, list[tuple[str, Path]]] = {}
    for split, found in keys.items():
        for path, key in found:
            places.setdefault(key, []).append((split, path))
    between: list[str] = []
    within: list[str] = []
    for same in places.values():
        if len(same) > 1:
            across = len({split for split, _ in same}) > 1
            (between if across else within).append(" = ".join(f"{path} ({split})" for split, path in same))
    return [
        f"duplicates {where}: {len(found)}{': ' if found else ''}{listed(found)}"
        for where, found in (("between splits", between), ("within a split", within))
    ]


def _examples(
    classes: Sequence[str], looks: dict[str, list[Look]], labels: dict[str, list[int]], most: int
) -> dict[str, list[NDArray[np.uint8]]]:
    examples: dict[str, list[Any]] = {name: [] for name in classes}
    for split, found in looks.items():
        for look, label in zip(found, labels[split], strict=True):
            examples[classes[label]].append(look.small)
    return {name: images[:: max(1, len(images) // most)][:most] for name, images in examples.items()}
