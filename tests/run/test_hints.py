"""What a new user is told at the moment when it helps: keys given as options, folders, headings, choices, doubts."""

import dataclasses
import errno
import logging
import shlex
import shutil
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import isolate, tiny_recipe

import tinyvit as tv
from tinyvit import cli, use
from tinyvit.data import load_dataset
from tinyvit.data.looks import looks, range_of_looks, unlike
from tinyvit.interop.save import export_folder
from tinyvit.recipe import Recipe, load_recipe
from tinyvit.run.display import Lines, opening
from tinyvit.run.folder import load_test_data
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.samples import write_samples
from tinyvit.run.state import Training
from tinyvit.tasks import DataSpec

KEYS = [key.name for section in dataclasses.fields(Recipe) for key in dataclasses.fields(section.type)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def usage_error(*words: str, command: click.Command | None = None) -> str:
    with pytest.raises(click.UsageError) as error:
        (command or cli.train.train).make_context("train", list(words))
    return error.value.format_message()


# Keys of recipes given as options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [cli.train.train, cli.machine.show_images])
def test_every_key_given_as_an_option_is_answered_by_the_way_to_set_it(command: click.Command) -> None:
    own = {option for parameter in command.params for option in parameter.opts}
    for key in KEYS:
        for option in {f"--{key}", f"--{key.replace('_', '-')}"} - own:
            assert usage_error("pictures", option, "2", command=command).endswith(f"write --set {key}=2"), option


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("pictures --epochs=2", "--set epochs=2"),
        ("pictures --epochs 2 --lr 1e-3", "--set epochs=2 --set lr=1e-3"),
        ("pictures --train.epochs 2", "--set epochs=2"),
        ("pictures -lr 1e-3", "--set lr=1e-3"),
        ("pictures --epoch 2", "--set epochs=2"),
        ("pictures --flip", "--set flip=true"),
        ("pictures --epochs", "--set epochs=VALUE"),
        ("pictures --lora_targets *.a", "--set 'lora_targets=*.a'"),
        ("pictures epochs=2", "--set epochs=2"),
        ("epochs=2", "--set epochs=2"),
        ("--set epochs 2", "--set epochs=2"),
        ("--set lr=1 --epochs 2", "--set epochs=2"),
    ],
)
def test_other_ways_to_write_a_key_are_understood(words: str, meant: str) -> None:
    assert usage_error(*words.split()).endswith(f"; to change the recipe, write {meant}")


@pytest.mark.parametrize("words", ["pictures --nonsense 2", "pictures --imag x", "a b", "pictures --precision half"])
def test_what_is_no_key_gets_no_such_answer(words: str) -> None:
    assert "--set" not in usage_error(*words.split())


# Folders and headings ------------------------------------------------------------------------------------------------


@pytest.fixture
def digits() -> Path:
    """Two digits, in a folder and in one below it, beside a file that is no image."""
    images = load_dataset("digits", "test").images
    for name, pixels in zip(("scans/a.png", "scans/more/b.png"), images, strict=False):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(name)
    Path("scans/notes.txt").write_text("a text")
    return Path("scans")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.commands, words)
    return result.exit_code, result.stdout, result.stderr or str(result.exception or "")


def test_predict_takes_a_folder_for_the_images_in_it(digits: Path) -> None:
    status, out, _ = run("predict", "digits", "scans", "scans/a.png")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, [row[0] for row in rows]) == (0, ["scans/a.png", "scans/more/b.png", "scans/a.png"])
    assert rows[0][1:] == rows[2][1:]
    Path("scans/torn.png").write_bytes(b"x")
    status, out, err = run("predict", "digits", "scans")
    assert (status, len(out.splitlines()), "scans/torn.png cannot be read" in err) == (2, 2, True)
    Path("empty").mkdir()
    status, out, err = run("predict", "digits", "empty", "scans/a.png")
    assert (status, len(out.splitlines()), "empty holds no images" in err) == (2, 1, True)


@pytest.mark.parametrize(
    "words", [("caption", "caption", "scans"), ("ask", "vqa", "scans", "is there a circle?")], ids=lambda w: w[0]
)
def test_commands_for_one_image_say_what_to_do_with_a_folder(digits: Path, words: tuple[str, ...]) -> None:
    status, _, message = run(*words)
    assert (status, "scans is not a file but a folder; name an image in it" in message) == (1, True)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_columns_have_a_heading_on_a_terminal_only(digits: Path, is_terminal: bool, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    for words, heading in (
        (["predict", "digits", "scans/a.png"], "image\tclass\tprobability"),
        (["retrieve", "retrieve", "--images", "scans", "a big red circle and a small blue square"], "image\tcosine"),
    ):
        cli.commands(words, standalone_mode=False)
        first, *rows = capsys.readouterr().out.splitlines()
        assert first.startswith(heading) == is_terminal
        assert all(row.startswith("scans/") for row in (rows if is_terminal else [first, *rows]))


# What is chosen by data of the user's own -----------------------------------------------------------------------------

SMALL = ("dim=8", "depth=1", "heads=2", "mlp_dim=8", "stem=linear")


@pytest.fixture
def pictures() -> Path:
    """Light and dark grey pictures, of which two are equal but have different labels."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        for i in range(12):
            path = Path("pictures", name, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, low + 90, (24, 30), np.uint8)).save(path)
    return Path("pictures")


def test_a_run_on_an_own_folder_begins_with_its_choices_and_how_to_change_them(pictures: Path) -> None:
    recipe, _ = chosen_recipe("pictures", None, SMALL)
    training = Training(recipe)
    _, chosen, change = opening(training, Path("a run"))
    mean, std = training.data.mean[0], training.data.std[0]
    assert chosen.startswith(
        f"chosen: 2 classes (dark, light); images of 24 x 24 pixels in grey, normalized by mean {mean:.2f} and "
        f"deviation {std:.2f}; patches of 3 pixels; 100 epochs; batches of 32; 20 % held out for the test, and 15 % of"
    )
    assert change.endswith("(all keys: tinyvit recipe 'a run/recipe.toml')")
    words = shlex.split(change.partition(" (all")[0].removeprefix("to change it: "))
    assert set(words[::2]) == {"--set"}
    again = recipe.override(words[1::2])
    assert again == recipe  # they are what the run does
    assert {"image_size=24", "channels=1", "patch_size=3", "epochs=100", "validation=0.15", "test=0.2"} < set(
        words[1::2]
    )
    training.position.step = 1
    assert len(opening(training, Path("a run"))) == 1  # not said again when it is resumed
    assert len(opening(Training(tiny_recipe()), Path("x"))) == 1  # data that has chosen nothing


def test_training_warns_of_equal_images_with_different_labels(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    Training(chosen_recipe("pictures", None, SMALL)[0])
    assert caplog.text == ""
    for name in ("twin", "other"):
        shutil.copy(pictures / "dark/0.png", pictures / f"light/{name}.png")
    Training(chosen_recipe("pictures", None, SMALL)[0])
    (line,) = [r.getMessage() for r in caplog.records if "labels" in r.getMessage()]
    assert line.startswith("folder:pictures: 3 equal images have different labels, in 1 group, such as pictures/")
    assert "`tinyvit data check pictures` lists them" in line
    assert "contradictory labels: 1: " in run("data", "check", "pictures")[1]


def test_training_warns_of_equal_questions_with_different_answers(pictures: Path, caplog) -> None:
    rows = [
        f"pictures/dark/{i}.png,is it {word}?,{answer}"
        for i in range(12)
        for word, answer in (("dark", "yes"), ("light", "no"))
    ]
    Path("asked.csv").write_text("\n".join(["image,question,answer", *rows]))
    Training(chosen_recipe("asked.csv", None, SMALL)[0])
    assert "labels" not in caplog.text
    Path("asked.csv").write_text("\n".join(["image,question,answer", *rows, "pictures/dark/3.png,is it dark?,no"]))
    Training(chosen_recipe("asked.csv", None, SMALL)[0])
    assert "csv:asked.csv: 2 equal questions about equal images have different labels, in 1 group" in caplog.text


# Images unlike those of the training ----------------------------------------------------------------------------------


def test_looks_are_brightness_and_the_share_of_even_neighbours() -> None:
    images = np.zeros((2, 3, 4, 4), np.uint8)
    images[1, 1, :, 2:] = 51  # one edge: of 3 x 4 and 4 x 3 neighbours, four differ
    np.testing.assert_allclose(looks(images), [[0, 1], [51 / 255 / 6, 20 / 24]])
    images[1, 1, :, 2:] = 10  # hardly
    assert looks(images)[1, 1] == 1


def test_an_image_is_unlike_those_outside_of_their_range_and_a_margin() -> None:
    images = np.repeat(np.arange(60, 120, dtype=np.uint8), 16).reshape(60, 1, 4, 4)
    known = range_of_looks(images)
    assert known == (round(60 / 255, 4), round(119 / 255, 4), 1, 1)
    for value, is_unlike in ((36, False), (33, True), (144, False), (146, True)):
        assert bool(unlike(np.full((1, 4, 4), value, np.uint8), known)) == is_unlike
    assert unlike(np.full((1, 4, 4), 255, np.uint8), known) == "its brightness is 1.00, theirs 0.24 to 0.47"
    assert unlike(np.full((1, 4, 4), 255, np.uint8), ()) == ""
    assert range_of_looks(images[:49]) == range_of_looks(images[:, None]) == ()  # too few; videos


def test_a_run_keeps_the_looks_of_its_images_and_a_damaged_state_is_refused() -> None:
    training = Training(tiny_recipe())
    state = training.data.state_dict()
    assert state["looks"] == list(range_of_looks(training.train_data.images)) != []
    assert DataSpec.from_state(state).looks == training.data.looks
    earlier = DataSpec.from_state({key: value for key, value in state.items() if key != "looks"})
    assert (earlier.looks, earlier) == ((), training.data)  # runs of earlier versions are resumed
    for wrong in ([1.0], [0.0, 1.0, 0.0, float("nan")], ["a", 1, 2, 3]):
        with pytest.raises(ValueError, match=r"looks|mean|could not convert"):
            DataSpec.from_state(state | {"looks": wrong})


@pytest.mark.parametrize("name", ["caption", "retrieve", "vqa", "digits"])
def test_weights_in_the_package_know_the_looks_of_their_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tv.load_run(name)
    assert len(trained.data.looks) == 4
    if name != "vqa":  # its images are downloaded
        images = load_test_data(trained).images[:100]
        assert [trained.data.unlike(np.asarray(image)) for image in images] == [""] * len(images)
    noise = np.random.default_rng(0).integers(0, 256, trained.data.shape, np.uint8)
    assert "its evenness is" in trained.data.unlike(noise) or name == "digits"


def test_commands_warn_of_images_unlike_those_of_the_training(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tinyvit")
    write_samples("caption", "scenes", 3)
    for words in (
        ("caption", "caption", "scenes/000.png"),
        ("retrieve", "retrieve", "--images", "scenes", "a big red circle and a small blue square"),
        ("ask", "vqa", "scenes/000.png", "what color is the circle?"),
    ):
        assert run(*words)[0] == 0
    assert caplog.messages == []
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 99, (64, 64, 3), np.uint8))
    noise.save("scenes/photo.png")
    use.caption(tv.load_run("caption"), "scenes/photo.png")
    use.ask(tv.load_run("vqa"), "scenes/photo.png", "what color is the circle?")
    use.search(tv.load_run("retrieve"), "scenes", "a big red circle and a small blue square")
    assert [
        m.partition(" unlike the training images, so the result may mean nothing (")[0] for m in caplog.messages
    ] == [
        *["scenes/photo.png is"] * 2,
        "1 of 4 images are",
    ]
    assert "its brightness is 0.19, theirs 0.76 to 0.87" in caplog.messages[0]


# Pipes ----------------------------------------------------------------------------------------------------------------


def test_a_pipe_that_closed_between_two_lines_ends_the_run_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    lines = Lines(every=1000)
    lines.recipe, lines.steps = load_recipe("digits").train, 1
    monkeypatch.setattr("tinyvit.run.display.show", closed)
    lines.compiling("compiling kernels")  # the compiler goes on; the next step ends the run
    with pytest.raises(BrokenPipeError) as error:
        lines.stepped(Training(tiny_recipe()).position)
    assert error.value.errno == errno.EPIPE  # by which the command knows that there is nothing to say


def test_study_replaces_pages_only(tmp_path: Path) -> None:
    Path("mine.html").write_text("<!doctype html>\n<p>mine</p>")
    result = CliRunner().invoke(cli.commands, ["study", "softmax", "--out", "mine.html"])
    assert "mine.html, a file that this program did not write; name another" in str(result.exception)
    assert Path("mine.html").read_text().endswith("mine</p>")
    for _ in range(2):
        assert CliRunner().invoke(cli.commands, ["study", "softmax", "--out", "page.html"]).exit_code == 0


def test_an_export_that_needs_another_stem_says_how_to_train_it() -> None:
    with pytest.raises(ValueError, match=r"train with --set stem=linear --set mlp_layer=mlp, or export to ONNX or C"):
        export_folder(tv.models.ViT(8, 2, 2, dim=8, depth=1, heads=1, stem="conv"), Path("out"), "timm")
