"""Runs of every kind of task: they train, resume exactly, and are measured."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiers import quick_first
from tiny_tasks import KINDS, tiny

import tinyvit as tv
from tinyvit.data import Dataset, texts
from tinyvit.data.tokenizer import PAD
from tinyvit.errors import DataError, RecipeError
from tinyvit.run.display import Lines
from tinyvit.run.folder import load_data, load_run
from tinyvit.run.loop import train
from tinyvit.run.state import Training
from tinyvit.tasks import TASKS, Report, Task, task_of
from tinyvit.tasks.base import accuracy_by_kind, count_confusions
from tinyvit.tasks.retrieve import recall
from tinyvit.tasks.write import word_prior
from tinyvit.use import evaluate, predict

pytestmark = pytest.mark.usefixtures("few_scenes")

# Every kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick_first(KINDS, 4))
def test_a_run_trains_is_read_back_and_resumes_exactly(name, monkeypatch):
    if name == "translate":
        full = texts.load_texts
        monkeypatch.setattr("tinyvit.tasks.base.load_texts", lambda name, split: full(name, split).first(60))
    recipe = tiny(name, "lr=5e-3")
    result = train(recipe, "run")
    last = result.metrics[-1]
    assert 0 <= last["val_accuracy"] <= 1 or name == "masked-patches"  # which may not explain any variance yet
    trained = load_run(result.folder)
    test = load_data(trained.recipe, "test")
    report = task_of(trained.recipe).evaluate(trained.model, test, 20)
    assert (report.loss, report.accuracy) == pytest.approx((last["val_loss"], last["val_accuracy"]))
    assert report.shares == last.get("val_accuracies", {})

    stopped = Training(recipe)
    groups = stopped.groups()
    stopped.step(next(groups))
    stopped.step(next(groups))
    tv.save("middle.safetensors", stopped.state_dict())
    resumed = Training(recipe)
    resumed.read_checkpoint("middle.safetensors")
    for _ in range(2):
        for group in resumed.groups():
            resumed.step(group)
        resumed.finish_epoch(lambda: None)
    with resumed.averaged():
        state = resumed.model.state_dict()
    for key, value in tv.load(result.folder / "model.safetensors").items():
        np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize("name", KINDS)
def test_a_short_step_down_the_gradient_lowers_the_loss_of_its_batch(name):
    """The loss falls by nearly as much as the gradient says: at least half, for a step that is short enough."""
    training = Training(tiny(name, "dropout=0"))
    batch = training.task.with_draws(training.model, next(training.groups())[0])
    before = training.task.loss(training.model, batch)
    before.backward()
    parameters = [(p, p.numpy().copy(), p.grad.numpy()) for p in training.model.parameters() if p.grad is not None]
    slope = sum(float((gradient.astype(float) ** 2).sum()) for _, _, gradient in parameters)
    assert slope > 0
    falls = []
    for share in (0.1, 0.03, 0.01, 0.003, 0.001):  # of the loss, by which it would fall if it were linear
        length = share * before.item() / slope
        for p, values, gradient in parameters:
            p.assign(values - length * gradient)
        falls.append((before.item() - training.task.loss(training.model, batch).item()) / (share * before.item()))
    assert max(falls) > 0.5, falls


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("masked-patches", "variance explained"),  # which may be negative, as no accuracy is
        ("masked-both", "accuracy of hidden words"),
        ("segment", "mean IoU"),
        ("detect", "AP50"),
        ("caption", "accuracy"),
    ],
)
def test_a_run_names_what_it_measures(name, score, capsys):
    result = train(tiny(name, "epochs=1"), "run", display=Lines())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert f"  test {score} {100 * result.metrics[0]['val_accuracy']:.2f} %  " in line
    assert str(result).startswith(f"test {score} {100 * result.accuracy:.2f} % after 1 epoch in ")
    assert f"validation {score}" in result._repr_html_()
    assert evaluate(load_run(result.folder)).startswith(f"{score} {100 * result.accuracy:.2f} %")


@pytest.mark.parametrize("name", ["motion", "chirps"])
def test_videos_and_spectrograms_are_classified(name, monkeypatch):
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 20})
    recipe = tiny("masked-patches", f"data.name={name}", "kind=classify", "pool=mean", "patch_size=8")
    result = train(recipe, "run")
    kind, shape = load_data(recipe, "test"), {"motion": (8, 1, 24, 24), "chirps": (1, 32, 32)}[name]
    assert isinstance(kind, Dataset)
    assert load_run(result.folder).data.shape == kind.images.shape[1:] == shape


def test_a_model_of_videos_refuses_images(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 20})
    recipe = tiny("masked-patches", "data.name=motion", "kind=classify", "pool=mean", "patch_size=8")
    trained = load_run(train(recipe, "run").folder)
    Image.new("L", (24, 24)).save("a.png")
    with pytest.raises(DataError, match=r"a.png is one image; this model takes videos of 8 frames"):
        predict(trained, "a.png")
    with pytest.raises(RecipeError, match="patches are hidden of images, not of videos"):
        train(recipe.override(["kind=masked"]), "x")


@pytest.mark.parametrize("name", KINDS)
def test_an_evaluation_can_be_stopped_after_any_batch_and_restores_the_mode(name):
    training, calls = Training(tiny(name, "data.limit=20")), []

    def stop():
        calls.append(training.model.training)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        training.task.evaluate(training.model, training.test_data.first(6), 2, stop)
    assert calls == [False, False]
    assert training.model.training
    training.model.eval()
    training.task.evaluate(training.model, training.test_data.first(6), 5)
    assert not training.model.training


IMAGES = ("masked-patches", "kind=classify", "pool=mean")


@pytest.mark.parametrize("arguments", [("vqa-cnn",), ("vqa-joint",), IMAGES], ids=lambda arguments: arguments[0])
def test_an_evaluation_is_the_same_whatever_the_size_of_its_batches(arguments):
    training = Training(tiny(*arguments))
    test = training.test_data.first(23)
    reports = [training.task.evaluate(training.model, test, size) for size in (1, 5, 23, 40)]
    for report in reports[1:]:
        assert report.loss == pytest.approx(reports[0].loss)
        assert (report.accuracy, report.shares) == (reports[0].accuracy, reports[0].shares)
        np.testing.assert_array_equal(report.confusion, reports[0].confusion)


@pytest.mark.parametrize("arguments", [*((name,) for name in KINDS), IMAGES], ids=lambda arguments: arguments[-1])
def test_label_smoothing_is_for_training_only(arguments):
    training = Training(tiny(*arguments))
    smooth = type(training.task)(tiny(*arguments, "label_smoothing=0.4"))
    test = training.test_data.first(5)
    reports = [task.evaluate(training.model, test, 5) for task in (training.task, smooth)]
    assert reports[0].loss == reports[1].loss


def test_confusions_have_a_row_for_each_actual_class():
    actual, taken = np.random.default_rng(0).integers(0, 4, (2, 50))
    counts = count_confusions(actual, taken, 5)
    for i, j in np.ndindex(5, 5):
        assert counts[i, j] == sum((a, t) == (i, j) for a, t in zip(actual, taken, strict=True))


def test_all_tasks_share_one_evaluation_loop():
    assert {task.evaluate for task in TASKS.values()} == {Task.evaluate}


# Measurements -------------------------------------------------------------------------------------------------------


def test_recall_counts_the_rows_whose_own_is_among_the_best():
    scores = np.array([[3, 1, 2], [9, 8, 7], [0, 0, 0]])
    assert recall(scores, 1) == pytest.approx(1 / 3)  # a tie does not count as found
    assert recall(scores, 2) == pytest.approx(2 / 3)
    assert recall(scores, 3) == 1


def test_images_of_one_colour_have_no_variance_to_explain():
    task = task_of(tiny("masked-patches"))
    nothing, wrong, both = ((0.0, 0.0, 0, 0), (2.0, 0.0, 0, 0), (1.0, 4.0, 0, 0))  # squared error and size; words
    share = "variance of hidden pixels explained"
    assert task.report(None, 0.5, [wrong, wrong]) == Report(0.5, 0.0, {share: 0.0})
    assert task.report(None, 0.5, [both, nothing]).accuracy == 0.75
    assert task.report(None, 0.5, [both, wrong]).accuracy == 0.25
    training = Training(tiny("masked-patches"))
    images = np.full_like(training.test_data.images[:4], 128)
    test = Dataset("grey", "test", images, np.zeros(4, int), ("grey",), training.test_data.mean, training.test_data.std)
    report = training.task.evaluate(training.model, test, 2)
    assert np.isfinite(report.loss)
    assert report.accuracy == 0


def test_recall_of_nan_is_zero():
    assert recall(np.full((3, 3), np.nan), 1) == 0


def test_the_most_frequent_mistakes_come_first():
    confusion = np.array([[5, 0, 2], [1, 9, 0], [0, 4, 9]])
    report = Report(0.5, 0.7, {}, ("a", "b", "c"), confusion)
    assert report.mistakes() == [("c", "b", 4), ("a", "c", 2), ("b", "a", 1)]
    assert report.mistakes(1) == [("c", "b", 4)]
    assert Report(0.5, 0.7, {}).mistakes() == []


def test_kinds_are_measured_apart():
    dataset = load_data(tiny("vqa-joint"), "test")
    right = dataset.kind_of != 1
    accuracy, kinds = accuracy_by_kind(dataset, right)
    assert kinds == {"non-relational": 1, "relational": 0, "held-out pairs": 1}
    counted = dataset.kind_of < 2
    assert accuracy == right[counted].mean() < 1


def test_a_word_prior_holds_the_probability_of_each_word_after_each():
    rows = np.array([[1, 2, 3], [1, 2, 2], [1, 3, 0]])
    table = np.exp(word_prior(rows, 5, 0.8))
    np.testing.assert_allclose(table.sum(axis=1), [0.2, 1, 1, 1, 0.2], rtol=1e-6)  # no word ever followed 0 or 4
    np.testing.assert_allclose(table[2], [0.04, 0.04, 0.44, 0.44, 0.04], rtol=1e-6)


def test_the_word_prior_is_used_in_training_and_not_in_evaluation():
    with_prior, without = (Training(tiny("caption", f"word_prior={share}", "dropout=0")) for share in (0.7, 0.0))
    for mine, other in zip(with_prior.model.parameters(), without.model.parameters(), strict=True):
        other.assign(mine.data)
    batch = next(iter(without.loader.batches(0)))
    logits = without.model(batch.images, batch.labels[:, :-1]).numpy()
    biased = logits + word_prior(without.train_data.labels, logits.shape[-1], 0.7)[batch.labels[:, :-1]]
    for training, scores in ((without, logits), (with_prior, biased)):
        chosen = np.take_along_axis(scores, batch.labels[:, 1:, None], -1)[..., 0]
        nats = np.log(np.exp(scores).sum(axis=-1)) - chosen
        expected = nats[batch.labels[:, 1:] != PAD].mean() * len(batch.labels)
        np.testing.assert_allclose(training.task.loss(training.model, batch).item(), expected, rtol=1e-5)
    reports = [t.task.evaluate(t.model, t.test_data, 20) for t in (with_prior, without)]
    assert reports[0].loss == reports[1].loss
    assert reports[0].accuracy == reports[1].accuracy


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        (
            "caption",
            "data.name=scenes-questions",
            "data.name is 'scenes-questions'; a 'caption' run learns",
        ),
        ("vqa-cnn", "data.name=scenes-captions", "learns from easy-vqa or scenes-questions"),
        ("retrieve", "data.batch_size=1", "data.batch_size is 1"),
        ("caption", "data.name=digits", "learns from scenes-captions"),
        ("masked-patches", "patch_size=8", "model.patch_size is 8"),
    ],
)
def test_data_that_a_task_cannot_learn_from_is_refused(name, assignment, message):
    with pytest.raises(RecipeError, match=message):
        train(tiny(name, assignment), "x")
    assert not Path("runs").exists()


def test_recipes_that_do_not_fit_their_data_are_refused():
    with pytest.raises(RecipeError, match="the images of scenes-captions have a fixed size"):
        Training(tiny("caption", "image_size=32"))
    with pytest.raises(DataError, match="digits has no texts; data sets with texts: easy-vqa"):
        texts.load_texts("digits", "test")
    with pytest.raises(DataError, match="scenes-captions has no classes of images"):
        Training(tiny("caption", "kind=classify"))
