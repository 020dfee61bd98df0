"""Which cases of a test are quick: the first ones. The others run with the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick_first(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """Return the cases of a parametrized test, all but the first `quick` of them marked `slow`.

    A case is a value, or a tuple of the values of several parameters.
    """
    each = enumerate(case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*values, marks=() if i < quick else pytest.mark.slow) for i, values in each]
