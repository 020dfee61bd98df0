"""Compiled code is read back only from folders of this user alone, and only if its checksum is right."""

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_first_use import LINES, first_use
from tinyvit.kernels import cache
from tinyvit.kernels.cpu import compiler

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="other systems keep the folders of users apart otherwise")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that finds the cache folder anew; folders for temporary files are in tmp_path/temporary."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return cache.cache_folder.__wrapped__


def made(folder: Path, mode: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(mode)
    return folder


SAFE, UNSAFE = (0o700, 0o755, 0o750, 0o1755), (0o770, 0o775, 0o777, 0o757, 0o702)
LEVELS = ("user", "user/tinyvit", "user/tinyvit/kernels", "user/tinyvit/kernels/leaf")


@posix
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", [*SAFE, *UNSAFE, 0o1777, 0o1775])
def test_every_level_of_the_folder_must_belong_to_this_user_alone(
    fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, mode: int
) -> None:
    digest = fresh().name
    made(tmp_path / level.replace("leaf", digest), mode)
    sticky_above = bool(mode & stat.S_ISVTX) and not level.endswith("leaf")
    if mode in SAFE or sticky_above:
        assert fresh() == tmp_path / "user" / "tinyvit" / "kernels" / digest
        assert capsys.readouterr().err == ""
    else:
        assert fresh() == tmp_path / "temporary" / f"tinyvit-{os.geteuid()}" / f"tinyvit-{digest}"
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert str(tmp_path / level.replace("leaf", digest)) in message
        assert "chmod go-w" in message


@posix
@pytest.mark.parametrize("level", LEVELS[:3])
def test_a_level_of_another_user_is_not_trusted(
    fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    found = os.lstat

    def lstat(path: Path) -> os.stat_result:
        is_foreign = str(path) == str(tmp_path / level)
        return os.stat_result([*found(path)[:4], 54321, *found(path)[5:]]) if is_foreign else found(path)

    made(tmp_path / LEVELS[2], 0o755)
    monkeypatch.setattr(os, "lstat", lstat)
    assert fresh().parent == tmp_path / "temporary" / f"tinyvit-{os.geteuid()}"
    assert f"{str(tmp_path / level)!r} belongs to another user" in capsys.readouterr().err


@posix
def test_a_link_counts_as_the_folder_that_it_points_to(fresh, tmp_path: Path) -> None:
    digest = fresh().name
    made(tmp_path / "user" / "tinyvit", 0o700)
    (tmp_path / "user" / "tinyvit" / "kernels").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    made(tmp_path / "elsewhere", 0o755)
    assert fresh() == tmp_path / "elsewhere" / digest
    made(tmp_path / "elsewhere", 0o777)
    assert fresh().is_relative_to(tmp_path / "temporary")


@posix
def test_a_private_folder_that_somebody_else_made_is_not_used(fresh, monkeypatch, tmp_path: Path) -> None:
    made(tmp_path / "user", 0o777)
    made(tmp_path / "temporary" / f"tinyvit-{os.geteuid()}", 0o777)
    folder = fresh()
    assert folder.parent.parent == tmp_path / "temporary"
    assert folder.parent.name != f"tinyvit-{os.geteuid()}"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(cache, "cache_folder", lambda: folder)
    assert cache.for_children() == {"NUMBA_CACHE_DIR": str(folder.parent)}


@posix
def test_a_user_without_a_home_folder_has_a_private_one(fresh, monkeypatch, tmp_path: Path, capsys) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert fresh().is_relative_to(tmp_path / "user")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fresh().parent == tmp_path / "temporary" / f"tinyvit-{os.geteuid()}"
    assert "there is no home folder" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.gettempdir", lambda: exec("raise FileNotFoundError"))
    assert str(fresh()).startswith(os.devnull)


def test_a_relative_cache_folder_is_ignored(fresh, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    monkeypatch.setenv("XDG_CACHE_HOME", "here")  # it would be another one in each working folder
    assert fresh().parent == tmp_path / "me" / ".cache" / "tinyvit" / "kernels"


@posix
def test_folders_are_made_for_this_user_alone(fresh, monkeypatch, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        monkeypatch.setattr(cache, "cache_folder", fresh)
        assert cache.can_keep.__wrapped__()
        cache.write(fresh() / "file", b"content")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "user", *fresh().parents[:2], fresh())} == {0o700}
    assert stat.S_IMODE((fresh() / "file").stat().st_mode) == 0o600


@posix
def test_a_folder_that_this_user_may_not_read_is_not_read(fresh, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "cache_folder", fresh)
    monkeypatch.setattr(cache, "can_keep", lambda: False)
    assert not cache.can_read.__wrapped__()
    made(fresh(), 0o755)
    assert cache.can_read.__wrapped__()
    made(fresh(), 0o777)  # others may write there: it is not safe, whatever was found before
    assert not cache.can_read.__wrapped__()
    made(fresh(), 0o755)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK | os.X_OK)
    assert not cache.can_read.__wrapped__()


def test_object_code_is_read_from_a_folder_that_cannot_be_written(fresh, monkeypatch) -> None:
    monkeypatch.setattr(cache, "cache_folder", fresh)

    def found(name: str, code: bytes, can_read: bool, can_keep: bool) -> bytes:
        monkeypatch.setattr(cache, "can_read", lambda: can_read)
        monkeypatch.setattr(cache, "can_keep", lambda: can_keep)
        return cache.kept_object(name, "processor", lambda: code)

    assert found("tiles", b"first", True, True) == b"first"
    assert found("tiles", b"second", True, False) == b"first"
    assert found("others", b"third", True, False) == b"third"
    assert [path.name.partition("-")[0] for path in fresh().iterdir()] == ["tiles"]
    assert found("tiles", b"fourth", False, False) == b"fourth"


def test_code_of_an_archive_is_compiled_without_a_cache() -> None:
    names: dict[str, Any] = {"__name__": "tinyvit.kernels.double"}
    exec(compile("def double(x): return x + x", "/archive.zip/tinyvit/kernels/double.py", "exec"), names)
    assert compiler.entry(names["double"])(2) == 4


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_back_only_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "kernel.nbc"
    assert cache.read(file) is None
    for content in (b"", b"code", bytes(100)):
        cache.write(file, content)
        assert cache.read(file) == content
    kept = file.read_bytes()
    for place in range(len(kept)):
        for damaged in (kept[:place], kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :]):
            file.write_bytes(damaged)
            assert cache.read(file) is None
    file.write_bytes(kept + b"\0")
    assert cache.read(file) is None
    (tmp_path / "other.nbc").write_bytes(kept)  # the code of another kernel
    assert cache.read(tmp_path / "other.nbc") is None
    assert sorted(os.listdir(tmp_path)) == ["kernel.nbc", "other.nbc"]


@posix
def test_what_others_could_have_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    cache.write(file, b"code")
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        assert cache.read(file) is None
    file.chmod(0o600)
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert cache.read(link) is None
    assert cache.read(pipe) is None
    assert cache.read(tmp_path) is None
    assert cache.read(file) == b"code"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.read(file) is None or os.getuid() == 0


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("CODE RAN",)


@posix
@pytest.mark.slow
def test_code_that_others_have_put_into_a_shared_folder_does_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert first_use(made(tmp_path / "shared", 0o755)) == LINES
    planted = list(tmp_path.rglob("*.nb?"))
    assert len(planted) == 4
    for file in planted:
        cache.write(file, pickle.dumps(Evil()))
    assert first_use(tmp_path / "shared") == LINES
    os.rmdir("CODE RAN")  # the trap works: who owns the folder is trusted
    for file in planted:
        cache.write(file, pickle.dumps(Evil()))
    made(tmp_path / "shared", 0o777)
    warning, *lines = first_use(tmp_path / "shared").splitlines(keepends=True)
    assert str(tmp_path / "shared") in warning
    assert "".join(lines) == LINES
    assert first_use(tmp_path / "shared") == warning
    assert not Path("CODE RAN").exists()


# Interrupts -----------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, tinyvit as tv, tinyvit.functional as F

met = 0
def interrupt(event, arguments):
    global met
    met += event == {event!r}
    if event == {event!r} and met == {count}:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
x, w = tv.tensor(np.ones((4, 8), np.float32)), tv.tensor(np.ones(8, np.float32))
sys.addaudithook(interrupt)
try:
    F.layer_norm(x, w, w)
except KeyboardInterrupt:
    print("interrupted")
with tv.use_kernels("numba"):
    print(F.layer_norm(x, w, w).shape, F.linear(x, x).shape)
"""


def interrupted(event: str, count: int, **settings: str) -> str:
    """Send Ctrl-C when Python reports an event for the n-th time; return what the process prints in all."""
    settings |= {"NUMBA_DISABLE_JIT": "0", "TINYVIT_COMPILE_AHEAD": "0"}
    command = [sys.executable, "-W", "error", "-c", INTERRUPTED.format(event=event, count=count)]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    return run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 300])
def test_ctrl_c_while_the_compiler_is_imported_breaks_no_kernel(count: int) -> None:
    assert interrupted("import", count) == "interrupted\n(4, 8) (4, 4)\n"


@pytest.mark.slow
@pytest.mark.parametrize(("event", "step"), [("import", 120), ("exec", 80), ("compile", 40)])
def test_ctrl_c_at_any_time_of_the_first_use_breaks_no_kernel(tmp_path: Path, event: str, step: int) -> None:
    for count in range(1, 5 * step, step):
        said = interrupted(event, count, NUMBA_CACHE_DIR=str(tmp_path / str(count)))
        assert said.removeprefix("interrupted\n") == "(4, 8) (4, 4)\n", f"{event} number {count}"
