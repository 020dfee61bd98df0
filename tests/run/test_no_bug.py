"""No command ends with "a bug": whatever is written, the answer is a result or an error that says what to do."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_tasks import tiny

from tinyvit.cli import main
from tinyvit.run.loop import train
from tinyvit.study.check.faults import plantable, wrong_operation

pytestmark = pytest.mark.usefixtures("few_scenes")

FILES = ("a.png", "grey.png", "one.png", "thin.png", "folder", "text.txt", "empty.png", "none.png", "", ".", "a.png/x")
FILES += ("a" * 300, "/dev/null", "a\udcff.png")
TEXTS = (
    "",
    "?",
    " ",
    "é" * 500,
    "is the circle red?",
    "is it red? " * 50,
    "<mask>",
    "<pad> <cls>",
    "\u0661",
    "\ufeffis",
    "e\u0301",
)
RUNS = ("", "none", "folder", "text.txt", ".", "/dev/null", "a" * 300, "runs", "digits/")
OUTS = ("folder", "none/x.png", "", "a.png", "x.jpg", "x", "a" * 300)
KEYS = (
    *(
        "name=folder:",
        "name=folder:.",
        "name=",
        "name=folder:" + "a" * 5000,
        "start_from=folder",
        "start_from=text.txt",
    ),
    *("start_from=" + "a" * 5000, "freeze=both", "limit=1", "limit=9", "lr=1e300", "lr=1e-320", "layer_scale=1e300"),
    *("weight_decay=1e300", "clip_norm=1e-300", "clip_norm=1e300", "warmup_epochs=1000000", "ema=0.999999999"),
    *("batch_size=2147483647", "seed=9223372036854775807", "precision=float16", "optimizer=sgd", "hide=words"),
)


def answers(monkeypatch, capsys, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["tinyvit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    _, error = capsys.readouterr()
    assert ended.value.code in (0, 1, 2), arguments
    assert "a bug" not in error, (arguments, error)
    assert "Traceback" not in error, (arguments, error)
    assert ended.value.code == 0 or "error: " in error or "are left out" in error, (arguments, error)


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files of every kind in a folder of their own, and go there."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48), (200, 10, 10)).save("a.png")
    Image.new("L", (8, 8)).save("grey.png")
    Image.new("RGB", (1, 1)).save("one.png")
    Image.new("RGB", (3, 90)).save("thin.png")
    Path("folder").mkdir()
    Path("text.txt").write_text("x")
    Path("empty.png").touch()


@pytest.mark.slow
@pytest.mark.usefixtures("things")
def test_files_texts_runs_and_outputs_of_every_kind_are_answered(monkeypatch, capsys) -> None:
    for name in ("vqa-cross", "caption", "retrieve", "masked-patches"):
        train(tiny(name, "epochs=1", "limit=40", "accuracy=0.5"), name)

    def call(*arguments: str) -> None:
        answers(monkeypatch, capsys, *arguments)

    runs = ("digits", *map(str, sorted(Path("runs").iterdir())))
    for run in runs:
        for file in FILES:
            call("predict", run, file)
            call("study", run, "--image", file, "--label", "zzz")
            call("ask", run, file, "is the circle red?", "--out", "x.png")
            call("caption", run, file, "--out", "x.png")
            call("retrieve", run, "--images", file, "a big red circle", "--out", "x.png")
        call("evaluate", run)
        for option in (("--operation", "zzz"), ("--plant", "zzz"), ("--out", "folder"), ("--out", "none/x.html")):
            call("study", run, *option) if run != "digits" else None
    for text in TEXTS:
        call("ask", "runs/vqa-cross", "a.png", text, "--out", "x.png")
        call("retrieve", "runs/retrieve", "--images", ".", text, "--out", "x.png")
    for out in OUTS:
        call("caption", "runs/caption", "a.png", "--out", out)
    for run in RUNS:
        for command in (("evaluate", run), ("predict", run, "a.png"), ("study", run), ("caption", run, "a.png")):
            call(*command)
        for command in (("train", "--resume", run), ("train", run), ("train", f"{run}.toml")):
            call(*command)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_keys_of_every_kind_are_answered(key, monkeypatch, capsys) -> None:
    few = () if key.startswith("limit") else ("--set", "limit=40")
    answers(monkeypatch, capsys, "train", "--set", "epochs=1", "--set", "depth=1", *few, "--set", key)


def test_every_fault_can_be_planted() -> None:
    for name in plantable():
        assert wrong_operation(name)
