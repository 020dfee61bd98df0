"""Recipes are explained: `tinyvit recipe NAME` has every key, and the help of train lists all recipes."""

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tinyvit.cli import commands
from tinyvit.recipe import Recipe, load_recipe, recipe_names
from tinyvit.run.explain import MEANINGS, explained, recipes_in_brief
from tinyvit.run.results import Result

KEYS = [f"{s.name}.{k.name}" for s in dataclasses.fields(Recipe) for k in dataclasses.fields(s.type)]


def test_every_key_has_a_meaning_and_every_meaning_a_key() -> None:
    assert set(MEANINGS) == {key for key in KEYS if not key.startswith("about.")}


@pytest.mark.parametrize("key", MEANINGS)
def test_meanings_are_short_sentences(key: str) -> None:
    assert re.fullmatch(r"[A-Z].{5,100}\.", MEANINGS[key])


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_printed_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(explained(name), "utf-8")
    assert load_recipe(tmp_path / "mine.toml") == load_recipe(name)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("lr = 0.003", "a number, above 0; required"),
        ('pool = "mean"', "one of cls, mean, first, cls_mean, seq; default cls"),
        ("flip = false", "true or false; default false"),
        ('start_from = ""', "text; default empty"),
        ("patience = 0", "an integer, at least 0 and at most 2147483647; default 0"),
    ],
)
def test_each_key_stands_below_its_meaning_and_its_values(line: str, values: str) -> None:
    lines = explained("digits").split("\n")
    at = lines.index(line)
    key = next(key for key in KEYS if key.endswith(f".{line.partition(' = ')[0]}"))
    assert lines[at - 1] == f"# {values}"
    assert lines[at - 2] == f"# {MEANINGS[key]}"


def test_the_help_of_train_lists_recipes_with_minutes_and_accuracy() -> None:
    text = CliRunner().invoke(commands, ["train", "--help"]).output
    for name in recipe_names():
        assert re.search(rf"^  {re.escape(name)} ", text, re.MULTILINE)
    line = next(line for line in text.splitlines() if line.startswith("  digits "))
    assert "0.5 min, 98.9 %" in line
    assert "tinyvit recipe NAME" in text


@pytest.mark.parametrize("name", recipe_names())
def test_figures_that_nobody_has_measured_are_called_aims_on_a_gpu(name: str) -> None:
    about, (told,) = load_recipe(name).about, [text for key, text in recipes_in_brief() if key == name]
    head = explained(name).partition("[about]")[0]
    assert about.is_aim == ("No accuracy has been measured" in about.note) == ("for a GPU" in about.title)
    assert told.startswith("aim, not measured: 10 min on a GPU, 9") == about.is_aim
    assert ("CPU" in head.replace("for a CPU", "")) == (not about.is_aim and about.minutes > 0)


def test_a_result_stands_beside_an_aim_that_is_called_so() -> None:
    line, test = {"epoch": 1, "seconds": 3.0}, {"accuracy": 0.5, "epoch": 1}
    said = {n: str(Result(Path("run"), load_recipe(n), [line], test)) for n in ("digits", "cct-cifar-10")}
    assert "(the recipe expects 98.9 %)" in said["digits"]
    assert "(the recipe aims at 91.0 %)" in said["cct-cifar-10"]


@pytest.mark.parametrize("name", recipe_names())
def test_commands_are_not_broken_over_lines(name: str) -> None:
    head = explained(name).partition("[about]")[0].splitlines()
    assert f"# Train it: {load_recipe(name).about.command}" in head
    assert "# Or change this text, saved as mine.toml: tinyvit train mine.toml" in head
    assert all(re.match(r"# ([A-Z]|easy-VQA)", line) for line in head if line), head
    weights = f"# Trained weights come with the package: tinyvit evaluate {name}"
    assert (weights in head) == (name in ("caption", "digits", "retrieve", "vqa"))


def test_an_unknown_recipe_is_refused_with_those_that_exist() -> None:
    error = CliRunner().invoke(commands, ["recipe", "digit"]).exception
    assert "did you mean 'digits'?" in str(error)
