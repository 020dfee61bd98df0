"""Runs of every kind of task on the device, with and without CUDA graphs.

`test_emulated.py` and `test_gpu.py` run this file.
"""

import re
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest
from kernel_trials import ON_GPU
from tiny_tasks import KINDS, tiny
from training_trials import IMAGES, LABELS, Seen, model_on, on_the_device  # noqa: F401  (a fixture)

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data import texts
from tinyvit.engine import Tensor
from tinyvit.run.captured import CapturedStep
from tinyvit.run.loop import train

SAME = ("step", "train_loss", "val_loss", "val_accuracy")
BATCHES = ("data.limit=20", "data.batch_size=6")  # the last batch of an epoch is smaller


@pytest.fixture(autouse=True)
def few_samples(few_scenes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    full, sizes = texts.load_texts, {"train": 40, "test": 6}

    def load(name: str, split: str) -> texts.TextDataset:
        return full(name, split).first(sizes[split]) if name == "reverse" else full(name, split)

    monkeypatch.setattr("tinyvit.tasks.base.load_texts", load)
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", sizes)
    monkeypatch.setattr("tinyvit.data.scenes.TEST_SCENES", 3)  # texts are written for each of them, word by word


def run_of(name: str, device: str, *assignments: str) -> tuple[Seen, list[dict[str, Any]], dict[str, np.ndarray]]:
    """Train a tiny run of two epochs; return its display, its metrics and its weights."""
    seen = Seen()
    tv.backend.set_default_device(device)
    try:
        result = train(tiny(name, *BATCHES, *assignments), "run", None, seen)
    finally:
        tv.backend.set_default_device("cpu")
    return seen, result.metrics, tv.load(result.folder / "model.safetensors")


# Masks and boxes have thousands of pixels an image, for which the emulator takes half an hour; a device takes seconds.
ON_DEVICE_ONLY = () if ON_GPU else ("segment", "segment-queries", "detect")
CLASSIFY = ("kind=classify", "pool=mean", "patch_size=8")
# The runs, and how many of their 8 steps are graphs: not those of smaller batches, nor the first three others.
RUNS = [
    *((name, (), 3) for name in KINDS if name not in ON_DEVICE_ONLY),
    ("masked-words", ("train.accumulate=2", "epochs=4"), 1),
    ("vqa-cnn", ("precision=bfloat16",), 3),
    ("retrieve", ("precision=float16",), 3),
    ("masked-patches", ("data.name=motion", *CLASSIFY), 3),  # videos
    ("masked-patches", ("data.name=chirps", *CLASSIFY), 3),  # spectrograms
]


@pytest.mark.parametrize(("name", "assignments", "graphs"), RUNS)
def test_a_captured_run_of_any_task_gives_the_bits_of_an_uncaptured_one(
    name: str, assignments: tuple[str, ...], graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock.patch.object(CapturedStep, "_replay", autospec=True, side_effect=CapturedStep._replay) as replay:
        seen, found, weights = run_of(name, "cuda", *assignments)
        assert ", each one CUDA graph" in seen.heading
        assert seen.training.steps.graph.reason is None
        assert found[-1]["step"] == 8
        assert replay.call_count == graphs
        monkeypatch.setattr("tinyvit.run.captured.WARM_UP", 1000)
        _, expected, others = run_of(name, "cuda", *assignments)
        assert replay.call_count == graphs
    assert [[line[key] for key in SAME] for line in found] == [[line[key] for key in SAME] for line in expected]
    for key, array in others.items():
        np.testing.assert_array_equal(weights[key], array)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "name", [name for name in KINDS if "words" not in name and "both" not in name and name not in ON_DEVICE_ONLY]
)
def test_padded_batches_train_on_the_device_like_shorter_ones_on_the_host(name: str, accumulate: int) -> None:
    """Tasks that hide words are left out, because which words they hide depends on the padded length."""
    settings = ("epochs=1", "dropout=0", f"train.accumulate={accumulate}")
    _, (found,), _ = run_of(name, "cuda", *settings)
    _, (expected,), _ = run_of(name, "cpu", *settings)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-2)


# The average of the weights -----------------------------------------------------------------------------------------


def averaged(captured: bool) -> tuple[list[bytes], list[str], int]:
    """Return the averages after some steps, the kinds of nodes of the graph, and the number of updates."""
    model = model_on("cuda")
    optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2)
    ema = tv.optim.EMA(model.parameters(), 0.3)
    ema.load_state_dict({**ema.state_dict(), "steps": 2})
    loss_of = lambda images, labels: F.cross_entropy(model(Tensor(images)), labels)  # noqa: E731
    step = CapturedStep(loss_of, optimizer, average=ema)
    step.reason = None if captured else "the test switches it off"
    plain = [p.numpy().astype(float) for p in model.parameters()]
    versions = [p.memory.version for p in model.parameters()]
    for i in range(7):
        if i == 6:  # a state may be restored at any time
            ema.load_state_dict(ema.state_dict())
        size = 4 if i == 5 else 6
        step((IMAGES[:size], LABELS[:size]))
        d = min(0.3, (4 + i) / (13 + i))
        plain = [d * a + (1 - d) * p.numpy() for a, p in zip(plain, model.parameters(), strict=True)]
    assert step.is_captured == captured
    for p, version in zip(model.parameters(), versions, strict=True):
        assert p.memory.version >= version + 7, "a step did not say that it changed a parameter"
    for found, expected in zip(ema.averages, plain, strict=True):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-7)
    return [a.get().tobytes() for a in ema.averages], re.findall(r'label="([^"]*)', step.described()), ema.steps


def test_the_average_of_the_weights_is_a_part_of_the_graph() -> None:
    bits, nodes, steps = averaged(captured=True)
    expected, _, others = averaged(captured=False)
    assert bits == expected
    assert steps == others == 9
    if not ON_GPU:
        assert [kind for kind in nodes if "average" in kind] == ["average_settings<float>", "average_1<float>"]


def test_an_average_without_its_kernel_is_updated_beside_the_graph() -> None:
    with mock.patch.object(tv.optim.EMA, "kernel", return_value=None):
        _, nodes, steps = averaged(captured=True)
    assert steps == 9
    assert not [kind for kind in nodes if "average" in kind]


def test_copies_of_all_parameters_at_once_are_those_that_each_product_would_make() -> None:
    def trained() -> tuple[list[bytes], bool]:
        model = model_on("cuda")
        optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2)
        loss_of = lambda images, labels: F.cross_entropy(model(Tensor(images)), labels)  # noqa: E731
        step = CapturedStep(loss_of, optimizer, "bfloat16")
        for _ in range(5):
            step((IMAGES, LABELS))
        return [p.numpy().tobytes() for p in model.parameters()], "narrow_1" in step.described()

    found, together = trained()
    with mock.patch.object(tv.optim.NarrowWeights, "in_use", return_value=nullcontext()):
        expected, others = trained()
    assert found == expected
    assert ON_GPU or (together, others) == (True, False)
