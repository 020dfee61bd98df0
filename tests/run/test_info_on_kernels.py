"""What `tinyvit info` says of kernels that cannot be kept, or are not compiled at all."""

import pytest
from tinyvit.kernels import cache
from tinyvit.kernels.cpu import compiler

from tinyvit.info import report


def lines_of(title: str) -> list[str]:
    return [line for line in report().splitlines() if line.strip().startswith(title)]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "can_keep", lambda: False)
    (line,) = lines_of("compiled")
    assert f"anew in each process: {cache.cache_folder()} cannot be written" in line
    monkeypatch.setattr(cache, "can_keep", lambda: True)
    assert f"kept in {cache.cache_folder()}" in lines_of("compiled")[0]


def test_kernels_that_run_as_python_are_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "is_compiling", lambda: False)
    (line,) = lines_of("kernels")
    assert line.endswith("run as Python, very slowly, because NUMBA_DISABLE_JIT is set")
    assert not lines_of("vectors")
