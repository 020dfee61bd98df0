"""Where Python lacks what it lacks in a browser, lessons, training and study give the same by the plain rules."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sources import ROOT

HERE = "import sys; sys.path.insert(0, sys.argv[1]); "
BROWSER = HERE + "import tests.support.like_a_browser\n"

TRAINED = """
import json, os, threading
from pathlib import Path
import tinyvit as tv
from tinyvit.recipe import About, Data, Model, Recipe, Train
from tinyvit.run.display import Lines
from tinyvit.run.loop import resume, train

recipe = Recipe(
    about=About(),
    data=Data(name="digits", batch_size=240, validation=0, shift=1, rotate=10),
    model=Model(patch_size=4, dim=8, depth=1, heads=2, pool="mean"),
    train=Train(epochs=2, lr=1e-2, warmup_epochs=0.5),
)
lines = Lines(every=0.0)
with tv.use_kernels("numpy"):
    train(recipe, "run", display=lines)
    resume(Path("runs/run"), display=lines, assignments=["train.epochs=3"])
kept = ("train_loss", "val_loss", "val_accuracy")
found = [{name: line[name] for name in kept} for line in map(json.loads, open("runs/run/metrics.jsonl"))]
Path("found.json").write_text(json.dumps(found))
"""

STUDIED = """
from pathlib import Path
import numpy as np, tinyvit as tv, tinyvit.functional as F
tv.manual_seed(0)
model = tv.models.ViT(8, 2, 10, dim=8, depth=1, heads=2, in_channels=1)
image = tv.tensor(np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8), requires_grad=True)
with tv.use_kernels("numpy"), tv.study.trace(names={"image": image}) as trace:
    F.cross_entropy(model(image), np.array([3])).backward()
assert all(tv.study.check(backward).verdict == "agrees" for backward in trace.backwards)
trace.save_html("page.html")
np.save("gradient.npy", image.grad.numpy())
"""

READ = """
from pathlib import Path
import numpy as np
from PIL import Image
from tinyvit.data.check import check_folder
for split in ("train", "test"):
    for label in ("dark", "light"):
        Path(split, label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(Path(split, label, f"{i}.png"))
Path("train/dark/broken.png").write_bytes(b"no image")
Path("found.txt").write_text(check_folder(".").text)
"""

# What must fail, so that the other tests mean something: each refuses as it does in a browser.
REFUSED = """
import os, subprocess, threading
from concurrent.futures import ThreadPoolExecutor
refused = 0
for attempt, error in (
    (lambda: threading.Thread(target=print).start(), RuntimeError),
    (lambda: ThreadPoolExecutor(1).submit(print), RuntimeError),
    (lambda: subprocess.run(["true"]), OSError),
    (os.fork, OSError),
    (lambda: __import__("fcntl").flock, AttributeError),
    (lambda: __import__("lzma"), ImportError),
    (lambda: __import__("numba"), ImportError),
    (lambda: __import__("multiprocessing").Lock(), ImportError),
    (lambda: os.link("a", "b"), AttributeError),
):
    try:
        attempt()
    except error:
        refused += 1
assert refused == 9, refused
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that runs a program in a folder of the given name, as in a browser if that is its name."""

    def in_folder(name: str, program: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        code = (BROWSER if name == "browser" else HERE) + program
        environment = os.environ | {"MPLBACKEND": "Agg"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT)], cwd=folder, env=environment, capture_output=True, text=True
        )
        (folder / "printed.txt").write_text(done.stdout)
        assert done.returncode == 0, done.stderr
        return folder

    return in_folder


def test_the_imitation_refuses_what_a_browser_refuses(run: Callable[[str, str], Path]) -> None:
    run("browser", REFUSED)


@pytest.mark.parametrize("lesson", ["1_tensors_and_gradients", "2_attention_by_hand"])
def test_the_first_lessons_run(lesson: str, run: Callable[[str, str], Path]) -> None:
    cells = json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text("utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    printed = (run("browser", "\n\n".join(codes)) / "printed.txt").read_text()
    assert "numeric check: ok" in printed


@pytest.mark.slow
def test_a_run_has_the_bits_of_one_with_threads_and_is_resumed(run: Callable[[str, str], Path]) -> None:
    there, here = run("browser", TRAINED), run("here", TRAINED)
    found = json.loads((there / "found.json").read_text())
    assert found == json.loads((here / "found.json").read_text())
    assert len(found) == 3
    for folder in (there, here):
        assert {path.name for path in (folder / "runs/run").iterdir()} >= {"model.safetensors", "curves.png"}
    printed = (there / "printed.txt").read_text()
    assert "step 3 of 12" in printed  # without a thread that watches, a step itself says that it was made
    assert "measuring test batch 2 of 2" in printed


@pytest.mark.slow
def test_a_trace_is_checked_and_saved(run: Callable[[str, str], Path]) -> None:
    there, here = run("browser", STUDIED), run("here", STUDIED)
    assert (there / "gradient.npy").read_bytes() == (here / "gradient.npy").read_bytes()
    assert "<html" in (there / "page.html").read_text("utf-8")[:200].lower()


@pytest.mark.slow
def test_a_folder_of_images_is_read(run: Callable[[str, str], Path]) -> None:
    there, here = run("browser", READ), run("here", READ)
    assert (there / "found.txt").read_text() == (here / "found.txt").read_text()
    assert "broken.png" in (there / "found.txt").read_text()
