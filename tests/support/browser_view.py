"""For tests of the study page: a page in a browser tab."""

import re
from pathlib import Path
from typing import Any

DESKTOP, PHONE, NARROW = (1280, 800), (390, 844), (320, 640)


class View:
    """A page in its own tab, offline. `complaints` has its console messages and errors, `requests` its requests."""

    def __init__(
        self, browser: Any, path: Path, size: tuple[int, int] = DESKTOP, address: str = "", **how: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True, **how)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.path = path
        self.load(address)

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def load(self, address: str = "") -> None:
        """Load the page afresh. `address` begins with #."""
        self.tab.goto("about:blank")
        self.tab.goto(self.path.as_uri() + address)
        self.tab.wait_for_selector("body[data-ready=yes]", timeout=30_000)

    def follow(self, address: str) -> None:
        """Follow a link within the page, and wait until the page has changed."""
        self.tab.evaluate(
            "link => new Promise(done => { addEventListener('hashchange', () => setTimeout(done), { once: true });"
            " if (location.hash === link) done(); else location.hash = link; })",
            address,
        )

    def go(self, op: str, backward: bool = False, a: str | None = None, index: Any = None) -> None:
        """Follow a link."""
        link = f"#op={op}" + ("&dir=backward" if backward else "") + (f"&a={a}" if a else "")
        link += f"&i={','.join(map(str, index))}" if index is not None else ""
        self.follow(link.replace("#2", "%232"))

    def text(self, selector: str) -> str:
        return self.tab.inner_text(selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)


def number_shown(view: View) -> str:
    found = re.search(r"= (\S+)", view.text("#pointed"))
    assert found
    return found[1]
