"""The gallery: study pages that are made while the site is built, from the weights in the package and a short run."""

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "tinyvit"
GALLERY = Path(__file__).parents[1] / "generated" / "gallery" / "gallery"
SCRATCH = "gallery.part"


def write_gallery(folder: Path) -> None:
    """Write the study pages that `docs/gallery.md` links to, unless they are there and up to date."""
    from tinyvit.study.subject import write_page

    folder.mkdir(parents=True, exist_ok=True)
    unless_there(folder / "digits.html", lambda path: write_page("digits", None, None, path))
    unless_there(folder / "softmax.html", lambda path: write_page("softmax", None, None, path))
    unless_there(folder / "layer_norm.html", lambda path: write_page("layer_norm", None, None, path))
    unless_there(folder / "attention.html", lambda path: write_page("attention", None, None, path))
    random.seed(0)  # decides where the fault is planted
    unless_there(folder / "planted.html", lambda path: write_page("digits", None, None, path, "layer_norm"))
    unless_there(folder / "monitored.html", _monitored)


def unless_there(path: Path, write: Any) -> None:
    """Write a page that is not there, or that is older than the package.

    It gets its name only when it is complete, so that a build that was killed leaves nothing that looks like a page.
    """
    newest = max(file.stat().st_mtime for file in PACKAGE.rglob("*") if file.suffix in (".py", ".js", ".css", ".html"))
    if path.exists() and path.stat().st_mtime >= newest:
        return
    scratch = path.parents[1].with_name(SCRATCH)  # outside the folder that the site copies, but on the same disk
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    scratch.mkdir(parents=True)
    write(str(scratch / path.name))
    (scratch / path.name).replace(path)
    shutil.rmtree(scratch)


def _monitored(path: str) -> None:
    """Train for two epochs with `--study`, in a process of its own, and take the page of that run."""
    run = Path(path).with_name("run")
    command = [sys.executable, "-m", "tinyvit", "train", "digits", "--set", "epochs=2", "--study", "--out", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run / "study.html").replace(path)


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: write_gallery(GALLERY))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
