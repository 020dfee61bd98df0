"""Samples of a data set as files, to try a trained model on, or to see how data of one's own may look."""

import csv
import io
from pathlib import Path

import numpy as np

from ..backend.files import new_folder
from ..backend.words import counted
from ..data import Dataset, TextDataset, load_boxes, load_dataset, load_texts
from ..data.by_name import check_name, dataset_names
from ..data.datasets import CLASSES
from ..data.texts import TEXT_DATASETS
from ..data.things import THINGS
from ..errors import DataError
from ..recipe import load_recipe, recipe_names

_TABLE = "samples.csv"
_Samples = tuple[list[str], np.ndarray, list[tuple[int, list[str]]]]


def write_samples(name: str, out: str | Path, count: int = 12) -> str:
    """Write images of the test split as PNG files, and a table of what is known about them; return what was written.

    `name` is a data set, or a recipe, whose data set is meant. `count` is the number of images; all are written if the
    split has fewer. The table has the columns file and label, file, question and answer, or file and caption; of data
    with boxes it has the column file alone. With file and label it is a data set for `tinyvit train`. Raises DataError.
    """
    if not isinstance(count, int) or count < 1:
        raise DataError(f"count is {count!r}; it must be an integer, at least 1")
    if name not in dataset_names() and name in recipe_names():
        own = load_recipe(name).data.name
        name = own if own in dataset_names() else name
    header, images, rows = _samples(name, count)
    if images.ndim != 4:
        raise DataError(f"{name} has no images; samples can be written of data sets of images")
    try:
        with new_folder(out) as folder:
            files = [_write_image(folder / f"{i:03}.png", image) for i, image in enumerate(images)]
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(header)
            table.writerows([files[image], *facts] for image, facts in rows)
            (folder / _TABLE).write_text(text.getvalue(), "utf-8")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    those = counted(len(images), "images")
    what = "says what is on them" if len(header) > 1 else "lists them; the boxes on them are not written"
    return f"{those} of the test split of {name} -> {out}; {Path(out) / _TABLE} {what}"


def _samples(name: str, count: int) -> _Samples:
    """Return the columns of the table, some images, and its rows: the index of an image, and facts about it."""
    if name in TEXT_DATASETS:
        return _with_texts(load_texts(name, "test"), count)
    if name in THINGS:
        images = load_boxes(name, "test").images[:count]
        return ["file"], images, [(i, []) for i in range(len(images))]
    check_name(name)
    if name not in CLASSES:
        raise DataError(f"samples of {name} cannot be written: it has neither classes nor texts")
    test = load_dataset(name, "test")
    assert isinstance(test, Dataset)
    images = test.images[:count]
    return ["file", "label"], images, [(i, [test.classes[test.labels[i]]]) for i in range(len(images))]


def _with_texts(test: TextDataset, count: int) -> _Samples:
    shown = [i for i in range(len(test)) if test.image_of[i] < count]
    images = [int(test.image_of[i]) for i in shown]
    texts = [test.tokenizer.decode(test.texts[i]) for i in shown]
    if not test.classes:
        return ["file", "caption"], test.images[:count], _rows(images, texts)
    answers = [test.classes[test.labels[i]] for i in shown]
    return ["file", "question", "answer"], test.images[:count], _rows(images, texts, answers)


def _rows(images: list[int], *columns: list[str]) -> list[tuple[int, list[str]]]:
    return [(image, list(facts)) for image, facts in zip(images, zip(*columns, strict=True), strict=True)]


def _write_image(path: Path, image: np.ndarray) -> str:
    """Write an image, uint8 (C, H, W), and return the name of its file."""
    from PIL import Image

    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
    return path.name
