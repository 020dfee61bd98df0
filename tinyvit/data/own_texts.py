"""Tables of the user's own texts: captions, questions with answers, and texts with their translations.

Columns
    ``image,caption``, ``image,question,answer`` or ``source,target``, and ``split`` if the table likes; see `COLUMNS`
    for other names. The paths of images begin at the folder of the table. An image may have several rows.
Splits
    Rows that the column split calls val or test are held out; images that are on both sides then are named in a
    warning. What is missing is cut from the training rows: all rows about one image, or with one source, are on the
    same side. Which are held out depends on the seed and on the content
    of the images (of the sources), as for folders of images.
Words
    The vocabulary is that of the training rows alone; other words of the validation and test rows become ``<unk>``,
    and a warning counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend.checks import check_flags
from ..backend.words import counted
from ..errors import DataError, log
from .datasets import CHANNEL_STATISTICS
from .disk import DiskImages, Reader, read_all
from .folders import FolderOptions, key_of, require_half
from .image_files import LeftOut, Refuse, listed, listed_files, same_form, stop, warn_of_left_out
from .images import is_grey
from .tables import Line, columns_of, is_table, named_columns, read_lines, shown_columns, split_of, where_paths_begin
from .texts import TextDataset, question_ids, written_ids
from .tokenizer import UNK, Tokenizer, words_of

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "file", "path", "filename", "file_name"),
    "caption": ("caption", "text", "description", "sentence"),
    "question": ("question",),
    "answer": ("answer",),
    "source": ("source", "input", "from", "src"),
    "target": ("target", "output", "to", "tgt"),
    "split": ("split", "set", "subset"),
}
CAPTIONS, QUESTIONS, TRANSLATIONS = ("image", "caption"), ("image", "question", "answer"), ("source", "target")
HELD_OUT_ROWS = 0.1  # the share of the rows that is held out for validation, unless a user says how much
LONGEST = 512  # words of a text; a longer one is most often a quote that was not closed


class Row(NamedTuple):
    """A row: its line, its image if it has one, its texts, and a number that is the same for rows held out together."""

    line: int
    file: Path | None
    texts: tuple[str, ...]
    group: bytes


def columns_in(path: str | Path) -> tuple[str, ...] | None:
    """Return which of `QUESTIONS`, `CAPTIONS` and `TRANSLATIONS` a table has, or None if it is no table of texts.

    Raises DataError if the file cannot be read.
    """
    if not is_table(path):
        return None
    lines = read_lines(Path(path))
    if not lines:
        return None
    names = {cell.strip().lower() for cell in lines[0].cells}
    found = named_columns(lines[0], COLUMNS)
    if names & {"label", "class", "category"} and "question" not in found:  # a table of images and their classes
        return None
    return next((kind for kind in (QUESTIONS, CAPTIONS, TRANSLATIONS) if set(kind) <= found.keys()), None)


@dataclass(frozen=True)
class _Images:
    """The images of some rows: which of `pixels` each has, and the rows that have none; the statistics of pixels.

    `files` are those of `pixels`.
    """

    pixels: Any
    files: tuple[str, ...]
    image_of: NDArray[np.int64]
    rows: list[Row]
    left_out: list[LeftOut]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]


class TextTable:
    """The user's own texts: the rows of each split, of which no image is decoded yet.

    Parameters
    ----------
    path : str or Path
    columns : `CAPTIONS`, `QUESTIONS` or `TRANSLATIONS`
        What the table must have.
    options : FolderOptions, optional
        How images are read, and how much is held out.

    Attributes
    ----------
    parts : dict
        The rows of "train", of "test" and, if the table has some or the options hold some out, of "validation".
    cut : tuple of str
        The splits that were cut from the training rows, because the table has none.
    classes : tuple of str
        The answers of all rows in alphabetical order; empty without questions.
    left_out : list of LeftOut
        Images that the table names, but that do not exist.

    Raises DataError if the file cannot be read, lacks a column, has an empty cell, or too few rows to hold some out.
    The last two are passed to `refuse`, which raises them unless it is told otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str],
        options: FolderOptions | None = None,
        refuse: Refuse = stop,
    ) -> None:
        self.path, self.columns, self.options = Path(path), tuple(columns), options or FolderOptions()
        self.refuse = refuse
        self.left_out: list[LeftOut] = []
        self.parts = self._read()
        self.cut = tuple(
            name
            for name, amount in (("test", self.options.test), ("validation", self.options.validation))
            if name not in self.parts and amount
        )
        for name in self.cut:
            self._hold_out(name, getattr(self.options, name))
        rows = [row for part in self.parts.values() for row in part]
        self.classes = tuple(sorted({row.texts[1] for row in rows})) if self.columns == QUESTIONS else ()
        self.longest = [max(len(words_of(row.texts[i])) for row in rows) for i in range(len(rows[0].texts))]

    # Reading

    def _read(self) -> dict[str, list[Row]]:
        lines = read_lines(self.path)
        if not lines:
            raise DataError(f"{self.path} is empty; its first line must be {','.join(self.columns)}")
        known = {name: COLUMNS[name] for name in (*self.columns, "split")}
        columns = columns_of(self.path, lines[0], known)
        if missing := [name for name in self.columns if name not in columns]:
            also = "; ".join(f"{name} may also be {', '.join(known[name][1:])}" for name in missing if known[name][1:])
            there = shown_columns(lines[0], known.values(), [known[name] for name in missing])
            raise DataError(
                f"{self.path} has the columns {there}, but not {' and '.join(missing)}: its first line must be "
                f"{','.join(self.columns)}{f' ({also})' if also else ''}"
            )
        parts: dict[str, list[Row]] = {"train": []}
        groups: dict[Path, bytes] = {}
        for line in lines[1:]:
            cells = {name: line.cells[i].strip() if i < len(line.cells) else "" for name, i in columns.items()}
            try:
                split = split_of(self.path, line.number, cells["split"]) if "split" in columns else "train"
                row = self._row(line, cells, groups)
            except DataError as error:
                self.refuse(error)
                continue
            if row is not None:
                parts.setdefault(split, []).append(row)
        if not parts["train"]:
            where = where_paths_begin(self.path)
            gone = f"; images that do not exist: {listed_files(self.left_out)}; {where}" if self.left_out else ""
            raise DataError(f"{self.path} has no rows to train on{gone}")
        if self.left_out and self.options.broken == "refuse":
            raise self._refused(self.left_out)
        return parts

    def _row(self, line: Line, cells: dict[str, str], groups: dict[Path, bytes]) -> Row | None:
        """Return a row; None if its image does not exist."""
        for name in self.columns:
            if not cells[name] or (name not in ("image", "answer") and not words_of(cells[name])):
                raise DataError(f"{self.path}, line {line.number}: {name} is empty; fill it in, or remove the line")
            if name != "image" and len(words_of(cells[name])) > LONGEST:
                raise DataError(
                    f"{self.path}, line {line.number}: {name} has {len(words_of(cells[name])):,} words, more than "
                    f"{LONGEST}; shorten it, or look for a quote that is not closed"
                )
        texts = tuple(same_form(cells[name]) for name in self.columns if name != "image")
        if "image" not in self.columns:
            source = " ".join(words_of(texts[0]))
            return Row(line.number, None, texts, blake2b(f"{self.options.seed} {source}".encode()).digest())
        file = self.path.parent / cells["image"]
        if file not in groups:
            if not _is_file(file):
                groups[file] = b""
                self.left_out.append(LeftOut(file, "it does not exist"))
            else:
                groups[file] = key_of(file, self.options.seed)
        return Row(line.number, file, texts, groups[file]) if groups[file] else None

    def _hold_out(self, name: str, amount: float) -> None:
        """Cut the split `name` from the training rows: a share of the images (of the sources), or a number of them."""
        rows, what = self.parts["train"], self.columns[0]
        if amount >= 1 and amount != int(amount):
            raise DataError(f"{name} is {amount}; it must be a fraction below 1 or a whole number of {what}s")
        groups = sorted({row.group for row in rows})
        count = max(1, round(amount * len(groups) if amount < 1 else amount))
        if count >= len(groups):
            there = counted(len(groups), f"different {what}s")
            self.refuse(DataError(
                f"{self.path} has {there} to train on, too few to hold out {count} for the {name} split; add rows, or "
                f"hold out less with data.{name}"
            ))  # fmt: skip
            return
        if amount >= 1:
            require_half(f"{self.path}: {name}", count, len(groups), len(groups) - 1, f"different {what}s")
        held = set(groups[:count])
        self.parts[name] = [row for row in rows if row.group in held]
        self.parts["train"] = [row for row in rows if row.group not in held]

    # Splits as data sets

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the training rows."""
        texts = (row.texts[:1] if self.columns == QUESTIONS else row.texts for row in self.parts["train"])
        return Tokenizer.build(text for pair in texts for text in pair)

    @cached_property
    def channels(self) -> int:
        """The channels of the images: those of the options or, by the headers of the training images, 1 or 3."""
        files = {row.file for row in self.parts["train"] if row.file is not None}
        return self.options.channels or (1 if all(map(is_grey, files)) else 3)

    def load(self, split: str, like: Any = None, pairs: bool = False) -> TextDataset:
        """Read a split.

        Parameters
        ----------
        split : {"train", "validation", "test"}
        like : TextDataset or DataSpec, optional
            Its vocabulary, answers, mean and std are taken; by default those of the training rows.
        pairs : bool
            Whether each text is to be found among all others: then every row has an image of its own, and an image
            that has several rows is measured with the first of them.

        Raises
        ------
        DataError
            If no image can be read, sizes differ, or an answer is not one of those of `like`.
        """
        check_flags("load", pairs=pairs)
        if split not in self.parts:
            raise DataError(f"{self.path} has no {split} split: its options hold nothing out for it")
        rows = self.parts[split]
        if pairs and split != "train":
            rows = list({row.file: row for row in reversed(rows)}.values())[::-1]
        tokenizer, classes = (self.tokenizer, self.classes) if like is None else (like.tokenizer, like.classes)
        found = self._images(split, rows, like) if "image" in self.columns else None
        pixels: Any = np.zeros(0, np.uint8) if found is None else found.pixels
        files: tuple[str, ...] = () if found is None else found.files
        image_of = np.zeros(len(rows), np.int64) if found is None else found.image_of
        rows = rows if found is None else found.rows
        if pairs and len(pixels) < len(rows):
            pixels = pixels.chosen(image_of) if isinstance(pixels, DiskImages) else pixels[image_of]
            files = tuple(files[i] for i in image_of)
            image_of = np.arange(len(rows))
        texts, labels = self._ids(rows, tokenizer, classes)
        if split != "train":
            self._warn_of_unknown(split, rows, tokenizer, classes)
        mean, std = ((), ()) if found is None else found.statistics if like is None else (like.mean, like.std)
        return TextDataset(
            name=f"csv:{self.path}",
            split=split,
            tokenizer=tokenizer,
            texts=texts,
            labels=labels,
            classes=classes,
            images=pixels,
            image_of=image_of,
            kinds=("pairs",) if pairs else (),
            kind_of=np.zeros(len(rows), np.int64),
            mean=mean,
            std=std,
            files=files,
        )

    def _ids(
        self, rows: Sequence[Row], tokenizer: Tokenizer, classes: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the texts and the labels of rows, as wide as the longest texts of the whole table."""
        read, written = ([row.texts[i] for row in rows] for i in (0, -1))
        if self.columns == QUESTIONS:
            number = {answer: i for i, answer in enumerate(classes)}
            if unknown := sorted({answer for answer in written if answer not in number}):
                raise DataError(f"{self.path} has answers that the model has not learnt: {listed(unknown)}")
            labels = np.array([number[answer] for answer in written], np.int64)
            return _wide(question_ids(tokenizer, read), self.longest[0] + 1), labels
        labels = _wide(written_ids(tokenizer, written), self.longest[-1] + 2)
        if self.columns == CAPTIONS:
            return labels, labels
        return _wide(question_ids(tokenizer, read), self.longest[0] + 1), labels

    def _images(self, split: str, rows: list[Row], like: Any) -> _Images:
        """Read the images of rows, each once. Rows whose image cannot be read are left out."""
        options, files = self.options, list(dict.fromkeys(row.file for row in rows if row.file is not None))
        reader = Reader(self.channels if like is None else len(like.mean), options.image_size or None, options.resize)
        found = read_all(files, reader, options.cache_mb << 20)
        if found.left_out and options.broken == "refuse":
            raise self._refused(found.left_out)
        gone = [*found.left_out, *(self.left_out if split == "train" else ())]
        if not found.indices:
            raise DataError(f"{self.path} has no {split} image that can be read: {listed_files(gone)}")
        warn_of_left_out(self.path, gone, len(found.indices), split=split)
        place = {files[number]: i for i, number in enumerate(found.indices)}
        kept = [row for row in rows if row.file in place]
        channels = reader.channels
        if options.statistics == "half":
            mean, std = (values[:channels] for values in CHANNEL_STATISTICS["folder"])
        elif split == "train" or like is not None:
            mean, std = found.statistics
        else:
            training = list(dict.fromkeys(row.file for row in self.parts["train"] if row.file is not None))
            mean, std = read_all(training, reader, 0).statistics
        image_of = np.array([place[row.file] for row in kept if row.file is not None], np.int64)
        names = tuple(str(files[number]) for number in found.indices)
        return _Images(found.images, names, image_of, kept, found.left_out, (mean, std))

    def _refused(self, files: Sequence[LeftOut]) -> DataError:
        return DataError(
            f"{self.path} names {counted(len(files), 'images')} that cannot be read: {listed_files(files, 20)}; repair "
            "or remove them, or set data.broken=skip to leave them out"
        )

    def _warn_of_unknown(self, split: str, rows: Sequence[Row], tokenizer: Tokenizer, classes: tuple[str, ...]) -> None:
        """Warn of words and answers that no training row has."""
        texts = [text for row in rows for text in (row.texts[:1] if classes else row.texts)]
        unknown = [word for text in texts for word in tokenizer.unknown(text)]
        if unknown:
            words = sum(len(words_of(text)) for text in texts)
            log.warning(
                "%s: %s of %s words of the %s split are in no training row, and are read as %s: %s",
                *(self.path, f"{len(unknown):,}", f"{words:,}", split, tokenizer.words[UNK]),
                listed(sorted(set(unknown))),
            )
        trained = {row.texts[-1] for row in self.parts["train"]}
        if classes and (new := sorted({row.texts[-1] for row in rows} - trained)):
            log.warning("%s: no training row has the %s answers %s, so they count as wrong",
                        *(self.path, split, listed(new)))  # fmt: skip


def _wide(ids: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return token ids (n, N) padded to `width` columns; `<pad>` is 0."""
    return np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is longer than the system allows
        return False
