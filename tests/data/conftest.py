"""A local mirror, and an environment without any other data."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mirror_server import MirrorServer

from tinyvit.data.sources import SOURCES, RemoteFile, Source


@pytest.fixture
def mirror() -> Iterator[MirrorServer]:
    with MirrorServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of an empty cache, the only place where data is looked for."""
    monkeypatch.delenv("TINYVIT_DATA", raising=False)
    monkeypatch.delenv("TINYVIT_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "tinyvit"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that replaces the source of "mnist": files of given bytes on given mirrors."""

    def put(mirrors: list[str], **bodies: bytes) -> None:
        files = (
            RemoteFile(name, len(body), hashlib.sha256(body).hexdigest(), (name,)) for name, body in bodies.items()
        )
        monkeypatch.setitem(SOURCES, "mnist", Source(tuple(mirrors), tuple(files)))

    return put
