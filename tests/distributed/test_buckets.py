"""Fast sums in buckets, by processes that are threads: what is sent, when, how often, and what comes out."""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretended_mpi import PretendedMPI, in_threads
from tiny_run import isolate, tiny_recipe
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit.backend import Array, Group, Sum
from tinyvit.distributed.mpi import MPIGroup
from tinyvit.errors import RecipeError
from tinyvit.optim.tree import shards_of
from tinyvit.recipe import Recipe
from tinyvit.run import buckets
from tinyvit.run.agreement import sharded
from tinyvit.run.buckets import buckets_of
from tinyvit.run.flat import FlatGradient
from tinyvit.run.state import Training


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # a group replaces the streams of all processes but the first
    monkeypatch.setattr(sys, "stderr", sys.stderr)


class Noted(Group):
    """One process of `size`, which notes what it sends; nothing is added to it."""

    divides = True

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.sent: list[tuple[Array, Array, str]] = []  # the array, its values when it was sent, its dtype on the wire
        self.waited = 0

    def start_sum(self, array: Array, wire: str) -> Sum:
        self.sent.append((array, array.copy(), wire))
        group = self

        class Noting(Sum):
            def wait(self) -> None:
                group.waited += 1

        return Noting()


class Late(Group):
    """Process `rank` of `size`, which joins the others after its model was made: threads share the seed of models."""

    divides = True

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.joined = Group()

    def gather(self, value: Any) -> list[Any]:
        return self.joined.gather(value)

    def start_sum(self, array: Array, wire: str) -> Sum:
        return self.joined.start_sum(array, wire)

    def sum_exact(self, partials: Mapping[Any, Array], shards: int) -> Array:
        return self.joined.sum_exact(partials, shards)


def first_step(training: Training) -> tuple[list[np.ndarray | None], float]:
    """The gradients of the first step of a process, and its loss."""
    with tv.use_kernels("numpy"):
        batches = next(training.groups())
        training.steps.images = sum(batch.count for batch in batches)
        loss = training.steps.differentiate(batches, 1, 1)
    return [None if p.grad is None else p.grad.numpy().copy() for p in training.model.parameters()], loss


def step_of(recipe: Recipe, group: Group) -> tuple[Training, list[np.ndarray | None], float]:
    """A new run, with the gradients of its first step and the loss."""
    training = Training(recipe, group=group)
    return training, *first_step(training)


def by_processes(recipe: Recipe, size: int) -> list[tuple[list[np.ndarray | None], float]]:
    """The gradients and losses of the first step of all processes."""
    groups = [Late(rank, size) for rank in range(size)]
    trainings = [Training(recipe, group=group) for group in groups]

    def work(mpi: PretendedMPI) -> Any:
        rank = mpi.COMM_WORLD.rank
        groups[rank].joined = MPIGroup(mpi)
        return first_step(trainings[rank])

    return in_threads(size, work)


def test_buckets_have_every_parameter_once_the_last_ones_first():
    assert [list(bucket) for bucket in buckets_of([5, 1, 1, 9, 2], 3)] == [[4, 3], [2, 1, 0]]
    assert [list(bucket) for bucket in buckets_of([1, 1], 10)] == [[1, 0]]
    assert buckets_of([], 10) == []
    for bucket in (1, 7, 30, 1000):
        sizes = np.random.default_rng(bucket).integers(1, 20, 50).tolist()
        found = buckets_of(sizes, bucket)
        assert [i for each in found for i in each] == list(reversed(range(50)))
        assert all(sum(sizes[i] for i in each) >= bucket for each in found[:-1])


@pytest.mark.parametrize("options", [(), ("accumulate=3",), ("precision=bfloat16", "accumulate=2")])
@pytest.mark.parametrize("bucket", [1, 300, 10**9])
def test_every_gradient_is_sent_once_complete_and_in_the_same_order(options, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET", bucket)
    recipe = tiny_recipe("batch_size=20", "limit=80", "dropout=0.2", "reduce=fast", "shards=1", *options)
    group = Noted()
    training, found, loss = step_of(recipe, group)
    _, expected, exact = step_of(recipe.override(["reduce=exact"]), Group())
    assert loss == exact
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))  # type: ignore[union-attr]
    flat = FlatGradient(list(training.model.parameters()), 1)
    order = [i for each in buckets_of([p.size for p in flat.parameters], bucket) for i in each]
    sent = iter(order)
    *parts, rest = group.sent
    for array, values, wire in parts:
        members, size = [], 0
        while size < array.size:
            members.append(next(sent))
            size += flat.parameters[members[-1]].size
        assert size == array.size
        assert wire == "float32"
        together = np.concatenate([expected[i].ravel() for i in reversed(members)])  # type: ignore[union-attr]
        assert values.tobytes() == together.tobytes()
    assert next(sent, None) is None
    assert rest[0].size == len(order) + 1
    assert group.waited == len(group.sent)


def test_buckets_are_sent_while_the_walk_back_continues(monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET", 1)
    training = Training(tiny_recipe("reduce=fast", "shards=1", "depth=3"), group=(group := Noted()))
    batches = next(training.groups())
    training.steps.images = 240
    during: list[int] = []
    first = next(p for name, p in training.model.named_parameters() if name.startswith("blocks.0."))
    first.register_hook(lambda g: during.append(len(group.sent)))
    training.steps.differentiate(batches, 1, 1)
    later = sum(
        not name.startswith(("blocks.0.", "patch", "pos", "cls")) for name, _ in training.model.named_parameters()
    )
    assert during[0] >= later - 2


@pytest.mark.parametrize("options", [(), ("accumulate=2",)])
def test_recorded_steps_send_buckets_before_their_end_and_compute_the_same_bits(options, monkeypatch):
    monkeypatch.setattr("tinyvit.run.captured_cpu.WARM_UP", 2)
    monkeypatch.setattr(buckets, "BUCKET", 200)
    early: list[int] = []
    called: list[int] = []
    forward = tv.models.ViT.forward

    def noted(*given: Any) -> Any:
        called.append(len(group.sent))
        return forward(*given)

    monkeypatch.setattr(tv.models.ViT, "forward", noted)

    class Early(buckets.Buckets):
        def finish(self, shard: int, loss: float) -> Array:
            early.append(len(group.sent))
            return super().finish(shard, loss)

    monkeypatch.setattr("tinyvit.run.sharded.Buckets", Early)
    recipe = tiny_recipe("batch_size=20", "limit=200", "depth=2", "reduce=fast", "shards=1", *options)
    weights, sent = [], []
    for is_recorded in (True, False):
        group = Noted()
        early.clear()
        called.clear()
        with tv.use_kernels("auto"):
            training = Training(recipe, group=group)
            if not is_recorded:
                training.steps.gradients = None
            for batches in training.groups():
                training.step(batches)
        assert not is_recorded or training.steps.gradients.is_captured, training.steps.why_not_recorded
        weights.append([p.numpy().tobytes() for p in training.model.parameters()])
        sent.append([values.tobytes() for _, values, _ in group.sent])
        steps, count = len(early), len(group.sent) // len(early)
        assert count * steps == len(group.sent)
        # Nothing is sent before the model has computed, also where it does so to compare the bits of a record.
        assert not any(n % count for n in called)
        # all buckets but those of parameters that are used first, before the end of the last step
        assert early[-1] - (steps - 1) * count >= count - 3
    assert weights[0] == weights[1]
    assert sent[0] == sent[1]


def test_a_parameter_without_a_gradient_is_sent_as_zeros_and_stays_without_one():
    recipe = tiny_recipe("reduce=fast", "shards=1")
    training = Training(recipe, group=(group := Noted()))
    unused = tv.Tensor(np.full(7, 3, np.float32), requires_grad=True)
    flat = FlatGradient([*training.steps.parameters, unused], 1)
    made = buckets.Buckets(flat, group, "float32")
    made.begin()
    for p in flat.parameters[:-1]:
        p.grad = tv.Tensor(np.ones_like(p.data))
    losses = flat.unpack(made.finish(0, 2.5))
    assert losses.tolist() == [2.5]
    assert unused.grad is None
    assert (
        sum(array.size for array, *_ in group.sent) == sum(p.size for p in flat.parameters) + len(flat.parameters) + 1
    )
    assert all(np.isfinite(values).all() for _, values, _ in group.sent)


@pytest.mark.parametrize("kind", ["classify", "retrieve"])
@pytest.mark.usefixtures("few_scenes")
def test_processes_get_the_sum_of_their_gradients(kind):
    """In buckets, sent during the walk, or from the gradients that each process has alone: the same bits."""
    recipe = tiny_recipe("depth=2") if kind == "classify" else tiny("retrieve", "dropout=0")
    recipe = recipe.override(["batch_size=9", "accumulate=2", "reduce=fast", "shards=2"])

    by_rank = by_processes(recipe, 2)
    assert by_rank[0][1] == by_rank[1][1]
    _, exact, loss = step_of(recipe.override(["reduce=exact"]), Group())
    for gradients, other in by_rank:
        assert other == pytest.approx(loss, rel=1e-6)
        for a, b in zip(gradients, exact, strict=True):
            assert (a is None) == (b is None)
            assert a is None or a.tobytes() == b.tobytes()  # two summands have one sum


def test_a_process_without_samples_sends_zeros():
    recipe = tiny_recipe("batch_size=1", "limit=10", "reduce=fast", "shards=2")
    group = Noted(1, 2)
    assert list(shards_of(0, 2, 2)) == [0]
    _, found, _ = step_of(recipe, group)
    empty = Noted(0, 2)
    _, none, loss = step_of(recipe, empty)
    assert [array.size for array, *_ in empty.sent] == [array.size for array, *_ in group.sent]
    assert {g is None for g in none} == {True}
    assert loss == 0
    assert all(not values.any() for _, values, _ in empty.sent)
    assert any(g is not None for g in found)


def test_gradients_in_bfloat16_are_near_the_others_and_losses_are_exact():
    recipe = tiny_recipe("batch_size=10", "limit=80", "reduce=fast", "shards=2")

    for wide, narrow in zip(by_processes(recipe, 2), by_processes(recipe.override(["wire=bfloat16"]), 2), strict=True):
        assert wide[1] == narrow[1]
        total = np.concatenate([g.ravel() for g in wide[0] if g is not None])
        rounded = np.concatenate([g.ravel() for g in narrow[0] if g is not None])
        # each summand and the sum are rounded to 8 bits; a summand is at most as large as the norm of all
        np.testing.assert_allclose(rounded, total, rtol=2**-8, atol=2**-8 * np.abs(total).max())
        assert (rounded != total).any()


def test_bfloat16_on_the_wire_needs_fast_sums():
    with pytest.raises(RecipeError, match=r"train\.wire is 'bfloat16'.* set train\.reduce=fast"):
        sharded(tiny_recipe("wire=bfloat16"), Noted(0, 2))
    with pytest.raises(RecipeError, match=r"train\.wire is 'bfloat16'.* set train\.reduce=fast"):
        sharded(tiny_recipe("wire=bfloat16"), Group())  # one process would ignore it
    begun = tiny_recipe("wire=bfloat16")
    assert sharded(begun, Group(), of_run=Path("run")) == begun  # such runs, which exist, are resumed
    assert sharded(tiny_recipe("wire=bfloat16", "reduce=fast"), Noted(0, 2)).train.wire == "bfloat16"


# Keys without an effect -----------------------------------------------------------------------------------------------


def bits_of(assignments: Mapping[str, str], size: int) -> list[bytes]:
    """The gradients of the first step of all processes; 0 processes are one without --distributed."""
    recipe = tiny_recipe("batch_size=12", "limit=24", *(f"{key}={value}" for key, value in assignments.items()))
    if size == 0:
        found = [step_of(sharded(recipe, Group()), Group())[1:]]
    else:
        found = by_processes(sharded(recipe, Late(0, size)), size)
    return [b"".join(g.tobytes() for g in gradients if g is not None) for gradients, _ in found]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_warning_names_a_key_if_and_only_if_it_has_no_effect(size, caplog):
    defaults = {"shards": "0", "reduce": "exact", "wire": "float32"}
    found = {}
    for values in itertools.product(("0", "3"), ("exact", "fast"), ("float32", "bfloat16")):
        assignments = dict(zip(defaults, values, strict=True))
        if values[1:] == ("exact", "bfloat16"):
            with pytest.raises(RecipeError, match=r"train\.wire is 'bfloat16'"):
                bits_of(assignments, size)
            continue
        caplog.clear()
        found[values] = bits_of(assignments, size)
        without = {key: tuple((assignments | {key: defaults[key]}).values()) for key in defaults}
        without["reduce"] = (values[0], "exact", "float32")  # exact sums do not take another dtype
        same = {key for key in defaults if assignments[key] != defaults[key] and found[without[key]] == found[values]}
        warned = {key for key in defaults if f"train.{key}={assignments[key]} has no effect" in caplog.text}
        assert warned == same, assignments
    assert len(found) == 6


def test_a_key_of_a_resumed_run_that_has_no_effect_is_named_too(caplog):
    sharded(tiny_recipe("wire=bfloat16"), Group(), of_run=Path("run"))
    assert "train.wire=bfloat16 has no effect: a process without --distributed sends no gradients" in caplog.text
    caplog.clear()
    sharded(tiny_recipe("reduce=fast", "shards=8"), Noted(0, 2), of_run=Path("run"))  # the number that all runs get
    sharded(tiny_recipe("reduce=fast", "wire=bfloat16"), Noted(1, 2))
    sharded(tiny_recipe("reduce=fast", "wire=bfloat16"), Noted(0, 2))
    sharded(tiny_recipe("batch_size=4", "shards=8"), Noted(0, 4))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("size", "options", "idle"), [(8, ("shards=8",), 4), (4, ("shards=16",), 0), (6, ("reduce=fast",), 2)]
)
def test_processes_that_have_nothing_to_compute_are_named(size, options, idle, caplog):
    recipe = sharded(tiny_recipe("batch_size=4", "limit=20", *options), Noted(0, size))
    expected = f"{idle} of {size} processes have nothing to compute, because data.batch_size is 4"
    assert (expected in caplog.text) == (idle > 0), caplog.text
    empty = 0
    for rank in range(size):
        batches = next(Training(recipe, group=Noted(rank, size)).groups())
        empty += not any(len(part.labels) for batch in batches for part in batch.parts.values())
    assert empty == idle
