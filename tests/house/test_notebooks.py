"""The notebooks run from top to bottom: `python -m pytest -m notebooks`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def program(path: Path) -> str:
    """The code cells of a notebook as one program."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_and_parse(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
    assert cells[0]["cell_type"] == "markdown"
    compile(program(path), path.name, "exec")


def install_cells() -> set[str]:
    """The first code cells of the notebooks."""
    cells = [json.loads(path.read_text("utf-8"))["cells"][1] for path in NOTEBOOKS]
    assert {cell["cell_type"] for cell in cells} == {"code"}
    return {"".join(cell["source"]) for cell in cells}


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        (["tinyvit-1.0-py3-none-any.whl", "tinyvit-2.0-py3-none-any.whl"], "tinyvit-2.0-py3-none-any.whl"),
        (["clone/tinyvit/__init__.py"], "clone"),
        (["tinyvit/tinyvit/__init__.py"], "tinyvit"),  # which Python takes for a package without files
        (["clone/other/__init__.py"], None),
        ([], None),
    ],
)
def test_every_notebook_installs_the_package_where_it_is_missing(
    there: list[str], installed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = install_cells()
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    exec(compile(cell, "cell", "exec"), {})
    assert ran == []  # the package is installed here
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    is_folder = (tmp_path / "tinyvit").is_dir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=None) if is_folder else None)
    if installed is None:
        with pytest.raises(SystemExit, match="upload a wheel of tinyvit"):
            exec(compile(cell, "cell", "exec"), {})
        assert ran == []
        return
    exec(compile(cell, "cell", "exec"), {})
    assert ran == [[sys.executable, "-m", "pip", "install", "-q", str(tmp_path / installed)]]


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg"}
    ran = subprocess.run(
        [sys.executable, "-c", program(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
