"""The programs in the guides on data of one's own make data that can be trained on."""

import re
from pathlib import Path

import pytest

from tinyvit.run.own_images import chosen_recipe

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def run_example(guide: str, count: str) -> None:
    """Run the program of a guide, which makes as many samples as it says, with 30 instead."""
    (program,) = re.findall(r"```{code-block} python\n(.*?)```", (GUIDES / guide).read_text("utf-8"), re.DOTALL)
    assert count in program
    exec(compile(program.replace(count, "range(30)"), guide, "exec"), {"__name__": "__main__"})


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_guide_to_own_texts_makes_a_table_of_captions() -> None:
    run_example("own_texts.md", "range(500)")
    recipe, name = chosen_recipe("shapes/captions.csv", None, [])
    assert (name, recipe.task.kind, recipe.data.image_size, recipe.model.patch_size) == ("captions", "caption", 48, 6)


def test_the_guide_to_own_sounds_makes_a_folder_of_sounds() -> None:
    run_example("own_sounds.md", "range(80)")
    recipe, name = chosen_recipe("sounds", None, [])
    assert (name, recipe.about.title) == ("sounds", "Sounds in sounds: falling, rising, steady")
