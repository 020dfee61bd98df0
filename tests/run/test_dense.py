"""Segmentation and detection: models, losses, what they find in files, how it is drawn, and how it is studied."""

import json
from dataclasses import replace
from pathlib import Path

import click.testing
import numpy as np
import pytest
from PIL import Image
from tiny_tasks import tiny

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import dense
from tinyvit.cli import commands
from tinyvit.data import load_boxes, load_masks
from tinyvit.data.augment import IGNORED
from tinyvit.data.dense import NO_BOX
from tinyvit.engine import Tensor
from tinyvit.errors import DataError, RecipeError
from tinyvit.models import Detr, LinearHead, QueryHead, Segmenter, ViT, corners_of
from tinyvit.run.folder import load_run
from tinyvit.run.loop import train
from tinyvit.run.state import Training
from tinyvit.tasks import task_of
from tinyvit.tasks.detect import centres_of, loss_of_layer, match, matching_costs
from tinyvit.tasks.segment import dice_loss

pytestmark = pytest.mark.usefixtures("few_scenes")
RNG = np.random.default_rng(0)


def vit(**options):
    return ViT(16, 8, 0, 8, 1, 2, 8, **{"pool": "first", **options})


# Models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"pool": "cls"}, {"pool": "mean"}, {"register_tokens": 2}, {"pool": "cls", "norm": "post"}]
)
@pytest.mark.parametrize("kind", ["linear", "queries"])
def test_a_segmenter_says_something_of_every_pixel(kind, options):
    vision = vit(**options)
    head = LinearHead(vision.patch_embed, 8, 5) if kind == "linear" else QueryHead(vision.patch_embed, 8, 5, 1, 2)
    model, images = Segmenter(vision, head), RNG.standard_normal((3, 3, 16, 16)).astype(np.float32)
    logits = model(images)
    assert logits.shape == (3, 16, 16, 5)
    order = [2, 0, 1]
    np.testing.assert_allclose(model(images[order]).numpy(), logits.numpy()[order], rtol=1e-4, atol=1e-5)


def test_the_linear_head_puts_the_pixels_of_a_patch_where_they_are():
    vision = vit()
    head = LinearHead(vision.patch_embed, 8, 2)
    features = RNG.standard_normal((1, 4, 8)).astype(np.float32)
    rows = features @ head.to_pixels.proj.weight.numpy().T + head.to_pixels.proj.bias.numpy()
    found = head(Tensor(features)).numpy()
    for patch, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        part = found[0, top : top + 8, left : left + 8]
        np.testing.assert_allclose(part, rows[0, patch].reshape(8, 8, 2), rtol=1e-4, atol=1e-5)
    same = F.pixel_shuffle(Tensor(rows.reshape(1, 2, 2, 8, 8, 2).transpose(0, 5, 3, 4, 1, 2).reshape(1, 128, 2, 2)), 8)
    np.testing.assert_allclose(same.numpy()[0].transpose(1, 2, 0), found[0], rtol=1e-4, atol=1e-5)


def test_queries_in_another_order_give_the_boxes_in_that_order():
    model = Detr(vit(), 3, 6, 8, 2, 2)
    images = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    before, order = model(images), RNG.permutation(6)
    for parameter in (model.queries, model.points):
        parameter.assign(parameter.numpy()[order])
    for found, expected in zip(model(images), before, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy()[:, order], rtol=1e-4, atol=1e-5)


def test_gradients_of_both_models_agree_with_finite_differences():
    for model in (
        Segmenter(v := vit(), QueryHead(v.patch_embed, 8, 3, 1, 2)).to("float64"),
        Detr(vit(), 2, 3, 8, 1, 2).to("float64"),
    ):
        images = Tensor(RNG.standard_normal((1, 3, 16, 16)), requires_grad=True)
        if isinstance(model, Detr):
            tv.gradcheck(lambda x, m=model: sum((out * out).sum() for out in m(x)), [images])
        else:
            tv.gradcheck(lambda x, m=model: (m(x) ** 2).sum(), [images])


# Losses -------------------------------------------------------------------------------------------------------------


def test_the_dice_loss_is_its_formula_and_leaves_out_ignored_pixels():
    logits, masks = RNG.standard_normal((2, 4, 5, 3)), RNG.integers(0, 3, (2, 4, 5))
    masks[0, :2] = IGNORED
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    terms = []
    for k in range(3):
        known = masks != IGNORED
        own, truth = p[..., k][known], (masks == k)[known]
        terms.append(1 - (2 * (own * truth).sum() + 1) / (own.sum() + truth.sum() + 1))
    np.testing.assert_allclose(dice_loss(Tensor(logits), masks).item(), np.mean(terms), rtol=1e-12)
    tv.gradcheck(lambda x: dice_loss(x, masks), [Tensor(logits, requires_grad=True)], order=2)


def test_boxes_by_centre_and_by_corners_are_each_others_inverse():
    corners = np.sort(RNG.uniform(0, 1, (3, 2, 2)), axis=1).reshape(3, 4)
    np.testing.assert_allclose(corners_of(centres_of(Tensor(corners))).numpy(), corners)


def scene():
    """Two images with two things and one, and the predictions of four queries."""
    labels = np.array([[2, 0], [1, NO_BOX]])
    boxes = np.array([[[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.8]], [[0.2, 0.3, 0.6, 0.7], [0, 0, 0, 0]]], np.float32)
    logits = RNG.standard_normal((2, 4, 4)).astype(np.float32)
    predicted = RNG.uniform(0.2, 0.6, (2, 4, 4)).astype(np.float32)
    return Tensor(logits), Tensor(predicted), labels, boxes


def test_a_query_that_is_right_is_matched_whatever_its_place():
    logits, predicted, labels, boxes = scene()
    exact, sure = predicted.numpy().copy(), logits.numpy().copy()
    for image, thing, query in ((0, 0, 3), (0, 1, 1), (1, 0, 2)):
        exact[image, query] = centres_of(Tensor(boxes[image, thing])).numpy()
        sure[image, query, labels[image, thing]] = 9
    query_of, classes = match([(Tensor(sure), Tensor(exact))], labels, boxes)
    np.testing.assert_array_equal(query_of[0], [[3, 1], [2, 0]])
    np.testing.assert_array_equal(classes[0], [[3, 0, 3, 2], [3, 3, 1, 3]])
    costs = matching_costs(Tensor(sure), Tensor(exact), labels, boxes)
    assert costs[0, 0].argmin() == 3
    good = loss_of_layer(Tensor(sure), Tensor(exact), labels, boxes, query_of[0], classes[0]).item()
    swapped = loss_of_layer(Tensor(sure), Tensor(exact), labels, boxes, query_of[0][:, ::-1].copy(), classes[0]).item()
    assert good < swapped


def test_things_in_another_order_change_no_loss():
    logits, predicted, labels, boxes = scene()
    losses = []
    for order in ([0, 1], [1, 0]):
        mine = labels[:, order], boxes[:, order]
        query_of, classes = match([(logits, predicted)], *mine)
        losses.append(loss_of_layer(logits, predicted, *mine, query_of[0], classes[0]).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_places_without_a_thing_change_no_loss_and_get_no_gradient():
    logits, predicted, labels, boxes = scene()
    found = []
    for junk in (0.0, 0.7):
        filled = boxes.copy()
        filled[1, 1] = [junk / 2, 0, junk, junk]
        query_of, classes = match([(logits, predicted)], labels, filled)
        x = Tensor(predicted.numpy(), requires_grad=True)
        loss = loss_of_layer(logits, x, labels, filled, query_of[0], classes[0])
        loss.backward()
        found.append((loss.item(), x.grad.numpy()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    matched = np.zeros((2, 4), bool)
    np.put_along_axis(matched, query_of[0], True, axis=1)
    matched[1, 0] = query_of[0, 1, 0] == 0
    assert (found[0][1][~matched] == 0).all()


def test_images_without_any_thing_can_be_learnt_from():
    training = Training(tiny("detect"))
    batch = next(iter(training.loader.batches(0)))
    empty = replace(batch, labels=np.full_like(batch.labels, NO_BOX))
    loss = training.task.loss(training.model, empty)
    loss.backward()
    assert np.isfinite(loss.item())


def test_matching_before_the_loss_gives_the_same_loss():
    """As it is done on a GPU, where a step must not wait for the values that decide the matching."""
    training = Training(tiny("detect", "dropout=0"))
    batch = next(iter(training.loader.batches(0)))
    layers = training.model.layers(batch.images)
    before = replace(batch, drawn=(*batch.drawn, *match(layers, batch.labels, batch.drawn[0])))
    task = training.task
    assert task.loss(training.model, before).item() == task.loss(training.model, batch).item()


def test_the_loss_of_all_blocks_is_the_mean_of_their_losses():
    training = Training(tiny("detect", "dropout=0", "text_depth=3"))
    batch, model = next(iter(training.loader.batches(0))), training.model
    layers, boxes = model.layers(batch.images), batch.drawn[0]
    query_of, classes = match(layers, batch.labels, boxes)
    each = [
        loss_of_layer(*layer, batch.labels, boxes, query_of[i], classes[i]).item() for i, layer in enumerate(layers)
    ]
    assert len(set(each)) == 3
    assert training.task.loss(model, batch).item() / len(batch.labels) == pytest.approx(sum(each) / 3, rel=1e-5)
    for last, own in zip(layers[-1], model(batch.images), strict=True):
        np.testing.assert_allclose(last.numpy(), own.numpy(), rtol=1e-5, atol=1e-6)


# Evaluation ---------------------------------------------------------------------------------------------------------


class Oracle(tv.nn.Module):
    """A model that knows the truth about the images it is shown, which it takes in order."""

    def __init__(self, outputs):
        self.outputs, self.place = outputs, 0
        self.anything = tv.nn.Parameter(np.zeros(1, np.float32))

    def forward(self, images):
        start, self.place = self.place, self.place + len(images)
        found = self.outputs(slice(start, self.place))
        return tuple(map(Tensor, found)) if isinstance(found, tuple) else Tensor(found)


def test_a_model_that_knows_the_masks_has_an_iou_of_one():
    task, data = task_of(tiny("segment")), load_masks("scenes-shapes", "test")
    report = task.evaluate(Oracle(lambda part: np.eye(4, dtype=np.float32)[data.masks[part]] * 20), data, 5)
    assert report.accuracy == report.shares["mean IoU, held-out pairs"] == report.shares["F of boundaries"] == 1
    background = task.evaluate(Oracle(lambda part: np.eye(4, dtype=np.float32)[0 * data.masks[part]]), data, 5)
    assert background.accuracy == 0
    assert background.shares["accuracy of pixels"] > 0.8
    assert "mean IoU 0.00 %" in task.describe(background, len(data))


def test_a_model_that_knows_the_boxes_has_a_precision_of_one():
    task, data = task_of(tiny("detect")), load_boxes("scenes-shapes", "test")

    def right(part):
        classes = np.where(data.labels[part] == NO_BOX, 3, data.labels[part])
        return np.eye(4, dtype=np.float32)[classes] * 20, centres_of(Tensor(data.boxes[part] / 48)).numpy()

    report = task.evaluate(Oracle(right), data, 5)
    assert report.accuracy == report.shares["AP50:95"] == report.shares["AP50, held-out pairs"] == 1
    assert report.loss < 1e-5
    assert "AP50 100.00 %" in task.describe(report, len(data))


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("detect", "queries=3", "task.queries is 3, but an image of scenes-shapes has 4 boxes"),
        ("detect", "rotate=5", "data.rotate is 5.0; boxes allow"),
        ("detect", "cutout=5", "data.cutout is 5; boxes allow"),
        ("detect", "dice=1", "task.dice is 1.0, which a 'detect' run does not use"),
        (
            "segment",
            "text_depth=3",
            "task.text_depth is 3, which a 'segment' run with task.mask_head 'linear' does not",
        ),
        ("segment", "queries=9", "task.queries is 9, which a 'segment' run does not use"),
        ("caption", "mask_head=queries", "task.mask_head is 'queries', which a 'caption' run does not use"),
    ],
)
def test_what_a_recipe_cannot_ask_for_is_refused(name, assignment, message):
    with pytest.raises(RecipeError, match=message):
        Training(tiny(name, assignment))


def test_augmented_runs_train():
    for name, options in (("segment", ("rotate=9", "scale=0.1", "cutout=4")), ("detect", ("scale=0.2",))):
        result = train(tiny(name, "shift=3", "flip=true", "epochs=1", *options), name)
        assert np.isfinite(result.metrics[-1]["train_loss"])


def test_a_run_starts_from_hidden_patches_or_from_a_classifier_and_may_freeze_them():
    masked = train(tiny("masked-patches", "data.name=scenes-shapes", "patch_size=8", "text_depth=2"), "masked").folder
    for name in ("segment", "detect"):
        result = train(tiny(name, f"start_from={masked}", "freeze=vision", "train.ema=0"), name)
        before, after = (load_run(folder).model.vision.state_dict() for folder in (masked, result.folder))
        for key, value in before.items():
            same = np.array_equal(value, after[key])
            assert same != key.startswith("norm."), key


# Use ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A wide picture: a scene in a grey frame."""
    pixels = np.full((96, 160, 3), 225, np.uint8)
    pixels[24:72, 56:104] = load_masks("scenes-shapes", "test").images[0].transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*words):
    return click.testing.CliRunner().invoke(commands, [str(word) for word in words], catch_exceptions=False)


def test_segment_writes_an_indexed_mask_and_an_overlay(photo):
    train(tiny("segment", "epochs=1"), "run")
    found = dense.segment(load_run("runs/run"), photo)
    assert found.mask.shape == (96, 160)
    assert (found.mask[:, :32] == found.mask[:, 128:]).all()
    assert (found.mask[:, :32] == IGNORED).all()  # outside of the square that the model saw
    assert found.mask[:, 32:128].max() < 4
    result = run("segment", "runs/run", photo, "--out", "m.png")
    assert [line.split("\t") for line in result.stdout.splitlines()] == [[n, f"{s:.4f}"] for n, s in found.shares()]
    with Image.open("m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), found.mask)
    with Image.open("m-overlay.png") as image:
        assert image.size == (160, 96)
    assert run("segment", "runs/run", photo, "--out", "m.png").exit_code == 0  # replaces what it has drawn


def test_the_mask_of_an_image_of_the_models_size_is_the_models_own():
    train(tiny("segment", "epochs=1"), "run")
    trained, test = load_run("runs/run"), load_masks("scenes-shapes", "test")
    Image.fromarray(test.images[2].transpose(1, 2, 0)).save("scene.png")
    expected = trained.model(test.normalize(test.images[2:3])).numpy()[0].argmax(axis=-1)
    np.testing.assert_array_equal(dense.segment(trained, "scene.png").mask, expected)


def test_detect_draws_boxes_and_lists_them(photo):
    train(tiny("detect", "epochs=1"), "run")
    found = dense.detect(load_run("runs/run"), photo, least=0)
    assert len(found.things) == 5
    for thing in found.things:
        left, top, right, bottom = thing.box
        assert 32 <= left <= right <= 128
        assert 0 <= top <= bottom <= 96
        assert thing.looked.shape == (6, 6)
        assert thing.looked.sum() == pytest.approx(1, rel=1e-4)
    scores = [thing.score for thing in found.things]
    assert scores == sorted(scores, reverse=True)
    result = run("detect", "runs/run", photo, "--out", "b.png", "--least", "0")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [thing.name for thing in found.things]
    listed = json.loads(Path("b.json").read_text())
    assert (listed["width"], listed["height"]) == (160, 96)
    assert [tuple(one["box"]) for one in listed["boxes"]] == [thing.box for thing in found.things]
    with Image.open("b.png") as image:
        assert image.width > 300
    assert run("detect", "runs/run", photo, "--out", "b.png", "--least", "1").exit_code == 0
    assert json.loads(Path("b.json").read_text())["boxes"] == []


@pytest.mark.parametrize(("name", "beside"), [("segment", "x-overlay.png"), ("detect", "x.json")])
def test_no_file_of_others_is_replaced(name, beside, photo):
    train(tiny(name, "epochs=1"), "run")
    for mine in ("x.png", beside):
        Path(mine).write_bytes(photo.read_bytes())
        result = click.testing.CliRunner().invoke(commands, [name, "runs/run", str(photo), "--out", "x.png"])
        assert isinstance(result.exception, DataError)
        assert "name another" in str(result.exception)
        assert Path(mine).read_bytes() == photo.read_bytes()
        Path(mine).unlink()
    result = click.testing.CliRunner().invoke(commands, [name, "runs/run", str(photo), "--out", "x.jpg"])
    assert "must end in .png" in str(result.exception)


def test_commands_name_the_right_one_for_a_run(photo):
    train(tiny("segment", "epochs=1"), "run")
    for command in ("detect", "predict"):
        result = click.testing.CliRunner().invoke(commands, [command, "runs/run", str(photo)])
        assert "use `tinyvit segment`" in str(result.exception)
    assert "mean IoU" in run("evaluate", "runs/run").stdout


def test_data_show_draws_samples():
    result = run("data", "show", "scenes-shapes", "--out", "s.png")
    assert "scenes-shapes train: 40 images of 48 x 48 pixels" in result.stdout
    with Image.open("s.png") as image:
        assert image.size == (3 * 3 * 48, 4 * 48)


# Study --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "segment-queries", "detect"])
def test_the_study_page_of_a_run_walks_from_its_loss_to_the_image(name):
    train(tiny(name, "epochs=1"), "run")
    result = run("study", "runs/run", "--image", "1", "--out", "page.html")
    assert result.exit_code == 0
    assert "test image 1 of scenes-" in result.stdout
    from study_page import Page

    document = Page(Path("page.html").read_text("utf-8")).document
    assert document["about"]["grid"] == [6, 6]
    facts = dict(document["about"].get("facts", document.get("facts", [])))
    assert "0 wrong" in facts["checks"]
    assert {op["op"] for op in document["ops"]} >= {"cross_entropy", "attention", "linear"}


def test_study_names_what_it_needs(photo):
    train(tiny("detect", "epochs=1"), "run")
    for words, message in ((["--image", photo], "give the number of a test image"), (["--label", "a"], "no --label")):
        result = click.testing.CliRunner().invoke(commands, ["study", "runs/run", *map(str, words)])
        assert message in str(result.exception)
