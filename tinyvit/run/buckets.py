"""Sum the gradients of several processes in parts, while the walk back continues.

The gradients of all parameters lie in one array, which is cut into buckets: consecutive parts of about a mebibyte. The
walk back finds the gradients of the last parameters first, so the buckets are sent in reverse order, each as soon as it
is complete. All processes send the same buckets in the same order, which MPI and NCCL require.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ..backend import Array, Group, Sum
from ..engine import Tensor
from .flat import FlatGradient

BUCKET = 1 << 18  # numbers in a bucket, or more if a parameter has more


class Buckets:
    """The gradients of all parameters in one array, which is summed over all processes in parts.

    Parameters
    ----------
    wire : the dtype in which gradients are sent, "float32" or "bfloat16".
    """

    def __init__(self, flat: FlatGradient, group: Group, wire: str) -> None:
        self._flat, self._group, self._wire = flat, group, wire
        self._buckets = buckets_of([p.size for p in flat.parameters], BUCKET)
        self._bucket_of = {i: k for k, bucket in enumerate(self._buckets) for i in bucket}
        self._numbers = {id(p): i for i, p in enumerate(flat.parameters)}
        self._total = flat.new()
        self._sums: list[Sum] = []
        self._missing: list[set[int]] = []

    @property
    def groups(self) -> list[list[Tensor]]:
        """The parameters of each bucket, in the order in which the buckets are sent."""
        return [[self._flat.parameters[i] for i in bucket] for bucket in self._buckets]

    def begin(self) -> None:
        """Begin a step. Parameters must not have gradients of the last one any more, which lie in the same array."""
        self._sums, self._missing = [], [set(bucket) for bucket in self._buckets]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the gradients of this process as the walk back finds them, which must be the last one of the step."""
        removes: list[Callable[[], None]] = [p.register_hook(partial(self._take_one, p)) for p in self._flat.parameters]
        try:
            yield
        finally:
            for remove in removes:
                remove()

    def _take_one(self, p: Tensor, gradient: Tensor) -> None:
        self.take([(p, gradient)])

    def take(self, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the last gradients of some parameters; those of earlier batches of the step are in their `.grad`."""
        for p, gradient in gradients:
            number = self._numbers[id(p)]
            place = self._flat.view(self._total, number)
            place[...] = gradient.data
            if p.grad is not None:
                place += p.grad.data
            self._missing[self._bucket_of[number]].discard(number)
        self._send()

    def _send(self) -> None:
        """Send the buckets that are complete, and let the communication before go on."""
        for current in self._sums[-1:]:
            current.advance()
        while len(self._sums) < len(self._buckets) and not self._missing[len(self._sums)]:
            bucket = self._buckets[len(self._sums)]
            part = self._flat.part(self._total, bucket[-1], bucket[0])
            self._sums.append(self._group.start_sum(part, self._wire))

    def finish(self, shard: int, loss: float) -> Array:
        """Send what is left, with the loss of this process's shard; wait, and return the sums of all processes."""
        for bucket in self._missing:
            for number in bucket:
                p = self._flat.parameters[number]
                self._flat.view(self._total, number)[...] = 0 if p.grad is None else p.grad.data
            bucket.clear()
        self._send()
        rest = self._flat.rest(self._total)
        rest[...] = self._flat.rest_of(shard, loss)
        self._sums.append(self._group.start_sum(rest, "float32"))
        for each in self._sums:
            each.wait()
        return self._total


def buckets_of(sizes: Sequence[int], bucket: int) -> list[range]:
    """Return the numbers of the parameters in each bucket, both in reverse order, from the sizes of the parameters."""
    found, last, filled = [], len(sizes) - 1, 0
    for i in reversed(range(len(sizes))):
        filled += sizes[i]
        if filled >= bucket or i == 0:
            found.append(range(last, i - 1, -1))
            last, filled = i - 1, 0
    return found
