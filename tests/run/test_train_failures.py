"""Runs that fail: their errors and the files they leave; no failure damages the checkpoint."""

import errno
import json
import math
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_run import Watch, isolate, sha256, tiny_recipe

from tinyvit.checkpoint import load
from tinyvit.cli import commands
from tinyvit.errors import DataError, RecipeError, TrainingFailed
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import RunError
from tinyvit.run.loop import Result, resume, train


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("clip", "says"),
    [("clip_norm=0", "the loss of step "), ("clip_norm=1", "step ")],
)
def test_overflow_stops_the_run_with_the_epoch_and_the_step(clip, says):
    with pytest.raises(TrainingFailed) as caught:
        train(tiny_recipe("optimizer=sgd", "lr=1e30", "epochs=9", "clip_norm=0", clip), "run")
    assert says in str(caught.value)
    assert "in epoch 1" in str(caught.value)
    assert "runs/run/checkpoint.safetensors is of the last good step" in str(caught.value)
    assert all(np.isfinite(w).all() for w in load(Path("runs/run/checkpoint.safetensors"))["model"].values())


def follow(message: str, lr: float) -> None:
    """Run the command that a message names last, with a rate that works, and require that it trains a run."""
    words = shlex.split(message.rpartition("train again: " if "train again: " in message else "in a new run: ")[2])
    assert words[:2] == ["tinyvit", "train"]
    words = [f"lr={lr}" if word.startswith("lr=") else word for word in words[1:]]
    answer = CliRunner().invoke(commands, words)
    assert answer.exit_code == 0, answer.exception
    assert json.loads(Path("runs/run-again/test.json").read_text())["accuracy"] > 0


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_run_that_became_nan_names_a_command_that_works(is_asked):
    with pytest.raises(TrainingFailed) as caught:
        train(tiny_recipe("optimizer=sgd", "lr=1e30", "epochs=1"), "run")
    assert "--set lr=1e+29 " in str(caught.value)
    if is_asked:
        with pytest.raises(RunError, match=r"end it first, .*--set lr=0\.01 --out runs/run-again") as caught:
            resume(Path("runs/run"), assignments=["lr=0.01"])
    follow(str(caught.value), 0.01)


def test_a_continued_run_that_became_nan_names_a_command_that_starts_from_its_weights():
    train(tiny_recipe("optimizer=sgd", "epochs=1"), "run")
    with pytest.raises(TrainingFailed, match="--set continued_from=0 --set start_from=runs/run") as caught:
        resume(Path("runs/run"), assignments=["epochs=2", "lr=1e30"])
    follow(str(caught.value), 0.01)
    recipe = load_recipe("runs/run-again/recipe.toml")
    assert (recipe.task.start_from, recipe.train.continued_from) == ("runs/run", 0)


def test_a_finished_run_that_became_nan_when_it_was_continued_can_be_continued_otherwise():
    recipe = tiny_recipe("optimizer=sgd", "epochs=1", "validation=0.1", "keep=best")
    plain, run = (train(recipe, name).folder for name in ("plain", "run"))
    weights = (run / "model.safetensors").read_bytes()
    with pytest.raises(TrainingFailed):
        resume(run, assignments=["epochs=3", "lr=1e30"])
    assert (run / "model.safetensors").read_bytes() == weights
    for folder in (plain, run):
        resume(folder, assignments=["epochs=2", "lr=0.01"])
    assert sha256(run) == sha256(plain)


@pytest.mark.parametrize("checkpoint_minutes", [1e-9, 10])
@pytest.mark.parametrize("step", [2, 6, 8])  # 6 is the last of an epoch
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_checkpoint_with_weights_that_are_not_finite_is_never_written(checkpoint_minutes, step, bad):
    def spoil(training, position):
        if position.step == step:
            next(training.model.parameters()).data[...] = bad

    with pytest.raises(TrainingFailed, match=f"step {step}|step {step + 1}"):
        train(tiny_recipe(f"checkpoint_minutes={checkpoint_minutes}"), "run", display=Watch(spoil))
    state = load(Path("runs/run/checkpoint.safetensors"))
    assert all(np.isfinite(w).all() for w in state["model"].values())
    assert state["position"]["step"] == (step - 1 if checkpoint_minutes < 1 else 6 * ((step - 1) // 6))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Result:
    """A run that is not interrupted."""
    return train(tiny_recipe(), "run", tmp_path_factory.mktemp("uninterrupted") / "run")


class DiskFull:
    """Let `files` files be written, and no more."""

    def __init__(self, monkeypatch, files):
        self.left, self.original = files, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor):
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.original(descriptor)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells files from folders by /proc, which Linux has")
@pytest.mark.parametrize("out", [None, Path("new"), Path("empty")])
def test_a_disk_too_full_for_a_run_is_an_error_and_leaves_no_file(monkeypatch, out):
    Path("empty").mkdir()
    DiskFull(monkeypatch, 0)
    with pytest.raises(RunError, match=rf"{out or 'runs/run'}/recipe\.toml cannot be written: No space left on device"):
        train(tiny_recipe(), "run", out)
    assert not [path for path in Path().rglob("*") if path.is_file()]
    assert not Path("runs/run").exists()
    assert not Path("new").exists()
    assert Path("empty").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells files from folders by /proc, which Linux has")
@pytest.mark.parametrize("files", range(10))
def test_an_error_about_a_full_disk_names_the_file_and_the_run_can_be_resumed(monkeypatch, uninterrupted, files):
    names = [*["checkpoint.safetensors", "model.safetensors", "metrics.jsonl"] * 3, "classes.csv"]
    with monkeypatch.context() as patch:
        DiskFull(patch, 1 + files)  # the first is recipe.toml
        with pytest.raises(TrainingFailed) as caught:
            train(tiny_recipe(), "full")
    assert f"runs/full/{names[files]} cannot be written (No space left on device)" in str(caught.value)
    assert str(caught.value).endswith("then continue with: tinyvit train --resume runs/full")
    resumed = resume(Path("runs/full"))
    assert sha256(resumed.folder) == sha256(uninterrupted.folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells files from folders by /proc, which Linux has")
@pytest.mark.parametrize("lost", [None, "model.safetensors", "metrics.jsonl", "curves.png", "a line"])
def test_a_finished_run_on_an_unwritable_disk_is_an_error_only_if_it_lacks_a_file(monkeypatch, lost):
    finished = train(tiny_recipe(), "run")
    DiskFull(monkeypatch, 0)
    if lost:
        if lost == "a line":
            (finished.folder / "metrics.jsonl").write_text("")
        else:
            (finished.folder / lost).unlink()
        with pytest.raises(TrainingFailed, match="No space left on device"):
            resume(finished.folder)
    else:
        assert resume(finished.folder) == finished


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["patch_size=3"], "model.patch_size: patch_size (3, 3) does not divide image_size (8, 8)"),
        (["heads=3"], "model.dim, model.heads: dim is 8 and heads 3"),
        (["pos_embed=sincos2d", "dim=6"], "model.dim: two-dimensional sinusoidal positions"),
    ],
)
def test_an_error_about_the_model_names_the_keys_of_the_recipe(assignments, says):
    with pytest.raises(RecipeError) as caught:
        train(tiny_recipe(*assignments), "run")
    assert str(caught.value).startswith(says)
    assert not Path("runs").exists()


def test_missing_data_leaves_no_folder():
    with pytest.raises(DataError, match="no data set 'digitz'"):
        train(tiny_recipe("name=digitz"), "run")
    assert not Path("runs").exists()
