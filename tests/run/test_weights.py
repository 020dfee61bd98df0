"""The weights in the package: they are read without any data, serve the commands, and are as accurate as is said."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw
from tiny_run import tiny_recipe

import tinyvit as tv
from tinyvit.cli import commands
from tinyvit.errors import CheckpointError, TinyvitError
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import RunError, load_data, load_run
from tinyvit.run.loop import train
from tinyvit.run.shipped import SHIPPED, shipped_names
from tinyvit.tasks import task_of
from tinyvit.use import ask

# The test accuracies that docs/guides/results.md states.
ACCURACIES = {"digits": 0.988, "caption": 0.979, "retrieve": 0.972}


def test_the_package_has_weights_to_try() -> None:
    assert shipped_names() == ("caption", "digits", "retrieve", "vqa")


@pytest.mark.parametrize("name", ACCURACIES)
def test_shipped_weights_are_as_accurate_as_is_said(name: str) -> None:
    trained = load_run(name)
    report = task_of(trained.recipe).evaluate(trained.model, load_data(trained.recipe, "test"), batch_size=128)
    assert report.accuracy >= ACCURACIES[name]


def drawn(shape: str, colour: tuple[int, int, int], x: int, y: int) -> Image.Image:
    """A picture like those of easy-VQA: one shape of 20 pixels on a bright ground."""
    picture = Image.new("RGB", (64, 64), (235, 238, 230))
    pen, box = ImageDraw.Draw(picture), (x - 10, y - 10, x + 10, y + 10)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "rectangle":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - 10), (x + 10, y + 10), (x - 10, y + 10)], fill=colour)
    return picture


def test_questions_about_pictures_that_are_drawn_here_are_answered(tmp_path: Path) -> None:
    """An oracle that shares nothing with the data set: shapes, colours and questions of our own."""
    trained, rng, right = load_run("vqa"), np.random.default_rng(0), []
    colours = {"red": (240, 10, 10), "green": (10, 150, 30), "blue": (10, 20, 230), "black": (0, 0, 0)}
    for shape in ("circle", "rectangle", "triangle"):
        for name, colour in colours.items():
            drawn(shape, colour, *rng.integers(20, 44, 2)).save(tmp_path / "a.png")
            right.append(ask(trained, tmp_path / "a.png", "what color is the shape?")[0] == name)
            right.append(ask(trained, tmp_path / "a.png", f"is there a {shape}?")[0] == "yes")
            right.append(ask(trained, tmp_path / "a.png", "what shape is in the image?")[0] == shape)
    assert sum(right) >= 0.9 * len(right), right


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.safetensors")))
def test_weights_are_read_without_data_and_fit_their_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the data was loaded")

    monkeypatch.setattr("tinyvit.run.folder.load_splits", refuse)
    trained = load_run(name)
    assert trained.recipe == load_recipe(name)
    assert trained.data.mean
    assert all(parameter.dtype == np.float32 for parameter in trained.model.parameters())
    assert not trained.model.training


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000


# In a folder of the user ----------------------------------------------------------------------------------------------


def call(*arguments: object) -> str:
    result = CliRunner().invoke(commands, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_the_commands_work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path))
    call("data", "sample", "caption", "--out", "pictures")
    with open("pictures/samples.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [call("caption", "caption", f"pictures/{row['file']}") == row["caption"] + "\n" for row in rows]
    assert len(right) == 12
    assert sum(right) >= 11
    best = call("retrieve", "retrieve", "--images", "pictures", rows[7]["caption"]).splitlines()[0]
    assert best.startswith(f"{Path('pictures/007.png')}\t")
    assert call("predict", "digits", "pictures/000.png").startswith("pictures/000.png\t")
    assert os.listdir() == ["pictures"]


def test_a_run_goes_before_a_recipe_of_its_name_and_any_other_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Image.new("L", (8, 8)).save("digits/0.png")
    assert load_run("digits").recipe == load_recipe("digits")
    shutil.rmtree("digits")
    train(tiny_recipe("epochs=1"), "unused", Path("digits"))
    assert load_run("digits").recipe == tiny_recipe("epochs=1")
    with pytest.raises(
        TinyvitError,
        match=r"there is no run 'vqa2' \(did you mean 'vqa'\?\); available: caption, digits, retrieve, vqa$",
    ):
        load_run("vqa2")
    Path("vqa2").mkdir()
    with pytest.raises(TinyvitError, match=r"vqa2 is not a run folder: it has no recipe\.toml"):
        load_run("vqa2")


def test_a_damaged_installation_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvit.run.shipped.SHIPPED", tmp_path)
    tv.save(tmp_path / "digits.safetensors", {"model": {}})
    with pytest.raises(CheckpointError, match=r"digits\.safetensors does not hold weights and facts"):
        load_run("digits")


def test_predict_of_a_run_that_classifies_no_images_names_the_functions_that_serve_it() -> None:
    with pytest.raises(RunError, match=r"this is a 'caption' run: tinyvit\.use has functions"):
        tv.load_run("caption").predict(np.zeros((48, 48, 3), np.uint8))
