"""Runs of every kind of task: they train, resume exactly, start from one another, and are used by commands."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import isolate

import tinyvit as tv
from tinyvit import ask
from tinyvit.cli import main
from tinyvit.data import Dataset, TextDataset, Tokenizer, normalize, read_image, scenes, texts
from tinyvit.data.tokenizer import END, MASK, PAD, START, UNK
from tinyvit.errors import DataError, RecipeError
from tinyvit.evaluate import predict, read_for
from tinyvit.recipes import About, Data, Model, Recipe, Task, Train
from tinyvit.runs import RunError, encoders_of, load_data, load_run
from tinyvit.tasks import Found, task_of
from tinyvit.tasks.base import by_kind
from tinyvit.tasks.retrieve import recall
from tinyvit.tasks.write import word_prior
from tinyvit.train import Training, train

KINDS = {
    "vqa-cnn": ("scenes-questions", {"kind": "vqa", "fusion": "cnn"}),
    "vqa-cross": ("scenes-questions", {"kind": "vqa", "fusion": "cross"}),
    "vqa-joint": ("scenes-questions", {"kind": "vqa", "fusion": "joint"}),
    "caption": ("scenes-captions", {"kind": "caption", "word_prior": 0.7}),
    "retrieve": ("scenes-captions", {"kind": "retrieve"}),
    "masked-patches": ("digits", {"kind": "masked", "hide": "patches"}),
    "masked-words": ("scenes-captions", {"kind": "masked", "hide": "words"}),
    "masked-both": ("scenes-captions", {"kind": "masked", "hide": "both"}),
    "translate": ("reverse", {"kind": "translate"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Few scenes, and few rows of letters to test."""
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 40)
    monkeypatch.setattr(scenes, "TEST_SCENES", 12)
    scenes.of_split.cache_clear()
    yield isolate(tmp_path, monkeypatch)
    scenes.of_split.cache_clear()


def tiny(name: str, *assignments: str) -> Recipe:
    data, task = KINDS[name]
    size = 2 if data == "digits" else 8
    return Recipe(
        about=About(),
        data=Data(name=data, batch_size=20, limit=60),
        model=Model(patch_size=size, dim=8, depth=1, heads=2, mlp_dim=8, pool="first", dropout=0.1),
        train=Train(epochs=2, lr=1e-2, ema=0.9, clip_norm=1.0),
        task=Task(text_depth=1, **task),
    ).override(assignments)


# Every kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_run_trains_is_read_back_and_goes_on_exactly(name, monkeypatch):
    if name == "translate":
        full = texts.load_texts
        monkeypatch.setattr("tinyvit.tasks.base.load_texts", lambda name, split: full(name, split).first(60))
    result = train(tiny(name), "run")
    first, last = result.metrics[0], result.metrics[-1]
    assert last["train_loss"] < first["train_loss"]
    assert 0 <= last["val_accuracy"] <= 1 or name == "masked-patches"  # where no variance may be explained yet
    trained = load_run(result.folder)
    test = load_data(trained.recipe, "test")
    loss, accuracy, found = task_of(trained.recipe).evaluate(trained.model, test, 20)
    assert (loss, accuracy) == pytest.approx((last["val_loss"], last["val_accuracy"]))
    assert found.shares == last.get("val_accuracies", {})

    stopped = Training(tiny(name))
    groups = stopped.groups()
    stopped.step(next(groups))
    stopped.step(next(groups))
    tv.save("middle.safetensors", stopped.state_dict())
    resumed = Training(tiny(name))
    resumed.read_checkpoint("middle.safetensors")
    for _ in range(2):
        for group in resumed.groups():
            resumed.step(group)
        resumed.finish_epoch(lambda: None)
    with resumed.averaged():
        state = resumed.model.state_dict()
    for key, value in tv.load(result.folder / "model.safetensors").items():
        np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize("name", ["motion", "chirps"])
def test_videos_and_spectrograms_are_classified(name, monkeypatch):
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 20})
    recipe = tiny("masked-patches", f"data.name={name}", "kind=classify", "pool=mean", "patch_size=8")
    result = train(recipe, "run")
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]
    kind, shape = load_data(recipe, "test"), {"motion": (8, 1, 24, 24), "chirps": (1, 32, 32)}[name]
    assert isinstance(kind, Dataset)
    assert load_run(result.folder).data.shape == kind.images.shape[1:] == shape


def test_videos_are_no_images(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 20})
    recipe = tiny("masked-patches", "data.name=motion", "kind=classify", "pool=mean", "patch_size=8")
    trained = load_run(train(recipe, "run").folder)
    Image.new("L", (24, 24)).save("a.png")
    with pytest.raises(DataError, match=r"a.png is one image; this model takes videos of 8 frames"):
        predict(trained, "a.png")
    with pytest.raises(RecipeError, match="patches are hidden of images, not of videos"):
        train(recipe.override(["kind=masked"]), "x")


# Starting from another run -----------------------------------------------------------------------------------------


def test_encoders_begin_as_those_of_another_run_and_may_be_frozen():
    source = load_run(train(tiny("masked-both"), "first").folder)
    for name in ("caption", "retrieve", "vqa-cross"):
        recipe = tiny(name, "start_from=runs/first", "freeze=both", "epochs=1", "ema=0")
        run = load_run(train(recipe, name).folder)
        for part, encoder in encoders_of(run.model).items():
            theirs = encoders_of(source.model)[part].state_dict()
            for key, value in encoder.state_dict().items():
                if key.startswith(("blocks", "patch_embed", "pos_embed", "embedding", "encoder.blocks")):
                    np.testing.assert_array_equal(value, theirs[key])
    with pytest.raises(RunError, match="no encoder of images, or of texts of this vocabulary"):
        train(tiny("translate", "start_from=runs/first"), "x")
    with pytest.raises(RunError, match="the vision encoder of runs/first is of another form"):
        train(tiny("caption", "start_from=runs/first", "dim=16"), "x")


def test_a_classifier_begins_as_a_masked_run():
    source = load_run(train(tiny("masked-patches"), "first").folder)
    recipe = tiny("masked-patches", "kind=classify", "start_from=runs/first", "pool=mean", "lr=1e-30", "ema=0")
    state = load_run(train(recipe, "second").folder).model.state_dict()
    np.testing.assert_array_equal(state["pos_embed"], source.model.vision.state_dict()["pos_embed"])


def test_of_a_frozen_classifier_only_the_head_learns():
    train(tiny("masked-patches"), "first")
    recipe = tiny("masked-patches", "kind=classify", "start_from=runs/first", "freeze=vision")
    model = Training(recipe).model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    assert train(recipe, "second").folder.is_dir()


def test_what_cannot_be_frozen_is_told():
    train(tiny("masked-both"), "first")
    for name, assignments, message in [
        ("vqa-cross", ["freeze=vision"], "name the run to begin with in task.start_from"),
        ("caption", ["start_from=runs/first", "freeze=text"], "this model's encoders are vision"),
        ("vqa-cnn", ["start_from=runs/first"], "the vision encoder of runs/first is of another form"),
    ]:
        with pytest.raises((RunError, RecipeError), match=message):
            train(tiny(name, *assignments), "x")
    train(tiny("masked-words"), "texts")
    with pytest.raises(RunError, match="runs/texts has no such encoder"):
        train(tiny("vqa-cross", "start_from=runs/texts", "freeze=vision"), "x")


# What is measured ---------------------------------------------------------------------------------------------------


def test_recall_counts_the_rows_whose_own_is_among_the_best():
    scores = np.array([[3, 1, 2], [9, 8, 7], [0, 0, 0]])
    assert recall(scores, 1) == pytest.approx(1 / 3)  # a tie is no find
    assert recall(scores, 2) == pytest.approx(2 / 3)
    assert recall(scores, 3) == 1


def test_where_there_is_no_number_nothing_is_found():
    assert recall(np.full((3, 3), np.nan), 1) == 0


def test_kinds_are_measured_apart():
    dataset = load_data(tiny("vqa-joint"), "test")
    right = dataset.kind_of != 1
    accuracy, kinds = by_kind(dataset, right)
    assert kinds == {"non-relational": 1, "relational": 0, "held-out pairs": 1}
    counted = dataset.kind_of < 2
    assert accuracy == right[counted].mean() < 1


def test_a_word_prior_is_a_table_of_what_follows_what():
    rows = np.array([[1, 2, 3], [1, 2, 2], [1, 3, 0]])
    table = np.exp(word_prior(rows, 5, 0.8))
    np.testing.assert_allclose(table.sum(axis=1), [0.2, 1, 1, 1, 0.2], rtol=1e-6)  # nothing ever followed 0 or 4
    np.testing.assert_allclose(table[2], [0.04, 0.04, 0.44, 0.44, 0.04], rtol=1e-6)


def test_a_caption_is_learnt_beside_its_word_prior_and_measured_without():
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
    measured = [t.task.evaluate(t.model, t.test_data, 20)[:2] for t in (with_prior, without)]
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        (
            "caption",
            "data.name=scenes-questions",
            "data.name is 'scenes-questions'; a run of the kind 'caption' learns",
        ),
        ("vqa-cnn", "data.name=scenes-captions", "learns from easy-vqa or scenes-questions"),
        ("retrieve", "data.batch_size=1", "data.batch_size is 1"),
        ("caption", "data.name=digits", "learns from scenes-captions"),
        ("masked-patches", "patch_size=8", "model.patch_size is 8"),
    ],
)
def test_what_a_task_cannot_learn_from_is_told(name, assignment, message):
    with pytest.raises(RecipeError, match=message):
        train(tiny(name, assignment), "x")
    assert not Path("runs").exists()


def test_recipes_that_do_not_fit_are_told():
    with pytest.raises(RecipeError, match="has images of a size of their own"):
        Training(tiny("caption", "image_size=32"))
    with pytest.raises(DataError, match="digits has no texts; data sets that do are easy-vqa"):
        texts.load_texts("digits", "test")
    with pytest.raises(DataError, match="scenes-captions has texts, not classes"):
        Training(tiny("caption", "kind=classify"))


# The command line ---------------------------------------------------------------------------------------------------


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["tinyvit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code, *capsys.readouterr()


@pytest.fixture
def picture(tmp_path):
    scene = scenes.of_split("test").seen[:2]
    (tmp_path / "pictures").mkdir()
    for name, pixels in zip("ab", scenes.render(scene), strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((70, 60)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures" / "a.png"


@pytest.mark.parametrize("name", ["vqa-cnn", "vqa-cross", "vqa-joint"])
def test_ask(name, picture, monkeypatch, capsys):
    train(tiny(name, "epochs=1"), "run")
    status, out, _ = call(
        monkeypatch, capsys, "ask", "runs/run", picture, "What COLOR is the circle?", "--out", "x.png"
    )
    answer, probability = out.rstrip("\n").split("\t")
    assert (status, answer in scenes.ANSWERS, 0 < float(probability) <= 1) == (0, True, True)
    assert read_image("x.png", 3).shape[2] > 100
    for question, message in [
        ("", "the text is empty"), (" ", "the text is empty"), ("is a zebra red?", "never read: zebra"),
        ("red " * 99, "the text has 99 words and marks; this model reads up to"),
    ]:  # fmt: skip
        status, out, error = call(monkeypatch, capsys, "ask", "runs/run", picture, question)
        assert (status, out) == (2, "")
        assert message in error
    assert "does not exist" in call(monkeypatch, capsys, "ask", "runs/run", "none.png", "is it red?")[2]
    for mine in (picture, "runs/run/model.safetensors"):
        before = Path(mine).read_bytes()
        status, _, error = call(monkeypatch, capsys, "ask", "runs/run", picture, "is the circle red?", "--out", mine)
        assert (status, "did not draw; name another" in error, Path(mine).read_bytes() == before) == (2, True, True)
    assert call(monkeypatch, capsys, "ask", "runs/run", picture, "is the circle red?", "--out", "x.png")[0] == 0
    status, _, error = call(monkeypatch, capsys, "predict", "runs/run", picture)
    assert (status, "use `tinyvit ask`" in error) == (2, True)
    status, out, _ = call(monkeypatch, capsys, "evaluate", "runs/run")
    assert (status, "relational: " in out, "questions" in out) == (0, True, True)


def test_caption(picture, monkeypatch, capsys):
    run = train(tiny("caption", "epochs=1"), "run").folder
    status, out, _ = call(monkeypatch, capsys, "caption", "runs/run", picture)
    assert status == 0
    text, looks = ask.caption(load_run(run), picture)
    assert out == text + "\n"
    assert looks.maps.shape == (len(text.split()) + 1, 6, 6)
    np.testing.assert_allclose(looks.maps.sum(axis=(1, 2)), 1, rtol=1e-4)
    assert read_image("attention.png", 3).shape[2] > 100


def test_retrieve(picture, monkeypatch, capsys):
    train(tiny("retrieve", "epochs=1"), "run")
    text = "a big red circle and a small blue square"
    status, out, told = call(monkeypatch, capsys, "retrieve", "runs/run", "--images", picture.parent, text)
    lines = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert sorted(path for path, _ in lines) == [str(picture), str(picture.with_name("b.png"))]
    assert float(lines[0][1]) >= float(lines[1][1])
    assert "where each word looks -> attention.png" in told
    for _ in range(2):  # what the first search draws is not searched by the second
        _, out, _ = call(
            monkeypatch,
            capsys,
            "retrieve",
            "runs/run",
            "--images",
            picture.parent,
            text,
            "--out",
            picture.with_name("looks.png"),
        )
        assert len(out.splitlines()) == 2
    assert "is not a folder" in call(monkeypatch, capsys, "retrieve", "runs/run", "--images", "none", text)[2]
    assert "holds no images" in call(monkeypatch, capsys, "retrieve", "runs/run", "--images", "runs", text)[2]


def test_a_word_looks_at_what_its_absence_makes_less_like_the_text(picture, monkeypatch):
    trained = load_run(train(tiny("retrieve", "epochs=1"), "run").folder)
    model, text = trained.model, "a big red circle and a small blue square"
    found, looks = ask.retrieve(trained, picture.parent, text)
    assert looks.words == text.split()
    ids = trained.data.tokenizer.encode(text)
    image = normalize(read_for(trained.data, found[0][0])[None], trained.data.mean, trained.data.std)
    with tv.no_grad():
        patches = model.image_proj(model.vision.features(image)).numpy()[0]
        whole, less = (
            model.encode_texts(np.array([[START, *words, END]])).numpy()[0]
            for words in (ids, [*ids[:2], MASK, *ids[3:]])
        )
    expected = np.maximum(patches @ (whole - less), 0).reshape(looks.maps.shape[1:])
    np.testing.assert_allclose(looks.maps[2], expected, atol=1e-5)


# Data ---------------------------------------------------------------------------------------------------------------


def test_scenes_are_what_their_captions_say():
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
    """The answer again, from the words of the question."""
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


def test_a_batch_of_texts_is_as_short_as_can_be():
    dataset = texts.load_texts("scenes-questions", "train")
    batch = dataset.batch(np.array([3, 0, 3]))
    assert (batch.texts != PAD).any(axis=0).all()
    np.testing.assert_array_equal(batch.texts[0], batch.texts[2])
    images = batch.image_of_each
    np.testing.assert_array_equal(images[0], images[2])
    assert images.dtype == np.float32
    assert len(dataset.first(5)) == 5


def test_questions_about_an_image_stand_side_by_side_and_share_it():
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


def test_a_vocabulary_goes_with_the_run():
    result = train(tiny("vqa-joint", "epochs=1"), "run")
    spec = load_run(result.folder).data
    assert spec.tokenizer == Tokenizer.build(scenes.VOCABULARY)
    assert dataclasses.replace(spec) == spec


def test_the_most_frequent_mistakes_come_first():
    confusion = np.array([[5, 0, 2], [1, 9, 0], [0, 4, 9]])
    found = Found({}, ("a", "b", "c"), confusion)
    assert found.mistakes() == [("c", "b", 4), ("a", "c", 2), ("b", "a", 1)]
    assert found.mistakes(1) == [("c", "b", 4)]
    assert Found({}).mistakes() == []
