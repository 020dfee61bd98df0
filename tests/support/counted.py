"""Count the operations of the matrix products of a step, as an oracle for the costs that benchmarks state."""

from typing import Any

import numpy as np
import pytest

from benchmarks.cases import Case
from benchmarks.contenders.engine import Engine
from benchmarks.inputs import make_inputs
from tinyvit import use_kernels
from tinyvit.backend import NUMPY


def operations_of_products(case: Case, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the operations, two for each multiply-add, of all matrix products of one step by the plain rules."""
    matmul, count = NUMPY.matmul, 0

    def counting(x: np.ndarray, y: np.ndarray) -> Any:
        nonlocal count
        out = matmul(x, y)
        count += 2 * out.size * x.shape[-1]
        return out

    with use_kernels("numpy"):
        step = Engine("numpy").prepare(case, make_inputs(case))
        with monkeypatch.context() as patch:
            patch.setattr(NUMPY, "matmul", counting, raising=False)
            step.run()
    return count
