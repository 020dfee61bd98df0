"""What a new user is told at the moment when it helps: keys given as options, folders, headings, choices, doubts."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import Watch, isolate, tiny_recipe

from tinyvit import cli, use
from tinyvit.data import load_dataset
from tinyvit.recipe import Recipe, load_recipe
from tinyvit.run.choices import choices
from tinyvit.run.display import Lines
from tinyvit.run.folder import load_run, load_splits
from tinyvit.run.loop import train
from tinyvit.run.own_images import chosen_recipe
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
