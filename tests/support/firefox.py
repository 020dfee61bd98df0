"""For tests: a page in Firefox, which is told what to do over its own protocol, Marionette: JSON on a local socket."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_START = 300.0  # seconds that Firefox may take to listen
_PREFERENCES = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}


class Firefox:
    """Firefox without a window, with a new profile in `folder`; a context manager."""

    def __init__(self, folder: Path, is_dark: bool) -> None:
        program = shutil.which("firefox-esr") or shutil.which("firefox")
        if program is None:
            pytest.skip("needs Firefox: there is none")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        scheme = {"marionette.port": port, "layout.css.prefers-color-scheme.content-override": 0 if is_dark else 1}
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in (_PREFERENCES | scheme).items()]
        (folder / "user.js").write_text("\n".join(lines), "utf-8")
        command = [program, "--headless", "--no-remote", "--marionette", "--profile", str(folder)]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._last = 0
        try:
            self._socket = self._connected(port, folder / "log")
            self._file = self._socket.makefile("rb")
            self._received()  # the greeting
            self._send("WebDriver:NewSession", {})
        except BaseException:
            self._process.kill()
            raise

    def _connected(self, port: int, log: Path) -> socket.socket:
        end = time.monotonic() + _START
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=_START)
            except OSError:
                if (status := self._process.poll()) is not None:
                    printed = log.read_text(errors="replace")[-200:]
                    pytest.skip(f"needs Firefox: it ended with status {status}: {printed!r}")
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def __enter__(self) -> "Firefox":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _received(self) -> Any:
        """The next message: its length in bytes, a colon, and JSON."""
        length = b""
        while (character := self._file.read(1)) != b":":
            if not character:
                raise ConnectionError("Firefox has closed the connection")
            length += character
        return json.loads(self._file.read(int(length)))

    def _send(self, command: str, parameters: dict[str, Any]) -> Any:
        self._last += 1
        message = json.dumps([0, self._last, command, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, number, error, result = self._received()
        assert number == self._last
        if error is not None:
            raise RuntimeError(f"{command}: {error['error']}: {error['message']}")
        return result["value"] if isinstance(result, dict) and "value" in result else result

    def resize(self, width: int, height: int) -> None:
        self._send("WebDriver:SetWindowRect", {"width": width, "height": height})

    def open(self, address: str) -> None:
        """Load a page, and wait until its scripts have run."""
        self._send("WebDriver:Navigate", {"url": "about:blank"})
        self._send("WebDriver:Navigate", {"url": address})
        end = time.monotonic() + _START
        while self.evaluate("document.body.dataset.ready") != "yes":
            assert time.monotonic() < end, "the scripts of the page have not run"
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which may be a promise."""
        script = "const done = arguments[0]; Promise.resolve(" + expression + ").then(done, (e) => done(String(e)));"
        return self._send("WebDriver:ExecuteAsyncScript", {"script": script, "args": [], "scriptTimeout": 60_000})

    def press(self, key: str) -> None:
        """Press a key: a character, or its code in WebDriver."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        sequence = {"type": "key", "id": "keyboard", "actions": actions}
        self._send("WebDriver:PerformActions", {"actions": [sequence]})

    def picture(self) -> str:
        """A PNG of what is shown, in base64."""
        return self._send("WebDriver:TakeScreenshot", {"full": False, "hash": False})
