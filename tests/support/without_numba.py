"""A plugin for pytest that makes Numba look absent: python -m pytest -p tests.support.without_numba tests/engine."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

ABSENT = ("numba", "llvmlite")


class _Absent:
    """A finder of modules that finds none of the packages in `ABSENT`."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, _Absent())  # type: ignore[arg-type]
