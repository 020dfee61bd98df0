"""Runs of every kind of task on the device, captured and not; run by `test_emulated.py` and `test_gpu.py`."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
from tiny_tasks import KINDS, tiny
from training_trials import Seen, on_the_device  # noqa: F401  (a fixture)

import tinyvit as tv
from tinyvit.captured import CapturedStep
from tinyvit.data import texts
from tinyvit.train import train

SAME = ("step", "train_loss", "val_loss", "val_accuracy")
BATCHES = ("data.limit=40", "data.batch_size=12")  # the last one of an epoch is smaller


@pytest.fixture(autouse=True)
def few_samples(few_scenes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    full = texts.load_texts

    def load(name: str, split: str) -> texts.TextDataset:
        return full(name, split).first(50) if name == "reverse" else full(name, split)

    monkeypatch.setattr("tinyvit.tasks.base.load_texts", load)


def run_of(name: str, device: str, *assignments: str) -> tuple[Seen, list[dict[str, Any]], dict[str, np.ndarray]]:
    """What trained a tiny run of two epochs, what it came to, and its weights."""
    seen = Seen()
    tv.backend.set_default_device(device)
    try:
        result = train(tiny(name, *BATCHES, *assignments), "run", None, seen)
    finally:
        tv.backend.set_default_device("cpu")
    return seen, result.metrics, tv.load(result.folder / "model.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_any_task_captures_its_steps_and_gives_the_bits_of_one_without(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock.patch.object(CapturedStep, "_replay", autospec=True, side_effect=CapturedStep._replay) as replay:
        seen, found, weights = run_of(name, "cuda")
        assert ", each one CUDA graph" in seen.heading
        assert seen.training.steps.graph.reason is None
        assert replay.call_count == 3  # of 8 steps: not in the first three, nor in the last of each epoch
        monkeypatch.setattr("tinyvit.captured.WARM_UP", 1000)
        _, expected, others = run_of(name, "cuda")
        assert replay.call_count == 3
    assert [[line[key] for key in SAME] for line in found] == [[line[key] for key in SAME] for line in expected]
    for key, array in others.items():
        np.testing.assert_array_equal(weights[key], array)


@pytest.mark.parametrize("name", [name for name in KINDS if "words" not in name and "both" not in name])
def test_batches_filled_to_one_shape_teach_what_cut_ones_teach_on_the_host(name: str) -> None:
    """Where no words are hidden, that is: what is, is drawn for a text as long as it is."""
    settings = ("train.epochs=1", "dropout=0")
    _, (found,), _ = run_of(name, "cuda", *settings)
    _, (expected,), _ = run_of(name, "cpu", *settings)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-3)
