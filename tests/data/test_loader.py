"""The loader: batches do not depend on earlier ones, each image occurs once, and no thread is left."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.data import Augment, Batch, Dataset, Loader, load_dataset

AUGMENT = Augment(shift=1, rotate=10, flip=True, cutout=2)


def numbered(count: int) -> Dataset:
    """Return a data set in which both image and label i hold the number i."""
    labels = np.arange(count)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (count, 2, 3, 3)).copy()
    return Dataset("numbered", "train", images, labels, ("",) * count, (0.0, 0.0), (1.0, 1.0))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.index == b.index and np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tinyvit-loader")]


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    shuffle=st.booleans(),
    prefetch=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_every_image_comes_once_an_epoch_with_its_label(
    count: int, batch_size: int, shuffle: bool, prefetch: int, epoch: int
) -> None:
    loader = Loader(numbered(count), batch_size, shuffle=shuffle, prefetch=prefetch)
    batches = list(loader.batches(epoch))
    assert len(batches) == len(loader)
    assert [batch.index for batch in batches] == list(range(len(loader)))
    labels = np.concatenate([batch.labels for batch in batches])
    assert sorted(labels) == list(range(count))
    assert shuffle or labels.tolist() == list(range(count))
    for batch in batches:
        assert np.rint(batch.images[:, 0, 0, 0] * 255).tolist() == batch.labels.tolist()


def test_drop_last_leaves_out_only_the_rest() -> None:
    kept = list(Loader(numbered(11), 4, drop_last=True).batches(0))
    everything = list(Loader(numbered(11), 4).batches(0))
    assert [len(batch.labels) for batch in everything] == [4, 4, 3]
    assert same(kept, everything[:2])


def test_a_batch_is_float32_normalized_and_contiguous() -> None:
    digits = load_dataset("digits", "train")
    (batch,) = Loader(digits, len(digits), shuffle=False).batches(0)
    assert batch.images.dtype == np.float32
    assert batch.images.flags.c_contiguous
    assert batch.labels.dtype == np.int64
    assert np.array_equal(batch.labels, digits.labels)
    expected = (digits.images / 255 - digits.mean[0]) / digits.std[0]  # float64
    assert np.abs(batch.images - expected).max() <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert abs(batch.images.mean()) < 1e-3
    assert abs(batch.images.std() - 1) < 1e-3


@given(start=st.integers(0, 6), epoch=st.integers(0, 2), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_a_resumed_epoch_has_the_batches_of_an_uninterrupted_one(start: int, epoch: int, seed: int) -> None:
    def new() -> Loader:
        return Loader(numbered(50), 8, seed=seed, augment=AUGMENT)

    straight = new()
    for earlier in range(epoch):
        list(straight.batches(earlier))
    uninterrupted = list(straight.batches(epoch))
    assert same(list(new().batches(epoch, start)), uninterrupted[start:])


def test_the_number_of_batches_prepared_ahead_changes_nothing() -> None:
    runs = [list(Loader(numbered(50), 8, augment=AUGMENT, prefetch=ahead).batches(1)) for ahead in (1, 2, 9)]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_seed_epoch_and_batch_each_change_what_is_drawn() -> None:
    def orders(seed: int, epoch: int) -> list[int]:
        batches = Loader(numbered(50), 50, seed=seed).batches(epoch)
        return next(batches).labels.tolist()

    assert len({tuple(orders(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9

    # the same image in every batch: only the augmentation differs
    digits = load_dataset("digits", "test")
    repeated = replace(digits, images=np.repeat(digits.images[:1], 2, axis=0), labels=digits.labels[:2])
    drawn = [
        batch.images.tobytes()
        for seed in range(2)
        for epoch in range(2)
        for batch in Loader(repeated, 1, seed=seed, augment=Augment(rotate=20)).batches(epoch)
    ]
    assert len(set(drawn)) == 8


def test_the_thread_ends_with_the_epoch() -> None:
    assert list(Loader(numbered(9), 2).batches(0))
    assert loader_threads() == []


def test_leaving_the_loop_ends_the_thread() -> None:
    for _ in Loader(numbered(1000), 2).batches(0):
        break
    assert loader_threads() == []

    batches = Loader(numbered(1000), 2).batches(0)
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()
    assert loader_threads() == []

    def interrupted() -> None:
        for _ in Loader(numbered(1000), 2).batches(0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert loader_threads() == []


def test_no_more_batches_are_prepared_than_asked_for() -> None:
    prepared = threading.Semaphore(0)
    calls = []

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        calls.append(len(images))
        prepared.release()
        return images

    batches = Loader(numbered(100), 1, augment=augment, prefetch=3).batches(0)
    assert calls == []
    next(batches)
    for _ in range(4):
        assert prepared.acquire(timeout=600)
    assert not prepared.acquire(timeout=0.05)
    batches.close()


@pytest.mark.parametrize("bad", [0, 3])
def test_an_error_in_the_thread_is_raised_at_its_batch(bad: int) -> None:
    class Broken(Exception):
        pass

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if order[bad] in images[:, 0, 0, 0]:
            raise Broken
        return images

    order = [int(batch.labels[0]) for batch in Loader(numbered(20), 1).batches(0)]
    batches = Loader(numbered(20), 1, augment=augment).batches(0)
    assert [next(batches).index for _ in range(bad)] == list(range(bad))
    with pytest.raises(Broken):
        next(batches)
    assert loader_threads() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Loader(numbered(3), 0), "batch_size is 0"),
        (lambda: Loader(numbered(3), 2, prefetch=0), "prefetch is 0"),
        (lambda: Loader(numbered(3), 2, seed=-1), "seed is -1"),
        (lambda: Loader(numbered(3), 4, drop_last=True), "batch_size is 4, but there are only 3 samples"),
        (lambda: Loader(numbered(0), 4), "only 0 samples"),
        (lambda: Loader(numbered(3), 2).batches(-1), "epoch is -1"),
        (lambda: Loader(numbered(3), 2).batches(0, 3), "start is 3; it must be from 0 to 2"),
    ],
)
def test_wrong_arguments_are_refused_at_once(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
