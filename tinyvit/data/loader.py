"""Batches for training: shuffled, augmented, normalized and prepared ahead of the consumer.

What batch k of epoch e holds depends on the seed, e and k only, never on what was drawn before. A run resumed
there sees exactly what an uninterrupted one would.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .datasets import Batch, Dataset
from .texts import TextDataset

_ORDER, _AUGMENT = 0, 1  # the second word of a stream's key: what it is drawn for


class Loader:
    """Cuts a data set into batches, anew for every epoch.

    Parameters
    ----------
    dataset : Dataset or TextDataset
    batch_size : int
    seed : int
        From 0 to 2**64 - 1.
    shuffle : bool
        False keeps the order of the data set.
    augment : callable, optional
        ``augment(images, rng)`` gets uint8 (B, C, H, W) and returns the same shape; see `Augment`.
    drop_last : bool
        Leave out the last batch of an epoch if it is smaller than the others.
    prefetch : int
        How many batches are prepared ahead, in one background thread.
    """

    def __init__(
        self,
        dataset: Dataset | TextDataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Callable[[NDArray, np.random.Generator], NDArray] | None = None,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        for argument, value in (("batch_size", batch_size), ("prefetch", prefetch)):
            if value < 1:
                raise ValueError(f"{argument} is {value}; it must be 1 or more")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2**64 - 1")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.drop_last = drop_last
        self.prefetch = prefetch
        if len(self) == 0:
            raise ValueError(f"batch_size is {batch_size}, and {len(dataset)} images do not fill one batch")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from number `start` on.

        An error in the background thread is raised here. Leaving the loop early, in whatever way, ends the
        thread.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; it must be from 0 to {len(self)}, the batches of an epoch")
        return self._prefetched(epoch, start)

    def _prefetched(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        numbers = iter(range(start, len(self)))
        pool = ThreadPoolExecutor(1, "tinyvit-loader")
        waiting: deque[Future[Batch]] = deque()

        def prepare(count: int) -> None:
            waiting.extend(pool.submit(self._batch, order, epoch, k) for k in islice(numbers, count))

        try:
            prepare(self.prefetch)
            while waiting:
                batch = waiting.popleft().result()
                prepare(1)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self.dataset.order(self._stream(_ORDER, epoch, 0))

    def _batch(self, order: NDArray[np.int64], epoch: int, index: int) -> Batch:
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        augment = self.augment
        if augment is None:
            return self.dataset.batch(chosen, index)
        rng = self._stream(_AUGMENT, epoch, index)
        return self.dataset.batch(chosen, index, lambda images: augment(images, rng))

    def _stream(self, purpose: int, epoch: int, index: int) -> np.random.Generator:
        """Return the random stream of one batch: a key and a counter of its own, so that no two overlap."""
        key = np.array([self.seed, purpose], np.uint64)
        # the lowest word of the counter advances as numbers are drawn
        counter = np.array([0, index, epoch, 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
