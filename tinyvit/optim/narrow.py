"""Copies of parameters in bfloat16 for a step, made by one kernel instead of one for each parameter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from .. import dispatch
from ..backend import BFLOAT16, address_of, namespace_of, to_device_of
from ..engine import Tensor

_BOUNDARY = 128  # elements; a copy begins at a multiple of 256 bytes, as an array of its own would


class NarrowWeights:
    """Copies in bfloat16 of parameters on one GPU, which are float32 and contiguous.

    Within `in_use`, linear maps in bfloat16 take the copies in place of the parameters, which must not change there.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._tensors = [p for p in parameters if p.data.flags.c_contiguous]
        sizes = np.array([p.size for p in self._tensors])
        places = -(-sizes // _BOUNDARY) * _BOUNDARY
        self._rows = np.zeros((len(sizes), 3), np.int64)  # the table, once it is on the device
        self._rows[:, 1], self._rows[:, 2] = np.cumsum([0, *places[:-1]]), sizes
        like = self._tensors[0].data
        self._table = to_device_of(self._rows, like)
        self._flat = namespace_of(like).zeros(int(places.sum()), BFLOAT16)
        self._copies = [
            self._flat[start : start + p.size].reshape(p.shape)
            for p, start in zip(self._tensors, self._rows[:, 1].tolist(), strict=True)
        ]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the copies, and let linear maps take them within this block; nothing where no kernel makes them."""
        kernel = dispatch.select_update("narrow", np.dtype(np.float32), "cuda")
        if kernel is None:
            yield
            return
        addresses = [address_of(p.data) for p in self._tensors]
        if (self._rows[:, 0] != addresses).any():
            self._rows[:, 0] = addresses
            self._table[...] = to_device_of(self._rows, self._table)
        kernel.forward(self._table, self._flat)
        with dispatch.copies_in_place(dict(zip(addresses, self._copies, strict=True))):
            yield
