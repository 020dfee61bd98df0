"""Tests in this folder run kernels, with few examples each, because an example is computed eight times."""

from collections.abc import Iterator

import hypothesis
import pytest

import tinyvit as tv
from tinyvit.engine import Op

hypothesis.settings.register_profile("kernels", hypothesis.settings.get_profile("tinyvit"), max_examples=25)
hypothesis.settings.register_profile("kernel-faults", hypothesis.settings.get_profile("faults"), max_examples=25)


@pytest.fixture(autouse=True)
def implementation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use kernels for every operation that has one, whatever the sizes of its inputs."""
    for op in Op.registry.values():
        if op.kernel_from:
            monkeypatch.setattr(op, "kernel_from", 0)
    with tv.use_kernels("auto"):
        yield
