"""Streams, graphs and memory pools of the stand-in for CuPy: work is done at once, or recorded during a capture."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MEMORY = "memory"


@dataclass
class _State:
    """What streams do now.

    Attributes
    ----------
    recording : the actions captured so far, each with its kind, None without a capture.
    is_valid : whether the capture can still become a graph.
    in_pool : whether new arrays get memory of a graph.
    """

    recording: list[tuple[str, Any]] | None = None
    is_valid: bool = True
    in_pool: bool = False


NOW = _State()


def do(action: Any, kind: str) -> None:
    """Do something that changes memory, or add it to the graph that is being captured."""
    check_capture()
    if NOW.recording is None:
        action()
    else:
        NOW.recording.append((kind, action))


def wait() -> None:
    """Wait for the device, which CUDA refuses while a stream captures; the capture is then invalid."""
    if NOW.recording is not None:
        NOW.is_valid = False
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


def refuse_transfer(direction: str) -> None:
    """Raise what CuPy raises, before it asks CUDA, for a copy from or to the host while a stream captures."""
    if NOW.recording is not None:
        raise RuntimeError(f"the current stream is capturing, so {direction} transfers are disallowed")


def check_capture() -> None:
    """Raise what CUDA raises for every call on a stream whose capture is invalid."""
    if not NOW.is_valid:
        raise RuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture")


class Stream:
    """A stream that works synchronously, and while it captures only records."""

    ptr = 0

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record(self) -> None:
        check_capture()

    def wait_event(self, event: Any) -> None:
        check_capture()

    def synchronize(self) -> None:
        wait()

    def is_capturing(self) -> bool:
        check_capture()
        return NOW.recording is not None

    def begin_capture(self) -> None:
        NOW.recording = []

    def end_capture(self) -> "Graph":
        """End the capture also if it is invalid, as CUDA does, which then reports the error."""
        if NOW.recording is None:
            raise RuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        actions, NOW.recording = NOW.recording, None
        is_valid, NOW.is_valid = NOW.is_valid, True
        if not is_valid:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph(actions)


@contextmanager
def using_allocator(_: Any) -> Iterator[None]:
    NOW.in_pool = True
    try:
        yield
    finally:
        NOW.in_pool = False


class Graph:
    """The captured actions, in order, each with its kind; "memory" is no node, it only keeps an array alive."""

    def __init__(self, actions: list[tuple[str, Any]]) -> None:
        self._actions = actions

    def launch(self, stream: Stream) -> None:
        for _, action in self._actions:
            action()

    def debug_dot_str(self) -> str:
        nodes = [f'"node {i}" [label="{kind}"]' for i, (kind, _) in enumerate(self._actions) if kind != MEMORY]
        return "\n".join(["digraph dot {", *nodes, "}"])
