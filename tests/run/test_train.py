"""Training: each step follows the recipe, and the reported and displayed numbers are true."""

import dataclasses
import io
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import ALL_STREAMS, Watch, isolate, metrics_of, sha256, tiny_recipe

import tinyvit as tv
from tinyvit.data import load_dataset
from tinyvit.errors import RecipeError
from tinyvit.recipe import load_recipe
from tinyvit.run.curves import draw_curves
from tinyvit.run.display import Bar, Lines, heading
from tinyvit.run.folder import DataSpec, build_model, load_run, load_splits
from tinyvit.run.loop import train
from tinyvit.run.state import Training
from tinyvit.tasks import task_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


# Steps --------------------------------------------------------------------------------------------------------------


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
        (["optimizer=lion"], tv.optim.Lion, {"betas": (0.9, 0.99)}),
    ],
)
def test_the_optimizer_is_the_one_of_the_recipe(assignments, kind, settings):
    training = Training(tiny_recipe(*assignments, "weight_decay=0.05"))
    assert type(training.optimizer) is kind
    assert [group["weight_decay"] for group in training.optimizer.groups] == [0.05, 0.0]
    assert all(p.ndim >= 2 for p in training.optimizer.groups[0]["params"])
    for group in training.optimizer.groups:
        assert settings.items() <= group.items()


def test_an_error_about_the_optimizer_names_the_keys_of_the_recipe():
    with pytest.raises(RecipeError, match=r"train\.momentum, train\.nesterov: "):
        Training(tiny_recipe("optimizer=sgd", "momentum=0", "nesterov=true"))


def test_gradients_are_clipped():
    norms = []

    def note(training, position):
        norms.append(math.sqrt(sum((p.grad.numpy() ** 2).sum() for p in training.model.parameters())))

    train(tiny_recipe("clip_norm=0.01", "epochs=1"), "clipped", display=Watch(note))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "cooldown"])
@pytest.mark.parametrize("warmup", [0, 1.5, 9])
def test_the_learning_rate_follows_the_schedule_step_by_step(schedule, warmup):
    seen = []
    recipe = tiny_recipe(
        f"schedule={schedule}", f"warmup_epochs={warmup}", "lr=0.3", "min_lr=0.1", "epochs=3", "batch_size=300"
    )
    train(recipe, "lr", display=Watch(lambda t, _: seen.append([g["lr"] for g in t.optimizer.groups])))
    total, warm = 15, max(1, min(round(warmup * 5), 14))  # 5 steps an epoch
    for step, lrs in enumerate(seen, 1):
        done = (step - warm) / (total + 1 - warm)  # 1 after the last step
        falling = {"cosine": 0.1 + 0.1 * (1 + math.cos(math.pi * done)), "linear": 0.3 - 0.2 * done, "constant": 0.3}
        cold = max(warm, 0.8 * (total + 1))  # the last fifth of the steps
        falling["cooldown"] = 0.3 - 0.2 * max(0, step - cold) / (total + 1 - cold)
        assert lrs == pytest.approx([0.3 * step / warm if step < warm else falling[schedule]] * 2)
    assert len(seen) == total
    assert [line["lr"] for line in metrics_of(Path("runs/lr"))] == [seen[i][0] for i in (4, 9, 14)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "cooldown"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
@pytest.mark.parametrize("warmup", [0, 1, 9])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_step_of_a_short_run_learns(schedule, optimizer, warmup, steps):
    settings = [f"schedule={schedule}", f"optimizer={optimizer}", f"warmup_epochs={warmup}", f"epochs={steps}"]
    training = Training(tiny_recipe(*settings, "limit=20", "batch_size=20", "min_lr=0", "lr=0.01", "ema=0"))
    rates = []
    for _ in range(steps):
        before = training.model.state_dict()
        training.step(next(training.groups()))
        training.position.epoch += 1
        training.position.batch = 0
        rates.append(training.learning_rate(training.position.step))
        assert all((before[name] != value).any() for name, value in training.model.state_dict().items())
    assert min(rates) > 0
    assert max(rates) == 0.01


@pytest.mark.parametrize("validation", [0, 20])
def test_a_limit_is_one_of_the_images_to_train_on_alone(validation):
    splits = load_splits(tiny_recipe("limit=30", f"validation={validation}"))
    assert len(splits.train) == 30
    assert (0 if splits.validation is None else len(splits.validation)) == validation
    np.testing.assert_array_equal(splits.test.images, load_dataset("digits", "test").images)


def test_every_epoch_trains_on_all_images_in_its_own_order_and_augmentation(monkeypatch):
    trained_on, step = [], Training.step
    monkeypatch.setattr(Training, "step", lambda self, group: (trained_on.extend(group), step(self, group)))
    train(tiny_recipe("seed=5", "shift=2", "flip=true", "cutout=3", "accumulate=4"), "run")
    images = load_dataset("digits", "train")
    loader = tv.data.Loader(images, 240, seed=5, augment=tv.data.Augment(shift=2, flip=True, cutout=3))
    expected = [batch for epoch in (0, 1) for batch in loader.batches(epoch)]
    assert len(trained_on) == len(expected) == 12
    for ours, theirs in zip(trained_on, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_the_seed_decides_everything_and_nothing_else_does():
    first, again, other = (
        train(tiny_recipe(*ALL_STREAMS, "epochs=1", f"seed={seed}"), "run").folder for seed in (3, 3, 4)
    )
    assert sha256(first) == sha256(again)
    assert sha256(first) != sha256(other)


# Reports ------------------------------------------------------------------------------------------------------------


def test_a_line_of_metrics_an_epoch():
    result = train(tiny_recipe("epochs=3", "batch_size=100", "accumulate=4"), "run")
    lines = metrics_of(result.folder)
    assert lines == result.metrics
    assert result.accuracy == lines[-1]["val_accuracy"]
    for number, line in enumerate(lines, 1):
        names = ["epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "seconds"]
        assert list(line) == names
        assert (line["epoch"], line["step"]) == (number, 4 * number)  # 15 batches in groups of 4
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
    of_labels = surprise[np.arange(1438), images.labels].mean()
    expected = (1 - smoothing) * of_labels + smoothing * surprise.mean()
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
    """A model whose logits are the first pixels of an image."""

    def forward(self, images):
        assert not self.training
        return tv.Tensor(np.ascontiguousarray(images[:, 0, 0, :5]))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, 101])
def test_accuracy_is_counted_exactly(batch_size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 1, 2, 5), np.uint8)
    dataset = tv.data.Dataset("made", "test", images, rng.integers(0, 5, 100), tuple("abcde"), (0.5,), (0.5,))
    model = Fixed()
    report = task_of(tiny_recipe()).evaluate(model, dataset, batch_size)
    assert model.training  # as it was before
    counted, naive_loss = np.zeros((5, 5), int), 0.0
    for pixels, label in zip(images, dataset.labels, strict=True):
        logits = (pixels[0, 0] / 255 - 0.5) / 0.5
        counted[label, max(range(5), key=lambda i: logits[i])] += 1
        naive_loss -= logits[label] - math.log(sum(math.exp(x) for x in logits))
    np.testing.assert_array_equal(report.confusion, counted)
    assert report.accuracy == counted.trace() / 100
    assert report.loss == pytest.approx(naive_loss / 100, rel=1e-6)


def test_evaluating_records_nothing_and_draws_nothing():
    training = Training(tiny_recipe("dropout=0.5", "drop_path=0.5"))
    before = tv.backend.default_generator.state_dict()
    first, second = (training.task.evaluate(training.model, training.test_data, 64) for _ in range(2))
    assert (first.loss, first.accuracy) == (second.loss, second.accuracy)
    assert tv.backend.default_generator.state_dict() == before


# Displays -----------------------------------------------------------------------------------------------------------


def test_without_a_terminal_each_epoch_prints_a_line(capsys):
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
def test_the_last_line_states_the_accuracy_and_the_one_that_the_recipe_expects(seconds, says):
    result = train(tiny_recipe("epochs=1", "accuracy=0.5"), "run")
    result.test["accuracy"], result.metrics[-1]["seconds"] = 0.98607, seconds
    assert str(result) == f"test accuracy 98.61 % after 1 epoch in {says} (the recipe expects 50.0 %) -> runs/run"


@pytest.mark.parametrize("title", ["costs $x^$", "\N{REPLACEMENT CHARACTER}", "a_b\\c"])
def test_the_curves_take_any_title(tmp_path, title):
    line = {"epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5}
    draw_curves(tmp_path / "curves.png", title, [line])
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_heading_says_step_in_the_singular():
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
    json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not valid JSON
