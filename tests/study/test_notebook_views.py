"""What notebooks show for tensors and modules."""

from html.parser import HTMLParser

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.study.notebook import module_html, tensor_html

RNG = np.random.default_rng(0)


class Balanced(HTMLParser):
    """Fails if the tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (20, 30), (2, 0), (2, 3, 4, 5)])
def test_a_tensor_shows_its_numbers(shape: tuple[int, ...]) -> None:
    x = tv.tensor(RNG.standard_normal(shape), requires_grad=True)
    text = x._repr_html_()  # type: ignore[attr-defined]
    assert text == tensor_html(x)
    Balanced(text)
    assert str(list(shape)) in text
    if x.size:
        assert f"{x.numpy().ravel()[0]:.4g}" in text
    assert ("numbers in all" in text) == (x.size > 80)


def test_a_tensor_shows_its_origin_and_values_that_are_not_finite() -> None:
    x = tv.tensor([1.0, np.nan, np.inf], requires_grad=True)
    assert "requires a gradient" in tensor_html(x)
    assert "1 NaN, 1 infinite" in tensor_html(x)
    assert "made by multiply" in tensor_html(x * 2)
    assert "True" in tensor_html(x > 0)


def test_a_module_shows_its_submodules_and_their_sizes() -> None:
    model = tv.models.ViT(image_size=4, patch_size=2, num_classes=3, dim=8, depth=2, heads=2)
    text = model._repr_html_()  # type: ignore[attr-defined]
    assert text == module_html(model)
    Balanced(text)
    assert f"{sum(p.size for p in model.parameters()):,} parameters" in text
    assert text.count("<b>Block</b>") == 2
