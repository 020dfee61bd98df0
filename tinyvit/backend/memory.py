"""Memory that several tensors view: how often it was written to, and by which tensors it can be seen."""

import weakref
from typing import Any


class Memory:
    """State shared by tensors that view one array: its version counter and, if there are several, the tensors."""

    __slots__ = ("sharers", "version")

    def __init__(self) -> None:
        self.version = 0
        self.sharers: list[weakref.ref[Any]] = []

    def join(self, first: Any, other: Any) -> None:
        """Add `other` to the tensors that view the array, and `first` too if it is the only one so far."""
        for tensor in (other,) if self.sharers else (first, other):
            self.sharers.append(weakref.ref(tensor))
        if len(self.sharers) % 64 == 0:  # drop the dead ones now and then, so that the list stays short
            self.sharers = [ref for ref in self.sharers if ref() is not None]

    def is_seen_by_others(self, tensor: Any) -> bool:
        """Return whether another tensor is alive whose values would change with those of `tensor`."""
        return any((other := ref()) is not None and other is not tensor for ref in self.sharers)
