"""A model of the time of a training step by several processes, fitted to measurements.

    exact   t(n) = c k / S + a (k + (m - 1) / n) L + b (j + 1) (n - 1) / n L + l 2 (n - 1)           seconds
    fast    t(n) = c / n   + a (1 + (n - 1) / n) L + b 2 (n - 1) / n L       + l 2 ceil(log2 n)

by n processes, each with k = ceil(S / n) of S shards. The first term is the computation, which the processes share.
Each writes the gradients of its shards, L numbers each, into one array or adds them to it, and adds up its share of
the sum (a). In a fast sum it sends and receives two arrays in parts (b). In an exact one it has up to j nodes of the
tree, one if n is a power of two, of m in all, and sends each. An exact sum takes a message from each process to each
other one, and so does its result; a fast one passes through a tree (l). Neither counts communication that computation
hides.

The three factors are not negative. They hold for one machine, or for machines and a network that are alike.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..optim.tree import nodes_within, shards_of

EXACT, FAST = "exact", "fast"
_LARGEST = 1 << 20  # processes for which a step is predicted


class Measured(NamedTuple):
    """A measured step: the number of processes and shards, the weights of the model, and its seconds."""

    processes: int
    shards: int
    weights: int
    compute: float  # seconds that one process takes to compute all shards, without adding up; 0 for a sum alone
    seconds: float
    mode: str = EXACT


@dataclass(frozen=True)
class StepTime:
    """The factors of the model: seconds for each number that is added, for each that is sent, and for each message."""

    added: float
    sent: float
    each: float

    def seconds(self, processes: int, shards: int, weights: int, compute: float, mode: str = EXACT) -> float:
        """Return the predicted seconds of a step; `compute` is the time that one process takes for all shards."""
        factors = np.array([self.added, self.sent, self.each])
        return compute * _share(processes, shards, mode) + float(factors @ _terms(processes, shards, weights, mode))

    def efficiency(self, processes: int, shards: int, weights: int, compute: float, mode: str = EXACT) -> float:
        """Return the share of its time that a process computes, of what is needed without communication."""
        return compute / processes / self.seconds(processes, shards, weights, compute, mode)

    def over(self, bandwidth: float, latency: float, bytes_each: int = 4) -> "StepTime":
        """Return the model for machines like this one and a network between them.

        Parameters
        ----------
        bandwidth : in bytes a second, in each direction.  latency : in seconds a message.
        bytes_each : the bytes of a number on the wire.
        """
        return dataclasses.replace(self, sent=bytes_each / bandwidth, each=latency)

    def exact_pays_up_to(self, weights: int, compute: float, share: float = 0.9) -> int:
        """Return the largest power of two of processes for which exact sums have `share` of the speed of fast ones.

        Each process has one shard, which it computes in `compute` seconds.
        """
        count = 1
        while count < _LARGEST and self.ratio(2 * count, weights, compute) >= share:
            count *= 2
        return count

    def ratio(self, processes: int, weights: int, compute: float) -> float:
        """Return the speed of exact sums, relative to fast ones, if each process has one shard of `compute` seconds."""
        fast, exact = (self.seconds(processes, processes, weights, compute * processes, mode) for mode in (FAST, EXACT))
        return fast / exact


def _share(processes: int, shards: int, mode: str) -> float:
    """Return the share of the computation that the process has which has most."""
    return math.ceil(shards / processes) / shards if mode == EXACT else 1 / processes


def _terms(processes: int, shards: int, weights: int, mode: str) -> np.ndarray:
    own, nodes = 1, [1] * processes
    messages = processes - 1 if mode == EXACT else math.ceil(math.log2(processes))
    if mode == EXACT:
        own = math.ceil(shards / processes)
        if shards > processes:
            whole = (0, shards)
            nodes = [len(nodes_within(shards_of(rank, processes, shards), whole)) for rank in range(processes)]
    added = own + (sum(nodes) - 1) / processes
    sent = (max(nodes) + 1) * (processes - 1) / processes
    return np.array([added * weights, sent * weights, 2 * messages], np.float64)


def fitted(steps: Sequence[Measured]) -> StepTime:
    """Return the model whose relative errors for the measured steps are smallest, by least squares.

    Factors that would be negative are left out, the most negative one first.
    """
    rest = np.array([m.seconds - m.compute * _share(m.processes, m.shards, m.mode) for m in steps])
    weight = 1 / np.array([m.seconds for m in steps])
    terms = np.stack([_terms(m.processes, m.shards, m.weights, m.mode) for m in steps]) * weight[:, None]
    used = [0, 1, 2]
    while used:
        chosen = terms[:, used]
        scale = np.linalg.norm(chosen, axis=0)
        scale[scale == 0] = 1
        solution = np.linalg.lstsq(chosen / scale, rest * weight, rcond=None)[0] / scale
        if (solution >= 0).all():
            break
        used.pop(int(np.argmin(solution * scale)))
    factors = np.zeros(3)
    factors[used] = solution if used else []
    return StepTime(*factors.tolist())
