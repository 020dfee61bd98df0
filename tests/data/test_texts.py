"""Data sets with texts: scenes and their questions, rows of letters, easy-VQA; batches and vocabularies."""

import dataclasses

import numpy as np
import pytest
from tiny_tasks import tiny

from tinyvit.data import TextDataset, Tokenizer, normalize, scenes, texts
from tinyvit.data.tokenizer import PAD, UNK
from tinyvit.run.folder import load_run
from tinyvit.run.loop import train

pytestmark = pytest.mark.usefixtures("few_scenes")


def test_captions_describe_their_scenes():
    for split in ("train", "test"):
        found = scenes.of_split(split)
        captions = [scenes.caption(scene) for scene in found.all]
        assert len(set(captions)) == len(captions)
        assert not any(thing.pair in scenes.HELD_OUT for scene in found.seen for thing in scene)
        assert all(any(thing.pair in scenes.HELD_OUT for thing in scene) for scene in found.unseen)
    train_captions = {scenes.caption(scene) for scene in scenes.of_split("train").all}
    assert not train_captions & {scenes.caption(scene) for scene in scenes.of_split("test").all}
    again = scenes.of_split("train")
    scenes.of_split.cache_clear()
    assert scenes.of_split("train") == again


def test_things_have_their_colour_where_they_are_and_stay_in_their_cells():
    found = scenes.of_split("train").seen
    for scene, image in zip(found, scenes.render(found).astype(int), strict=True):
        for thing in scene:
            colour = image[:, int(thing.y), int(thing.x)]
            assert np.abs(colour - scenes.COLOURS[thing.colour]).max() < 40
        empty = set(range(9)) - {thing.cell for thing in scene}
        cells = image.reshape(3, 3, 16, 3, 16).transpose(1, 3, 0, 2, 4).reshape(9, -1)
        assert all(cells[cell].min() > 205 for cell in empty)


def brute_force(scene, question):
    """Answer a question from its words, in another way than the code under test."""
    words = question.removesuffix("?").split()
    of_colour = {t.colour: t for t in scene}
    named = [of_colour[w] for w in words if w in of_colour]
    distance = {t: (t.x - named[0].x) ** 2 + (t.y - named[0].y) ** 2 for t in scene if named and t is not named[0]}
    if "closest" in words or "farthest" in words:
        t = (min if "closest" in words else max)(distance, key=distance.get)
        return getattr(t, "shape" if words[1] == "shape" else "colour")
    if "column" in words or "row" in words:
        (t,) = [t for t in scene if t.colour in words]
        place = (t.x if "column" in words else t.y) / scenes.CELL
        return (scenes.COLUMNS if "column" in words else scenes.ROWS)[int(place)]
    if "left" in words:
        return "yes" if named[0].x < named[1].x else "no"
    if "above" in words:
        return "yes" if named[0].y < named[1].y else "no"
    if "same" in words:
        return str(sum(t.shape == named[0].shape for t in scene) - 1)
    if words[:2] == ["how", "many"]:
        return str(sum(t.shape + "s" == words[2] for t in scene))
    if words[:2] == ["is", "there"]:
        return "yes" if any(f"{t.colour} {t.shape}" in question for t in scene) else "no"
    if words[1] == "color":
        (t,) = [t for t in scene if t.shape in words]
        return t.colour
    (t,) = [t for t in scene if t.colour in words]
    return getattr(t, words[1])


def test_answers_are_right_and_questions_are_asked_once():
    count = 0
    for i, scene in enumerate(scenes.of_split("train").seen):
        asked = scenes.questions(scene, 0, i)
        assert len({q.text for q in asked}) == len(asked)
        assert asked == scenes.questions(scene, 0, i)
        for q in asked:
            assert q.answer == brute_force(scene, q.text), q.text
            count += q.relational
    assert count > 60


def test_every_word_of_the_scenes_is_in_their_vocabulary():
    for name in ("scenes-questions", "scenes-captions"):
        for split in ("train", "test"):
            assert not (texts.load_texts(name, split).texts == UNK).any()


def test_rows_of_letters_are_reversed_and_the_splits_share_none():
    train_rows, test_rows = (texts.load_texts("reverse", split) for split in ("train", "test"))
    decode = train_rows.tokenizer.decode
    sources = [{decode(row) for row in d.texts} for d in (train_rows, test_rows)]
    assert not sources[0] & sources[1]
    assert any(len(set(source.split())) < len(source.split()) for source in sources[1])
    for i in range(50):
        assert decode(train_rows.labels[i]) == decode(train_rows.texts[i][::-1])


def test_a_batch_of_texts_is_as_short_as_possible():
    dataset = texts.load_texts("scenes-questions", "train")
    batch = dataset.batch(np.array([3, 0, 3]))
    assert (batch.texts != PAD).any(axis=0).all()
    np.testing.assert_array_equal(batch.texts[0], batch.texts[2])
    images = batch.image_of_each
    np.testing.assert_array_equal(images[0], images[2])
    assert images.dtype == np.float32
    assert len(dataset.first(5)) == 5


def test_questions_about_an_image_are_neighbours_and_share_it():
    dataset = texts.load_texts("scenes-questions", "train")
    orders = [dataset.order(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(len(dataset)))
        changes = np.count_nonzero(np.diff(dataset.image_of[order]))
        assert changes == len(dataset.images) - 1
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(dataset.image_of[orders[0]], dataset.image_of[orders[2]])
    assert (np.diff(orders[0]) < 0).sum() > len(dataset) / 3  # the questions about one image are shuffled too
    chosen = orders[0][:40]
    batch = dataset.batch(chosen)
    assert len(batch.images) == len(set(dataset.image_of[chosen])) < 40
    expected = normalize(dataset.images[dataset.image_of[chosen]], dataset.mean, dataset.std)
    np.testing.assert_array_equal(batch.image_of_each, expected)


@pytest.mark.parametrize("name", ["scenes-captions", "easy-vqa"])
def test_the_channels_of_images_are_normalized(name, data_dir):
    if name == "easy-vqa":
        data_dir(name)
    dataset = texts.load_texts(name, "train")
    seen = dataset.images[:1000].swapaxes(0, 1).reshape(3, -1) / 255
    tolerance = 0.01 if len(dataset.images) > 100 else 0.1
    assert dataset.mean == pytest.approx(seen.mean(axis=1), abs=tolerance)
    assert dataset.std == pytest.approx(seen.std(axis=1), abs=tolerance)


def test_easy_vqa_in_its_published_layout(data_dir):
    data_dir("easy-vqa")
    for split, questions, images in (("train", 38575, 4000), ("test", 9673, 1000)):
        dataset = texts.load_texts("easy-vqa", split)
        assert isinstance(dataset, TextDataset)
        assert (len(dataset), dataset.images.shape, len(dataset.classes)) == (questions, (images, 3, 64, 64), 13)
        assert not (dataset.texts == UNK).any()
        yes_no = np.isin([dataset.classes[label] for label in dataset.labels], ["yes", "no"])
        np.testing.assert_array_equal(dataset.kind_of == 0, yes_no)


def test_a_run_keeps_the_vocabulary():
    result = train(tiny("vqa-joint", "epochs=1"), "run")
    spec = load_run(result.folder).data
    assert spec.tokenizer == Tokenizer.build(scenes.VOCABULARY)
    assert dataclasses.replace(spec) == spec


@pytest.mark.parametrize("size", [1, 2, 7, 24])
def test_batches_of_equal_shape_hold_the_same_samples_and_are_filled_up(size):
    full = texts.load_texts("scenes-questions", "train")
    dataset = full.with_equal_batches(size)
    shapes, needed = set(), 0
    for seed in range(20):
        order = dataset.order(np.random.default_rng(seed))
        for start in range(0, len(order) - size, size):
            chosen = order[start : start + size]
            batch, cut = dataset.batch(chosen), full.batch(chosen)
            shapes.add((batch.images.shape, batch.texts.shape))
            needed = max(needed, len(cut.images))
            np.testing.assert_array_equal(batch.image_of_each, cut.image_of_each)
            np.testing.assert_array_equal(batch.texts[:, : cut.texts.shape[1]], cut.texts)
            assert (batch.texts[:, cut.texts.shape[1] :] == PAD).all()
    ((images, texts_),) = shapes
    assert texts_ == (size, full.texts.shape[1])
    assert needed <= images[0] <= min(size, needed + 1)  # no more images than a batch can have


def test_written_texts_are_not_trimmed_in_batches_of_equal_shape():
    dataset = texts.load_texts("reverse", "train").with_equal_batches(4)
    short = np.flatnonzero((dataset.labels != PAD).sum(axis=1) < 6)[:4]
    assert dataset.batch(short).labels.shape == (4, dataset.labels.shape[1])
