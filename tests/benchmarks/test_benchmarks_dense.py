"""The suite of masks and boxes: the shapes are those of the recipes, and PyTorch computes the same gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from counted import operations_of_products
from peers import peer

from benchmarks.cases import DENSE, Case, DenseShape
from benchmarks.contenders.engine import Engine, Recorded
from benchmarks.costs import cost
from benchmarks.inputs import NO_BOX, Arrays, make_inputs, weights_of
from benchmarks.models import build_model
from benchmarks.steps import batch_of, loss_of
from benchmarks.verify import allowed, deviation
from tinyvit import use_kernels
from tinyvit.data import dense
from tinyvit.data.augment import IGNORED
from tinyvit.recipe import load_recipe
from tinyvit.tasks import DataSpec, detect, task_of

SEGMENT = DenseShape(
    "tiny", image=16, channels=3, patch=8, dim=24, depth=2, heads=2, mlp_dim=32, classes=3, batch=3, things=3
)
DETECT = replace(SEGMENT, queries=5, decoder=2)
LOCAL = {"mlp_layer": "local", "optimizer": "muon"}
TINY = [SEGMENT, replace(SEGMENT, **LOCAL), DETECT, replace(DETECT, **LOCAL)]


def case_of(shape: DenseShape) -> Case:
    return Case("dense", "train", shape, "step", calls=3)


def wide(inputs: Arrays) -> Arrays:
    return {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}


def lively(inputs: Arrays) -> Arrays:
    """The inputs with biases other than zero, and with weights so large that attention is not uniform."""
    random = np.random.default_rng(0)
    for name in weights_of(inputs):
        array = inputs[f"weight.{name}"]
        noise = random.normal(0, 0.3, array.shape).astype(np.float32)
        inputs[f"weight.{name}"] = 3 * array if array.ndim > 1 else array + noise
    return inputs


@pytest.mark.parametrize("shape", DENSE, ids=lambda shape: shape.name)
def test_the_model_of_a_shape_is_that_of_the_recipe(shape: DenseShape) -> None:
    recipe = load_recipe(shape.name)
    names = tuple(map(str, range(shape.classes)))
    data = DataSpec(names, (shape.channels, shape.image, shape.image), (0.5,) * shape.channels, (0.5,) * shape.channels)
    model = task_of(recipe).build(data)
    own = build_model(shape)
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert repr(own) == repr(model)
    assert (recipe.data.batch_size, recipe.train.optimizer) == (shape.batch, shape.optimizer)
    assert recipe.task.dice == 0


def test_the_marks_of_what_is_left_out_are_those_of_tinyvit() -> None:
    assert NO_BOX == dense.NO_BOX
    peer("torch"), peer("scipy.optimize")
    from benchmarks.contenders import pytorch_dense as own

    assert own.IGNORED == IGNORED
    assert (own.CLASS, own.DISTANCE, own.OVERLAP) == (detect.CLASS, detect.DISTANCE, detect.OVERLAP)
    assert own.NONE_WEIGHT == detect.NONE_WEIGHT


@pytest.mark.parametrize("shape", TINY, ids=["masks", "masks, local, muon", "boxes", "boxes, local, muon"])
def test_pytorch_computes_the_same_losses_and_gradients(shape: DenseShape, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("torch"), peer("scipy.optimize")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from benchmarks.contenders.pytorch import PyTorch

    inputs, case = lively(make_inputs(case_of(shape))), case_of(shape)
    with use_kernels("numpy"):
        (exact, exact_losses), (plain, plain_losses) = (tinyvit_step(case, x) for x in (wide(inputs), inputs))
    model, loss = PyTorch("").with_loss(case, inputs)
    loss().backward()
    found = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        limit = allowed(Case("dense", "gradient", shape, "step"), name, deviation(plain[name], expected), "float32", 1)
        assert deviation(found[name], expected) <= limit, name
    step = PyTorch("").prepare(case, inputs)
    losses = [step.run() for _ in exact_losses]
    assert losses == pytest.approx(exact_losses, rel=1e-5)
    assert plain_losses == pytest.approx(exact_losses, rel=1e-5)


def tinyvit_step(case: Case, inputs: Arrays) -> tuple[Arrays, list[float]]:
    """The gradients of the first step, and the losses of some steps, by the plain path."""
    model = build_model(case.shape)
    model.to(inputs["images"].dtype.name)
    model.load_state_dict(weights_of(inputs))
    loss_of(case.shape, model)(*batch_of(inputs)).backward()
    step = Engine("numpy").prepare(case, inputs)
    return {name: p.grad.numpy() for name, p in model.named_parameters()}, [step.run() for _ in range(4)]


@pytest.mark.parametrize("shape", TINY[::2], ids=["masks", "boxes"])
def test_operations_of_a_step_are_those_of_its_matrix_products(shape: DenseShape, monkeypatch: Any) -> None:
    case = case_of(shape)
    assert cost(case).flops == operations_of_products(case, monkeypatch)


def test_steps_from_a_record_give_the_same_losses() -> None:
    peer("numba")
    case = case_of(SEGMENT)
    inputs = make_inputs(case)
    with use_kernels("auto"):
        usual, recorded = (kind("auto").prepare(case, inputs) for kind in (Engine, Recorded))
        assert [recorded.run() for _ in range(4)] == [usual.run() for _ in range(4)]
