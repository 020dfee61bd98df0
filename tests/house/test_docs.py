"""The documents are right: every Python example in them runs, and every command parses."""

import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest
from tiers import quick_first

from tinyvit.cli import commands
from tinyvit.recipe import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]


GUIDES = [
    "README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/guides").glob("*.md"))),
]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
PAGES_WITH_EXAMPLES = [
    *("CONTRIBUTING.md", "kernels/README.md"),
    *(name for name in GUIDES if BLOCK.search((ROOT / name).read_text("utf-8"))),
]


# Kernels would have to be compiled for the examples of these pages: for float64, and for programs.
SLOW = ("docs/guides/gradients.md", "docs/guides/programs.md")
QUICK = [name for name in PAGES_WITH_EXAMPLES if name not in SLOW]


@pytest.mark.parametrize("name", quick_first([*QUICK, *SLOW], len(QUICK)))
def test_python_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples of a page are one program: later ones use the names of earlier ones. They print what they say."""
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall((ROOT / name).read_text("utf-8"))]
    assert blocks
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)
    lines = capsys.readouterr().out.splitlines()
    assert [said for block in blocks for said in re.findall(r"# prints (.*)", block) if said not in lines] == []


def test_the_readme_shows_the_two_commands_of_a_new_checkout() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "    pip install -e . && tinyvit train" in text
    assert '    pip install -e ".[dev]" && python -m pytest -n 2' in text


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 170


def commands_shown() -> list[str]:
    """The `tinyvit` commands in README and guides, without their comments, and those that recipes state."""
    text = "\n".join((ROOT / name).read_text("utf-8") for name in GUIDES)
    lines = re.findall(r"^    (?:.*&& )?(tinyvit .*)$", text, re.MULTILINE)
    shown = [re.sub(r"\s+#.*", "", line) for line in lines]
    return [*shown, *(load_recipe(name).about.command for name in recipe_names())]


@pytest.mark.parametrize("line", sorted(set(commands_shown())))
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvit.backend.set_default_device", lambda name: None)  # this machine may have no GPU
    _, *words = shlex.split(line)
    command, parent = commands, click.Context(commands, info_name="tinyvit", **commands.context_settings)
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
        parent = click.Context(command, parent, name) if isinstance(command, click.Group) else parent
    command.make_context(name, words, parent)


def test_readme_and_guides_show_every_command() -> None:
    shown = " ".join(commands_shown())
    assert all(f"tinyvit {name}" in shown for name in commands.commands)


def test_the_rooms_that_contributing_lists_exist() -> None:
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    rooms = [room for cell in table for room in re.findall(r"`(.*?)`", cell)]
    assert len(rooms) > 10
    assert not [room for room in rooms if not (ROOT / room).exists()]


def test_contributing_lists_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    packages = [path.parent for path in (ROOT / "tinyvit").glob("*/__init__.py")]
    assert packages
    assert not [path.name for path in packages if f"`tinyvit/{path.name}/`" not in text]
