"""Training on the user's own images by one command, predicting from Python, continuing, and what starts from what."""

import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Watch, isolate, metrics_of, sha256, tiny_recipe
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit import use
from tinyvit.data import check_folder
from tinyvit.data.folders import HELD_OUT
from tinyvit.errors import DataError, RecipeError
from tinyvit.recipe import load_recipe
from tinyvit.run.display import Lines
from tinyvit.run.folder import RunError, load_run, load_splits
from tinyvit.run.loop import resume, train
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.signals import Interrupted, Stopped
from tinyvit.run.state import Training
from tinyvit.run.sweep import parsed_seeds, sweep

SMALL = ("dim=8", "depth=1", "heads=2", "mlp_dim=8", "epochs=3", "lr=0.01", "stem=linear")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def pictures() -> Path:
    """Red, green and blue pictures of several sizes, modes and formats."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("red", "green", "blue")):
        for i in range(20):
            pixels = rng.integers(0, 90, (20 + i, 30, 3), np.uint8)
            pixels[..., k] += 150
            path = Path("pictures", name, f"{i}.{('png', 'jpg', 'webp')[i % 3]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGBA" if i % 3 == 0 else "RGB").save(path)
    return Path("pictures")


def test_a_folder_is_trained_on_by_its_name_alone(pictures) -> None:
    recipe, name = chosen_recipe("pictures", None, SMALL)
    assert name == "pictures"
    assert (recipe.data.image_size, recipe.model.patch_size, recipe.data.channels) == (24, 3, 3)
    assert recipe.about.title == "Images in pictures: blue, green, red"
    assert recipe.about.accuracy == 0  # nobody has measured it
    result = train(recipe, name)
    assert str(result.folder) == "runs/pictures"
    assert result.accuracy > 0.8
    assert use.evaluated(load_run(result.folder))["accuracy"] == result.accuracy
    rows = list(csv.DictReader(io.StringIO((result.folder / "classes.csv").read_text())))
    assert [row["class"] for row in rows] == ["blue", "green", "red"]
    matrix = list(csv.reader(io.StringIO((result.folder / "confusion.csv").read_text())))
    counts = np.array([row[1:] for row in matrix[1:]], int)
    assert [int(row["samples"]) for row in rows] == counts.sum(axis=1).tolist()
    assert [int(row["right"]) for row in rows] == counts.diagonal().tolist()
    assert counts.trace() / counts.sum() == result.accuracy
    for row, right, taken in zip(rows, counts.diagonal(), counts.sum(axis=0), strict=True):
        assert not taken or float(row["precision"]) == pytest.approx(right / taken, rel=1e-5)


def test_another_recipe_takes_a_folder_too(pictures) -> None:
    recipe, name = chosen_recipe("cifar-10", "pictures", ["epochs=1"])
    assert (name, recipe.data.name, recipe.data.image_size) == ("pictures", "folder:pictures", 28)
    assert recipe.model == load_recipe("cifar-10").model
    assert chosen_recipe(None, "pictures", ["image_size=16"])[0].model.patch_size == 2
    with pytest.raises(RecipeError, match="not for 'vqa' runs"):
        chosen_recipe("vqa", "pictures", [])
    with pytest.raises(RecipeError, match="is a run folder"):
        chosen_recipe(str(train(tiny_recipe("epochs=1"), "x").folder), None, [])


@pytest.mark.parametrize("name", ["cifar-10", "mnist"])
def test_the_number_that_a_recipe_holds_out_of_its_own_data_is_not_taken_for_a_folder(pictures, name) -> None:
    assert load_recipe(name).data.validation == 5000
    for recipe, run in (chosen_recipe(name, "pictures", []), chosen_recipe(name, None, ["data.name=folder:pictures"])):
        assert recipe.data.validation == load_recipe("folder").data.validation == HELD_OUT, run
    splits = load_splits(chosen_recipe(name, "pictures", [])[0])
    assert [len(split.labels) for split in splits] == [41, 7, 12]
    assert chosen_recipe(name, "pictures", ["data.validation=9"])[0].data.validation == 9
    Path("mine.toml").write_text('base = "cifar-10"\n[data]\nname = "folder:others"\nvalidation = 9\n')
    assert chosen_recipe("mine.toml", "pictures", [])[0].data.validation == 9
    assert chosen_recipe(name, None, ["name=digits"])[0].data.validation == 5000  # which training refuses


@pytest.mark.parametrize(("number", "fits"), [(24, True), (25, False), (5000, False)])
def test_a_number_that_leaves_less_than_half_of_the_images_is_refused(pictures, number, fits) -> None:
    changes = [f"validation={number}", "channels=3", "image_size=16"]
    if fits:
        splits = load_splits(chosen_recipe("folder", "pictures", changes)[0])
        assert [len(split.labels) for split in splits] == [24, 24, 12]
        return
    with pytest.raises(DataError, match=rf"validation is {number:,}, a number of images .* of 48; .* at most 24, or a"):
        chosen_recipe("folder", "pictures", changes)
    with pytest.raises(DataError, match="must be left to train on"):
        train(tiny_recipe("name=folder:pictures", *changes), "run")
    assert not Path("runs").exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_check_shows_the_splits_that_training_makes(pictures, made) -> None:
    recipe = chosen_recipe("cifar-10" if made else None, "pictures", [])[0]
    expected = [len(split.labels) for split in load_splits(recipe)]
    line = next(line for line in check_folder(pictures).text.splitlines() if line.startswith("all"))
    assert list(map(int, line.split()[1:])) == expected


@pytest.mark.parametrize("name", ["nothere.csv", "0.png", "some/where", "gone/", "/no/tiny.csv"])
def test_a_path_that_leads_nowhere_is_not_called_a_recipe(name) -> None:
    with pytest.raises(
        RecipeError, match=r"^there is no file or folder .*: give a folder of images .* a table"
    ) as told:
        chosen_recipe(name, None, [])
    assert repr(name) in str(told.value)


def test_a_file_that_nothing_can_be_learned_from_is_named() -> None:
    Path("some.txt").write_text("a text")
    with pytest.raises(RecipeError, match=r"^some\.txt is a file of another kind: give a folder of images"):
        chosen_recipe("some.txt", None, [])
    with pytest.raises(RecipeError, match=r"there is no recipe 'digts' \(did you mean 'digits'\?\)"):
        chosen_recipe("digts", None, [])


def test_the_accuracy_of_a_recipe_is_expected_of_its_own_settings_only() -> None:
    stated = load_recipe("digits").about.accuracy
    for changes, expected in ((["seed=3"], stated), (["epochs=1"], 0), (["epochs=1", "accuracy=0.3"], 0.3)):
        assert chosen_recipe("digits", None, changes)[0].about.accuracy == expected


# Predicting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "title", "name"),
    [
        (["name=mnist"], "mnist, by the recipe digits", "digits-mnist"),
        (["data.name=folder:some/My pictures!"], "My pictures!, by the recipe digits", "digits-My-pictures"),
        (["data.name=folder:???"], "???, by the recipe digits", "digits-data"),
        (["epochs=3"], "Handwritten digits, 8x8 pixels", "digits"),
        (["name=mnist", "title=Mine"], "Mine", "digits"),
    ],
)
def test_a_recipe_on_other_data_is_not_called_by_its_own(changes: list[str], title: str, name: str) -> None:
    recipe, run = chosen_recipe("digits", None, changes)
    assert (recipe.about.title, run) == (title, name)
    assert recipe.about.accuracy == 0  # nobody has measured it


def test_predict_takes_paths_arrays_and_pillow_images(pictures) -> None:
    run = tv.load_run(train(chosen_recipe("pictures", None, SMALL)[0], "run").folder)
    path = pictures / "red" / "1.jpg"
    image = Image.open(path)
    array = np.asarray(image)
    (expected,) = run.predict(path, top=3)
    assert [name for name, _ in expected] == sorted(run.classes, key=dict(expected).__getitem__, reverse=True)
    assert sum(p for _, p in expected) == pytest.approx(1, abs=1e-6)
    assert expected[0][0] == "red"
    several = [str(path), image, array, array.transpose(2, 0, 1), (array / 255).astype(np.float32)]
    assert run.predict(several, top=3) == [expected] * 5
    assert run.predict(np.stack([array] * 2), top=3) == [expected] * 2
    assert run.predict([]) == []
    for wrong, message in (
        (3, "an image is one number"),
        (array.astype(int), "it must be uint8"),
        (array[..., :2], "shape"),
    ):
        with pytest.raises(DataError, match=message):
            run.predict([wrong])
    for top in (4, 0, 1.5, "2", None):
        with pytest.raises(ValueError, match=f"top is {top!r}; it must be an integer from 1 to 3"):
            run.predict(path, top=top)
    assert run.predict(path, top=np.int64(3)) == [expected]


# Continuing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "constant", "cooldown"])
def test_a_finished_run_continues_with_a_schedule_that_begins_anew(schedule, capsys) -> None:
    recipe = tiny_recipe("validation=0.1", f"schedule={schedule}", "warmup_epochs=0", "min_lr=1e-5")
    folder = train(recipe, "run").folder
    rates: list[float] = []

    class Noted(Lines):
        def stepped(self, position) -> None:
            super().stepped(position)
            rates.append(noted.learning_rate(position.step))

        def accept(self, training) -> None:
            nonlocal noted
            noted = training

    noted: Training
    resume(folder, Noted(), ["epochs=5"])
    assert len(metrics_of(folder)) == 5
    assert rates[0] == recipe.train.lr
    assert (rates[-1] < 0.5 * recipe.train.lr) == (schedule != "constant")
    assert (rates[len(rates) // 2] == recipe.train.lr) == (schedule != "cosine")
    assert rates == sorted(rates, reverse=True)
    how = {
        "cosine": "a warm restart of the learning rate",
        "constant": "the same learning rate",
        "cooldown": "the learning rate train.lr, which falls at the end",
    }[schedule]
    assert f"continued after epoch 2 with {how}" in capsys.readouterr().out
    assert load_recipe(folder / "recipe.toml").train.continued_from == 2


def test_a_run_at_a_constant_rate_is_cooled_down_without_another_warm_up() -> None:
    folder = train(tiny_recipe("schedule=constant", "warmup_epochs=1", "min_lr=1e-5"), "run").folder
    resume(folder, None, ["epochs=4", "schedule=cooldown", "cooldown=0.5"])
    recipe = load_recipe(folder / "recipe.toml")
    training = Training(recipe)
    steps = training.steps_per_epoch
    rates = [training.learning_rate(step) for step in range(1, 4 * steps + 1)]
    assert set(rates[2 * steps : 3 * steps]) == {recipe.train.lr}
    assert rates[3 * steps + 1 :] == sorted(rates[3 * steps + 1 :], reverse=True)
    assert rates[-1] < 0.2 * recipe.train.lr


@pytest.mark.parametrize("stop_at", [None, 13, 17])
def test_a_continued_run_resumes_to_the_same_bits(stop_at) -> None:
    recipe = tiny_recipe("validation=0.1", "keep=best", "ema=0.9")
    whole, part = (train(recipe, name).folder for name in ("whole", "part"))
    resume(whole, assignments=["epochs=4"])

    def stop(training, position) -> None:
        if position.step == stop_at:
            raise Stopped

    if stop_at is None:  # killed after the recipe was replaced
        (part / "recipe.toml").write_text((whole / "recipe.toml").read_text())
    else:
        with pytest.raises(Interrupted):
            resume(part, Watch(stop), ["epochs=4"])
    resume(part)
    assert sha256(part) == sha256(whole)


def test_what_cannot_be_continued_is_refused() -> None:
    def stop(training, position) -> None:
        raise Stopped

    with pytest.raises(Interrupted):
        train(tiny_recipe("epochs=2"), "half", display=Watch(stop))
    with pytest.raises(RunError, match="has trained 0 of 2 epochs: end it first, with tinyvit train --resume"):
        resume(Path("runs/half"), assignments=["epochs=9"])
    folder = train(tiny_recipe("epochs=2"), "run").folder
    before = (folder / "recipe.toml").read_text()
    for change, message in (
        ("dim=4", "not model.dim"),
        ("epochs=2", "has trained 2; give more"),
        ("lr=1", "give more"),
    ):
        with pytest.raises(RecipeError, match=message):
            resume(folder, assignments=[change])
    assert (folder / "recipe.toml").read_text() == before


# Starting from another run --------------------------------------------------------------------------------------------


def test_a_whole_model_is_taken_and_gets_a_new_head_for_other_classes(pictures, capsys) -> None:
    base = chosen_recipe("pictures", None, SMALL)[0]
    source = load_run(train(base, "first").folder).model.state_dict()
    (pictures / "red").rename("aside")
    still = base.override(["start_from=runs/first", "lr=1e-12", "min_lr=0", "epochs=1", "ema=0"])
    train(still, "second", display=Lines())
    assert "took the whole model but its head, which starts anew for other classes" in capsys.readouterr().out
    state = load_run("runs/second").model.state_dict()
    assert state["head.weight"].shape == (2, 8)
    for key in state.keys() - {"head.weight", "head.bias"}:
        np.testing.assert_allclose(state[key], source[key], atol=1e-6)
    Path("aside").rename(pictures / "red")
    train(still, "third", display=Lines())
    assert "took the whole model (" in capsys.readouterr().out
    np.testing.assert_allclose(
        load_run("runs/third").model.state_dict()["head.weight"], source["head.weight"], atol=1e-6
    )


def test_another_task_gives_its_encoder_and_the_first_line_says_so(capsys) -> None:
    train(tiny("masked-patches"), "first")
    recipe = tiny("masked-patches", "kind=classify", "start_from=runs/first", "freeze=vision")
    train(recipe, "second", display=Lines())
    out = capsys.readouterr().out
    assert "started from runs/first: took the vision encoder, while the rest starts anew" in out
    assert "weights are trained" in out


# Seeds and lines ------------------------------------------------------------------------------------------------------


def test_seeds_give_a_table_with_mean_and_deviation() -> None:
    table = sweep(
        tiny_recipe("validation=0.1", "epochs=1"), "tiny", [0, 3], None, Watch(lambda *_: None).__class__.__mro__[1]
    )
    accuracies = [json.loads(Path(f"runs/tiny-seeds/seed-{seed}/test.json").read_text())["accuracy"] for seed in (0, 3)]
    assert sha256(Path("runs/tiny-seeds/seed-3")) == sha256(
        train(tiny_recipe("validation=0.1", "epochs=1", "seed=3"), "x").folder
    )
    mean, deviation = (line.split() for line in table.splitlines() if line.lstrip().startswith(("mean", "deviation")))
    assert float(mean[3]) == pytest.approx(100 * np.mean(accuracies), abs=0.006)
    assert float(deviation[3]) == pytest.approx(100 * np.std(accuracies, ddof=1), abs=0.006)
    assert len(Path("runs/tiny-seeds/seeds.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("text", ["", "a", "1,1", "-1", "1,,2"])
def test_seeds_that_are_none_are_refused(text) -> None:
    with pytest.raises(RecipeError, match="--seeds is"):
        parsed_seeds(text)


def test_a_line_is_printed_while_nothing_else_happens(capsys) -> None:
    with Lines(every=0.01) as lines:
        lines.measuring("validation", 3, 7)
        deadline = time.monotonic() + 60
        out = ""
        while "measuring validation batch 3 of 7" not in out:  # every few milliseconds
            assert time.monotonic() < deadline
            time.sleep(0.01)
            out += capsys.readouterr().out


def test_the_first_step_says_how_long_it_has_taken(capsys) -> None:
    with Lines(every=0.01):
        deadline = time.monotonic() + 60
        out = ""
        while "the first step: 1 s so far" not in out:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            out += capsys.readouterr().out
