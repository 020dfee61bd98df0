"""Shared by the tests of programs: a record of what programs compute."""

import numpy as np
import pytest

from tinyvit.program.program import Program


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes, or numbers of rows, of the calls that programs computed."""
    found: list[int] = []
    call = Program.__call__

    def counted(self: Program, *arrays: np.ndarray) -> object:
        found.append(len(arrays[0]))
        return call(self, *arrays)

    monkeypatch.setattr(Program, "__call__", counted)
    return found
