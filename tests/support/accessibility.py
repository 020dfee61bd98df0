"""For tests in a browser: what axe-core, a checker of accessibility, finds on a page."""

import functools
from importlib.resources import files
from typing import Any

from peers import peer


@functools.cache
def _script() -> str:
    """The source of axe-core, which comes with a package of Python's; the test is skipped where that is missing."""
    peer("axe_playwright_python")
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def findings(tab: Any) -> list[str]:
    """One line for each rule that the page in a tab breaks: its impact, its name, and the first elements that do."""
    if not tab.evaluate("typeof axe !== 'undefined'"):
        tab.evaluate(_script())
    found = tab.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{v['impact']} {v['id']}: {', '.join(str(n['target'][0]) for n in v['nodes'][:4])}"
        for v in found["violations"]
    ]
