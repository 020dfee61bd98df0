"""Archives are unpacked only if they are the published ones, only into their folder, and completely or not at all."""

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import archives, load_texts
from tinyvit.data.sources import SOURCES
from tinyvit.errors import DataError

WHEEL = SOURCES["easy-vqa"].files[0].name
INSIDE = "easy_vqa/data/"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 7, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def wheel(**more: bytes) -> bytes:
    """Return an archive in the layout of easy-VQA, with further files in its folder of data."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "test"):
            archive.writestr(f"{INSIDE}{split}/questions.json", json.dumps([["is it red?", "yes", 0]]))
            archive.writestr(f"{INSIDE}{split}/images/0.png", png())
        archive.writestr(f"{INSIDE}answers.txt", "yes\nno\n")
        for name, content in more.items():
            archive.writestr(f"{INSIDE}{name}", content)
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that puts an archive where it is looked for, by default as the published one."""
    folder = tmp_path / "data" / "easy-vqa"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TINYVIT_DATA", str(folder.parent))

    def place(content: bytes, published: bool = True) -> Path:
        (folder / WHEEL).write_bytes(content)
        source = SOURCES["easy-vqa"]
        digest = hashlib.sha256(content if published else b"other").hexdigest()
        files = (replace(source.files[0], sha256=digest),)
        monkeypatch.setitem(SOURCES, "easy-vqa", replace(source, files=files))
        return folder

    return place


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_verified_archive_is_unpacked_once(put: Callable[..., Path]) -> None:
    folder = put(wheel(**{"notes.md": b"not wanted"}))
    assert load_texts("easy-vqa", "test").images.shape == (1, 3, 64, 64)
    unpacked = {f"{split}{name}" for split in ("train", "test") for name in ("", "/questions.json", "/images")}
    unpacked |= {"train/images/0.png", "test/images/0.png", "answers.txt"}
    assert everything(folder) == {*unpacked, WHEEL, ".lock"}
    (folder / WHEEL).unlink()
    assert load_texts("easy-vqa", "train").classes == ("no", "yes")


def test_half_of_an_archive_is_unpacked_again(put: Callable[..., Path]) -> None:
    folder = put(wheel())
    (folder / "train").mkdir()
    (folder / "train" / "half.png").touch()
    (folder / "answers.txt").write_text("stale")
    assert load_texts("easy-vqa", "train").classes == ("no", "yes")
    assert not (folder / "train" / "half.png").exists()


OUTSIDE = (
    *("../out.txt", "a/../../out.txt", "/out.txt", "//out.txt", "..\\out.txt", "C:out.txt", "\\out.txt", "a/../b.txt"),
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_archive_that_would_write_elsewhere_is_refused_whole(put: Callable[..., Path], name: str) -> None:
    folder = put(wheel(**{name: b"anywhere"}))
    before = everything(folder.parents[1])
    with pytest.raises(DataError, match="would be written elsewhere"):
        load_texts("easy-vqa", "test")
    assert everything(folder.parents[1]) == {*before, "data/easy-vqa/.lock"}


def test_an_archive_that_is_not_the_published_one_is_refused(put: Callable[..., Path]) -> None:
    folder = put(wheel(), published=False)
    with pytest.raises(DataError, match="not the published"):
        load_texts("easy-vqa", "test")
    assert everything(folder) == {WHEEL, ".lock"}


FLIPPED = bytearray(wheel())
FLIPPED[60] ^= 255


@pytest.mark.parametrize("damage", [b"", b"PKgarbage", b"<html></html>", wheel()[:-30], bytes(FLIPPED)])
def test_a_damaged_archive_is_a_data_error(put: Callable[..., Path], damage: bytes) -> None:
    folder = put(damage)
    with pytest.raises(DataError, match="easy-vqa"):
        load_texts("easy-vqa", "test")
    assert everything(folder) == {WHEEL, ".lock"}


def test_an_archive_of_too_much_or_of_the_same_names_is_refused(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (wheel(**{"zeros.txt": bytes(20_000_000)}), wheel(**{"Answers.txt": b"yes"})):
        folder = put(content)
        with pytest.raises(DataError, match=r"more than is plausible|holds a file twice"):
            load_texts("easy-vqa", "test")
        assert everything(folder) == {WHEEL, ".lock"}
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    put(wheel())
    with pytest.raises(DataError, match="more than is plausible"):
        load_texts("easy-vqa", "test")


def test_who_unpacks_at_the_same_time_waits(put: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(wheel())
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(load_texts, ["easy-vqa"] * 6, ["train", "test"] * 3))
    assert [len(dataset) for dataset in found] == [1] * 6
    assert not [name for name in os.listdir(folder) if name.startswith(".unpacked")]


def test_no_two_hold_the_lock_at_once(tmp_path: Path) -> None:
    inside, most = [], []

    def hold(i: int) -> None:
        with archives.exclusive(tmp_path / ".lock"):
            inside.append(i)
            time.sleep(0.02)  # without a lock, others would come meanwhile
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hold, range(6)))
    assert most == [1] * 6


def test_the_part_that_is_looked_for_first_comes_last(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between two of them leaves an archive that is unpacked again."""
    content, renamed, rename = wheel(), [], Path.rename
    folder = put(content)
    monkeypatch.setattr(Path, "rename", lambda a, b: renamed.append(Path(b).name) or rename(a, b))
    for first in ("answers.txt", "test", "train"):
        archives.unpack(
            folder / WHEEL, "x", hashlib.sha256(content).hexdigest(), INSIDE, (".txt", ".json"), (first, "-")
        )
        assert renamed[-1] == first


def test_a_folder_that_cannot_be_written_is_a_data_error(put, monkeypatch: pytest.MonkeyPatch) -> None:
    put(wheel())

    def read_only(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archives.tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(DataError, match=r"cannot be unpacked \(Permission denied\)"):
        load_texts("easy-vqa", "test")


QUESTIONS = (
    *("", "{", "null", "[]", "3", '"text"', "{}", "[1]", "[[1, 2]]", '[["q", "yes", -1]]', '[["q", "yes", true]]'),
    *('[["q", "yes", "0"]]', '[["q", "yes", 0.0]]', '[[1, "yes", 0]]', '[["q", null, 0]]', '[["q", "maybe", 0]]'),
    *('[["q", "yes", 1]]', '[["q", "yes", 99999999999999999999]]', "[" * 10_000, '[["q", "yes", 0, 1]]', "\ud800"),
)


@pytest.mark.parametrize("questions", QUESTIONS)
def test_questions_of_another_form_are_a_data_error(put: Callable[..., Path], questions: str) -> None:
    folder = put(wheel())
    load_texts("easy-vqa", "test")
    (folder / "test" / "questions.json").write_text(questions, "utf-8", "surrogatepass")
    with pytest.raises(DataError):
        load_texts("easy-vqa", "test")
