"""Tests in this folder run kernels, with few examples each, because an example is computed eight times."""

from collections.abc import Iterator

import hypothesis
import pytest

import tinyvit as tv

hypothesis.settings.register_profile("kernels", hypothesis.settings.get_profile("tinyvit"), max_examples=25)
hypothesis.settings.register_profile("kernel-faults", hypothesis.settings.get_profile("faults"), max_examples=25)


@pytest.fixture(autouse=True)
def implementation() -> Iterator[None]:
    """Use kernels for every operation that has one."""
    with tv.use_kernels("auto"):
        yield
