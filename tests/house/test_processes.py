"""Processes that we start run our code and nothing that lies in the current folder."""

import ast
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import FILES, parsed


def interpreters_started(tree: ast.AST) -> Iterator[list[str]]:
    """Yield the elements of each list or tuple that begins with `sys.executable`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            yield [ast.unparse(element) for element in node.elts]


def test_every_interpreter_is_started_with_a_safe_path() -> None:
    """`python -m` and `python -c` look for every module in the current folder first, unless -P is given."""
    found = {name: list(interpreters_started(parsed(path))) for name, path in FILES.items()}
    started = [command for commands in found.values() for command in commands]
    mentioned = sum(path.read_text("utf-8").count("sys.executable") for path in FILES.values())
    assert len(started) == mentioned > 2
    assert all(command[1] == "'-P'" for command in started)


def test_there_is_no_other_way_by_which_processes_are_started() -> None:
    for name, path in FILES.items():
        imports = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Import)]
        modules = {alias.name for node in imports for alias in node.names}
        assert not modules & {"multiprocessing", "runpy", "pty"}, name
        text = path.read_text("utf-8")
        assert not any(word in text for word in ("os.system", "os.popen", "os.exec", "os.spawn", "shell=True")), name


@pytest.mark.slow
def test_files_named_like_modules_are_not_run(tmp_path: Path) -> None:
    """Plant a module of every name that may be imported into a working folder, and use a model there."""
    here = tmp_path / "here"
    here.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "a.png")
    installed = {path.stem for path in Path(sysconfig.get_path("purelib")).iterdir() if path.stem.isidentifier()}
    names = {*sys.stdlib_module_names, *installed, "sitecustomize", "usercustomize", "yaml", "cupy"}
    for name in names:
        (here / f"{name}.py").write_text(f"open('RAN', 'a').write({name!r} + ' ')\n")
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cold"), "NUMBA_CACHE_DIR": "", "TINYVIT_ANNOUNCE": "1"}
    settings |= {"TINYVIT_COMPILE_AHEAD": "1", "NUMBA_DISABLE_JIT": "0"}
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | settings
    for arguments in (["predict", "digits", "a.png"], ["study", "--out", "page.html"], ["info"]):
        command = [sys.executable, "-P", "-W", "error", "-m", "tinyvit", *arguments]  # as the installed command does
        ran = subprocess.run(command, cwd=here, env=settings, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert not (here / "RAN").exists(), (here / "RAN").read_text()
        if arguments[0] == "predict":
            assert "compiling the kernel linear" in ran.stderr
