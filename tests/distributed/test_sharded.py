"""Steps by shards, in one process that plays the parts of several."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tiers import quick_first
from tiny_run import ALL_STREAMS, isolate, tiny_recipe
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit.backend import Group
from tinyvit.errors import RecipeError, StudyError
from tinyvit.optim.tree import add_up, shards_of
from tinyvit.recipe import Recipe
from tinyvit.run.agreement import DisagreementError, require_agreement, sharded
from tinyvit.run.flat import FlatGradient
from tinyvit.run.folder import RunError
from tinyvit.run.state import Training


class Seen(Exception):
    """Raised where a process would wait for others."""


class Played(Group):
    """Process `rank` of `size`, which is alone: it notes what it would send, and receives what the test gives it."""

    divides = True

    def __init__(self, rank: int, size: int, gathered: list[Any] | None = None) -> None:
        self.rank, self.size, self.gathered = rank, size, gathered
        self.partials: Mapping[Any, Any] = {}

    def gather(self, value: Any) -> list[Any]:
        if self.gathered is None:
            raise Seen(value)
        return self.gathered

    def collect(self, work: Callable[[], Any]) -> list[Any]:
        return self.gather(work())

    def sum_exact(self, partials: Mapping[Any, Any], shards: int) -> Any:
        self.partials = partials
        raise Seen


def first_gradient(recipe: Recipe) -> dict[str, np.ndarray]:
    """The gradients of the first step by one process, and its loss."""
    training = Training(recipe)
    batches = next(training.groups())
    training.steps.images = sum(batch.count for batch in batches)
    loss = training.steps.differentiate(batches, 1, 1)
    found = {name: p.grad.numpy() for name, p in training.model.named_parameters() if p.grad is not None}
    return found | {"loss": np.array(loss)}


def sum_of_processes(recipe: Recipe, size: int) -> bytes:
    """The sum that `size` processes give in the first step, with their losses."""
    gathered = None
    if recipe.task.kind == "retrieve":
        gathered = [_until_seen(recipe, Played(rank, size)).args[0] for rank in range(size)]
    partials: dict[Any, Any] = {}
    for rank in range(size):
        group = Played(rank, size, gathered)
        _until_seen(recipe, group)
        partials |= group.partials
    return add_up((0, recipe.train.shards), partials.get).tobytes()


def _until_seen(recipe: Recipe, group: Played) -> Seen:
    training = Training(recipe, group=group)
    batches = next(training.groups())
    training.steps.images = sum(batch.count for batch in batches)
    with pytest.raises(Seen) as caught:
        training.steps.differentiate(batches, 1, 1)
    return caught.value


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


# What a step computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4, 7])
def test_shards_give_the_gradient_of_the_whole_batch(shards):
    options = ("batch_size=31", "limit=100", "depth=2", "accumulate=2", "label_smoothing=0.1")
    whole = first_gradient(tiny_recipe(*options))
    divided = first_gradient(tiny_recipe(*options, f"shards={shards}"))
    assert whole.keys() == divided.keys()
    for name, gradient in whole.items():
        np.testing.assert_allclose(divided[name], gradient, rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.usefixtures("few_scenes")
def test_a_contrastive_loss_compares_the_pairs_of_all_shards():
    options = ("dropout=0", "batch_size=9", "accumulate=2")
    whole = first_gradient(tiny("retrieve", *options))
    divided = first_gradient(tiny("retrieve", *options, "shards=4"))
    assert whole.keys() == divided.keys()
    for name, gradient in whole.items():
        np.testing.assert_allclose(divided[name], gradient, rtol=2e-3, atol=1e-5, err_msg=name)


def test_one_shard_is_a_usual_run_in_every_bit():
    options = ("dropout=0", "batch_size=50", "limit=150", "clip_norm=0.5", "ema=0.9", "accumulate=2")
    found = []
    for shards in (0, 1):
        training = Training(tiny_recipe(*options, f"shards={shards}"))
        for batches in training.groups():
            training.step(batches)
        found.append((training.position.loss_sum, [a.tobytes() for a in training.ema.averages]))
    assert found[0][1] == found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)  # the losses of shards are float32


@pytest.mark.parametrize(("shards", "sizes"), [(8, (2, 8)), (5, (3,))])
def test_the_bits_of_a_step_do_not_depend_on_the_number_of_processes(shards, sizes):
    recipe = tiny_recipe(*ALL_STREAMS, f"shards={shards}", "batch_size=29", "limit=80")
    assert len({sum_of_processes(recipe, size) for size in (1, *sizes)}) == 1


@pytest.mark.parametrize("kind", ["retrieve", "masked-patches", "caption"])
@pytest.mark.usefixtures("few_scenes")
def test_the_bits_of_other_tasks_do_not_depend_on_it_either(kind):
    recipe = tiny(kind, "shards=4", "precision=bfloat16", "batch_size=11", "accumulate=2")
    assert len({sum_of_processes(recipe, size) for size in (1, 3)}) == 1


def test_a_batch_with_fewer_samples_than_shards_is_divided_too():
    recipe = tiny_recipe("batch_size=3", "limit=10", "shards=8")
    assert len({sum_of_processes(recipe, size) for size in (1, 8)}) == 1


def test_shards_draw_dropout_masks_of_their_own_and_steps_others():
    training = Training(tiny_recipe("dropout=0.5", "shards=4"))
    seen = {training.steps.stream(step, number, shard) for step in (1, 2, 3) for number in (0,) for shard in range(4)}
    assert len(seen) == 12
    before = dataclasses.replace(training.position), training.state_dict()["generator"]
    training.step(next(training.groups()))
    assert training.state_dict()["generator"] == before[1]


def test_accumulated_batches_draw_from_streams_of_their_own():
    steps = Training(tiny_recipe("accumulate=3", "shards=2")).steps
    seen = [steps.stream(step, number, shard) for step in (1, 2) for number in range(3) for shard in range(2)]
    assert len(set(seen)) == 12


def test_a_loss_that_is_not_finite_names_the_shard_and_the_process():
    training = Training(tiny_recipe("shards=8"), group=Played(0, 4))
    with pytest.raises(FloatingPointError, match=r"step 3 in shard 5, computed by rank 2, is nan, in epoch 1"):
        training.steps.require_finite_losses(np.array([1, 1, 1, 1, 1, np.nan, 1, 1]), 3, 1)


def test_a_parameter_without_a_gradient_stays_without_one():
    training = Training(tiny_recipe())
    used, unused = list(training.model.parameters())[:2]
    flat = FlatGradient([used, unused], 2)
    used.grad = type(used)(np.ones_like(used.data))
    first = flat.packed(0, 1.5)
    used.grad = None
    losses = flat.unpack(first + flat.packed(1, 2.0))
    assert losses.tolist() == [1.5, 2.0]
    assert (used.grad.numpy() == 1).all()
    assert unused.grad is None


def test_a_gradient_that_is_added_has_the_bits_of_one_that_is_packed_first():
    model = Training(tiny_recipe()).model
    parameters = list(model.parameters())[:3]
    flat = FlatGradient(parameters, 2)
    rng = np.random.default_rng(0)

    def give(missing: int) -> None:
        for i, p in enumerate(parameters):
            values = rng.standard_normal(p.shape).astype(np.float32)
            values.flat[::2] = -0.0
            p.grad = None if i == missing else type(p)(values)

    give(0)
    first = flat.packed(0, 1.5)
    give(1)
    expected = first + flat.packed(1, 2.0)
    flat.add(first, 1, 2.0)
    assert first.tobytes() == expected.tobytes()
    assert flat.unpack(first).tolist() == [1.5, 2.0]


OPTIONS = [["shards=3"], ["shards=2", "accumulate=2", "precision=bfloat16"]]


@pytest.mark.parametrize("options", quick_first(OPTIONS))
def test_recorded_shards_compute_the_same_bits(options, monkeypatch):
    monkeypatch.setattr("tinyvit.run.captured_cpu.WARM_UP", 2)
    recipe = tiny_recipe("batch_size=200", "clip_norm=0.5", *options)
    found = []
    for is_recorded in (True, False):
        with tv.use_kernels("auto"):
            training = Training(recipe)
        if not is_recorded:
            training.steps.gradients = None
        with tv.use_kernels("auto"):
            for batches in training.groups():
                training.step(batches)
        assert not is_recorded or training.steps.gradients.is_captured, training.steps.why_not_recorded
        found.append([p.numpy().tobytes() for p in training.model.parameters()])
    assert found[0] == found[1]


@pytest.mark.usefixtures("few_scenes")
def test_the_reason_why_compared_shards_are_not_recorded_is_shown():
    assert "compared with each other" in Training(tiny("retrieve", "shards=2")).steps.why_not_recorded


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_sample_is_in_one_shard_of_one_process_once_an_epoch(size):
    training = Training(tiny_recipe("batch_size=37", "limit=100"))
    dataset = training.loader.dataset
    names = tuple(map(str, range(len(dataset))))
    identity = dataclasses.replace(dataset, labels=np.arange(len(dataset)), classes=names)
    training.loader.dataset = identity
    seen = []
    for rank in range(size):
        for batch in training.loader.sharded_batches(0, 0, 8, shards_of(rank, size, 8)):
            seen += [label for part in batch.parts.values() for label in part.labels]
            assert batch.count == (37 if batch.index < 2 else 26)
    assert sorted(seen) == list(range(100))


def test_a_shard_is_the_same_whoever_makes_it_and_augmented_apart_from_others():
    loader = Training(tiny_recipe("shift=1", "rotate=20", "limit=40", "batch_size=40", "mixup=0.5")).loader
    every = next(loader.sharded_batches(2, 0, 4, range(4))).parts
    for shard in range(4):
        alone = next(loader.sharded_batches(2, 0, 4, [shard])).parts[shard]
        assert alone.images.tobytes() == every[shard].images.tobytes()
    streams = {loader.stream(1, 2, 0, part).random() for part in range(5)}
    assert len(streams) == 5


@pytest.mark.parametrize("size", [2, 3, 7])
def test_an_evaluation_by_several_processes_gives_the_same_report(size):
    training = Training(tiny_recipe("batch_size=100"))
    expected = training.task.evaluate(training.model, training.test_data, 100)
    parts = []
    for rank in range(size):
        with pytest.raises(Seen) as caught:
            training.task.evaluate(training.model, training.test_data, 100, group=Played(rank, size))
        parts.append(caught.value.args[0])
    assert sum(map(len, parts)) == 4
    found = training.task.evaluate(training.model, training.test_data, 100, group=Played(0, size, parts))
    assert (found.loss, found.accuracy, found.top) == (expected.loss, expected.accuracy, expected.top)
    assert (found.confusion == expected.confusion).all()


# What is refused ------------------------------------------------------------------------------------------------------


def test_several_processes_divide_batches_also_where_the_recipe_does_not():
    assert sharded(tiny_recipe(), Played(0, 1)).train.shards == 8
    assert sharded(tiny_recipe(), Played(0, 11)).train.shards == 11
    assert sharded(tiny_recipe("shards=3"), Played(0, 3)).train.shards == 3
    assert sharded(tiny_recipe(), Group()).train.shards == 0


def test_more_processes_than_shards_are_refused():
    with pytest.raises(RecipeError, match=r"train\.shards is 3, and there are 4 processes; set train\.shards=4"):
        sharded(tiny_recipe("shards=3"), Played(0, 4))


def test_a_usual_run_is_not_resumed_by_shards(tmp_path):
    with pytest.raises(RunError, match=r"was begun .* with train\.shards=0; resume it without --distributed"):
        sharded(tiny_recipe(), Played(0, 2), of_run=tmp_path)


def test_processes_with_other_recipes_or_data_are_refused():
    facts = []
    for options in ((), ("lr=0.02",), ("limit=300",)):
        with pytest.raises(Seen) as caught:
            require_agreement(Training(tiny_recipe("shards=2", *options), group=Played(0, 2)))
        facts.append(caught.value.args[0])
    same = Training(tiny_recipe("shards=2"), group=Played(1, 2, [facts[0], facts[0]]))
    require_agreement(same)
    for other, says in ((facts[1], "another recipe"), (facts[2], "another checksum of the train data")):
        training = Training(tiny_recipe("shards=2"), group=Played(1, 2, [facts[0], other]))
        with pytest.raises(DisagreementError, match=f"rank 1 has {says} than rank 0"):
            require_agreement(training)


def test_a_monitored_run_needs_whole_batches():
    from tinyvit.run.display import Display
    from tinyvit.study.watch.monitor import Monitor

    with pytest.raises(StudyError, match=r"train\.shards is 2; leave it out, or set it to 0"):
        Monitor(Display()).accept(Training(tiny_recipe("shards=2")))
