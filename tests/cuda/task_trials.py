"""Runs of every kind of task on the device, with and without CUDA graphs.

`test_emulated.py` and `test_gpu.py` run this file.
"""

from typing import Any
from unittest import mock

import numpy as np
import pytest
from tiny_tasks import KINDS, tiny
from training_trials import Seen, on_the_device  # noqa: F401  (a fixture)

import tinyvit as tv
from tinyvit.data import texts
from tinyvit.run.captured import CapturedStep
from tinyvit.run.loop import train

SAME = ("step", "train_loss", "val_loss", "val_accuracy")
BATCHES = ("data.limit=40", "data.batch_size=12")  # the last batch of an epoch is smaller


@pytest.fixture(autouse=True)
def few_samples(few_scenes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    full = texts.load_texts

    def load(name: str, split: str) -> texts.TextDataset:
        return full(name, split).first(50) if name == "reverse" else full(name, split)

    monkeypatch.setattr("tinyvit.tasks.base.load_texts", load)
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 12})


def run_of(name: str, device: str, *assignments: str) -> tuple[Seen, list[dict[str, Any]], dict[str, np.ndarray]]:
    """Train a tiny run of two epochs; return its display, its metrics and its weights."""
    seen = Seen()
    tv.backend.set_default_device(device)
    try:
        result = train(tiny(name, *BATCHES, *assignments), "run", None, seen)
    finally:
        tv.backend.set_default_device("cpu")
    return seen, result.metrics, tv.load(result.folder / "model.safetensors")


CLASSIFY = ("kind=classify", "pool=mean", "patch_size=8")
# The runs, and how many of their 8 steps are graphs: not those of smaller batches, nor the first three others.
RUNS = [
    *((name, (), 3) for name in KINDS),
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
@pytest.mark.parametrize("name", [name for name in KINDS if "words" not in name and "both" not in name])
def test_padded_batches_train_on_the_device_like_shorter_ones_on_the_host(name: str, accumulate: int) -> None:
    """Tasks that hide words are left out, because which words they hide depends on the padded length."""
    settings = ("epochs=1", "dropout=0", f"train.accumulate={accumulate}")
    _, (found,), _ = run_of(name, "cuda", *settings)
    _, (expected,), _ = run_of(name, "cpu", *settings)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-2)
