"""Commands notice data that is not what a run has learnt, and say by name what changed."""

import dataclasses
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import isolate, metrics_of, tiny_recipe

import tinyvit as tv
from tinyvit import use
from tinyvit.cli import main
from tinyvit.data import Dataset, TextDataset
from tinyvit.errors import CheckpointError, DataError, RecipeError
from tinyvit.run.folder import CHECKPOINT, load_data, load_run, load_test_data
from tinyvit.run.loop import resume, train
from tinyvit.run.state import Training
from tinyvit.study.subject import study_run

COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "é": (30, 30, 200)}


def paint(path: Path, colour: tuple[int, int, int], seed: int, size: int = 8) -> None:
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["tinyvit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code, *capsys.readouterr()


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    isolate(tmp_path, monkeypatch)
    for split, count in (("train", 8), ("test", 4)):
        for k, (name, colour) in enumerate(COLOURS.items()):
            for i in range(count):
                paint(Path("data", split, name, f"{i}.png"), colour, (split == "test") * 1000 + 100 * k + i)
    return Path("data")


RECIPE = ("name=folder:data", "batch_size=8", "image_size=8", "epochs=1", "lr=0.02", "warmup_epochs=0")


@pytest.fixture
def run(data) -> Path:
    return train(tiny_recipe(*RECIPE), "run").folder


def rename(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "b").rename(data / split / "z")


def add_a_class(data: Path) -> None:
    for split in ("train", "test"):
        paint(data / split / "aa" / "0.png", (90, 90, 90), 7)


def drop_a_class(data: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(data / split / "b")


CHANGES = [
    (rename, "the classes were a, b, é and are now a, z, é (b is gone, z is new)"),
    (add_a_class, "are now a, aa, b, é (aa is new)"),
    (drop_a_class, "are now a, é (b is gone)"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_evaluate_study_and_resume_name_the_classes_that_changed(run, data, change, words) -> None:
    change(data)
    for command in (lambda: use.evaluate(load_run(run)), lambda: study_run(str(run))):
        with pytest.raises(DataError, match="not what this model was trained on") as caught:
            command()
        assert words in str(caught.value)
    with pytest.raises(CheckpointError, match="is of a run on other images") as told:
        resume(run)
    assert words in str(told.value)
    assert load_run(run).data.classes == ("a", "b", "é")  # to predict needs no data


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_refused_continuation_changes_no_file(run, data, change, words) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    shutil.copytree(data, "kept")
    change(data)
    with pytest.raises(CheckpointError, match="is of a run on other images"):
        resume(run, assignments=["epochs=2"])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    shutil.rmtree(data)
    Path("kept").rename(data)
    assert len(resume(run).metrics) == 1  # still the finished run that it was
    assert len(resume(run, assignments=["epochs=2"]).metrics) == 2


def test_images_of_another_size_are_named(data) -> None:
    run = train(tiny_recipe(*RECIPE, "image_size=0"), "run").folder
    for split in ("train", "test"):
        for path in (data / split).glob("*/*.png"):
            Image.open(path).resize((12, 12)).save(path)
    for command in (lambda: use.evaluate(load_run(run)), lambda: resume(run)):
        with pytest.raises((DataError, CheckpointError), match=r"were 8 x 8 pixels .* are now 12 x 12 pixels"):
            command()


def test_the_other_form_of_unicode_is_the_same_class(run, data, monkeypatch, capsys) -> None:
    before = use.evaluate(load_run(run))
    for split in ("train", "test"):
        (data / split / "é").rename(data / split / unicodedata.normalize("NFD", "é"))
    assert use.evaluate(load_run(run)) == before
    assert resume(run).folder == run
    assert study_run(str(run), label=unicodedata.normalize("NFD", "é")).target == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_is_not_resumed_with_files_of_another_content(run, data, split) -> None:
    paint(data / split / "a" / "0.png", (1, 2, 3), 5)
    with pytest.raises(CheckpointError, match=f"files of the {split} split have another content"):
        resume(run)
    paint(data / split / "a" / "99.png", (1, 2, 3), 5)
    with pytest.raises(CheckpointError, match="is of a run on other images"):
        resume(run)


def test_test_images_that_are_train_images_are_named(data, caplog) -> None:
    shutil.copy(data / "train" / "a" / "3.png", data / "test" / "b" / "copy.png")
    train(tiny_recipe(*RECIPE), "run")
    assert "1 of 13 test images are train images too" in caplog.text
    assert "data/test/b/copy.png = data/train/a/3.png" in caplog.text


def test_one_class_is_refused_before_a_folder_is_made(data, monkeypatch, capsys) -> None:
    for split in ("train", "test"):
        (data / split).rename("aside")
        (data / split).mkdir()
        Path("aside").rename(data / split / "images")
    arguments = [part for assignment in RECIPE for part in ("--set", assignment)]
    status, _, error = call(monkeypatch, capsys, "train", *arguments)
    assert (status, "has the class 'images' only" in error, Path("runs").exists()) == (2, True, False)


def test_a_broken_and_a_hidden_file_stop_no_command(run, data, monkeypatch, capsys) -> None:
    for split in ("train", "test"):
        for name in ("._0.png", "torn.png"):
            (data / split / "a" / name).write_bytes(b"\0\5\26\7")
    for arguments in (("evaluate", run), ("train", "--resume", run)):
        status, _, error = call(monkeypatch, capsys, *arguments)
        assert status == 0, error
        assert (
            "tinyvit: warning: data/test: 1 file is left out of the test split, beside 12 images: data/test/a/torn.png"
            in error
        )
        assert "._0.png" not in error
    status, out, error = call(monkeypatch, capsys, "predict", run, data / "test/a/torn.png", data / "test/a/0.png")
    assert (status, len(out.splitlines()), "torn.png cannot be read" in error) == (2, 1, True)


def test_labels_follow_the_order_of_the_classes_that_a_model_has_learnt(run) -> None:
    trained, names = load_run(run), ("é", "a", "b")
    found = load_test_data(trained)
    other = load_test_data(trained._replace(data=dataclasses.replace(trained.data, classes=names)))
    assert (found.classes, other.classes) == (("a", "b", "é"), names)
    assert [names[label] for label in other.labels] == [found.classes[label] for label in found.labels]


def test_a_run_without_its_checkpoint_names_the_classes_that_it_assumes(run, caplog) -> None:
    (run / CHECKPOINT).unlink()
    assert load_run(run).data.classes == ("a", "b", "é")
    assert "its classes are taken to be those that folder:data now has: a, b, é" in caplog.text


def test_a_byte_order_mark_changes_nothing(run, monkeypatch, capsys) -> None:
    text = (run / "recipe.toml").read_bytes()
    (run / "recipe.toml").write_bytes(b"\xef\xbb\xbf" + text)
    assert use.evaluate(load_run(run))
    assert resume(run).folder == run


# data.limit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [3, 4, 10, 24, 99])
def test_a_limit_takes_some_of_every_class(data, limit) -> None:
    recipe = tiny_recipe(*RECIPE, f"limit={limit}")
    found = load_data(recipe, "train")
    assert np.bincount(found.labels, minlength=3).min() >= limit // 3 if limit < 24 else len(found) == 24
    assert len(found.files) == len(found)
    other = load_data(recipe.override(["seed=1"]), "train")
    assert (found.files == other.files) == (limit >= 24)
    assert load_data(recipe, "train").files == found.files
    assert len(load_data(recipe, "test")) == 12


def test_a_limit_below_the_number_of_classes_is_refused(data) -> None:
    with pytest.raises(RecipeError, match=r"data.limit is 2: 2 images of 3 classes would leave"):
        train(tiny_recipe(*RECIPE, "limit=2"), "run")
    assert not Path("runs").exists()


def test_a_limited_run_of_an_earlier_version_resumes_with_its_first_samples(data) -> None:
    recipe = tiny_recipe(*RECIPE, "limit=16", "epochs=2")
    whole, parts = Training(recipe, legacy=True), Training(recipe, legacy=True)
    assert whole.train_data.labels.tolist() == [0] * 8 + [1] * 8
    for training in (whole, parts):
        for group in training.groups():
            training.step(group)
        training.finish_epoch(lambda: None)
    state = parts.state_dict()
    del state["legacy"], state["fingerprints"]
    folder = Path("old")
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe.to_toml())
    tv.save(folder / CHECKPOINT, state)
    for group in whole.groups():
        whole.step(group)
    whole.finish_epoch(lambda: None)
    resume(folder)
    assert metrics_of(folder)[-1]["train_loss"] == whole.position.metrics[-1]["train_loss"]
    resume(folder)  # what it wrote resumes too


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize(("kind", "name"), [("vqa", "scenes-questions"), ("caption", "scenes-captions")])
def test_a_limit_of_texts_takes_some_of_every_answer_or_kind(kind, name) -> None:
    recipe = tiny_recipe(f"name={name}", f"kind={kind}", "limit=60")
    all_of_it, found = load_data(recipe.override(["limit=0"]), "train"), load_data(recipe, "train")
    assert isinstance(found, TextDataset)
    assert not isinstance(found, Dataset)
    groups = (all_of_it.labels, found.labels) if kind == "vqa" else (all_of_it.kind_of, found.kind_of)
    assert set(groups[0].tolist()) == set(groups[1].tolist())


# Data that lies elsewhere ---------------------------------------------------------------------------------------------


def test_a_run_is_measured_from_any_folder(run, monkeypatch, capsys) -> None:
    before = call(monkeypatch, capsys, "evaluate", run)
    home = Path.cwd()
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert call(monkeypatch, capsys, "evaluate", home / run) == before
    assert call(monkeypatch, capsys, "evaluate", Path("..") / run) == before
    (home / "moved").mkdir()
    (home / "data").rename(home / "moved" / "data")
    (home / "runs").rename(home / "moved" / "runs")
    assert call(monkeypatch, capsys, "evaluate", home / "moved" / run) == before  # both were moved, together
    (home / "moved" / "data").rename(home / "other")
    status, out, error = call(monkeypatch, capsys, "evaluate", home / "moved" / run)
    assert (status, out) == (2, "")
    assert "data does not exist: the run names its data by this path, which begins at the folder in which" in error
    assert "tinyvit evaluate RUN --data PATH" in error
    assert call(monkeypatch, capsys, "evaluate", home / "moved" / run, "--data", home / "other") == before


def test_a_run_is_resumed_where_it_was_begun(run, monkeypatch, capsys) -> None:
    home = Path.cwd()
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    status, _, error = call(monkeypatch, capsys, "train", "--resume", home / run)
    assert (status, f"resume it there: cd {home}\n" in error) == (2, True)
    shutil.rmtree(home / "data")
    status, _, error = call(monkeypatch, capsys, "train", "--resume", home / run)
    assert (status, "resume it there, or put the data back" in error) == (2, True)


def test_other_data_is_given_to_runs_on_data_of_the_user_only(data, monkeypatch, capsys) -> None:
    train(tiny_recipe("epochs=1"), "digits")
    status, _, error = call(monkeypatch, capsys, "evaluate", "runs/digits", "--data", data)
    assert (status, "learned from digits, not from data of your own" in error) == (2, True)
