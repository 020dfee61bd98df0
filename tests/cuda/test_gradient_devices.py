"""Gradients live on the device of what they are gradients of, whichever outputs were used."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cupy import installed

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample

OPERATIONS = {name: op for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}


@pytest.fixture(autouse=True)
def on_the_stand_in() -> Iterator[None]:
    with installed(), tv.use_kernels("numpy"):
        yield


def outputs_of(op: type[Op], inputs: list[Tensor | None], params: dict[str, Any]) -> tuple[Tensor, ...]:
    out = op.apply(*inputs, **params)
    return out if isinstance(out, tuple) else (out,)


def gradients(op: type[Op], sample: Sample, device: str, used: tuple[int, ...]) -> list[Tensor | None]:
    """The gradients of the sum of squares of the outputs in `used`, without and with a graph, and then their own."""
    params = {k: np.dtype(np.float32) if isinstance(v, np.dtype) else v for k, v in sample.params.items()}
    if op.name == "to_device":
        params["source"] = "cuda:0" if device == "cuda" else "cpu"
    inputs = [None if x is None else tv.tensor(x.astype(np.float32), None, device, True) for x in sample.inputs]
    leaves = [x for x in inputs if x is not None]

    def first(create_graph: bool) -> list[Tensor | None]:
        outputs = outputs_of(op, inputs, params)
        losses = [(outputs[i] * outputs[i]).sum() for i in used]
        return list(tv.grad(losses, leaves, create_graph=create_graph, allow_unused=True))

    recorded = first(True)
    norms = [(g * g).sum() for g in recorded if g is not None and g.requires_grad]
    second = tv.grad(norms, leaves, allow_unused=True) if norms else ()
    return [*first(False), *recorded, *second]


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_every_operation_stay_on_its_device(name: str) -> None:
    op = OPERATIONS[name]
    for sample in op.samples():
        count = len(outputs_of(op, [None if x is None else Tensor(x) for x in sample.inputs], sample.params))
        for used in {tuple(range(count)), *((i,) for i in range(count))}:
            found = gradients(op, sample, "cuda", used)
            assert {g.device for g in found if g is not None} <= {"cuda:0"}, (sample, used)
            for g, expected in zip(found, gradients(op, sample, "cpu", used), strict=True):
                assert (g is None) == (expected is None)
                if g is not None:
                    np.testing.assert_allclose(g.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_constants_are_made_on_the_default_device(device: str) -> None:
    tv.set_default_device(device)
    try:
        for made in (F.zeros((2, 3)), F.dropout_mask((2, 3), 0.5, 1, 2, "float32")):
            assert (made.device.split(":")[0], made.shape, made.dtype) == (device, (2, 3), np.float32)
    finally:
        tv.set_default_device("cpu")
