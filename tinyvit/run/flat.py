"""The gradients of all parameters in one array, which processes add up."""

from collections.abc import Sequence

import numpy as np

from ..backend import Array, namespace_of, to_device_of, to_host
from ..engine import Tensor


class FlatGradient:
    """The places of the gradients of all parameters in one array, with what else is added up over the shards.

    After the gradients come, for each parameter, the number of shards that gave it a gradient, and the loss of each
    shard. All are float32.

    Attributes
    ----------
    parameters : the tensors, in the order of their gradients.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: int) -> None:
        if any(p.dtype != np.float32 for p in parameters):
            raise ValueError(f"train.shards is {shards}, which needs parameters in float32")
        self.parameters, self._shards = list(parameters), shards
        *self._starts, self._end = np.cumsum([0, *(p.size for p in parameters)]).tolist()

    def new(self) -> Array:
        """Return an array for all of it, whose values are not set."""
        xp = namespace_of(self.parameters[0].data)
        return xp.empty(self._end + len(self.parameters) + self._shards, np.float32)

    def view(self, array: Array, number: int) -> Array:
        """Return the gradient of a parameter in `array`, in the shape of the parameter."""
        p, start = self.parameters[number], self._starts[number]
        return array[start : start + p.size].reshape(p.shape)

    def part(self, array: Array, first: int, last: int) -> Array:
        """Return the gradients of the parameters from `first` to `last`, both included."""
        return array[self._starts[first] : self._starts[last] + self.parameters[last].size]

    def rest(self, array: Array) -> Array:
        """Return what follows the gradients."""
        return array[self._end :]

    def packed(self, shard: int, loss: float) -> Array:
        """Return the gradients that the parameters now have, with the loss of the shard that gave them."""
        flat = self.new()
        for i, p in enumerate(self.parameters):
            self.view(flat, i)[...] = 0 if p.grad is None else p.grad.data
        self.rest(flat)[...] = self.rest_of(shard, loss)
        return flat

    def add(self, total: Array, shard: int, loss: float) -> None:
        """Add what `packed` would return to `total`, without a copy of the gradients."""
        for i, p in enumerate(self.parameters):
            place = self.view(total, i)
            # adding 0 turns -0 into 0, as it does where another process adds what `packed` returned
            place += 0 if p.grad is None else p.grad.data
        rest = self.rest(total)
        rest += self.rest_of(shard, loss)

    def rest_of(self, shard: int, loss: float) -> Array:
        """Return what follows the gradients: which parameters have one, and the loss at the place of the shard."""
        given = [p.grad is not None for p in self.parameters]
        rest = np.array([*given, *[0] * self._shards], np.float32)
        rest[len(given) + shard] = loss
        return to_device_of(rest, self.parameters[0].data)

    def unpack(self, total: Array) -> np.ndarray:
        """Give each parameter its gradient in the sum over all shards; return the losses of the shards, float64."""
        rest = to_host(self.rest(total))
        for i, p in enumerate(self.parameters):
            p.grad = Tensor(self.view(total, i)) if rest[i] else None
        return rest[len(self.parameters) :].astype(np.float64)
