"""Batches for training: shuffled, augmented, normalized, and prepared in a background thread.

The content of batch k of epoch e depends only on the seed, e and k, never on what was drawn before. A run that is
resumed there therefore trains on the same batches as a run that was not interrupted. If batches are divided into
shards, the content of a shard depends on its number too, and on nothing else: any process can make it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backend.checks import check_flags
from ..backend.threads import pool_of_threads
from .datasets import Batch, Dataset, ShardedBatch
from .dense import BoxDataset, MaskDataset
from .texts import TextDataset

_ORDER, _AUGMENT, _SIDES, _MIX = 0, 1, 2, 3  # the second word of a stream's key: the purpose of the random numbers

_Order = NDArray[np.int64]
_Made = TypeVar("_Made", Batch, ShardedBatch)


class Loader:
    """Divide a data set into batches, in a new order for every epoch.

    Parameters
    ----------
    dataset : Dataset, TextDataset, MaskDataset or BoxDataset
    batch_size : int
    seed : int
        From 0 to 2**64 - 1.
    shuffle : bool
        Whether each epoch has a random order, or that of the data set.
    augment : callable, optional
        ``augment(images, rng)`` takes uint8 (B, C, H, W) and returns the same shape; see `Augment`, also for data sets
        with masks or boxes.
    mix : callable, optional
        ``mix(batch, rng)`` returns a batch of mixed images and labels; see `Mix`.
    repeats : int
        How often a batch holds each of its images, changed in different ways (Hoffer et al. 2020, Augment your batch,
        arXiv:1901.09335). An epoch keeps its number of samples, so it shows fewer images.
    drop_last : bool
        Whether to leave out the last batch of an epoch if it is smaller than the others.
    prefetch : int
        The number of batches that one background thread prepares in advance.
    """

    def __init__(
        self,
        dataset: Dataset | TextDataset | MaskDataset | BoxDataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Callable[..., NDArray] | None = None,
        mix: Callable[[Batch, np.random.Generator], Batch] | None = None,
        repeats: int = 1,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        check_flags("Loader", shuffle=shuffle, drop_last=drop_last)
        for argument, value in (("batch_size", batch_size), ("prefetch", prefetch), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{argument} is {value}; it must be 1 or more")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2**64 - 1")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.mix = mix
        self.repeats = repeats
        self.drop_last = drop_last
        self.prefetch = prefetch
        if len(self) == 0:
            raise ValueError(f"batch_size is {batch_size}, but there are only {len(dataset)} samples")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, beginning with number `start`.

        An error in the background thread is raised here. The thread ends with the loop, even if that ends early.
        """
        return self._checked(epoch, start, lambda order, index: self._batch(order, epoch, index))

    def sharded_batches(self, epoch: int, start: int, shards: int, own: Sequence[int]) -> Iterator[ShardedBatch]:
        """Yield the batches of one epoch, beginning with number `start`, each divided into `shards`.

        Only the shards whose numbers are in `own` are made. A shard has consecutive samples of its batch, as many as
        the other shards or one more or less, and is augmented and mixed apart from them.
        """
        return self._checked(epoch, start, lambda order, index: self._sharded(order, epoch, index, shards, own))

    def _checked(self, epoch: int, start: int, make: Callable[[_Order, int], _Made]) -> Iterator[_Made]:
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; it must be from 0 to {len(self)}, the number of batches of an epoch")
        return self._prefetched(epoch, start, make)

    def _prefetched(self, epoch: int, start: int, make: Callable[[_Order, int], _Made]) -> Iterator[_Made]:
        order = self._order(epoch)
        numbers = iter(range(start, len(self)))
        pool = pool_of_threads(1, "tinyvit-loader")
        waiting: deque[Future[_Made]] = deque()

        def prepare(count: int) -> None:
            waiting.extend(pool.submit(make, order, k) for k in islice(numbers, count))

        try:
            prepare(self.prefetch)
            while waiting:
                batch = waiting.popleft().result()
                prepare(1)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int) -> _Order:
        count = len(self.dataset)
        order = self.dataset.order(self.stream(_ORDER, epoch, 0)) if self.shuffle else np.arange(count)
        return order if self.repeats == 1 else np.repeat(order[: -(-count // self.repeats)], self.repeats)[:count]

    def _sharded(self, order: _Order, epoch: int, index: int, shards: int, own: Sequence[int]) -> ShardedBatch:
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        samples = {s: chosen[len(chosen) * s // shards : len(chosen) * (s + 1) // shards] for s in own}
        parts = {s: self._made(some, epoch, index, s + 1) for s, some in samples.items() if len(some)}
        return ShardedBatch(parts, len(chosen), index)

    def _batch(self, order: _Order, epoch: int, index: int) -> Batch:
        return self._made(order[index * self.batch_size : (index + 1) * self.batch_size], epoch, index)

    def _made(self, chosen: _Order, epoch: int, index: int, part: int = 0) -> Batch:
        """Return a batch of the samples `chosen`; `part` is 0 for a whole batch, else the number of a shard, from 1."""
        augment, options = self.augment, {}
        if augment is None:
            batch = self.dataset.batch(chosen, index)
        else:
            rng = self.stream(_AUGMENT, epoch, index, part)
            if getattr(augment, "flip_alternating", False):
                sides = self.stream(_SIDES, 0, 0).random(len(self.dataset)) < 0.5
                options["mirrored"] = sides[chosen] ^ bool(epoch % 2)
            # masks and boxes that are changed along with the images come as keywords
            batch = self.dataset.batch(
                chosen, index, lambda images, **targets: augment(images, rng, **options, **targets)
            )
        return batch if self.mix is None else self.mix(batch, self.stream(_MIX, epoch, index, part))

    def stream(self, purpose: int, epoch: int, index: int, part: int = 0) -> np.random.Generator:
        """Return the random stream of a batch or shard, whose key and counter keep it apart from all others."""
        key = np.array([self.seed, purpose], np.uint64)
        # The lowest word of the counter advances as numbers are drawn.
        counter = np.array([0, index, epoch, part], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
