"""The study page in Firefox: it opens, shows the numbers of NumPy, obeys keys, fits its window, and is dark or light.

Run apart with `python -m pytest -m browser`; it needs Firefox (`apt install firefox-esr`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firefox import Firefox

from tinyvit.study.record.values import Value

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

RIGHT, LEFT = "\ue014", "\ue012"  # the codes of WebDriver


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with Firefox(tmp_path_factory.mktemp("firefox"), is_dark=True) as opened:
        yield opened


def shown(firefox: Firefox, selector: str) -> str:
    return firefox.evaluate(f"document.querySelector({selector!r}).innerText")


def test_numbers_on_the_screen_are_numpys_bit_for_bit(firefox: Firefox, digits: tuple[Any, Path]) -> None:
    rng = np.random.default_rng(0)
    recording, path = digits
    firefox.open(path.as_uri())
    for _ in range(12):
        entry = recording.entries[rng.integers(len(recording.entries))]
        name, value = next((entry.input_name(i), x) for i, x in enumerate(entry.inputs) if isinstance(x, Value))
        index = tuple(int(rng.integers(n)) for n in value.shape)
        link = f"#op={entry.key}&a={name}&i={','.join(map(str, index))}".replace("#2", "%232")
        firefox.evaluate(
            f"new Promise((done) => {{ addEventListener('hashchange', () => setTimeout(done), {{ once: true }});"
            f" location.hash = {link!r}; }})"
        )
        found = re.search(r"= (\S+)", shown(firefox, "#pointed"))
        assert found
        assert np.float32(found[1]) == value.array[index]
    assert firefox.evaluate("document.querySelector('#notice').hidden")


def test_keys_step_through_the_operations(firefox: Firefox, digits: tuple[Any, Path]) -> None:
    recording, path = digits
    firefox.open(path.as_uri() + f"#op={recording.entries[0].key}")
    for key, step in ((RIGHT, 2), (RIGHT, 3), (LEFT, 2)):
        firefox.press(key)
        assert shown(firefox, "#live").startswith(f"Step {step} of ")
    firefox.press("l")
    assert shown(firefox, "#card h2").startswith("cross entropy")
    firefox.press("b")
    assert "backward" in shown(firefox, "#card h2")
    assert firefox.evaluate("document.querySelectorAll('#card .formula math').length") > 0


@pytest.mark.parametrize("view", ["start", "walk", "attention", "health", "fused", "quiz", "about"])
def test_no_view_is_wider_than_the_window(firefox: Firefox, digits: tuple[Any, Path], view: str) -> None:
    for width in (1280, 500):
        firefox.resize(width, 800)
        firefox.open(digits[1].as_uri() + f"#view={view}")
        sizes = firefox.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1], (view, width)


def test_the_page_is_dark_where_the_system_is_and_light_on_request(firefox: Firefox, digits: tuple[Any, Path]) -> None:
    firefox.open(digits[1].as_uri())
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert firefox.evaluate(ground) == "rgb(20, 21, 24)"
    firefox.evaluate("document.querySelector('#theme').click()")
    assert firefox.evaluate(ground) == "rgb(251, 250, 247)"
