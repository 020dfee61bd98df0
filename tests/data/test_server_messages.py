"""What a server says is quoted briefly, and not as commands to the terminal."""

import sys
from pathlib import Path

import pytest
from mirror_server import MirrorServer

from tinyvit import cli


@pytest.mark.parametrize("words", ["\x1b[2J\x07", "x" * 9000, "\x9b31m\u0085"])
def test_the_words_of_a_server_are_shown_as_codes_and_shortened(
    cache: Path, offer, mirror: MirrorServer, monkeypatch, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    mirror.answers["/file.bin"] = lambda handler: handler.wfile.write(f"HTTP/1.0 404 {words}\r\n\r\n".encode("latin-1"))
    offer([mirror.url], **{"file.bin": b"x" * 99})
    monkeypatch.setattr(sys, "argv", ["tinyvit", "data", "fetch", "mnist"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capfd.readouterr().err
    assert "HTTP status 404" in said
    assert len(said) < 1000
    assert not set("\x1b\x07\x9b\x85") & set(said)
