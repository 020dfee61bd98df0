"""Systems without threads, file locks, hard links or lzma: the same results, or an error with the reason."""

import errno
import lzma
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest

from tinyvit.backend.threads import can_start_threads, pool_of_threads
from tinyvit.checkpoint import atomic_write, leftovers
from tinyvit.data import Dataset, Loader, archives, formats
from tinyvit.errors import DataError
from tinyvit.run.display import Lines
from tinyvit.run.folder import claimed


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def numbered(count: int) -> Dataset:
    """A data set in which both image and label i hold the number i."""
    labels = np.arange(count)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (count, 1, 2, 2)).copy()
    return Dataset("numbered", "train", images, labels, ("",) * count, (0.0,), (1.0,))


def loader(bad: int = -1) -> Loader:
    """Batches of two in random order, changed by a random number; the one with the image `bad` cannot be made."""

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if bad in images[:, 0, 0, 0]:
            raise ZeroDivisionError
        return images + rng.integers(100, dtype=np.uint8)

    return Loader(numbered(20), 2, augment=augment)


def test_a_pool_computes_in_threads_where_they_start() -> None:
    assert can_start_threads()
    with pool_of_threads(1, "worker") as pool:
        assert pool.submit(threading.current_thread).result() is not threading.current_thread()


@pytest.mark.usefixtures("without_threads")
def test_else_it_computes_in_the_calling_one() -> None:
    assert not can_start_threads()
    with pool_of_threads(4) as pool:
        assert pool.submit(threading.current_thread).result() is threading.current_thread()
        assert list(pool.map(divmod, range(9), [2] * 9)) == [divmod(i, 2) for i in range(9)]
        failed = pool.submit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            failed.result()

        def interrupted() -> NoReturn:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool.submit(interrupted)


def test_batches_are_the_same_without_threads(request: pytest.FixtureRequest) -> None:
    expected = list(loader().batches(1))
    request.getfixturevalue("without_threads")
    found = list(loader().batches(1))
    assert [batch.index for batch in found] == list(range(10))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.usefixtures("without_threads")
def test_an_error_is_raised_at_its_batch_without_threads() -> None:
    order = np.concatenate([batch.labels for batch in loader().batches(0)])
    batches = loader(bad=order[5]).batches(0)
    assert [next(batches).index for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)


@pytest.mark.usefixtures("without_threads")
def test_a_run_that_is_silent_for_long_prints_a_line_without_threads(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(every=0.0) as lines:
        lines.measuring("validation", 3, 7)
    assert capsys.readouterr().out == "  measuring validation batch 3 of 7\n"
    with Lines(every=60.0) as lines:
        lines.measuring("validation", 3, 7)
    assert capsys.readouterr().out == ""


def test_a_new_file_replaces_no_other_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "link")
    atomic_write(tmp_path / "file", b"first", new=True)
    with pytest.raises(FileExistsError) as error:
        atomic_write(tmp_path / "file", b"second", new=True)
    assert error.value.errno == errno.EEXIST
    assert (tmp_path / "file").read_bytes() == b"first"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("module", [None, ModuleType("fcntl")], ids=["absent", "empty"])
def test_a_folder_is_written_to_without_locks(
    module: ModuleType | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", module)
    with archives.exclusive(tmp_path / ".lock"):
        assert (tmp_path / ".lock").exists()
    with claimed(tmp_path):  # a run folder
        assert tmp_path.exists()


def test_a_file_of_lzma_is_an_error_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\0\0\x08\x01\0\0\0\x03abc"
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(lzma.compress(content))
    monkeypatch.setattr(formats, "lzma", None)
    assert bytes(formats.read_idx(tmp_path / "plain", "mnist", (3,))) == b"abc"
    with pytest.raises(DataError, match="packed is compressed with xz, which this Python cannot read"):
        formats.read_idx(tmp_path / "packed", "mnist", (3,))
