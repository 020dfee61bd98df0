"""Nothing that comes from a file, a server or a name reaches the terminal as a command."""

import ast
import dataclasses
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sources import FILES, parsed
from tiny_run import isolate, tiny_recipe

from tinyvit import cli
from tinyvit.backend.terminal import printable
from tinyvit.run.curves import draw_curves
from tinyvit.run.folder import TrainedModel, load_run

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe"
SAVED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe"


def harmless(text: str) -> bool:
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in text) and "\u202e" not in text


@given(st.text(st.characters(exclude_categories=())))
def test_control_characters_are_shown_as_codes_and_all_others_as_they_are(text: str) -> None:
    assert harmless(printable(text))
    assert not set("\n\t") & set(printable(text, field=True))
    if harmless(text) and not set("\u2028\u2029\u202a\u202b\u202c\u202d\u2066\u2067\u2068\u2069") & set(text):
        assert printable(text) == text


# Files that print for themselves: kernels may not import the rest of the package, and print only names of their own.
PRINTING = {
    *("tinyvit.backend.terminal", "tinyvit.kernels.cache", "tinyvit.kernels.cpu.compiler"),
    "tinyvit.study.page.fused",  # to the process that started it
    "tinyvit.distributed.watch",  # runs alone, without the package, and is given text that is printable already
}


def test_everything_is_printed_in_one_place() -> None:
    found = set()
    for name, path in FILES.items():
        called = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        # Writing out every expression that is called would take seconds.
        likely = [f for f in called if getattr(f, "id", None) == "print" or getattr(f, "attr", None) == "write"]
        if any(ast.unparse(function) in ("print", "sys.stdout.write", "sys.stderr.write") for function in likely):
            found.add(name)
    assert {name for name in found if not name.startswith("benchmarks")} == PRINTING


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    isolate(tmp_path, monkeypatch)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tinyvit", *map(str, arguments)])
        with pytest.raises(SystemExit):
            cli.main()
        out, err = capfd.readouterr()
        assert harmless(out + err), repr(out + err)
        return out + err

    return call


COMMANDS = (
    ("predict", "digits", f"{EVIL}.png"),
    ("predict", EVIL, "a.png"),
    ("predict", EVIL),
    ("ask", "digits", EVIL, EVIL),
    ("caption", EVIL, EVIL),
    ("retrieve", "digits", "--images", EVIL, EVIL),
    ("evaluate", EVIL),
    ("study", EVIL),
    ("study", "digits", "--image", EVIL),
    ("study", "digits", "--label", EVIL, "--text"),
    ("study", "digits", "--plant", EVIL),
    ("train", EVIL),
    ("train", f"{EVIL}.toml"),
    ("train", "digits", "--set", EVIL),
    ("train", "digits", "--set", f"data.name={EVIL}"),
    ("train", "digits", "--set", f"data.name=folder:{EVIL}"),
    ("train", "--resume", EVIL),
    ("train", "digits", "--device", EVIL),
    ("data", "fetch", EVIL),
    (EVIL,),
    ("info", EVIL),
    ("info", f"--{EVIL}"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments).replace(EVIL, "EVIL"))
def test_arguments_and_names_of_files_are_shown_as_codes(run, arguments: tuple[str, ...]) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(f"{EVIL}.png", "png")
    said = run(*arguments)
    assert "x1b" in said or "needs a" in said or "Missing argument" in said


def test_names_of_classes_are_shown_as_codes(run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_run("digits")
    data = dataclasses.replace(trained.data, classes=tuple(f"{i}{EVIL}\n\t" for i in range(10)))
    monkeypatch.setattr("tinyvit.run.folder.load_run", lambda run: TrainedModel(trained.recipe, trained.model, data))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    path, name, probability = run("predict", "digits", "a.png").split("\t")
    assert path == "a.png"
    assert name[1:] == SAVED + r"\n\t"
    assert 0 < float(probability) <= 1


def test_what_a_recipe_says_is_shown_as_codes(run) -> None:
    recipe = tiny_recipe("epochs=1", "batch_size=1438").to_toml()
    Path("a.toml").write_text(recipe.replace('title = ""', 'title = "\\u001b[2J"'))
    assert "test accuracy" in run("train", "a.toml", "--out", f"out{EVIL}")
    Path("b.toml").write_text(recipe.replace('pool = "mean"', 'pool = "\\u001b[2J"'))
    assert "x1b" in run("train", "b.toml")
    Path("c.toml").write_text(f"[{EVIL}")
    run("train", "c.toml")


def test_a_traceback_is_shown_as_codes(run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TINYVIT_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["tinyvit", "train", EVIL])
    before = sys.excepthook
    try:
        with pytest.raises(Exception) as raised:  # noqa: PT011 (whatever it is, it is shown in this way)
            cli.main()
        sys.excepthook(raised.type, raised.value, raised.tb)
    finally:
        sys.excepthook = before
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert harmless(shown)


def test_drawings_take_no_settings_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # as a matplotlibrc could set it
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no LaTeX to start
    line = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
    draw_curves(tmp_path / "curves.png", "$a_b % {", [line])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.rcParams["text.usetex"]
