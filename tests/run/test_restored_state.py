"""The state of a run: a checkpoint holds and restores every part of it."""

from pathlib import Path

import numpy as np
import pytest
from tiny_run import ALL_STREAMS, tiny_recipe

import tinyvit as tv
from tinyvit.backend import default_generator
from tinyvit.run.state import Training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_part_of_the_state_is_restored(tmp_path: Path, precision: str, optimizer: str) -> None:
    recipe = tiny_recipe(*ALL_STREAMS, f"precision={precision}", f"optimizer={optimizer}")
    training = Training(recipe)
    groups = training.groups()
    for _ in range(2):
        training.step(next(groups))
    if training.steps.scaler is not None:
        training.steps.scaler.load_state_dict({"scale": 128.0, "good_steps": 2})
    default_generator.draw()
    tv.save(tmp_path / "state.safetensors", training.state_dict())
    resumed = Training(recipe)
    resumed.read_checkpoint(tmp_path / "state.safetensors")
    np.testing.assert_equal(resumed.state_dict(), training.state_dict())
    np.testing.assert_equal(tv.load(tmp_path / "state.safetensors"), training.state_dict())


def test_learning_rates_are_those_of_the_schedule_from_the_first_step_to_the_last() -> None:
    training = Training(tiny_recipe("accumulate=2", "warmup_epochs=1", "min_lr=1e-4", "schedule=linear"))
    found = []
    for _ in range(2):
        for group in training.groups():
            training.step(group)
            found.append(training.optimizer.groups[0]["lr"])
        training.position.finish_epoch({})
    warm = np.arange(1, 4) / 3 * 1e-2  # an epoch has three steps of two batches each
    np.testing.assert_allclose(found, [*warm, *np.linspace(1e-2, 1e-4, 5)[1:-1]])  # the step after the last has min_lr


def test_a_step_goes_down_the_mean_loss_of_all_its_images_however_they_are_divided() -> None:
    fixed = ("optimizer=sgd", "momentum=0", "schedule=constant", "warmup_epochs=0", "limit=400", "lr=0.1")
    halves, whole = (
        Training(tiny_recipe(*fixed, f"batch_size={400 // count}", f"accumulate={count}")) for count in (2, 1)
    )
    for training in (halves, whole):
        training.step(next(training.groups()))
    np.testing.assert_allclose(halves.position.loss_sum, whole.position.loss_sum, rtol=1e-5)
    for p, q in zip(halves.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-4, atol=1e-6)


OPTIMIZERS = {
    ("adam", "beta1=0.5", "beta2=0.7"): {"betas": (0.5, 0.7)},
    ("adamw", "beta1=0.5", "beta2=0.7"): {"betas": (0.5, 0.7)},
    ("sgd", "momentum=0.3", "nesterov=true"): {"momentum": 0.3, "nesterov": True},
    ("lion", "beta1=0.5", "lion_beta2=0.7"): {"betas": (0.5, 0.7)},
    ("muon", "muon_momentum=0.5", "beta1=0.6", "beta2=0.7"): {"momentum": 0.5, "betas": (0.6, 0.7), "nesterov": True},
    ("sgd", "momentum=0.3"): {"momentum": 0.3, "nesterov": False},
}


@pytest.mark.parametrize("keys", OPTIMIZERS, ids=" ".join)
def test_the_optimizer_has_the_settings_of_the_recipe(keys: tuple[str, ...]) -> None:
    made = Training(tiny_recipe(f"optimizer={keys[0]}", *keys[1:], "lr=0.04")).optimizer
    assert type(made).__name__.lower() == keys[0]
    for group in made.groups:
        assert (OPTIMIZERS[keys] | {"lr": 0.04}).items() <= group.items()


def test_a_checkpoint_is_due_when_the_last_one_is_as_old_as_the_recipe_says(tmp_path: Path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("tinyvit.run.state.time.perf_counter", lambda: now[0])
    training = Training(tiny_recipe("checkpoint_minutes=2"))
    for began in (1000.0, 1150.0, 1300.0):
        for seconds, is_due in ((0, False), (119, False), (120, True), (150, True)):
            now[0] = began + seconds
            assert training.checkpoint_is_due() is is_due
        training.write_checkpoint(tmp_path)
        assert not training.checkpoint_is_due()


def test_the_norm_is_clipped_in_every_precision() -> None:
    for precision in ("float32", "bfloat16", "float16"):
        lengths = []
        for clip in (1e-3, 2e-3):
            recipe = tiny_recipe(
                *("optimizer=sgd", "momentum=0", "schedule=constant", "warmup_epochs=0", "lr=1", "limit=100"),
                *(f"clip_norm={clip}", f"precision={precision}"),
            )
            training = Training(recipe)
            before = [p.numpy().copy() for p in training.model.parameters()]
            training.step(next(training.groups()))
            moved = [p.numpy() - old for p, old in zip(training.model.parameters(), before, strict=True)]
            lengths.append(np.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in moved)))
        np.testing.assert_allclose(lengths, [1e-3, 2e-3], rtol=0.02)
