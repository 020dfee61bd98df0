"""Run folders: their names, their files, and the use of the trained models in them."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Watch, isolate, metrics_of, tiny_recipe

import tinyvit as tv
from tinyvit.checkpoint import load
from tinyvit.data import load_dataset
from tinyvit.errors import DataError
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import RunError, load_run, new_run
from tinyvit.run.loop import resume, train
from tinyvit.run.state import Training
from tinyvit.tasks import DataSpec
from tinyvit.use import predict


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


# Run folders --------------------------------------------------------------------------------------------------------


def test_new_runs_get_the_next_number_and_overwrite_nothing():
    Path("runs").mkdir()
    Path("runs/digits-2").write_text("a file")
    Path("runs/digits-4").mkdir()
    made = [new_run(tiny_recipe(), "digits") for _ in range(4)]
    assert list(map(str, made)) == ["runs/digits", "runs/digits-3", "runs/digits-5", "runs/digits-6"]
    assert Path("runs/digits-2").read_text() == "a file"


def test_runs_that_start_together_get_folders_of_their_own():
    barrier = threading.Barrier(8)

    def start(_):
        barrier.wait()
        return new_run(tiny_recipe(), "digits")

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(start, range(8)))
    assert {str(folder) for folder in folders} == {"runs/digits", *(f"runs/digits-{n}" for n in range(2, 9))}


def test_the_first_of_two_runs_that_start_in_the_same_folder_gets_it(monkeypatch):
    def another_is_faster(folder):
        folder.mkdir()
        (folder / "recipe.toml").write_text("theirs")
        return folder

    monkeypatch.setattr("tinyvit.run.folder._empty", another_is_faster)
    with pytest.raises(RunError, match=r"out/recipe\.toml exists already"):
        new_run(tiny_recipe(), "digits", Path("out"))
    assert Path("out/recipe.toml").read_text() == "theirs"


class Killed(BaseException):
    """An exception that no code catches, because no process survives SIGKILL."""


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_run_that_was_killed_before_it_had_a_recipe_can_be_started_again(monkeypatch, call):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, call, killed)
        patch.setattr(os, "unlink", killed)  # nothing cleans up after SIGKILL
        with pytest.raises(Killed):
            new_run(tiny_recipe(), "digits", Path("out"))
    assert len(list(Path("out").glob(".recipe.toml.*.tmp"))) == 1
    assert not Path("out/recipe.toml").exists()
    train(tiny_recipe("epochs=1"), "digits", Path("out"))
    assert not list(Path("out").glob(".*"))


@pytest.mark.parametrize("name", ["recipe.toml", "checkpoint.safetensors", "study.html"])
def test_what_a_killed_process_was_writing_is_removed(name):
    folder = new_run(tiny_recipe("epochs=1"), "run")
    (folder / f".{name}.0123456789abcdef.tmp").write_text("half")
    (folder / ".mine.tmp").write_text("mine")
    resume(folder)
    assert [path.name for path in folder.glob(".*")] == [".mine.tmp"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_holds_runs(monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    folder = new_run(tiny_recipe(), "digits", Path("out"))
    assert load_recipe(folder / "recipe.toml") == tiny_recipe()
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"]
    with pytest.raises(RunError, match="is not empty"):
        new_run(tiny_recipe(), "digits", Path("out"))


@pytest.mark.parametrize("out", ["new", "deep/er/new", "empty", "."])
def test_a_given_folder_is_used_if_it_is_new_or_empty(out):
    Path("empty").mkdir() if out == "empty" else None
    assert train(tiny_recipe("epochs=1"), "digits", Path(out)).folder == Path(out)
    assert not Path("runs").exists()
    assert len(metrics_of(Path(out))) == 1


@pytest.mark.parametrize("out", ["full", "file", "file/in"])
def test_a_given_folder_with_something_in_it_is_left_alone(out):
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    Path("file").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty|exists already|cannot be made"):
        train(tiny_recipe(), "digits", Path(out))
    assert [path.name for path in Path("full").iterdir()] == ["mine"]
    assert Path("full/mine").read_text() == Path("file").read_text() == "mine"


def test_a_run_is_usable_from_the_first_step_on():
    accuracies = []

    def look(training, position):
        trained = load_run("runs/run")
        accuracies.append(training.task.evaluate(trained.model, training.test_data, 300).accuracy)

    result = train(tiny_recipe("batch_size=800"), "run", display=Watch(look))
    steps = [line["val_accuracy"] for line in result.metrics]
    assert accuracies[1:] == [accuracies[0], steps[0], steps[0]]  # the accuracies of the last checkpoint


def test_checkpoints_are_written_within_an_epoch_too():
    seen = []

    def look(training, position):
        seen.append(load("runs/run/checkpoint.safetensors")["position"]["step"])

    train(tiny_recipe("checkpoint_minutes=1e-9", "epochs=1"), "run", display=Watch(look))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_an_error_about_an_unknown_run_names_the_available_ones():
    train(tiny_recipe("epochs=1"), "mine")
    for name in ("mine", "runs"):
        with pytest.raises(RunError, match=r"runs/mine"):
            load_run(name)


def test_weights_of_another_recipe_are_refused():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (folder / "checkpoint.safetensors").unlink()
    (folder / "recipe.toml").write_text(tiny_recipe("dim=12").to_toml())
    with pytest.raises(tv.errors.CheckpointError, match=r"model\.safetensors does not belong to the recipe"):
        load_run(folder)


@pytest.mark.parametrize(
    "change", ["heads=1", "norm=post", "layer_scale=0.5", "name=mnist", "image_size=8", "kind=masked"]
)
def test_an_error_about_a_changed_recipe_names_its_keys(change):
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (folder / "recipe.toml").write_text(tiny_recipe("epochs=1", change).to_toml())
    key = change.partition("=")[0]
    with pytest.raises(
        tv.errors.CheckpointError, match=rf"another (model|data|task)\.{key} than recipe\.toml now says"
    ):
        load_run(folder)


def test_a_trained_model_may_be_measured_in_other_batches():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (folder / "recipe.toml").write_text(tiny_recipe("epochs=1", "batch_size=7", "note=mine").to_toml())
    assert load_run(folder).recipe.data.batch_size == 7


def test_an_error_about_a_file_that_is_not_a_checkpoint_names_its_path():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    for state in ({"data": {}}, {"recipe": "="}, {"recipe": 3}):
        tv.save(folder / "checkpoint.safetensors", state)
        with pytest.raises(tv.errors.CheckpointError, match=r"checkpoint\.safetensors is not the checkpoint of a run"):
            load_run(folder)


def test_the_name_of_a_recipe_selects_the_weights_in_the_package(monkeypatch, tmp_path):
    recipe = load_recipe("digits")
    model = Training(recipe).model
    state = {"model": model.state_dict(), "data": DataSpec.of(load_dataset("digits", "train")).state_dict()}
    tv.save(tmp_path / "digits.safetensors", state)
    monkeypatch.setattr("tinyvit.run.shipped.SHIPPED", tmp_path)
    trained = load_run("digits")
    assert trained.recipe == recipe
    assert trained.data.classes == tuple("0123456789")
    images = np.zeros((1, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(trained.model(images).numpy(), model.eval()(images).numpy())


# Predicting ---------------------------------------------------------------------------------------------------------


def test_an_image_file_gets_the_class_and_probability_that_its_pixels_get():
    trained = load_run(train(tiny_recipe("dropout=0.5"), "run").folder)
    test = load_dataset("digits", "test")
    logits = trained.model(test.normalize(test.images[:20])).numpy().astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for pixels, expected in zip(test.images, probabilities, strict=False):
        Image.fromarray(pixels[0]).save("digit.png")
        name, probability = predict(trained, "digit.png")
        assert name == str(expected.argmax())
        assert probability == pytest.approx(expected.max(), rel=1e-4)


def make_pictures(root: Path, size: tuple[int, int]) -> None:
    """Make a data set of red and blue pictures in a folder."""
    for split in ("train", "test"):
        for name, colour in (("blue", (20, 20, 220)), ("red", (220, 20, 20))):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                picture = np.full((size[1], size[0], 3), colour, np.uint8)
                picture[i % size[1]] //= 2
                Image.fromarray(picture).save(root / split / name / f"{i}.png")


def test_the_users_own_images_are_learned_and_predicting_needs_no_data_set():
    make_pictures(Path("mine"), (8, 4))
    result = train(tiny_recipe("name=folder:mine", "batch_size=4", "epochs=3", "lr=1e-2"), "mine")
    assert result.accuracy == 1
    Path("mine/test/red/0.png").rename("a.png")
    Path("mine").rename("elsewhere")
    trained = load_run(result.folder)
    assert predict(trained, "a.png")[0] == "red"
    Image.new("RGB", (5, 5)).save("small.png")
    with pytest.raises(DataError, match=r"small\.png has 5 x 5 pixels; this model takes 8 x 4"):
        predict(trained, "small.png")


def test_test_images_of_another_size_are_refused_before_the_run():
    make_pictures(Path("mine"), (8, 8))
    for path in Path("mine/test").glob("*/*.png"):
        Image.new("RGB", (4, 8)).save(path)
    with pytest.raises(DataError, match=r"images of the shape \(3, 8, 8\).*test images of \(3, 8, 4\)"):
        train(tiny_recipe("name=folder:mine"), "run")
    assert train(tiny_recipe("name=folder:mine", "image_size=8"), "run").folder == Path("runs/run")
