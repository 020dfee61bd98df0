"""Contenders of the benchmarks: engines without a fusion, and products in bfloat16."""

import math
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from benchmarks.cases import Case, ModelShape
from benchmarks.contenders import select_contenders
from benchmarks.contenders.engine import Engine
from benchmarks.contenders.functional_vit import vit_logits
from benchmarks.contenders.unfused import FUSIONS, Unfused, owner
from benchmarks.inputs import Arrays, make_inputs, weights_of
from benchmarks.verify import deviation
from tinyvit import dispatch, use_kernels

SHAPE = ModelShape("tiny", image=8, channels=3, patch=4, dim=24, depth=2, heads=3, batch=4)
STEP, LOGITS = Case("train", "train", SHAPE, "step", calls=3), Case("inference", "inference", SHAPE, "step")


@pytest.fixture(scope="module")
def inputs() -> Arrays:
    """The inputs of a training step, with biases, and with weights so large that attention is not uniform."""
    random, drawn = np.random.default_rng(0), make_inputs(STEP)
    for name in weights_of(drawn):
        array = drawn[f"weight.{name}"]
        noise = random.normal(0, 0.5, array.shape).astype(np.float32)
        drawn[f"weight.{name}"] = 10 * array if array.ndim > 1 else array + noise
    return drawn


def run(engine: Engine, case: Case, inputs: Arrays) -> np.ndarray:
    task = engine.prepare(case, inputs)
    for _ in range(case.calls):
        result = task.run()
    (output,) = task.outputs(result).values()
    return output


@pytest.fixture(scope="module")
def exact(inputs: Arrays) -> list[np.ndarray]:
    """The results of the plain path in float64."""
    wide = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}
    with use_kernels("numpy"):
        return [run(Engine("numpy"), case, wide) for case in (STEP, LOGITS)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """The number of calls of each operation that has a kernel: "linear with bias", "layer_norm narrow"."""
    select, count = dispatch.select, Counter()

    def counting(op: Any, dtype: Any, arrays: Any, params: Any, choice: str) -> Any:
        found = select(op, dtype, arrays, params, choice)
        if op.kernel is None:
            return found
        assert found.spec is not None or op.name in ("linear", "add"), op.name  # OpenBLAS and NumPy may be faster
        with_bias = " with bias" if op.name == "linear" and arrays[2] is not None else ""
        count[op.name + with_bias + (" narrow" if "y_dtype" in params else "")] += 1
        return found

    monkeypatch.setattr(dispatch, "select", counting)
    for changes in FUSIONS.values():
        for name in changes:
            monkeypatch.setattr(owner(name), name, getattr(owner(name), name))  # so that the original comes back
    with use_kernels("auto"):
        yield count


CHANGES = {  # the operations that are called less often, and those that are called more often
    ("auto", "linear_bias"): ({"linear with bias"}, {"linear", "add"}),
    ("auto", "narrow_branch"): (set(), set()),
    ("auto", "narrow"): (set(), set()),
    ("auto", "attention"): ({"attention"}, {"softmax"}),
    ("bf16", "linear_bias"): ({"linear with bias"}, {"linear", "cast", "add"}),
    ("bf16", "narrow_branch"): ({"add_narrow"}, {"cast", "add"}),
    ("bf16", "narrow"): ({"layer_norm narrow"}, {"layer_norm", "cast"}),
    ("bf16", "attention"): ({"attention"}, {"softmax", "cast"}),
}


def test_every_fusion_is_left_out_in_both_dtypes() -> None:
    assert set(CHANGES) == {(option, fusion) for option in ("auto", "bf16") for fusion in FUSIONS}
    names = [spec.name for spec in select_contenders((), (), ("attention", "narrow"))]
    assert [name for name in names if "without" in name] == [
        f"{engine} without {fusion}" for engine in ("tinyvit", "tinyvit-bf16") for fusion in ("attention", "narrow")
    ]


@pytest.mark.parametrize(
    ("option", "fusion"),
    [pytest.param(*key, marks=pytest.mark.slow if key[0] == "bf16" else ()) for key in CHANGES],
)
def test_one_fusion_is_left_out_and_the_results_stay(
    option: str, fusion: str, inputs: Arrays, exact: list[np.ndarray], calls: Counter
) -> None:
    fused = [run(Engine(option), case, inputs) for case in (STEP, LOGITS)]
    before = Counter(calls)
    calls.clear()
    unfused = [run(Unfused(f"{option} {fusion}"), case, inputs) for case in (STEP, LOGITS)]
    assert (set(before - calls), set(calls - before)) == CHANGES[option, fusion]
    rounding = 2.0**-8 if option == "bf16" else 2.0**-21
    for x, y, expected in zip(fused, unfused, exact, strict=True):
        assert deviation(y, expected) <= 2 * deviation(x, expected) + rounding


def test_the_functional_model_rounds_its_products_and_nothing_else(inputs: Arrays) -> None:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    weights = weights_of(inputs)
    logits = [vit_logits(np, erf, weights, inputs["images"], SHAPE, d) for d in (None, ml_dtypes.bfloat16, np.float32)]
    assert [x.dtype for x in logits] == [np.float32] * 3
    assert np.array_equal(logits[0], logits[2])
    assert 1e-4 < deviation(logits[1], logits[0]) < 0.1
