"""A common offset of a row changes no probability, no loss and no normalized row, and costs kernels no digits."""

import numpy as np
import pytest
from cases import Case
from tinyvit.kernels import registry
from trial import Trial, applied

import tinyvit as tv
from tinyvit.engine import Op

OFFSETS = (0.0, 1e2, 1e3, 1e5, 1e6, 1e7, 1e8, 1e20, 1e37)
SLOW = pytest.mark.slow


def rows(offset: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return small multiples of the unit in the last place of `offset`, at least of 1, plus that: exact in float32."""
    steps = np.random.default_rng(0).integers(-3, 4, shape)
    return (np.float32(offset) + steps * np.float32(max(1.0, np.spacing(np.float32(offset))))).astype(np.float32)


def cases(name: str, offset: float) -> list[Case]:
    """Return applications of an operation to rows with this offset."""
    rng = np.random.default_rng(1)
    x = rows(offset, (37, 19))
    if name == "softmax":
        return [Case((x,), {"axis": -1})]
    if name == "cross_entropy":
        p = rng.dirichlet(np.ones(19), 37).astype(np.float32)
        ids = {"ids": rng.integers(19, size=37)}
        given: list[tuple[np.ndarray | None, dict]] = [(None, ids), (None, {**ids, "label_smoothing": 0.1}), (p, {})]
        return [Case((x, t), {**kw, "reduction": r}) for t, kw in given for r in ("mean", "none")]
    if name in ("layer_norm", "add_layer_norm"):
        weight, bias = rng.normal(size=(2, 19)).astype(np.float32)
        before = (x,) if name == "layer_norm" else (x, np.zeros_like(x))
        return [Case((*before, weight, bias), {})]
    q, k, v = rng.normal(size=(3, 1, 2, 37, 8)).astype(np.float32)
    return [Case((q, k, v, rows(offset, (1, 2, 37, 37))), {"scale": 0.5, "is_causal": c}) for c in (False, True)]


NAMES = ("softmax", "cross_entropy", "layer_norm", "add_layer_norm", "attention")
VERSIONS = [
    pytest.param(spec.operation, v, id=f"{spec.operation}-v{v}", marks=() if v == spec.versions else SLOW)
    for spec in registry.SPECS
    if spec.technology == "numba" and spec.operation in NAMES
    for v in range(1, spec.versions + 1)
]


@pytest.mark.parametrize(("name", "version"), VERSIONS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_common_offset_costs_a_kernel_no_more_digits_than_the_plain_rule(name: str, version: int, offset: float):
    rng = np.random.default_rng(2)
    for case in cases(name, offset):
        op = Op.registry[name]
        with tv.use_kernels("numpy"), np.errstate(all="ignore"):
            outputs = applied(op, case.inputs, case.params)
        upstream = [rng.normal(size=y.shape).astype(np.float32) for y in outputs]
        Trial(op, case, [x is not None for x in case.inputs], upstream).check(f"numba:v{version}")
