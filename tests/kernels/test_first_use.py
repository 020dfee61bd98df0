"""The first use of a kernel: said, kept for the next time where it can be, and never an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tinyvit.kernels import compiler

CODE = """
import sys
import tinyvit as tv, tinyvit.functional as F
assert "numba" not in sys.modules
tv.use_kernels("numba")
x = tv.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
F.linear(x, x)
y = F.dropout(x, p=0.5, generator=tv.backend.Generator(7))
with tv.use_kernels("numpy"):
    assert (y.numpy() == F.dropout(x, p=0.5, generator=tv.backend.Generator(7)).numpy()).all()
"""
LINES = "".join(
    f"tinyvit: compiling the kernel {name}, once on this machine\n"
    for name in ("linear: _forward_2", "dropout: _apply_2")
)


def first_use(cache: Path) -> str:
    """What a fresh process that uses a kernel says on stderr."""
    settings = {"NUMBA_CACHE_DIR": str(cache), "TINYVIT_THREADS": "1", "NUMBA_DISABLE_JIT": "0"}
    settings |= {"TINYVIT_COMPILE_AHEAD": "0", "TINYVIT_ANNOUNCE": "1"}
    command = [sys.executable, "-W", "error", "-c", CODE]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    return run.stderr


def test_compiling_is_said_once_and_never_again(tmp_path: Path) -> None:
    assert first_use(tmp_path / "cache") == LINES
    assert first_use(tmp_path / "cache") == ""


def blocked(path: Path) -> Path:
    """A file where the folder should be, which stops even root."""
    path.write_text("")
    return path


def read_only(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o555)
    return path


@pytest.mark.parametrize("unusable", [blocked, read_only])
def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path, unusable: object) -> None:
    folder = unusable(tmp_path / "cache")  # type: ignore[operator]
    assert first_use(folder) == LINES
    assert first_use(folder) == LINES or folder.is_dir()  # root may write everywhere
    assert not list(Path(compiler.__file__).parent.rglob("*.nbi"))


def test_the_cache_is_found_by_what_the_sources_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    here = compiler.cache_folder.__wrapped__()
    assert here.parent == tmp_path
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"edited")
    assert compiler.cache_folder.__wrapped__() != here
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiler.cache_folder.__wrapped__().parent == tmp_path / "xdg" / "tinyvit" / "kernels"


@pytest.mark.parametrize("length", [0, 100])
def test_damaged_files_of_the_cache_are_replaced(tmp_path: Path, length: int) -> None:
    assert first_use(tmp_path) == LINES
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc", ".o"}
    for path in files:
        os.truncate(path, length)
    assert first_use(tmp_path) == LINES
    assert first_use(tmp_path) == ""
