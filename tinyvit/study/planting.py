"""Tracing a computation for a page: with plain rules and, for exercises, one wrong rule."""

import random
from collections.abc import Callable
from typing import Any

from ..dispatch import use_kernels
from ..engine import Tensor
from .check.faults import place_for
from .trace import Trace, trace


def traced(
    compute: Callable[[], Any], names: dict[str, Tensor], plant: str | None, chance: random.Random | None = None
) -> Trace:
    """Trace `compute`, with plain rules; to plant a fault, trace it again with the wrong rule in one place.

    `chance` chooses the place, see `place_for`.
    """
    with use_kernels("numpy"), trace(names=names) as recorded:
        compute()
    if plant is not None:
        place = place_for(plant, recorded, chance)
        with use_kernels("numpy"), trace(names=names, planted={place.key: place.op}) as recorded:
            compute()
        recorded.mistake = place.mistake
    for entry in recorded:
        entry.line, entry.place = "", None  # drop the call site: it is always a file of this package
    return recorded
