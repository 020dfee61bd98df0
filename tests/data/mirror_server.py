"""A local web server whose answers are right or wrong as a test needs."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class MirrorServer(ThreadingHTTPServer):
    """A server that answers each path by a function of the handler, or by several functions in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        self.released = threading.Event()  # set at the end of the test: wakes up stalled answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """Print no error when a client closes the connection, because the tested clients do so."""


class MirrorHandler(BaseHTTPRequestHandler):
    server: MirrorServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        answer = self.server.answers.get(self.path)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            self.send_error(404)
        else:
            answer(self)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""


def send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    length: int | None = None,
    kind: str = "application/octet-stream",
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def first_byte(handler: BaseHTTPRequestHandler) -> int:
    asked = handler.headers.get("Range")
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def whole(body: bytes) -> Answer:
    """Serve the complete file, or the requested range."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = first_byte(handler)
        if start == 0:
            send(handler, body)
        elif start >= len(body):
            send(handler, b"", status=416, Content_Range=f"bytes */{len(body)}")
        else:
            found = f"bytes {start}-{len(body) - 1}/{len(body)}"
            send(handler, body[start:], status=206, Content_Range=found)

    return answer


def without_ranges(body: bytes) -> Answer:
    """Serve the complete file, even if a range is requested."""
    return lambda handler: send(handler, body)


def dropped_after(count: int, body: bytes) -> Answer:
    """Serve the file or a range, but close the connection after `count` bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = first_byte(handler)
        piece = body[start : start + count]
        if start == 0:
            send(handler, piece, length=len(body))
        else:
            found = f"bytes {start}-{len(body) - 1}/{len(body)}"
            send(handler, piece, length=len(body) - start, status=206, Content_Range=found)
        handler.close_connection = True

    return answer


def stalled_after(count: int, body: bytes) -> Answer:
    """Serve `count` bytes and then nothing more, with the connection open."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, body[:count], length=len(body))
        handler.server.released.wait(30)

    return answer


def html_page(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"<!DOCTYPE html><html>please log in</html>", kind="text/html; charset=utf-8")
