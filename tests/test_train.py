"""Training: each step does what the recipe says, what is reported is true, and no failure costs the checkpoint."""

import dataclasses
import errno
import io
import json
import math
import os
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import ALL_STREAMS, isolate, metrics_of, sha256, tiny_recipe

import tinyvit as tv
from tinyvit.checkpoint import load
from tinyvit.curves import draw_curves
from tinyvit.data import load_dataset
from tinyvit.display import Bar, Display, Lines, heading
from tinyvit.errors import DataError, RecipeError
from tinyvit.evaluate import evaluate, predict
from tinyvit.recipes import load_recipe
from tinyvit.runs import DataSpec, RunError, build_model, load_run, new_run
from tinyvit.train import Training, TrainingFailed, resume, train


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


class Watch(Display):
    """Calls a function with the training and the position after every step."""

    def __init__(self, function):
        self.function = function

    def started(self, training, folder):
        self.training = training

    def stepped(self, position):
        self.function(self.training, position)


# Steps -----------------------------------------------------------------------------------------------------


def gradients_of_an_epoch(*assignments: str) -> list[dict[str, np.ndarray]]:
    training = Training(tiny_recipe("optimizer=sgd", "lr=0.1", *assignments))
    found = []
    for batches in training.groups():
        training.step(batches)
        found.append({name: p.grad.numpy().copy() for name, p in training.model.named_parameters()})
    return found


def test_accumulated_batches_give_the_gradients_of_the_larger_batch():
    accumulated = gradients_of_an_epoch("batch_size=60", "accumulate=6")  # the last group: 5 + 58 / 60 batches
    large = gradients_of_an_epoch("batch_size=360")
    assert len(accumulated) == len(large) == math.ceil(1438 / 360)
    for ours, theirs in zip(accumulated, large, strict=True):
        for name, gradient in theirs.items():
            np.testing.assert_allclose(ours[name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-8)


def test_a_step_goes_down_the_gradient_of_the_mean_loss():
    training = Training(tiny_recipe("optimizer=sgd", "momentum=0", "lr=0.1", "warmup_epochs=0", "batch_size=50"))
    model, (batch,) = training.model, next(training.groups())
    before = model.state_dict()
    loss = tv.functional.cross_entropy(model(batch.images), batch.labels)
    gradients = tv.grad(loss, list(model.parameters()))
    training.step([batch])
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        expected = before[name] - training.learning_rate(1) * gradient.numpy()
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("assignments", "kind", "settings"),
    [
        (["optimizer=adamw", "beta1=0.8", "beta2=0.95"], tv.optim.AdamW, {"betas": (0.8, 0.95)}),
        (["optimizer=adam"], tv.optim.Adam, {"betas": (0.9, 0.999)}),
        (["optimizer=sgd", "momentum=0.7", "nesterov=true"], tv.optim.SGD, {"momentum": 0.7, "nesterov": True}),
        (["optimizer=sgd", "momentum=0"], tv.optim.SGD, {"momentum": 0.0, "nesterov": False}),
    ],
)
def test_the_optimizer_is_the_one_of_the_recipe(assignments, kind, settings):
    training = Training(tiny_recipe(*assignments, "weight_decay=0.05"))
    assert type(training.optimizer) is kind
    assert [group["weight_decay"] for group in training.optimizer.groups] == [0.05, 0.0]
    assert all(p.ndim >= 2 for p in training.optimizer.groups[0]["params"])
    for group in training.optimizer.groups:
        assert settings.items() <= group.items()


def test_an_optimizer_that_cannot_be_is_told_by_the_keys_of_the_recipe():
    with pytest.raises(RecipeError, match=r"train\.momentum, train\.nesterov: "):
        Training(tiny_recipe("optimizer=sgd", "momentum=0", "nesterov=true"))


def test_gradients_are_clipped():
    norms = []

    def note(training, position):
        norms.append(math.sqrt(sum((p.grad.numpy() ** 2).sum() for p in training.model.parameters())))

    train(tiny_recipe("clip_norm=0.01", "epochs=1"), "clipped", display=Watch(note))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1.5, 9])
def test_the_learning_rate_follows_the_schedule_step_by_step(schedule, warmup):
    seen = []
    recipe = tiny_recipe(
        f"schedule={schedule}", f"warmup_epochs={warmup}", "lr=0.3", "min_lr=0.1", "epochs=3", "batch_size=300"
    )
    train(recipe, "lr", display=Watch(lambda t, _: seen.append([g["lr"] for g in t.optimizer.groups])))
    total, warm = 15, min(round(warmup * 5), 14)  # 5 steps an epoch
    for step, lrs in enumerate(seen, 1):
        done = (step - warm) / (total - warm)
        falling = {"cosine": 0.1 + 0.1 * (1 + math.cos(math.pi * done)), "linear": 0.3 - 0.2 * done, "constant": 0.3}
        assert lrs == pytest.approx([0.3 * step / warm if step < warm else falling[schedule]] * 2)
    assert len(seen) == total
    assert [line["lr"] for line in metrics_of(Path("runs/lr"))] == [seen[i][0] for i in (4, 9, 14)]


def test_every_epoch_learns_from_all_images_in_the_order_and_variation_of_its_own(monkeypatch):
    learnt, step = [], Training.step
    monkeypatch.setattr(Training, "step", lambda self, group: (learnt.extend(group), step(self, group)))
    train(tiny_recipe("seed=5", "shift=2", "flip=true", "cutout=3", "accumulate=4"), "run")
    images = load_dataset("digits", "train")
    loader = tv.data.Loader(images, 240, seed=5, augment=tv.data.Augment(shift=2, flip=True, cutout=3))
    expected = [batch for epoch in (0, 1) for batch in loader.batches(epoch)]
    assert len(learnt) == len(expected) == 12
    for ours, theirs in zip(learnt, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_the_seed_decides_everything_and_nothing_else_does():
    first, again, other = (
        train(tiny_recipe(*ALL_STREAMS, "epochs=1", f"seed={seed}"), "run").folder for seed in (3, 3, 4)
    )
    assert sha256(first) == sha256(again)
    assert sha256(first) != sha256(other)


# What is reported ------------------------------------------------------------------------------------------


def test_a_line_of_metrics_an_epoch():
    result = train(tiny_recipe("epochs=3", "batch_size=100", "accumulate=4"), "run")
    lines = metrics_of(result.folder)
    assert lines == result.metrics
    assert result.accuracy == lines[-1]["val_accuracy"]
    for number, line in enumerate(lines, 1):
        names = ["epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "seconds"]
        assert list(line) == names
        assert (line["epoch"], line["step"]) == (number, 4 * number)  # 15 batches, 4 by 4
        assert line["images_per_s"] > 0
    seconds = [line["seconds"] for line in lines]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


@pytest.mark.parametrize("ema", ["ema=0", "ema=0.8"])
def test_the_reported_accuracy_and_loss_are_those_of_the_saved_weights(ema):
    result = train(tiny_recipe("batch_size=50", "dropout=0.3", "label_smoothing=0.2", ema), "run")
    test = load_dataset("digits", "test")
    model = build_model(result.recipe, DataSpec.of(test)).eval()
    model.load_state_dict(tv.load(result.folder / "model.safetensors"))
    right, loss = 0, 0.0
    for pixels, label in zip(test.images, test.labels, strict=True):
        logits = model(test.normalize(pixels[None])).numpy()[0].astype(np.float64)
        right += logits.argmax() == label
        loss += math.log(np.exp(logits).sum()) - logits[label]
    assert result.accuracy == right / 359
    assert result.metrics[-1]["val_loss"] == pytest.approx(loss / 359, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_the_train_loss_is_the_mean_over_the_images_of_the_epoch(smoothing):
    recipe = tiny_recipe("lr=1e-12", "batch_size=100", f"label_smoothing={smoothing}")  # the weights hardly move
    result = train(recipe, "run")
    model, images = load_run(result.folder).model, load_dataset("digits", "train")
    logits = model(images.normalize(images.images)).numpy().astype(np.float64)
    surprise = np.log(np.exp(logits).sum(1, keepdims=True)) - logits  # of each image, for each class
    told = surprise[np.arange(1438), images.labels].mean()
    expected = (1 - smoothing) * told + smoothing * surprise.mean()
    assert [line["train_loss"] for line in result.metrics] == pytest.approx([expected, expected], rel=1e-5)


def test_the_weights_to_use_are_the_running_average():
    seen = []
    recipe = tiny_recipe("ema=0.8")
    start = Training(recipe).model.state_dict()
    result = train(recipe, "run", display=Watch(lambda training, _: seen.append(training.model.state_dict())))
    average = {name: w.astype(np.float64) for name, w in start.items()}
    for t, weights in enumerate(seen, 1):
        decay = min(0.8, (1 + t) / (10 + t))
        average = {name: decay * a + (1 - decay) * weights[name] for name, a in average.items()}
    saved = tv.load(result.folder / "model.safetensors")
    for name, a in average.items():
        np.testing.assert_allclose(saved[name], a, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(tv.load(result.folder / "checkpoint.safetensors")["model"][name], seen[-1][name])


def test_the_recipe_in_the_folder_states_every_key():
    recipe = tiny_recipe()
    folder = train(recipe, "run").folder
    assert load_recipe(folder / "recipe.toml") == recipe
    assert tomllib.loads((folder / "recipe.toml").read_text()) == dataclasses.asdict(recipe)


class Fixed(tv.nn.Module):
    """A model that says of an image what its first pixels say."""

    def forward(self, images):
        assert not self.training
        return tv.Tensor(np.ascontiguousarray(images[:, 0, 0, :5]))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, 101])
def test_accuracy_is_counted_exactly(batch_size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 1, 2, 5), np.uint8)
    dataset = tv.data.Dataset("made", "test", images, rng.integers(0, 5, 100), tuple("abcde"), (0.5,), (0.5,))
    model = Fixed()
    loss, accuracy, confusion = evaluate(model, dataset, batch_size)
    assert model.training  # as it was before
    counted, naive_loss = np.zeros((5, 5), int), 0.0
    for pixels, label in zip(images, dataset.labels, strict=True):
        logits = (pixels[0, 0] / 255 - 0.5) / 0.5
        counted[label, max(range(5), key=lambda i: logits[i])] += 1
        naive_loss -= logits[label] - math.log(sum(math.exp(x) for x in logits))
    np.testing.assert_array_equal(confusion, counted)
    assert accuracy == counted.trace() / 100
    assert loss == pytest.approx(naive_loss / 100, rel=1e-6)


def test_evaluating_records_nothing_and_draws_nothing():
    training = Training(tiny_recipe("dropout=0.5", "drop_path=0.5"))
    before = tv.backend.default_generator.state_dict()
    first = evaluate(training.model, training.test_data, 64)
    second = evaluate(training.model, training.test_data, 64)
    assert first[:2] == second[:2]
    assert tv.backend.default_generator.state_dict() == before


# Failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "says"),
    [("clip_norm=0", "the loss of step "), ("clip_norm=1", "step ")],
)
def test_numbers_that_overflow_stop_the_run_with_epoch_and_step(clip, says):
    with pytest.raises(TrainingFailed) as caught:
        train(tiny_recipe("optimizer=sgd", "lr=1e30", "epochs=9", "clip_norm=0", clip), "run")
    assert says in str(caught.value)
    assert "in epoch 1" in str(caught.value)
    assert "runs/run/checkpoint.safetensors is of the last good step" in str(caught.value)
    assert all(np.isfinite(w).all() for w in load(Path("runs/run/checkpoint.safetensors"))["model"].values())


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


class DiskFull:
    """Lets so many files be written, and then none."""

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
def test_a_disk_too_full_for_a_run_is_told_and_nothing_is_left(monkeypatch, out):
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
def test_a_full_disk_is_told_with_the_file_and_the_run_can_go_on(monkeypatch, files):
    whole = train(tiny_recipe(), "whole")
    names = [*["checkpoint.safetensors", "model.safetensors", "metrics.jsonl"] * 3, "curves.png"]
    with monkeypatch.context() as patch:
        DiskFull(patch, 1 + files)  # the first is recipe.toml
        with pytest.raises(TrainingFailed) as caught:
            train(tiny_recipe(), "full")
    assert f"runs/full/{names[files]} cannot be written (No space left on device)" in str(caught.value)
    assert str(caught.value).endswith("then go on with: tinyvit train --resume runs/full")
    resumed = resume(Path("runs/full"))
    assert sha256(resumed.folder) == sha256(whole.folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells files from folders by /proc, which Linux has")
@pytest.mark.parametrize("lost", [None, "model.safetensors", "metrics.jsonl", "curves.png"])
def test_a_finished_run_on_a_disk_that_takes_nothing_is_told_unless_it_lacks_a_file(monkeypatch, lost):
    finished = train(tiny_recipe(), "run")
    DiskFull(monkeypatch, 0)
    if lost:
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
def test_a_model_that_cannot_be_is_told_by_the_keys_of_the_recipe(assignments, says):
    with pytest.raises(RecipeError) as caught:
        train(tiny_recipe(*assignments), "run")
    assert str(caught.value).startswith(says)
    assert not Path("runs").exists()


def test_data_that_is_not_there_makes_no_folder():
    with pytest.raises(DataError, match="no data set 'digitz'"):
        train(tiny_recipe("name=digitz"), "run")
    assert not Path("runs").exists()


# Run folders -----------------------------------------------------------------------------------------------


def test_runs_are_numbered_on_and_never_overwritten():
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


def test_of_runs_that_start_together_in_one_folder_the_first_gets_it(monkeypatch):
    def another_is_faster(folder):
        folder.mkdir()
        (folder / "recipe.toml").write_text("theirs")
        return folder

    monkeypatch.setattr("tinyvit.runs._empty", another_is_faster)
    with pytest.raises(RunError, match=r"out/recipe\.toml exists already"):
        new_run(tiny_recipe(), "digits", Path("out"))
    assert Path("out/recipe.toml").read_text() == "theirs"


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
        accuracies.append(evaluate(trained.model, training.test_data, 300)[1])

    result = train(tiny_recipe("batch_size=800"), "run", display=Watch(look))
    steps = [line["val_accuracy"] for line in result.metrics]
    assert accuracies[1:] == [accuracies[0], steps[0], steps[0]]  # those of the last checkpoint


def test_checkpoints_are_written_within_an_epoch_too():
    seen = []

    def look(training, position):
        seen.append(load("runs/run/checkpoint.safetensors")["position"]["step"])

    train(tiny_recipe("checkpoint_minutes=1e-9", "epochs=1"), "run", display=Watch(look))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_loading_a_run_that_is_none_names_those_there_are():
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


@pytest.mark.parametrize("change", ["heads=1", "norm=post", "layer_scale=0.5", "name=mnist", "image_size=8"])
def test_a_recipe_that_was_changed_after_the_run_is_told_by_its_keys(change):
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (folder / "recipe.toml").write_text(tiny_recipe("epochs=1", change).to_toml())
    key = change.partition("=")[0]
    with pytest.raises(tv.errors.CheckpointError, match=rf"another (model|data)\.{key} than recipe\.toml now says"):
        load_run(folder)


def test_a_trained_model_may_be_measured_in_other_batches():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (folder / "recipe.toml").write_text(tiny_recipe("epochs=1", "batch_size=7", "note=mine").to_toml())
    assert load_run(folder).recipe.data.batch_size == 7


def test_a_checkpoint_that_is_none_is_told_by_its_path():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    for state in ({"data": {}}, {"recipe": "="}, {"recipe": 3}):
        tv.save(folder / "checkpoint.safetensors", state)
        with pytest.raises(tv.errors.CheckpointError, match=r"checkpoint\.safetensors is not the checkpoint of a run"):
            load_run(folder)


def test_a_recipe_name_stands_for_the_weights_that_come_with_the_package(monkeypatch, tmp_path):
    recipe = load_recipe("digits")
    model = Training(recipe).model
    tv.save(tmp_path / "digits.safetensors", model.state_dict())
    monkeypatch.setattr("tinyvit.runs.SHIPPED", tmp_path)
    trained = load_run("digits")
    assert trained.recipe == recipe
    assert trained.data.classes == tuple("0123456789")
    images = np.zeros((1, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(trained.model(images).numpy(), model.eval()(images).numpy())


# Predicting ------------------------------------------------------------------------------------------------


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
    """A data set as a folder: red and blue pictures."""
    for split in ("train", "test"):
        for name, colour in (("blue", (20, 20, 220)), ("red", (220, 20, 20))):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                picture = np.full((size[1], size[0], 3), colour, np.uint8)
                picture[i % size[1]] //= 2
                Image.fromarray(picture).save(root / split / name / f"{i}.png")


def test_images_of_ones_own_are_learnt_and_named_without_the_data_set():
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


def test_test_images_of_another_size_are_told_before_the_run():
    make_pictures(Path("mine"), (8, 8))
    for path in Path("mine/test").glob("*/*.png"):
        Image.new("RGB", (4, 8)).save(path)
    with pytest.raises(DataError, match=r"images of the shape \(3, 8, 8\).*test images of \(3, 8, 4\)"):
        train(tiny_recipe("name=folder:mine"), "run")
    assert train(tiny_recipe("name=folder:mine", "image_size=8"), "run").folder == Path("runs/run")


# Shown -----------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_line(capsys):
    result = train(tiny_recipe(), "run", display=Lines())
    first, *epochs = capsys.readouterr().out.splitlines()
    assert "1,438 images" in first
    assert first.endswith("-> runs/run")
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    for line, metrics in zip(epochs, result.metrics, strict=True):
        assert f"test accuracy {100 * metrics['val_accuracy']:.2f} %" in line


def test_on_a_terminal_a_bar_shows_the_whole_run():
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    result = train(tiny_recipe(), "run", display=Bar(console))
    last = console.file.getvalue().rpartition("epoch ")[2]
    assert last.startswith("2/2 ")
    assert "100%" in last
    assert f"test {100 * result.accuracy:.1f} %" in last


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.4, "0 s"), (42.4, "42 s"), (200, "3 min"), (3600, "1 h 00 min"), (9000, "2 h 30 min")]
)
def test_the_last_line_sets_the_accuracy_beside_what_the_recipe_expects(seconds, says):
    result = train(tiny_recipe("epochs=1", "accuracy=0.5"), "run")
    result.metrics[-1] |= {"val_accuracy": 0.98607, "seconds": seconds}
    assert str(result) == f"test accuracy 98.61 % after 1 epoch in {says} (the recipe expects 50.0 %) -> runs/run"


@pytest.mark.parametrize("title", ["costs $x^$", "\N{REPLACEMENT CHARACTER}", "a_b\\c"])
def test_the_curves_take_any_title(tmp_path, title):
    line = {"epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5}
    draw_curves(tmp_path / "curves.png", title, [line])
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_one_step_is_called_so():
    training = Training(tiny_recipe("epochs=1", "batch_size=1438"))
    assert "; 1 step -> here" in heading(training, Path("here"))


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_the_curves_are_a_picture_however_long_the_run(tmp_path, epochs):
    line = {"train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5}
    draw_curves(tmp_path / "curves.png", "a run", [line | {"epoch": e} for e in range(1, epochs + 1)])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1350, 540)


def test_the_metrics_are_json_that_other_programs_read():
    folder = train(tiny_recipe("epochs=1"), "run").folder
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
