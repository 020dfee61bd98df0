"""The optimizer steps of a run whose batches are divided into shards, by one process or several.

With train.shards, the gradient of each shard is computed apart, from dropout masks that its number decides, and the
gradients are added in a fixed tree (see `tinyvit.optim.tree`). What a step computes therefore depends on the number of
shards, which the recipe states, and on no number of processes. After the sum all processes have the same gradients, so
that clipping, the optimizer and the average of the weights need no communication: they are the same everywhere.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..backend import Array, Group, default_generator, to_device_of, to_host
from ..backend.group import Node
from ..context import autocast
from ..data import ShardedBatch
from ..engine import Tensor
from ..nn import Module
from ..optim import EMA, Optimizer
from ..optim.tree import add_up, nodes_within, shards_of
from ..recipe import Train
from ..tasks import Task
from .buckets import Buckets
from .captured_cpu import CapturedGradients
from .flat import FlatGradient
from .steps import Steps, require_finite

_DRAWS = 1 << 20  # random numbers that the loss of one shard may draw, as offsets of the random stream


class ShardedSteps(Steps):
    """Make the optimizer steps of a run whose batches are divided into shards."""

    def __init__(
        self, model: Module, task: Task, optimizer: Optimizer, settings: Train, average: EMA | None, group: Group
    ) -> None:
        super().__init__(model, task, optimizer, settings, average)
        self._group, self._shards = group, number_of_shards(settings, group)
        self._own = shards_of(group.rank, group.size, self._shards)
        self._flat = FlatGradient([p for p in self.parameters if p.requires_grad], self._shards)
        self._buckets = Buckets(self._flat, group, settings.wire) if settings.reduce == "fast" else None
        if self._buckets and self.gradients:
            self.gradients = CapturedGradients(self._losses, self.parameters, self._buckets.groups, self._take)
        self._is_last = False  # whether this process computes the last batch of a step

    def differentiate(self, batches: list[ShardedBatch], step: int, epoch: int) -> float:
        compared = _Compared(self, batches, step) if self.task.compares else None

        def compute(shard: int) -> float:
            return self._compute(shard, batches, step, compared)

        if self._buckets:
            shard = self._own.start
            self.optimizer.zero_grad()
            self._buckets.begin()
            total = self._buckets.finish(shard, compute(shard))
        else:
            total = self._exact_sum(compute)
        losses = self._flat.unpack(total)
        self.require_finite_losses(losses, step, epoch)
        return float(losses.sum())

    def _exact_sum(self, compute: Callable[[int], float]) -> Array:
        """Return the sum over the shards of all processes; `compute` computes the gradients of one of them."""

        def gradient_of(node: Node) -> Array | None:
            """Return the gradient of a shard; None for a node of several."""
            shard, last = node
            return None if last - shard > 1 else self._flat.packed(shard, compute(shard))

        def add_gradient_of(total: Array, node: Node) -> bool:
            """Add the gradient of a shard to that of others; return whether the node is one shard."""
            shard, last = node
            if last - shard == 1:
                self._flat.add(total, shard, compute(shard))
            return last - shard == 1

        nodes = nodes_within(self._own, (0, self._shards))
        partials = {node: add_up(node, gradient_of, add_gradient_of) for node in nodes}
        return self._group.sum_exact(partials, self._shards)

    def _compute(self, shard: int, batches: list[ShardedBatch], step: int, compared: "_Compared | None") -> float:
        """Give the parameters the gradients of a shard alone, and return its loss."""
        self.optimizer.zero_grad()
        loss = 0.0
        parts = [(i, batch.parts[shard]) for i, batch in enumerate(batches) if shard in batch.parts]
        for i, part in parts:
            self._is_last = i == parts[-1][0]
            if compared is not None:
                loss += compared.add_gradient(i, shard)
                continue
            with default_generator.starting_at(self.stream(step, i, shard)):
                loss += self.add_gradient(part, is_only_one=len(batches) == 1)
        return loss

    def walk_back(self, mean: Tensor) -> None:
        with self.sending():
            super().walk_back(mean)

    def sending(self) -> AbstractContextManager[None]:
        """Send gradients as they are found within this block, if it walks back through the last batch of a step."""
        return self._buckets.listening() if self._buckets and self._is_last else nullcontext()

    def _take(self, gradients: list[tuple[Tensor, Tensor]]) -> None:
        """Send gradients that a recorded step has found."""
        if self._buckets and self._is_last:
            self._buckets.take(gradients)

    def stream(self, step: int, number: int, shard: int) -> int:
        """Return where the random numbers of a shard begin, in batch `number` of a step."""
        return ((step * self.settings.accumulate + number) * self._shards + shard) * _DRAWS

    def features_of(self, batch: ShardedBatch, step: int, number: int) -> dict[int, tuple[Tensor, ...]]:
        """Return what the task compares of each of this process's shards, see `Task.embed`."""
        found = {}
        for shard, part in batch.parts.items():
            with default_generator.starting_at(self.stream(step, number, shard)), autocast(self.settings.precision):
                found[shard] = self.task.embed(self.model, self.task.with_draws(self.model, part))
        return found

    def gather(self, arrays: dict[int, Any]) -> dict[int, Any]:
        """Return what all processes have by the number of the shard, in the order of the shards."""
        everything = {shard: value for some in self._group.gather(arrays) for shard, value in some.items()}
        return dict(sorted(everything.items()))

    def require_finite_losses(self, losses: np.ndarray, step: int, epoch: int) -> None:
        """Raise FloatingPointError, which names the shard and the process, if the loss of a shard is not finite."""
        for shard in np.flatnonzero(~np.isfinite(losses)):
            rank = next(r for r in range(self._group.size) if shard in shards_of(r, self._group.size, self._shards))
            by = f", computed by rank {rank}," if self._group.size > 1 else ""
            require_finite(losses[shard], f"the loss of step {step} in shard {shard}{by}", epoch)


def number_of_shards(settings: Train, group: Group) -> int:
    """Return the number of shards of a batch, 0 for whole batches; with train.reduce = "fast", one for each process."""
    return group.size if settings.shards and settings.reduce == "fast" else settings.shards


class _Compared:
    """The batches of a step whose samples are compared with each other, which takes the features of all shards.

    Each process computes the features of its shards, gathers those of the others, and differentiates the loss of the
    whole batch, which is the same for all. The gradients of its own features then go back through its own shards.
    """

    def __init__(self, steps: ShardedSteps, batches: list[ShardedBatch], step: int) -> None:
        self._steps = steps
        self._own: list[dict[int, tuple[Tensor, ...]]] = []
        self._gradients: list[dict[int, tuple[Any, ...]]] = []
        self._losses: list[dict[int, float]] = []
        for number, batch in enumerate(batches):
            own = steps.features_of(batch, step, number)
            everywhere = steps.gather({s: tuple(to_host(f.data) for f in some) for s, some in own.items()})
            self._own.append(own)
            self._compare(steps, everywhere)

    def _compare(self, steps: ShardedSteps, everywhere: dict[int, tuple[np.ndarray, ...]]) -> None:
        """Differentiate the loss of a batch for the features of its shards."""
        first, *_ = everywhere.values()
        like = steps.parameters[0].data
        joined = [
            np.concatenate([some[i] for some in everywhere.values()]) if array.ndim else array
            for i, array in enumerate(first)
        ]
        leaves = [Tensor(to_device_of(array, like), requires_grad=True) for array in joined]
        with autocast(steps.settings.precision):
            loss = steps.task.compare(*leaves)
        Steps.walk_back(steps, loss / steps.images)  # which gives no parameter its gradient yet
        gradients: dict[int, tuple[Any, ...]] = {}
        begin = 0
        for shard, some in everywhere.items():
            end = begin + len(some[0])
            # a value that all shards have in common gets its gradient through the first of them
            gradients[shard] = tuple(
                None if f.grad is None or (f.ndim == 0 and begin) else f.grad.data[begin:end] if f.ndim else f.grad.data
                for f in leaves
            )
            begin = end
        self._gradients.append(gradients)
        self._losses.append({shard: loss.item() if i == 0 else 0.0 for i, shard in enumerate(everywhere)})

    def add_gradient(self, number: int, shard: int) -> float:
        """Add the gradients of a shard of batch `number`; return the loss of the batch for the first shard, else 0."""
        features, gradients = self._own[number].pop(shard), self._gradients[number][shard]
        # its gradient for a feature is the gradient that the loss of the batch has
        parts = [
            (feature * Tensor(gradient)).sum()
            for feature, gradient in zip(features, gradients, strict=True)
            if gradient is not None
        ]
        with self._steps.sending():
            sum(parts[1:], parts[0]).backward()
        return self._losses[number][shard]
