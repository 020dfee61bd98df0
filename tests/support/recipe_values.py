"""For tests: values that the schema of recipes allows for a key, drawn by hypothesis, extreme ones often."""

import dataclasses
import math
from typing import Any

from hypothesis import strategies as st


def any_value(key: dataclasses.Field, largest: float = math.inf) -> st.SearchStrategy[Any]:
    """Draw any value that a key may have; integers up to `largest`, because large models take long."""
    allowed = key.metadata.get("allowed")
    if isinstance(allowed, tuple):
        return st.sampled_from(allowed)
    if key.type is bool:
        return st.booleans()
    if key.type is str:
        return st.text(st.characters(exclude_categories=["Cs"]))
    if key.type is int:
        return st.integers(int(allowed.at_least), int(min(allowed.at_most, allowed.below - 1, largest)))
    low, high = max(allowed.at_least, allowed.above), min(allowed.at_most, allowed.below)
    return st.floats(low, high, exclude_min=low == allowed.above, exclude_max=high == allowed.below)
