"""The site with the lessons for a browser: what it is made of, and that it is complete.

Building it needs JupyterLite (`pip install -e ".[lite]"`); the test that does so skips without.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from lite import build
from packaging.requirements import Requirement
from sources import ROOT

# Of what the package needs, what Pyodide 314.0.7 has compiled or packed, by its list (pyodide-lock.json).
IN_PYODIDE = {
    *("click", "matplotlib", "ml-dtypes", "numpy", "pillow", "rich", "safetensors", "threadpoolctl"),
}


def code_cells(text: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", build.LESSONS)
def test_a_lesson_differs_in_what_installs_it_and_in_its_kernel(name: str) -> None:
    text = (ROOT / "notebooks" / name).read_text("utf-8")
    made = build.lesson(text)
    assert code_cells(made)[0] == "%pip install -q tinyvit"
    assert code_cells(made)[1:] == code_cells(text)[1:]
    assert json.loads(made)["metadata"]["kernelspec"]["name"] == "python"
    assert len(json.loads(made)["cells"]) == len(json.loads(text)["cells"])


def test_a_notebook_that_installs_nothing_is_refused() -> None:
    cell = {"cell_type": "code", "source": ["import tinyvit"], "metadata": {}}
    with pytest.raises(ValueError, match="does not install tinyvit"):
        build.lesson(json.dumps({"cells": [cell], "metadata": {}}))


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="holds other files"):
        build.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_site_is_replaced_only_when_the_new_one_is_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, site = tmp_path / "out", tmp_path / "scratch/site"
    for folder, text in ((out, "old"), (site, "new")):
        folder.mkdir(parents=True)
        (folder / build.MARK).write_text(text)

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.move", killed)
        with pytest.raises(KeyboardInterrupt):
            build.put_in_place(site, out)
    assert (out / build.MARK).read_text() == "old"
    build.put_in_place(site, out)
    assert (out / build.MARK).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("jupyterlite") else name)
    with pytest.raises(SystemExit, match=r"jupyterlite_core, jupyterlite_pyodide_kernel cannot be imported.*\[lite\]"):
        build.main([str(tmp_path / "site")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_site_lists_the_wheel_and_the_lessons(tmp_path: Path) -> None:
    for name in build.NEEDED:
        pytest.importorskip(name, reason='JupyterLite is not installed: pip install -e ".[lite]"')
    site = tmp_path / "site"
    build.main([str(site)])
    build.main([str(site)])  # replaces an earlier site
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    config = json.loads((site / "jupyter-lite.json").read_text("utf-8"))["jupyter-config-data"]
    (indices,) = [plugin["pipliteUrls"] for plugin in config["litePluginSettings"].values() if "pipliteUrls" in plugin]
    assert any(url.startswith("./pypi/all.json") for url in indices)
    (entry,) = [
        e for es in json.loads((site / "pypi/all.json").read_text())["tinyvit"]["releases"].values() for e in es
    ]
    wheel = site / "pypi" / entry["filename"]
    assert entry["digests"]["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    listed = json.loads((site / "api/contents/all.json").read_text("utf-8"))["content"]
    assert sorted(file["path"] for file in listed) == sorted(build.LESSONS)
    for name in build.LESSONS:
        assert code_cells((site / "files" / name).read_text("utf-8"))[0] == build.INSTALL
    with zipfile.ZipFile(wheel) as content:
        assert {"tinyvit/__init__.py", "tinyvit/kernels/registry.py"} <= set(content.namelist())
        (metadata,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        lines = content.read(metadata).decode().splitlines()
    required = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist")]
    browser = {"sys_platform": "emscripten", "platform_python_implementation": "CPython", "extra": ""}
    needed = {one.name.lower().replace("_", "-") for one in required if not one.marker or one.marker.evaluate(browser)}
    assert needed == IN_PYODIDE
