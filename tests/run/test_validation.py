"""Validation images: cut from the training images, used for curves and choices; the test images are measured once."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import quick_first
from tiny_run import ALL_STREAMS, Watch, isolate, metrics_of, sha256, tiny_recipe
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit.checkpoint import load
from tinyvit.data import hold_out, load_dataset
from tinyvit.data.datasets import first_of_each
from tinyvit.errors import RecipeError
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.display import Lines
from tinyvit.run.folder import load_data, load_run, load_splits
from tinyvit.run.loop import resume, train
from tinyvit.run.position import best_epoch
from tinyvit.run.signals import Interrupted, Stopped
from tinyvit.run.state import Training
from tinyvit.tasks import Task, task_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


# The cut --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(0, 60), st.randoms())
def test_each_group_gives_its_share_and_keeps_one(groups, count, random) -> None:
    order = random.sample(range(len(groups)), len(groups))
    held = first_of_each(np.array(groups), order, count)
    sizes = np.bincount(groups)
    taken = np.bincount(np.array(groups)[held], minlength=len(sizes))
    assert held.sum() == min(count, np.maximum(sizes - 1, 0).sum())
    assert (taken <= np.maximum(sizes - 1, 0)).all()
    if count <= len(groups) // 2 and sizes[sizes > 0].min() > 1 and sizes.max() == sizes[sizes > 0].min():
        assert (abs(taken - count * sizes / len(groups)) < 1).all()
    for group in range(len(sizes)):  # those that come first in the order
        members = [i for i in order if groups[i] == group]
        assert [held[i] for i in members] == [True] * taken[group] + [False] * (len(members) - taken[group])


@pytest.mark.parametrize(("amount", "count"), [(0.1, 144), (0.25, 360), (100, 100), (1, 1), (0.0001, 1)])
def test_a_part_of_the_train_images_is_held_out(amount, count) -> None:
    whole = load_dataset("digits", "train")
    rest, held = hold_out(whole, amount, seed=0)
    assert (len(held), len(rest), held.split, rest.split) == (count, 1438 - count, "validation", "train")
    images = sorted([image.tobytes() for part in (rest, held) for image in part.images])
    assert images == sorted(image.tobytes() for image in whole.images)
    if count >= 100:
        shares = np.bincount(whole.labels) * count / 1438
        assert (abs(np.bincount(held.labels) - shares) <= 1).all()
    again, other = (hold_out(whole, amount, seed)[1] for seed in (0, 1))
    assert np.array_equal(held.images, again.images)
    assert not np.array_equal(held.images, other.images)


@pytest.mark.usefixtures("few_scenes")
def test_questions_about_one_image_are_on_one_side() -> None:
    splits = load_splits(tiny("vqa-cross", "limit=0", "validation=0.2"))
    assert not set(splits.train.image_of) & set(splits.validation.image_of)
    whole = task_of(tiny("vqa-cross")).load("train")
    assert len(splits.train) + len(splits.validation) == len(whole)
    assert 0.1 < len(splits.validation) / len(whole) < 0.3


def test_the_split_does_not_depend_on_the_seed_of_the_run() -> None:
    recipes = [tiny_recipe("validation=0.1", *extra) for extra in ((), ("seed=5",), ("split_seed=5",))]
    first, same, other = (load_data(recipe, "validation").images for recipe in recipes)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("amount", ["1.5", "1438", "99999"])
def test_an_amount_that_cannot_be_held_out_is_refused(amount) -> None:
    with pytest.raises(RecipeError, match=r"data.validation is .*(neither a fraction|cannot be held out)"):
        train(tiny_recipe(f"validation={amount}"), "run")
    assert not Path("runs").exists()


@pytest.mark.parametrize("choice", ["keep=best", "patience=2"])
def test_choosing_needs_validation_images(choice) -> None:
    with pytest.raises(RecipeError, match=r"data.validation is 0; hold some out"):
        train(tiny_recipe(choice), "run")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_holds_images_out(name) -> None:
    assert load_recipe(name).data.validation > 0


# What is measured on which --------------------------------------------------------------------------------------------

RUN = ("validation=0.3", "batch_size=100", "epochs=4", "lr=0.05", "min_lr=0.05", "warmup_epochs=0", "schedule=constant")


def measured_on(recipe, weights, split: str) -> tuple[float, float]:
    """Loss and accuracy by a formula of its own."""
    data = load_data(recipe, split)
    model = Training(recipe).model.eval()
    model.load_state_dict(weights)
    logits = model(data.normalize(data.images)).numpy().astype(np.float64)
    right = logits.argmax(axis=1) == data.labels
    of_label = logits[np.arange(len(data)), data.labels]
    return float((np.log(np.exp(logits).sum(axis=1)) - of_label).mean()), float(right.mean())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_weights_that_are_kept_are_measured_on_validation_and_once_on_test_images(keep) -> None:
    seen = []
    recipe = tiny_recipe(*RUN, f"keep={keep}", "ema=0.5")
    result = train(recipe, "run", display=Watch(lambda t, p: seen.append(tv.load("runs/run/model.safetensors"))))
    accuracies = [(line["val_accuracy"], -line["val_loss"]) for line in result.metrics]
    epoch = 1 + accuracies.index(max(accuracies)) if keep == "best" else 4
    weights = load_run(result.folder).model.state_dict()
    loss, accuracy = measured_on(recipe, weights, "validation")
    line = result.metrics[epoch - 1]
    assert (line["val_loss"], line["val_accuracy"]) == (pytest.approx(loss, rel=1e-5), accuracy)
    test = json.loads((result.folder / "test.json").read_text())
    loss, accuracy = measured_on(recipe, weights, "test")
    assert (test["loss"], test["accuracy"], test["epoch"]) == (pytest.approx(loss, rel=1e-5), accuracy, epoch)
    assert result.accuracy == accuracy
    assert f"test accuracy {100 * accuracy:.2f} %" in str(result)
    assert ("with the weights of epoch" in str(result)) == (keep == "best")


def test_test_images_are_looked_at_once(monkeypatch) -> None:
    splits, evaluate = [], Task.evaluate

    def noted(self, model, data, *rest):
        splits.append(data.split)
        return evaluate(self, model, data, *rest)

    monkeypatch.setattr(Task, "evaluate", noted)
    folder = train(tiny_recipe("validation=0.1"), "run").folder
    assert splits == ["validation", "validation", "test"]
    resume(folder)
    assert splits == ["validation", "validation", "test"]


def test_without_validation_images_the_lines_are_of_the_test(capsys) -> None:
    train(tiny_recipe("epochs=1"), "old", display=Lines())
    first = capsys.readouterr().out
    train(tiny_recipe("epochs=1", "validation=100"), "new", display=Lines())
    second = capsys.readouterr().out
    assert "1,338 images to train on, 100 for validation, 359 for the test" in second
    assert "1,438 images to train on, 359 for the test" in first
    assert "validation accuracy" in second
    assert "test accuracy" not in second
    assert "test accuracy" in first
    assert "validation" not in first


# Choosing and stopping ------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_the_first_of_the_most_accurate_with_the_smallest_loss() -> None:
    measured = ((0.5, 1.0), (0.7, 2.0), (0.7, 1.0), (0.7, 1.0), (0.6, 0.1))
    lines = [{"val_accuracy": accuracy, "val_loss": loss} for accuracy, loss in measured]
    assert [best_epoch(lines[:n]) for n in range(1, 6)] == [1, 2, 3, 3, 3]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_run_stops_when_it_gets_no_better(patience, monkeypatch) -> None:
    accuracies = iter((0.3, 0.5, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    finish = Training.finish_epoch

    def planned(self, after_batch) -> None:
        finish(self, after_batch)
        self.position.metrics[-1]["val_accuracy"] = next(accuracies)

    monkeypatch.setattr(Training, "finish_epoch", planned)
    result = train(tiny_recipe("validation=0.1", "epochs=9", f"patience={patience}"), "run")
    assert len(result.metrics) == {1: 3, 2: 6, 3: 7}[patience]
    again = resume(result.folder)
    assert again.metrics == result.metrics


@pytest.mark.parametrize("stop_at", quick_first([5, 2, 8, 11]))
def test_a_stopped_run_that_keeps_the_best_resumes_to_the_same_bits(stop_at) -> None:
    recipe = tiny_recipe(*ALL_STREAMS, "validation=0.3", "keep=best", "epochs=4", "lr=0.05")
    whole = train(recipe, "whole")

    def stop(training, position) -> None:
        if position.step == stop_at:
            raise Stopped

    with pytest.raises(Interrupted, match=f"after step {stop_at}"):
        train(recipe, "part", display=Watch(stop))
    part = resume(Path("runs/part"))
    assert sha256(whole.folder) == sha256(part.folder)
    assert part.test == whole.test
    states = [load(result.folder / "checkpoint.safetensors") for result in (whole, part)]
    for name, weights in states[0]["best"].items():
        np.testing.assert_array_equal(weights, states[1]["best"][name])


# Runs of earlier versions ---------------------------------------------------------------------------------------------


def test_a_run_folder_without_the_new_keys_trains_as_it_began() -> None:
    whole = train(tiny_recipe("epochs=2"), "whole").folder
    part = train(tiny_recipe("epochs=2"), "part").folder
    text = (part / "recipe.toml").read_text()
    for key in ("validation", "split_seed", "keep", "patience"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key} ="))
    (part / "recipe.toml").write_text(text)
    assert load_recipe(part / "recipe.toml").data.validation == 0.1  # as a new recipe
    assert load_run(part).recipe.data.validation == 0
    (part / "test.json").unlink()
    assert resume(part).accuracy == metrics_of(whole)[-1]["val_accuracy"]
    assert math.isfinite(json.loads((part / "test.json").read_text())["loss"])
