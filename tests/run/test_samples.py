"""`tinyvit data sample`: test images as files, with what is known about them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tinyvit.cli import commands
from tinyvit.data import load_boxes, load_dataset, load_texts
from tinyvit.errors import DataError
from tinyvit.run import samples
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.samples import write_samples


def read(folder: Path) -> tuple[list[dict[str, str]], dict[str, np.ndarray]]:
    """The table of a folder of samples, and its images."""
    with (folder / "samples.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), {path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def test_images_with_labels(tmp_path: Path) -> None:
    said = write_samples("digits", tmp_path / "some", 20)
    rows, images = read(tmp_path / "some")
    test = load_dataset("digits", "test")
    assert said.startswith("20 images of the test split of digits -> ")
    assert [row["label"] for row in rows] == [test.classes[label] for label in test.labels[:20]]
    assert all((images[row["file"]] == test.images[i, 0]).all() for i, row in enumerate(rows))
    recipe, _ = chosen_recipe(str(tmp_path / "some/samples.csv"), None, [])  # the table is a data set for training
    assert "Images in samples.csv" in recipe.about.title


def test_scenes_with_captions(tmp_path: Path) -> None:
    write_samples("scenes-captions", tmp_path / "some", 5)
    rows, images = read(tmp_path / "some")
    test = load_texts("scenes-captions", "test")
    assert [row["caption"] for row in rows] == [test.tokenizer.decode(test.texts[i]) for i in range(5)]
    assert (images[rows[3]["file"]] == test.images[3].transpose(1, 2, 0)).all()


def test_a_recipe_stands_for_its_data_set(tmp_path: Path) -> None:
    said = write_samples("retrieve", tmp_path / "some", 1)
    assert said.startswith("1 image of the test split of scenes-captions -> ")
    with pytest.raises(DataError, match="there is no data set 'folder'"):  # a recipe without a data set of its own
        write_samples("folder", tmp_path / "other", 1)


def test_questions_of_an_image_share_its_file(tmp_path: Path) -> None:
    write_samples("scenes-questions", tmp_path / "some", 3)
    rows, images = read(tmp_path / "some")
    test = load_texts("scenes-questions", "test")
    assert sorted(images) == ["000.png", "001.png", "002.png"]
    assert len(rows) == int((test.image_of < 3).sum()) > 3
    assert all(row["answer"] in test.classes and row["question"] for row in rows)
    assert [row["file"] for row in rows] == [f"{i:03}.png" for i in test.image_of[test.image_of < 3]]


def test_scenes_with_boxes(tmp_path: Path) -> None:
    write_samples("scenes-pairs", tmp_path / "some", 2)
    _, images = read(tmp_path / "some")
    assert (images["001.png"] == load_boxes("scenes-pairs", "test").images[1].transpose(1, 2, 0)).all()


class Few:
    """Three images of a data set of any kind, instead of its whole split."""

    def __init__(self, name: str) -> None:
        self.images = np.zeros((3, 1, 2, 2), np.uint8)
        self.image_of = np.array([0, 0, 1, 2])
        self.labels = self.texts = np.arange(4)
        self.classes = () if name.endswith("captions") else ("a", "b", "c", "d")
        self.tokenizer = self

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, text: int) -> str:
        return f"text {text}"


KINDS = {"digits": "label", "scenes-captions": "caption", "scenes-questions": "answer", "scenes-pairs": None}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5000])
@pytest.mark.parametrize("name", KINDS)
def test_a_count_beyond_the_split_writes_all_of_it(name: str, count: int, tmp_path: Path, monkeypatch) -> None:
    for load in ("load_dataset", "load_texts", "load_boxes"):
        monkeypatch.setattr(samples, load, lambda name, split: Few(name))
    monkeypatch.setattr(samples, "Dataset", Few)
    said = write_samples(name, tmp_path / "some", count)
    rows, images = read(tmp_path / "some")
    written = min(count, 3)
    assert sorted(images) == [f"{i:03}.png" for i in range(written)]
    assert {row["file"] for row in rows} == images.keys()
    assert said.startswith(f"{written} image")
    if KINDS[name] is None:
        assert rows[0].keys() == {"file"}
        assert said.endswith("samples.csv lists them; the boxes on them are not written")
    else:
        assert rows[0][KINDS[name]]
        assert said.endswith("samples.csv says what is on them")


@pytest.mark.parametrize("count", [0, -1, 2.5, None])
@pytest.mark.parametrize("name", KINDS)
def test_a_count_that_is_none_is_refused(name: str, count, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"count is {count}; it must be an integer, at least 1"):
        write_samples(name, tmp_path / "some", count)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("reverse", "reverse has no images"), ("motion", "motion has no images"), ("nothing", "nothing")],
)
def test_data_without_images_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_samples(name, tmp_path / "some")
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_a_folder_with_files_alone(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some/mine.txt").write_text("mine")
    result = CliRunner().invoke(commands, ["data", "sample", "digits", "--out", str(tmp_path / "some")])
    assert "is not an empty folder" in str(result.exception)
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["mine.txt"]
