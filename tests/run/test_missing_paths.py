"""A path that does not exist, and a column with a slip, are answered by the names that are there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.contenders.user import UserKernel
from tinyvit import load_run, use
from tinyvit.backend.files import missing
from tinyvit.data.own_texts import CAPTIONS, QUESTIONS, TRANSLATIONS, TextTable
from tinyvit.data.waves import read_header
from tinyvit.errors import DataError, RecipeError
from tinyvit.interop.files import open_weights
from tinyvit.run.folder import read_recipe
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.sheets import checked


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a table, a sound, weights, a run and a kernel."""
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs"):
        Path("pictures", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"pictures/{name}/first.png")
    Path("runs/pictures").mkdir(parents=True)
    for file in ("labels.csv", "quick.toml", "song.wav", "weights.safetensors", "runs/pictures/recipe.toml", "mine.py"):
        Path(file).write_text("")
    return tmp_path


COMMANDS: dict[str, tuple[Callable[[str], object], str]] = {
    "check a folder": (checked, "pictures"),
    "check a class": (checked, "pictures/cats"),
    "check a table": (checked, "labels.csv"),
    "train on a folder": (lambda path: chosen_recipe(path, None, []), "pictures"),
    "train on a class": (lambda path: chosen_recipe(path, None, []), "pictures/cats"),
    "train by a recipe": (lambda path: chosen_recipe(path, None, []), "quick.toml"),
    "train on a table": (lambda path: chosen_recipe(path, None, []), "labels.csv"),
    "predict": (lambda path: load_run("digits").predict(path), "pictures/cats/first.png"),
    "retrieve": (lambda path: use.search(load_run("retrieve"), path, "a big red circle"), "pictures"),
    "a sound": (lambda path: read_header(Path(path)), "song.wav"),
    "weights of others": (lambda path: open_weights(Path(path)), "weights.safetensors"),
    "resume": (lambda path: read_recipe(Path(path)), "runs/pictures"),
    "own kernel": (lambda path: UserKernel(f"{path}:attention"), "mine.py"),
}


def slips(path: str) -> list[str]:
    """The path with a letter lost or two swapped, in its last part, and in its first if it has several."""
    place = Path(path)
    stem = place.stem
    found = [
        place.with_name(stem[0] + stem[2:] + place.suffix),
        place.with_name(stem[0] + stem[2] + stem[1] + stem[3:] + place.suffix),
    ]
    first, *rest = place.parts
    return [*map(str, found), *([str(Path(first[:-1] + "x", *rest))] if rest else [])]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_with_a_slip_is_answered_by_the_one_beside_it(command: str) -> None:
    call, path = COMMANDS[command]
    for slip in slips(path):
        with pytest.raises(Exception, match="did you mean") as caught:
            call(slip)
        there = [name for name in (path, *Path(path).parts) if f"(did you mean {name!r}?)" in str(caught.value)]
        assert there, str(caught.value)


def test_a_path_in_folders_that_are_missing_names_the_first_of_them() -> None:
    assert missing("picturs/cats/first.png") == (
        "there is no file 'picturs/cats/first.png', because there is no folder 'picturs' (did you mean 'pictures'?)"
    )
    assert missing("qqqq/x/y") == "there is no file 'qqqq/x/y', because there is no folder 'qqqq'"
    assert missing("pictures/cats/a.png") == "there is no file 'pictures/cats/a.png'", "an equal suffix says nothing"
    assert missing("pictures/cats/frist.png") == (
        "there is no file 'pictures/cats/frist.png' (did you mean 'first.png'?)"
    )


@pytest.mark.parametrize("name", ["digts", "cifar10", "mnsit"])
def test_a_name_like_a_recipe_is_taken_for_one_beside_folders_too(name: str) -> None:
    Path(f"{name}x").mkdir()
    with pytest.raises(RecipeError, match="there is no recipe"):
        chosen_recipe(name, None, [])


@pytest.mark.parametrize("command", ["check a class", "train on a class"])
def test_the_folder_of_one_class_is_answered_by_the_one_above(command: str) -> None:
    call, path = COMMANDS[command]
    with pytest.raises(DataError, match=r"give the folder that holds it and the others: pictures$"):
        call(path)


@pytest.mark.parametrize(
    ("columns", "meant"),
    [
        ("file,lable", "label"),
        ("fiel,label", "file"),
        ("File,Lebel", "label"),
        ("image,captoin", "caption"),
        ("image,question,anser", "answer"),
        ("sorce,target", "source"),
        ("file,categry,split", "category"),
        ("image,labl", "label"),
    ],
)
def test_a_column_with_a_slip_is_answered_by_the_one_that_is_meant(columns: str, meant: str) -> None:
    Path("table.csv").write_text(f"{columns}\n" + ",".join("a" for _ in columns.split(",")) + "\n")
    for call in (checked, lambda path: chosen_recipe(path, None, [])):
        with pytest.raises(DataError, match=rf"table.csv has the columns .* \(did you mean '{meant}'\?\)"):
            call("table.csv")


@pytest.mark.parametrize("columns", [QUESTIONS, CAPTIONS, TRANSLATIONS])
def test_a_table_that_a_recipe_reads_names_the_column_that_is_meant(columns: tuple[str, ...]) -> None:
    for name in columns:
        given = [column if column != name else column[:2] + column[3:] for column in columns]
        Path("table.csv").write_text(",".join(given) + "\n" + ",".join("a" for _ in given) + "\n")
        with pytest.raises(DataError, match=rf"\(did you mean '{name}'\?\)"):
            TextTable("table.csv", columns)


def test_files_of_a_table_that_are_not_there_are_looked_for_in_its_folder() -> None:
    Path("pictures/table.csv").write_text("file,label\npictures/cats/first.png,cat\n")
    with pytest.raises(DataError, match=r"\(it does not exist\); paths in a table begin at its folder, .*pictures$"):
        checked("pictures/table.csv")
