"""Runs on tables of the user's own texts: one command for each kind, then the model is used, measured and resumed."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import Watch, isolate, sha256

import tinyvit as tv
from tinyvit import use
from tinyvit.cli import commands
from tinyvit.data import FolderOptions
from tinyvit.data.check_texts import check_texts
from tinyvit.data.own_texts import CAPTIONS
from tinyvit.data.tokenizer import UNK
from tinyvit.errors import DataError, RecipeError
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import MODEL, RunError, load_run
from tinyvit.run.loop import resume, train
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.sheets import checked
from tinyvit.run.state import Training

TINY = ("dim=16", "depth=1", "heads=2", "mlp_dim=16", "epochs=25", "lr=0.01", "batch_size=16")
SMALL = (*TINY, "text_depth=1", "image_size=8", "patch_size=4")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def write(path: str, *rows: tuple[str, ...]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path: str) -> list[list[str]]:
    return list(csv.reader(Path(path).read_text("utf-8").splitlines()))


@pytest.fixture
def images() -> list[tuple[str, str]]:
    """Forty noisy pictures of one colour each, of several sizes: paths and colours."""
    rng, found = np.random.default_rng(0), []
    Path("images").mkdir()
    for i in range(40):
        name = list(COLOURS)[i % 4]
        pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 10, (18 + i % 5, 20, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(f"images/{i}.png")
        found.append((f"images/{i}.png", name))
    return found


def captions_of(images: list[tuple[str, str]]) -> str:
    rows = [row for path, name in images for row in ((path, f"It is {name}."),) * 2]
    return write("captions.csv", ("image", "caption"), *rows)


def questions_of(images: list[tuple[str, str]]) -> str:
    rows = [(path, "What colour?", name) for path, name in images]
    rows += [(path, "Is it red?", "yes" if name == "red" else "no") for path, name in images]
    return write("questions.csv", ("file", "question", "answer"), *rows)


def translations() -> str:
    rng = np.random.default_rng(0)
    words = [[f"w{i}" for i in rng.integers(0, 4, 2)] for _ in range(200)]
    return write(
        "words.csv", ("source", "target"), *[(" ".join(two), " ".join(two).replace("w", "v")) for two in words]
    )


@pytest.mark.slow
def test_captions_are_learnt_and_written(images) -> None:
    recipe, name = chosen_recipe(captions_of(images), None, (*SMALL, "epochs=50", "word_prior=0"))
    assert (name, recipe.task.kind, recipe.data.name) == ("captions", "caption", "csv:captions.csv")
    fitted = chosen_recipe("captions.csv", None, [])[0]
    assert (fitted.data.image_size, fitted.model.patch_size, fitted.data.validation) == (20, 2, 0.1)
    assert recipe.about.title == "image, caption of captions.csv"
    assert recipe.about.accuracy == 0
    result = train(recipe, name)
    assert result.accuracy > 0.8
    trained = load_run(result.folder)
    assert trained.data.words[6:] == (".", "blue", "green", "grey", "is", "it", "red")
    text, maps = use.caption(trained, images[0][0])
    assert text == f"it is {images[0][1]} ."
    assert maps.maps.shape[1:] == (2, 2)
    assert use.evaluated(trained)["accuracy"] == result.accuracy
    spoken = CliRunner().invoke(commands, ["caption", str(result.folder), images[1][0]])
    assert spoken.output.splitlines()[-1] == f"it is {images[1][1]} ."


def test_a_caption_belongs_to_its_image_where_images_have_several(images) -> None:
    """The loss of two captions of each image is that of the same rows with an image of their own."""
    path = captions_of(images)
    recipe = chosen_recipe(path, None, SMALL)[0]
    training = Training(recipe)
    shared = training.train_data
    assert shared.shares_images
    chosen = np.array([5, 4, 1, 0, 9])
    both = [shared.batch(chosen), shared.batch(chosen[:1])]
    training.model.eval()
    losses = [training.task.loss(training.model, batch).item() for batch in both]
    one_by_one = [training.task.loss(training.model, shared.batch(np.array([i]))).item() for i in chosen]
    assert losses[0] == pytest.approx(sum(one_by_one), rel=1e-4)
    assert losses[1] == pytest.approx(one_by_one[0], rel=1e-4)
    assert np.ptp(one_by_one) > 1e-4


@pytest.mark.slow
def test_recorded_steps_on_images_with_several_captions_have_the_bits_of_others(images, monkeypatch) -> None:
    changes = (*SMALL, "epochs=3", "batch_size=8", "validation=0", "word_prior=0")
    recipe = chosen_recipe(captions_of(images), None, changes)[0]
    weights, recorded = [], []
    for warm_up in (2, 10**9):
        monkeypatch.setattr("tinyvit.run.captured_cpu.WARM_UP", warm_up)
        with tv.use_kernels("auto"):
            seen: list[bool] = []
            watch = Watch(lambda training, _, seen=seen: seen.append(training.steps.gradients.is_captured))
            weights.append(sha256(train(recipe, "run", display=watch).folder))
        recorded.append(seen[-1])
    assert recorded == [True, False]
    assert weights[0] == weights[1]


def test_an_unknown_word_is_expected_as_such(images) -> None:
    training = Training(chosen_recipe(captions_of(images), None, SMALL)[0])
    batch = training.train_data.batch(np.arange(2))
    batch.labels[0, 1] = UNK
    training.model.eval()
    _, (_, expected) = training.task.measure(training.model, batch, 0)
    assert expected[0][0] == UNK
    assert expected[0][1:] == expected[1][1:]


@pytest.mark.slow
def test_a_caption_with_an_unknown_word_is_never_right(images) -> None:
    result = train(*chosen_recipe(captions_of(images), None, SMALL))
    rows = read("captions.csv")
    held = {row.file.name for row in _parts("captions.csv")["test"]}
    changed = [(a, f"{b} indeed" if Path(a).name in held else b) for a, b in rows[1:]]
    write("captions.csv", ("image", "caption"), *changed)
    assert {row.file.name for row in _parts("captions.csv")["test"]} == held
    with pytest.raises(DataError, match="the longest text that is read had 6 tokens and has now 7"):
        use.evaluated(load_run(result.folder))
    changed = [(a, "It is indeed." if Path(a).name in held else b) for a, b in rows[1:]]
    write("captions.csv", ("image", "caption"), *changed)
    assert use.evaluated(load_run(result.folder))["accuracy"] == 0


def _parts(path: str):
    from tinyvit.data.own_texts import CAPTIONS, TextTable
    from tinyvit.tasks.options import folder_options

    recipe = load_recipe("caption").override([f"data.name=csv:{path}", "validation=0.1"])
    return TextTable(path, CAPTIONS, folder_options(recipe)).parts


def test_questions_are_learnt_and_answered(images) -> None:
    recipe, name = chosen_recipe(questions_of(images), None, (*SMALL, "stem=linear"))
    assert (recipe.task.kind, recipe.data.flip) == ("vqa", False)
    result = train(recipe, name)
    assert result.accuracy > 0.9
    trained = load_run(result.folder)
    assert trained.classes == ("blue", "green", "grey", "no", "red", "yes")
    assert use.ask(trained, images[2][0], "what COLOUR ?")[0] == images[2][1]
    with pytest.raises(DataError, match="words that this model does not know: big"):
        use.ask(trained, images[2][0], "Is it big?")
    rows = [tuple(row) for row in read("questions.csv")]
    write("questions.csv", *[(a, b, c.replace("no", "never")) for a, b, c in rows])
    with pytest.raises(DataError, match="answers that the model has not learnt: never"):
        use.evaluated(trained)
    write("questions.csv", *rows)
    assert use.evaluated(trained)["accuracy"] == result.accuracy


@pytest.mark.slow
def test_pairs_are_found(images) -> None:
    path = captions_of(images)
    recipe, _ = chosen_recipe("retrieve", path, (*SMALL, "epochs=40"))
    assert (recipe.task.kind, recipe.about.command) == ("retrieve", "tinyvit train retrieve --data captions.csv")
    result = train(recipe, "pairs")
    trained = load_run(result.folder)
    found, _ = use.retrieve(trained, "images", "it is blue.")
    colours = dict(images)
    assert {colours[str(path)] for path, _ in found[:10]} == {"blue"}


@pytest.mark.slow
def test_texts_are_translated_and_a_run_resumes_with_the_same_bits() -> None:
    recipe, name = chosen_recipe(translations(), None, (*TINY, "epochs=30"))
    assert (recipe.task.kind, recipe.data.image_size) == ("translate", 0)
    result = train(recipe, name)
    trained = load_run(result.folder)
    assert use.translate(trained, "w3 w1") == "v3 v1"
    spoken = CliRunner().invoke(commands, ["translate", str(result.folder), "w0 w2"])
    assert spoken.output == "v0 v2\n"
    with pytest.raises(RunError, match="use `tinyvit translate`"):
        use.predict(trained, "x.png")
    whole = train(recipe.override(["epochs=2"]), "whole")
    half = train(recipe.override(["epochs=2"]), "half")
    (half.folder / MODEL).unlink()
    assert sha256(resume(half.folder).folder) == sha256(whole.folder)


def test_weights_without_a_checkpoint_take_the_words_of_the_table(caplog) -> None:
    result = train(*chosen_recipe(translations(), None, (*TINY, "epochs=1")))
    words = load_run(result.folder).data
    (result.folder / "checkpoint.safetensors").unlink()
    assert load_run(result.folder).data == words
    assert "its words are taken to be those that csv:words.csv now has: <pad>" in caplog.text


@pytest.mark.slow
def test_hidden_words_are_learnt_from_captions_too(images) -> None:
    recipe, _ = chosen_recipe("masked", captions_of(images), (*SMALL, "hide=both", "epochs=2"))
    assert train(recipe, "hidden").folder.is_dir()


def test_epochs_batches_and_rates_follow_the_number_of_rows() -> None:
    recipe = chosen_recipe(translations(), None, [])[0]
    base = load_recipe("translate")
    rows = 200  # of which a fifth and a tenth of the sources, sixteen, are held out
    assert 16 == recipe.data.batch_size < base.data.batch_size
    assert recipe.train.epochs == 100
    assert recipe.train.lr == pytest.approx(base.train.lr / 2)
    many = [(f"a{i} b", "b") for i in range(10 * rows)]
    recipe = chosen_recipe(write("many.csv", ("source", "target"), *many), None, [])[0]
    assert (recipe.data.batch_size, recipe.train.lr) == (base.data.batch_size, base.train.lr)
    assert recipe.train.epochs == 120_000 // 1440
    assert chosen_recipe("many.csv", None, ["epochs=3", "batch_size=7"])[0].data.batch_size == 7


def test_a_table_for_another_task_is_refused_with_the_recipes_that_fit(images) -> None:
    captions, words = captions_of(images), translations()
    labels = write("labels.csv", ("file", "label"), *images)
    for name, path, message in (
        ("vqa", captions, "has the columns image, caption, .* recipes for it: caption, masked, retrieve"),
        ("digits", words, "recipes for it: translate"),
        ("caption", labels, "not for 'caption' runs; a table needs the columns image, caption"),
    ):
        with pytest.raises(RecipeError, match=message):
            chosen_recipe(name, path, [])
    for recipe, message in (
        (load_recipe("digits").override([f"data.name=csv:{captions}"]), "there is no data set"),
        (load_recipe("caption").override([f"data.name=csv:{captions}", "resize=bicubic 1 center"]), "data.resize"),
        (load_recipe("translate").override([f"data.name=csv:{words}", "image_size=8"]), "data.image_size is 8"),
        (load_recipe("translate").override([f"data.name=csv:{words}", "channels=3"]), "data.channels is 3"),
        (load_recipe("translate").override([f"data.name=csv:{words}", "channels=2"]), "data.channels is 2"),
    ):
        with pytest.raises((RecipeError, DataError), match=message):
            Training(recipe)


@pytest.mark.parametrize("name", ["caption", "retrieve"])
def test_test_images_that_are_train_images_too_are_named(images, name, caplog) -> None:
    shutil.copy("images/0.png", "images/copy.png")
    rows = [(path, f"It is {colour}.", "test" if i % 4 == 0 else "train") for i, (path, colour) in enumerate(images)]
    write("some.csv", ("image", "caption", "split"), *rows)
    Training(chosen_recipe(name, "some.csv", SMALL)[0])
    assert "are train images too" not in caplog.text
    assert "duplicates between splits: 0" in check_texts("some.csv", CAPTIONS).text
    rows += [("images/copy.png", "It is red.", "train"), ("images/8.png", "So it is.", "train")]
    write("some.csv", ("image", "caption", "split"), *rows, ("images/1.png", "It is not.", "train"))
    recipe = chosen_recipe(name, "some.csv", (*SMALL, "validation=0"))[0]
    Training(recipe)
    assert "csv:some.csv: 2 of 10 test images are train images too, so the accuracy will be too high" in caplog.text
    assert "images/0.png = images/copy.png" in caplog.text
    assert "images/8.png = images/8.png" in caplog.text
    checked = check_texts("some.csv", CAPTIONS, FolderOptions(validation=0)).text
    (line,) = [line for line in checked.splitlines() if line.startswith("duplicates between splits")]
    assert line.startswith("duplicates between splits: 2: ")
    assert "images/copy.png (train) = images/0.png (test)" in line
    assert "images/8.png (train) = images/8.png (test)" in line


@pytest.mark.slow
def test_a_check_of_captions_draws_a_sheet_and_one_of_translations_does_not(images) -> None:
    assert "-> captions.csv-check.png" in checked(captions_of(images)).text
    assert Path("captions.csv-check.png").is_file()
    assert "200 rows of source, target" in checked(translations()).text
    assert not Path("words.csv-check.png").exists()
