"""The last line of a run has the next commands, which exist, take what it says, and name the folder of this run."""

import dataclasses
import shlex
from pathlib import Path

import click
import pytest

from tinyvit.cli.group import commands
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.results import USES, Result, next_steps
from tinyvit.tasks import TASKS


def parsed(name: str, folder: Path, data: str = "") -> dict[str, dict[str, object]]:
    """The commands that follow a run by a recipe: their arguments by their names."""
    recipe = load_recipe(name)
    if data:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=data))
    line = next_steps(Result(folder, recipe, [], {}))
    found = {}
    for command in line.removeprefix("next: ").split("; "):
        program, name, *words = shlex.split(command)
        assert program == "tinyvit"
        above = click.Context(commands, **commands.context_settings)
        found[name] = commands.commands[name].make_context(name, words, above).params
    return found


@pytest.mark.parametrize("folder", ["runs/digits", "runs/digits-2", "my runs/a 'b'"])
@pytest.mark.parametrize("recipe", recipe_names())
def test_the_next_commands_can_be_called_and_name_the_folder(recipe: str, folder: str) -> None:
    found = parsed(recipe, Path(folder))
    kind = load_recipe(recipe).task.kind
    usable = kind in USES and recipe not in ("video", "audio")
    assert list(found) == ["evaluate", *([USES[kind][0]] if usable else [])]
    assert all(Path(str(arguments["run"])) == Path(folder) for arguments in found.values())


def test_every_kind_of_run_that_can_be_used_has_its_command() -> None:
    assert TASKS.keys() - USES.keys() == {"masked"}


@pytest.mark.parametrize(("data", "given"), [("folder:pets", "IMAGE"), ("sounds:birds", "SOUND")])
def test_the_next_command_asks_for_files_like_those_of_the_run(data: str, given: str) -> None:
    assert parsed("folder", Path("runs/mine-3"), data)["predict"]["images"] == (given,)
