"""The file that says which linear maps are left to OpenBLAS: what it holds for, and what is not believed."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinyvit.kernels.cpu import threads
from tinyvit.kernels.linear import choice
from tinyvit.kernels.linear.choice import MARGIN, Timing

from tinyvit.backend import BFLOAT16


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choice, "_folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "can_keep", lambda: True)
    forget()
    yield
    forget()


def forget() -> None:
    choice.kept.cache_clear()
    choice.chosen_in_file.cache_clear()


def timing(shape: tuple[int, int, int], ratio: float) -> Timing:
    return Timing(shape, ratio * 1e-3, 1e-3, ratio)


def test_what_was_kept_is_read_back_in_another_process() -> None:
    timings = (timing((6, 3, 4), MARGIN), timing((6, 4, 3), MARGIN - 0.01), timing((7, 3, 4), 3))
    choice.keep(timings[1:])
    choice.keep(timings[:1])
    forget()
    assert choice.kept() == timings
    assert set(choice.chosen()) == {(6, 3, 4), (7, 3, 4)}
    choice.keep([timing((7, 3, 4), 0.5)])  # measured again
    assert set(choice.chosen()) == {(6, 3, 4)}


def test_what_another_process_has_kept_meanwhile_stays() -> None:
    path = choice.keep([timing((7, 3, 4), 3)])
    content = choice.read(path)
    path.unlink()
    forget()
    assert choice.kept() == ()
    choice.write(path, content or b"")
    choice.keep([timing((6, 3, 4), 2)])
    assert set(choice.chosen()) == {(6, 3, 4), (7, 3, 4)}


def test_a_disk_without_room_is_named_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(choice, "write", full)
    with pytest.raises(OSError, match=r"products-.*\.json' cannot be written \(No space left on device\)"):
        choice.keep([timing((6, 3, 4), 2)])


def test_a_replacement_counts_instead_of_the_file_until_it_is_taken_back() -> None:
    choice.keep([timing((6, 3, 4), 2)])
    before = choice.replace([(1, 2, 3)])
    assert before is None
    assert list(choice.chosen()) == [(1, 2, 3)]
    assert choice.replace(before) == [(1, 2, 3)]
    assert set(choice.chosen()) == {(6, 3, 4)}


def test_a_map_is_known_by_its_rows_and_its_weight() -> None:
    choice.keep([timing((6, 3, 4), 2)])

    def loses(x: tuple[int, ...], weight: tuple[int, int], dtype: type = np.float32) -> bool:
        inputs = {"x": np.ones(x, dtype), "weight": np.ones(weight, dtype), "bias": None}
        return choice.loses(inputs) is not None

    assert loses((6, 3), (4, 3))
    assert loses((2, 1, 3, 3), (4, 3))
    assert not loses((6, 4), (3, 4))
    assert not any(loses((6, 3), (4, 3), dtype) for dtype in (np.float64, BFLOAT16))
    assert not loses((7, 3), (4, 3))
    assert not loses((6, 3), (4, 3), np.float64)
    assert not loses((0, 0), (4, 0))
    assert choice.loses({}) is None


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "can_keep", lambda: False)
    with pytest.raises(OSError, match="cannot be written; NUMBA_CACHE_DIR can name another folder"):
        choice.keep([timing((6, 3, 4), 2)])


@pytest.mark.parametrize("what", ["processor", "level", "threads", "numpy", "blas"])
def test_a_file_holds_for_this_machine_only(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choice.keep([timing((6, 3, 4), 1.5)])
    here = choice.about()
    monkeypatch.setattr(choice, "about", lambda: {**here, what: "another"})
    forget()
    assert not choice.chosen()


def test_the_number_of_threads_is_part_of_what_a_file_holds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here = choice.about()
    monkeypatch.setattr(threads, "thread_count", lambda: 77)
    assert choice.about() == {**here, "threads": "77"}


@pytest.mark.parametrize("content", [b"", b"[[[6, 3, 4], 2, 1, 2]]", b"x" * 100])
def test_a_file_that_is_damaged_chooses_nothing(content: bytes) -> None:
    path = choice.keep([timing((6, 3, 4), 1.5)])
    path.write_bytes(content)
    forget()
    assert not choice.chosen()
    path.write_bytes(b"")
    choice.write(path, b'{"not": "timings"}')
    forget()
    assert not choice.chosen()
