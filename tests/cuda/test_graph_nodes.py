"""The nodes of a captured training step, counted by kind on a pretended device, whose kernels do nothing."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from emulator import EmulatedDevice
from fake_cupy import installed
from fake_streams import do
from tinyvit.kernels.cuda import device

import tinyvit as tv
from benchmarks.cases import VIT_S
from benchmarks.gpu.cases import training_step

# Of a step in bfloat16, before layer norm, residual sums and linear maps took bfloat16 beside float32.
BEFORE = 391


class PretendedDevice(EmulatedDevice):
    def _start(self, kernel: Any, *_: Any) -> None:
        do(lambda: None, kernel.expression)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Counter[str]]:
    """Count the nodes of a step of `vit-s`, with its depth but smaller."""
    shape = replace(VIT_S, dim=32, heads=2, image=8, channels=1, patch=4, classes=5, batch=6)
    with installed(), tv.use_kernels("auto"):
        device.DEVICES[0] = PretendedDevice()
        step, batch = training_step(shape, "bfloat16")
        for _ in range(4):
            step(batch)
        assert step.reason is None
        yield Counter(re.findall(r'label="([^"]*)"', step.described()))
        device.DEVICES.clear()


def test_a_step_in_bfloat16_has_few_nodes(nodes: Counter[str]) -> None:
    assert nodes.total() <= 0.6 * BEFORE


def test_no_array_is_cast_between_products_and_norms(nodes: Counter[str]) -> None:
    """What is left are the gradients of the two branches of each block, and casts at the ends of the model."""
    assert nodes["astype float32 bfloat16"] <= 2 * VIT_S.depth + 5
    assert nodes["astype bfloat16 float32"] <= 3
    assert nodes["narrow_1<bfloat_t>"] == 1
    norms = [kind for kind in nodes if kind.startswith("layer_norm_forward_2<float, float, bfloat_t")]
    assert sum(nodes[kind] for kind in norms) == 2 * VIT_S.depth


def test_one_kernel_makes_the_optimizers_step(nodes: Counter[str]) -> None:
    assert [count for kind, count in nodes.items() if kind.startswith("adamw")] == [1, 1, 1]
