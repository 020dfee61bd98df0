"""Batches for training: shuffled, augmented, normalized, and prepared in a background thread.

The content of batch k of epoch e depends only on the seed, e and k, never on what was drawn before. A run that is
resumed there therefore trains on the same batches as a run that was not interrupted.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .datasets import Batch, Dataset
from .texts import TextDataset

_ORDER, _AUGMENT = 0, 1  # the second word of a stream's key: the purpose of the random numbers


class Loader:
    """Divide a data set into batches, in a new order for every epoch.

    Parameters
    ----------
    dataset : Dataset or TextDataset
    batch_size : int
    seed : int
        From 0 to 2**64 - 1.
    shuffle : bool
        Whether each epoch has a random order, or that of the data set.
    augment : callable, optional
        ``augment(images, rng)`` takes uint8 (B, C, H, W) and returns the same shape; see `Augment`.
    drop_last : bool
        Whether to leave out the last batch of an epoch if it is smaller than the others.
    prefetch : int
        The number of batches that one background thread prepares in advance.
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
            raise ValueError(f"batch_size is {batch_size}, but there are only {len(dataset)} samples")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, beginning with number `start`.

        An error in the background thread is raised here. The thread ends with the loop, even if that ends early.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; it must be from 0 to {len(self)}, the number of batches of an epoch")
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
        """Return the random stream of one batch, whose key and counter keep it apart from all other streams."""
        key = np.array([self.seed, purpose], np.uint64)
        # The lowest word of the counter advances as numbers are drawn.
        counter = np.array([0, index, epoch, 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
