"""Folders of the user's own images: how they are laid out, which files belong to which class and to which split.

Layouts
    ``PATH/<class>/<file>``: the splits are cut by a seed. ``PATH/train/<class>/<file>``, beside it ``val`` (or
    ``valid``, ``validation``) and ``test``: what is missing is cut from the training images. ``PATH.csv``, a table with
    the columns file, label and, if it likes, split; its paths begin at the folder of the table.
Cutting
    Each class gives its share. Which files are held out depends on the seed and on the content of the files, so that
    equal files are in the same split, and files that are added or renamed change little.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.files import open_file
from ..backend.words import counted
from ..errors import DataError, log
from .datasets import CHANNEL_STATISTICS, Dataset, first_of_each
from .disk import Reader, ReadImages, read_all
from .image_files import (
    IMAGE_SUFFIXES,
    FoundFiles,
    LeftOut,
    Refuse,
    class_folders,
    files_beside,
    find_images,
    listed,
    listed_files,
    same_form,
    stop,
    warn_of_left_out,
)
from .images import is_grey
from .preprocessing import Resize
from .tables import SPLIT_NAMES, Line, columns_of, is_table, read_lines, shown_columns, split_of, where_paths_begin
from .waves import WaveReader

HELD_OUT = 0.15  # the share of images and sounds that is held out for validation, as the recipe "folder" states it too
_HEAD = 64 << 10  # bytes of a file, beside its size, by which equal files are recognized


@dataclass(frozen=True)
class FolderOptions:
    """How a folder of images is read.

    Attributes
    ----------
    image_size : height and width in pixels, to which every image is resized; 0 if all files have the same size.
    channels : 1 (grey) or 3 (colour); 0 takes 1 if all training images are grey, else 3.
    statistics : "found" normalizes by mean and deviation of the training images, "half" maps black to -1, white to 1.
    broken : "skip" leaves out files that cannot be read, with a warning; "refuse" raises an error that names them.
    test, validation : what is held out, a fraction if below 1, or else a number of images.
    seed : decides which images are held out.
    cache_mb : the most memory for the images of one split; others are read from disk as they are needed.
    resize : the rule by which images are resized; None for that of `tinyvit.data.images`.
    """

    image_size: int = 0
    channels: int = 0
    statistics: str = "found"
    broken: str = "skip"
    test: float = 0.2
    validation: float = 0.0
    seed: int = 0
    cache_mb: int = 1024
    resize: Resize | None = None


@dataclass
class Part:
    """The files of one split with their labels, and those that are left out; the folder, for messages."""

    place: Path
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, files: Iterable[Path], label: int) -> None:
        before = len(self.files)
        self.files += files
        self.labels += [label] * (len(self.files) - before)


class ImageFolder:
    """The user's own images: the classes and the files of each split, of which none is decoded yet.

    Attributes
    ----------
    classes : tuple of str
        In alphabetical order.
    parts : dict
        A `Part` for "train", for "test" and, if the folder has one or the options hold images out, for "validation".
    cut : tuple of str
        The splits that were cut from the training images, because the folder has none.

    Raises DataError if the layout is none of those above. Faults beside which others can be found, such as a class
    without images, are passed to `refuse`, which raises them unless it is told otherwise.
    """

    what = "images"

    def __init__(self, path: str | Path, options: FolderOptions | None = None, refuse: Refuse = stop) -> None:
        self.root, self.options, self.refuse = Path(path), options or FolderOptions(), refuse
        if is_table(self.root):
            self.classes, self.parts = _read_table(self.root, refuse)
        else:
            self.classes, self.parts = _read_folders(self.root, self.find, self.what, refuse)
        self.cut = tuple(
            name
            for name, amount in (("test", self.options.test), ("validation", self.options.validation))
            if name not in self.parts and amount
        )
        self._hold_out()

    def _hold_out(self) -> None:
        """Cut the splits that the folder lacks from its training images."""
        train = self.parts["train"]
        if self.cut:
            keys = [key_of(file, self.options.seed) for file in train.files]
            order = sorted(range(len(keys)), key=keys.__getitem__)
        for name in self.cut:
            amount, labels = getattr(self.options, name), np.array(train.labels, np.int64)
            if amount >= 1 and amount != int(amount):
                raise DataError(f"{name} is {amount}; it must be a fraction below 1 or a whole number of images")
            count = max(1, round(amount * len(labels) if amount < 1 else amount))
            held = first_of_each(labels, order, count)
            if amount >= 1 and held.any():
                require_half(f"{self.root}: {name}", count, len(labels), int(held.sum()), self.what)
            if not held.any():
                self.refuse(DataError(
                    f"{self.root} has {counted(len(labels), self.what)} to train on, too few to hold some out for the "
                    f"{name} split; a class needs two or more"
                ))  # fmt: skip
                continue
            chosen = {keys[i] for i in np.flatnonzero(held)}
            sides = (
                [i for i in range(len(keys)) if keys[i] in chosen],
                [i for i in range(len(keys)) if keys[i] not in chosen],
            )
            parts = [Part(self.root, [train.files[i] for i in side], [train.labels[i] for i in side]) for side in sides]
            if not parts[1].files:
                self.refuse(DataError(
                    f"{self.root} has {counted(len(labels), self.what)} to train on, equal to those that would be held "
                    f"out for the {name} split; add others"
                ))  # fmt: skip
                continue
            self.parts[name], rest = parts
            rest.place, rest.left_out = train.place, train.left_out
            keys = [keys[i] for i in sides[1]]
            order = sorted(range(len(keys)), key=keys.__getitem__)
            train = self.parts["train"] = rest

    def find(self, folder: Path) -> FoundFiles:
        """Return the images in a folder and in those below it."""
        return find_images(folder)

    def reader(self, like: Any = None) -> Callable[[Path], Any]:
        """Return what reads a file as pixels: those that a model takes which learnt from `like`, if it is given."""
        channels = self.channels if like is None else len(like.mean)
        return Reader(channels, self.options.image_size or None, self.options.resize)

    @property
    def channels(self) -> int:
        """The channels of the images: those of the options or, by the headers of the training images, 1 or 3."""
        return self.options.channels or (1 if all(map(is_grey, self.parts["train"].files)) else 3)

    def load(self, split: str, like: Any = None) -> Dataset:
        """Read the images of a split; mean and std are those of `like` or, by default, of the training images.

        Raises DataError if a class has no image that can be read, or the sizes differ.
        """
        part, options = self.parts[split], self.options
        reader = self.reader(like)
        found = read_all(part.files, reader, options.cache_mb << 20)
        self._judge(split, found)
        if like is not None:
            mean, std = like.mean, like.std
        elif options.statistics == "found":
            mean, std = (found if split == "train" else self._train_statistics(reader)).statistics
        else:
            mean, std = (values[: found.images.shape[1]] for values in CHANNEL_STATISTICS["folder"])
        labels = np.array(part.labels, np.int64)[found.indices]
        files = tuple(str(part.files[i]) for i in found.indices)
        name = f"{'folder' if self.what == 'images' else self.what}:{self.root}"
        sound = (reader.rate, reader.seconds, reader.converts) if isinstance(reader, WaveReader) else ()
        return Dataset(name, split, found.images, labels, self.classes, mean, std, files, options.resize, sound)

    def _train_statistics(self, reader: Callable[[Path], Any]) -> ReadImages:
        return read_all(self.parts["train"].files, reader, 0)

    def _judge(self, split: str, found: ReadImages) -> None:
        """Raise DataError if a class is left without images or broken ones are refused; else warn of them."""
        part, broken = self.parts[split], found.left_out
        if broken and self.options.broken == "refuse":
            raise DataError(
                f"{part.place} has {counted(len(broken), self.what)} that cannot be read: {listed_files(broken, 20)}; "
                "repair or remove them, or set data.broken=skip to leave them out"
            )
        labels = np.array(part.labels, np.int64)
        there, good = (np.bincount(these, minlength=len(self.classes)) for these in (labels, labels[found.indices]))
        for label, name in enumerate(self.classes):
            if there[label] and not good[label] and split not in self.cut:
                gone = [entry for entry in broken if part.labels[part.files.index(entry.path)] == label]
                raise _no_images(f"{part.place / name}", gone, self.what)
        missing = [name for label, name in enumerate(self.classes) if not good[label]]
        warn_of_left_out(part.place, [*broken, *part.left_out], len(found.indices), self.what, split)
        if missing and split != "train":
            log.warning(
                "%s has no %s images of the classes %s, so they are not measured",
                *(part.place, split, listed(missing)),
            )


def require_half(key: str, count: int, total: int, possible: int, what: str) -> None:
    """Raise DataError if holding out `count` of `total` samples is not possible, or leaves less than half of them."""
    if 2 * (total - count) < total or possible < count:
        raise DataError(
            f"{key} is {count:,}, a number of {what} to hold out of {total:,}; half of them, and one of each class, "
            f"must be left to train on: give at most {min(total // 2, possible):,}, or a share such as {HELD_OUT}"
        )


def image_folder(
    path: str | Path,
    split: str,
    *,
    image_size: int | None = None,
    options: FolderOptions | None = None,
    like: Any = None,
) -> Dataset:
    """Load one split of a data set of image files, see `tinyvit.data.folders` for its layouts.

    Every image becomes grey or RGB of one size, by the rules of `tinyvit.data.images`. A class may have folders within
    it. Files are recognized by their content; those that are hidden, that are not images, or that cannot be read are
    left out, and a warning counts and names them.

    Parameters
    ----------
    path : str or Path
    split : {"train", "validation", "test"}
    image_size : int, optional
        Height and width in pixels; None if all files have the same size.
    options : FolderOptions, optional
    like : Dataset or DataSpec, optional
        Its mean and std are taken, not those of the training images.

    Raises
    ------
    DataError
        If a folder is missing, if it has no image that can be read, if another split has a class that the train split
        lacks, or if the sizes differ.
    """
    given = options or FolderOptions(image_size=image_size or 0)
    folder = ImageFolder(path, given)
    if split not in folder.parts:
        raise DataError(f"{path} has no {split} split: its options hold nothing out for it")
    return folder.load(split, like)


# Layouts ------------------------------------------------------------------------------------------------------------


def _read_folders(
    root: Path, find: Callable[[Path], FoundFiles], what: str, refuse: Refuse
) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Return the classes and the files of the splits that are folders of their own; without such, all is "train"."""
    splits = {name: place for name, names in SPLIT_NAMES.items() if (place := _first_folder(root, names))}
    if "train" not in splits or _is_class(splits["train"], splits):
        if len(splits) > 1 or set(splits) & {"validation", "test"}:
            names = " and ".join(place.name for place in splits.values())
            raise DataError(f"{root} has the folder {names}, but no folder train; the layout is {_LAYOUT}")
        splits = {"train": root}
    trained = class_folders(splits["train"], refuse)
    classes, parts = tuple(trained), {}
    for split, place in splits.items():
        part = parts[split] = Part(place, left_out=files_beside(place))
        try:
            folders = trained if split == "train" else class_folders(place, refuse)
        except DataError as error:  # it holds no folders
            refuse(error)
            continue
        if unknown := [name for name in folders if name not in classes]:
            others = f", as are {listed(unknown[1:])}" if unknown[1:] else ""
            refuse(DataError(
                f"{folders[unknown[0]]} is a class that {splits['train']} lacks{others}; it has {listed(classes, 20)}"
            ))  # fmt: skip
        for name in filter(classes.__contains__, folders):
            try:
                found = find(folders[name])
                if not found.images:
                    raise _no_images(str(folders[name]), found.left_out, what)
            except DataError as error:
                refuse(error)
            else:
                part.add(found.images, classes.index(name))
                part.left_out += found.left_out
    return classes, parts


_LAYOUT = "PATH/<class>/<file>, or PATH/train/<class>/<file>, PATH/val/..., PATH/test/..."


def _first_folder(root: Path, names: Iterable[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _is_class(train: Path, splits: dict[str, Path]) -> bool:
    """Return whether a folder `train` is a class, with photos of trains in it, beside the folders of other classes."""
    return len(splits) == 1 and bool(files_beside(train)) and not any(entry.is_dir() for entry in train.iterdir())


def _no_images(place: str, rest: list[LeftOut], what: str) -> DataError:
    way = f"of its files none can be used: {listed_files(rest)}" if rest else "add some or remove it"
    kinds = " ".join(IMAGE_SUFFIXES) if what == "images" else ".wav"
    return DataError(f"{place} holds no {what} ({kinds}); {way}")


_COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file", "path", "filename", "file_name", "image"),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "set", "subset"),
}


_OF_TEXTS = ("image", "caption", "question", "answer", "source", "target")  # columns of other tables, for messages


def _read_table(path: Path, refuse: Refuse) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Return the classes and the files of the splits that a table of files and labels names."""
    lines = read_lines(path)
    columns, begin = _columns_of(path, lines)
    entries: list[tuple[str, str, Path]] = []
    left_out: list[LeftOut] = []
    for number, row in lines[begin:]:
        cells = {name: row[i].strip() for name, i in columns.items() if i < len(row)}
        try:
            if not cells.get("file") or not cells.get("label"):
                raise DataError(f"{path}, line {number}: {row!r:.100} does not have a file and a label")
            split = split_of(path, number, cells.get("split", "train"))
        except DataError as error:
            refuse(error)
            continue
        file = path.parent / cells["file"]
        if file.is_file():
            entries.append((split, same_form(cells["label"]), file))
        else:
            left_out.append(LeftOut(file, "it does not exist"))
    classes = tuple(sorted({label for _, label, _ in entries}))
    if not entries:
        gone = f": {listed_files(left_out)}; {where_paths_begin(path)}" if left_out else ""
        raise DataError(f"{path} names no file that exists{gone}")
    parts = {split: Part(path) for split in dict.fromkeys(["train", *(split for split, _, _ in entries)])}
    for split, label, file in entries:
        parts[split].add([file], classes.index(label))
    parts["train"].left_out = left_out
    if unknown := [name for i, name in enumerate(classes) if i not in parts["train"].labels]:
        refuse(DataError(f"{path} has no training image of the classes {listed(unknown)}"))
    return classes, parts


def _columns_of(path: Path, lines: list[Line]) -> tuple[dict[str, int], int]:
    """Return the columns of a table by their meaning, and the number of its first row, after any names of columns."""
    if not lines or len(lines[0].cells) < 2:
        raise DataError(f"{path} is not a table of files and labels; its first line must be like 'file,label'")
    columns, names = columns_of(path, lines[0], _COLUMNS), lines[0].cells
    if {"file", "label"} <= columns.keys():
        return columns, 1
    if (path.parent / names[0].strip()).is_file():  # without names of columns
        return dict(zip(_COLUMNS, range(len(names)), strict=False)), 0
    lacking = [usual for meaning, usual in _COLUMNS.items() if meaning not in columns]
    there = shown_columns(lines[0], _COLUMNS.values(), [*lacking, _OF_TEXTS])
    raise DataError(
        f"{path} has the columns {there}; a table of images or sounds must have 'file' and 'label', and may "
        "have 'split'; a table of texts must have 'image' and 'caption', or 'image', 'question' and 'answer', or "
        "'source' and 'target'"
    )


def key_of(file: Path, seed: int) -> bytes:
    """Return a number, random by the seed, that is the same for files of equal content."""
    found = blake2b(str(seed).encode(), digest_size=16)
    try:
        found.update(str(file.stat().st_size).encode())
        with open_file(file) as opened:
            found.update(opened.read(_HEAD))
    except OSError:  # it will be left out; where is not decided by its name, which may change
        found.update(b"unreadable")
    return found.digest()
