"""Build a JupyterLite site: the first lessons in a browser, where Pyodide runs them with the wheel of this checkout.

pip install -e ".[lite]"
python docs/lite/build.py site
python -m http.server --directory site
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ("1_tensors_and_gradients.ipynb", "2_attention_by_hand.ipynb")
SOURCES = ("setup.py", "pyproject.toml", "LICENSE", "README.md", "tinyvit", "kernels")  # what a wheel is made of
INSTALL = "%pip install -q tinyvit"  # the kernel's own command: it finds the wheel beside the site
KERNEL = {"name": "python", "display_name": "Python (Pyodide)", "language": "python"}
NEEDED = ("build", "jupyterlite_core", "jupyterlite_pyodide_kernel", "jupyter_server")
MARK = "jupyter-lite.json"  # a folder with this file is a site, which a new one may replace


def lesson(text: str) -> str:
    """Return a notebook as the site has it: its first code cell installs the wheel, and Pyodide's kernel runs it.

    Elsewhere that cell starts pip, but a browser starts no processes. Raises ValueError if there is no such cell.
    """
    notebook: dict[str, Any] = json.loads(text)
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not codes or "pip" not in "".join(codes[0]["source"]):
        raise ValueError("its first code cell does not install tinyvit")
    codes[0]["source"] = [INSTALL]
    notebook["metadata"]["kernelspec"] = KERNEL
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def built_wheel(folder: Path) -> Path:
    """Build a wheel into `folder`, from a copy of the sources, because building leaves files among them."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(scratch, name))
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), scratch]
        _run(command, "the wheel", scratch)
    (wheel,) = folder.glob("tinyvit-*.whl")
    return wheel


def build(out: Path, wheel: Path | None = None, pyodide: str | None = None) -> None:
    """Build the site into the folder `out`.

    Parameters
    ----------
    out : Path
        A new folder, an empty one, or an earlier site, which is replaced when the new one is complete.
    wheel : Path, optional
        The wheel of tinyvit; by default one is built from this checkout.
    pyodide : str, optional
        A distribution of Pyodide, as a path or an address of its archive, that becomes a part of the site. By default
        browsers load Pyodide from the network.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise SystemExit(f"{out} holds other files; give the name of a new folder")
    missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if missing:
        raise SystemExit(f"{', '.join(missing)} cannot be imported; get what is missing with: pip install -e '.[lite]'")
    with tempfile.TemporaryDirectory() as scratch:
        source, site = Path(scratch, "source"), Path(scratch, "site")
        (source / "pypi").mkdir(parents=True)  # the name under which JupyterLite looks for wheels
        (source / "lessons").mkdir()
        if wheel is None:
            built_wheel(source / "pypi")
        else:
            shutil.copy2(wheel, source / "pypi")
        for name in LESSONS:
            text = (ROOT / "notebooks" / name).read_text("utf-8")
            (source / "lessons" / name).write_text(lesson(text), "utf-8")
        command = [
            *(sys.executable, "-m", "jupyterlite_core", "build", "--lite-dir", str(source), "--output-dir", str(site)),
            *("--contents", "lessons", "--apps", "lab", "--apps", "notebooks"),
            *("--no-sourcemaps", "--no-unused-shared-packages"),
            *(("--pyodide", str(Path(pyodide).resolve()) if Path(pyodide).exists() else pyodide) if pyodide else ()),
        ]
        _run(command, "the site", source)
        put_in_place(site, out)


def put_in_place(site: Path, out: Path) -> None:
    """Move a complete site to `out`, in place of an earlier one.

    It is moved to the disk of `out`, which may take a while, and then renamed, so that `out` is never half a site.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        near = shutil.move(site, Path(scratch, "new"))
        if out.exists():
            out.rename(Path(scratch, "old"))
        Path(near).rename(out)


def _run(command: Sequence[str], what: str, folder: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{what} could not be built:\n{done.stdout[-3000:]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the site that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder of the site: a new one, or an earlier site to replace")
    parser.add_argument("--wheel", type=Path, help="a wheel of tinyvit (by default one is built from this checkout)")
    parser.add_argument("--pyodide", metavar="ARCHIVE", help="a distribution of Pyodide to put into the site")
    given = parser.parse_args(arguments)
    build(given.out, given.wheel, given.pyodide)
    print(f"{given.out} is complete; see it with: python -m http.server --directory {given.out}")


if __name__ == "__main__":
    main()
