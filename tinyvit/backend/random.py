"""Random streams: counter-based, so that a draw depends on the seed and on the count of draws before it alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from .devices import Array


class Generator:
    """A counter-based random stream: all of its state is a seed and the number of draws made so far.

    A draw's values depend on (seed, offset) only, never on what ran before, so a run that was interrupted and resumed
    with the same state continues exactly as one that was not.
    """

    def __init__(self, seed: int = 0, offset: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}; it must be in [0, 2**63)")
        self.seed, self.offset = int(seed), int(offset)
        self._on_device: tuple[Array, int] | None = None

    def draw(self) -> tuple[int, int]:
        """Count one draw and return the (seed, offset) that identifies it.

        Within `on_device`, the seed is an array that holds both seed and offset, and the returned offset is added to
        the one in the array.
        """
        offset = self.offset
        self.offset += 1
        if self._on_device is not None:
            array, start = self._on_device
            return array, offset - start
        return self.seed, offset

    @contextmanager
    def on_device(self, array: Array) -> Iterator[None]:
        """Within this block, let kernels read the stream from `array` (2,) on a GPU when they run."""
        self._on_device = array, self.offset
        try:
            yield
        finally:
            self._on_device = None

    @contextmanager
    def starting_at(self, offset: int) -> Iterator[None]:
        """Within this block, make the draws from number `offset` on; after it, continue as if there had been none."""
        before, self.offset = self.offset, offset
        try:
            yield
        finally:
            self.offset = before

    def numpy(self) -> np.random.Generator:
        """Return a NumPy generator that serves one draw (initial weights, sampling)."""
        seed, offset = self.draw()
        return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, offset]))

    def state_dict(self) -> dict[str, int]:
        """Return the seed, and how many draws have been made."""
        return {"seed": self.seed, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state that `state_dict` returned. Raises ValueError if a number is out of range."""
        if not (0 <= state["seed"] < 2**63 and 0 <= state["offset"] < 2**63):
            raise ValueError(f"seed is {state['seed']} and offset {state['offset']}; both must be in [0, 2**63)")
        self.seed, self.offset = int(state["seed"]), int(state["offset"])


default_generator = Generator()


def manual_seed(seed: int) -> None:
    """Restart the default random stream (initial weights, dropout) from `seed`."""
    default_generator.load_state_dict(Generator(seed).state_dict())
