"""A test that needs a library which is absent, or installed and broken, is skipped with the reason."""

import re
import sys
from pathlib import Path

import pytest
from peers import peer
from sources import ROOT

BROKEN = {
    "raise OSError('libcudart.so.12: cannot open shared object file')": "OSError: libcudart.so.12: cannot open",
    "raise ValueError('numpy.dtype size changed')": "ValueError: numpy.dtype size changed",
    "import absent_too": "ModuleNotFoundError: No module named 'absent_too'",
    "def f(:": "SyntaxError: invalid syntax",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_library_skips_with_the_reason(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match=f"^needs a peer: {re.escape(BROKEN[code])}"):
        peer("broken_peer", "a peer")
    assert "broken_peer" not in sys.modules


def test_an_absent_library_skips_with_the_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^needs absent_peer: ModuleNotFoundError"):
        peer("absent_peer")


def test_a_library_that_warns_while_it_is_imported_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_peer.py").write_text("import warnings\nwarnings.warn('old', DeprecationWarning)\nx = 3")
    monkeypatch.syspath_prepend(tmp_path)
    assert peer("old_peer").x == 3


def test_tests_import_peers_in_this_way_only() -> None:
    """`pytest.importorskip` lets through every error but ImportError; it is for modules of the standard library."""
    names = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names |= set(re.findall(r"importorskip\(\s*\"([\w.]+)", path.read_text("utf-8")))
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
