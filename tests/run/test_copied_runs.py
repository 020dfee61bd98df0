"""Models, optimizers and data sets are copied and sent to other processes, before and after they were used."""

import copy
import dataclasses
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiers import quick_first
from tiny_tasks import KINDS, tiny

import tinyvit as tv
from tinyvit.data import Loader
from tinyvit.run.state import Training

pytestmark = pytest.mark.usefixtures("few_scenes")


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def train_a_step(training: Training) -> None:
    tv.manual_seed(5)
    training.step(next(training.groups()))


@pytest.mark.parametrize("how", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", quick_first(KINDS, 3))
def test_a_copy_of_a_run_in_progress_trains_to_the_same_bits(name: str, how: Callable[[Any], Any]) -> None:
    training = Training(tiny(name))
    for _ in range(2):  # before its first step, and after it
        before, twin = training.model.state_dict(), how(training)
        train_a_step(twin)
        for key, array in training.model.state_dict().items():
            np.testing.assert_array_equal(array, before[key], err_msg=f"{key} is shared with the copy")
        train_a_step(training)
        ours, its = training.model.state_dict(), twin.model.state_dict()
        assert ours.keys() == its.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], its[key], err_msg=key)
        assert any(not np.array_equal(ours[key], before[key]) for key in ours)


@pytest.mark.parametrize("optimizer", [tv.optim.SGD, tv.optim.Adam, tv.optim.AdamW])
def test_a_model_and_its_optimizer_are_copied_together(optimizer: Any) -> None:
    model = tv.nn.Linear(3, 2)
    pair = model, optimizer(model.parameters(), lr=0.1)
    x = np.ones((4, 3), np.float32)
    for how in (copy.deepcopy, pickled):
        twin = how(pair)
        for module, steps in (pair, twin):
            steps.zero_grad()
            (module(tv.tensor(x)) ** 2).sum().backward()
            steps.step()
        np.testing.assert_array_equal(pair[0].weight.numpy(), twin[0].weight.numpy())
        assert not np.array_equal(pair[0].weight.numpy(), tv.nn.Linear(3, 2).weight.numpy())


def outputs_of(model: tv.nn.Module, images: np.ndarray) -> np.ndarray:
    with tv.no_grad():
        return model(images).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_model_that_was_used_is_sent_to_another_process(method: str) -> None:
    model = tv.models.ViT(8, 2, 10, 32, 1, 2, in_channels=1).eval()
    images = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    model(images).sum().backward()
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply(outputs_of, (model, images))
    np.testing.assert_allclose(found, outputs_of(model, images), rtol=1e-5, atol=1e-6)


def fields(batch: Any) -> list[Any]:
    return [getattr(batch, field.name) for field in dataclasses.fields(batch)]


@pytest.mark.parametrize("name", ["masked-patches", "vqa-cross", "caption", "translate"])
def test_data_and_loaders_come_back_equal(name: str) -> None:
    training = Training(tiny(name))
    for how in (copy.deepcopy, pickled):
        for data in (training.train_data, training.test_data):
            ours, its = (next(iter(Loader(d, 5, seed=3).batches(0))) for d in (data, how(data)))
            for a, b in zip(fields(ours), fields(its), strict=True):
                np.testing.assert_equal(a, b)
