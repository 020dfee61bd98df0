"""Parameters in the dtype of a product: copies that were made for all of them at once, or one that is made here."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..cuda.device import address


class _Thread(threading.local):
    copies: Mapping[int, Any] = {}


_thread = _Thread()


@contextmanager
def in_place(copies: Mapping[int, Any]) -> Iterator[None]:
    """Within this block, `narrowed` takes these copies, which are known by the addresses of the arrays they are of."""
    before, _thread.copies = _thread.copies, copies
    try:
        yield
    finally:
        _thread.copies = before


def narrowed(array: Any, dtype: Any) -> Any:
    """Return `array` itself if it has this dtype, else a copy that has."""
    if array.dtype == dtype:
        return array
    copy = _thread.copies.get(address(array))
    fits = copy is not None and copy.dtype == dtype and copy.shape == array.shape and array.flags.c_contiguous
    return copy if fits else array.astype(dtype)
