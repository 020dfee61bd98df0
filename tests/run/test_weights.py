"""The weights in the package reach the accuracy of their recipe."""

import pytest

from tinyvit.recipe import load_recipe
from tinyvit.run.folder import SHIPPED, load_data, load_run
from tinyvit.tasks import task_of

NAMES = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def test_the_package_has_weights_for_the_digits() -> None:
    assert "digits" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_reach_the_accuracy_of_their_recipe(name: str) -> None:
    trained = load_run(name)
    report = task_of(trained.recipe).evaluate(trained.model, load_data(trained.recipe, "test"), batch_size=128)
    assert report.accuracy >= load_recipe(name).about.accuracy


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1_000_000
