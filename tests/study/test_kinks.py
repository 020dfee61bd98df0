"""Kinks close to the inputs: a right rule is never called wrong there, and a wrong one never right."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.backend import NUMPY
from tinyvit.engine import Op
from tinyvit.study import Check, check_rule


class _Distance(Op):
    """z = sqrt(x^2 + y^2)        dx = dz x / z,  dy = dz y / z; 0 where z is 0"""

    saves = ("x", "y", "out")

    @staticmethod
    def forward(xp: Any, x: Any, y: Any) -> Any:
        return xp.sqrt(x * x + y * y)

    def backward(ctx: Any, xp: Any, dz: Any) -> Any:  # type: ignore[override]
        x, y, z = ctx.saved
        z = xp.where(z == 0, 1.0, z)
        return dz * x / z, dz * y / z


class _Length(Op):
    """y = sqrt(sum of x^2)        dx = dy x / y; 0 where y is 0"""

    saves = ("x", "out")

    @staticmethod
    def forward(xp: Any, x: Any) -> Any:
        return xp.sqrt(xp.sum(x * x))

    def backward(ctx: Any, xp: Any, dy: Any) -> Any:  # type: ignore[override]
        x, y = ctx.saved
        return dy * x / xp.where(y == 0, 1.0, y)


for _own in (_Distance, _Length):
    del Op.registry[_own.name]  # no other test should find them

RULES: dict[str, tuple[type[Op], dict[str, Any]]] = {
    "distance": (_Distance, {}),
    "length": (_Length, {}),
    **{name: (Op.registry[name], {}) for name in ("abs", "relu", "maximum", "max")},
    "clip": (Op.registry["clip"], {"lowest": -1e-6, "highest": 2e-6}),
}


def judged(name: str, seed: int, size: int, scale: float, fault: float = 1.0) -> Check:
    """Check a rule whose gradients are multiplied with `fault`, on inputs of magnitudes from scale / 100 to scale.

    Several kinks lie within a step then, and cancel in part.
    """
    op, params = RULES[name]
    rng = np.random.default_rng(seed)
    inputs = [scale * 10.0 ** rng.uniform(-2, 0, size) * rng.choice([-1, 1], size) for _ in op.inputs]
    outputs = op.run(NUMPY, inputs, params)
    incoming, needs = [rng.standard_normal(np.shape(y)) for y in outputs], [True] * len(inputs)
    right = op.backward

    def backward(ctx: Any, xp: Any, dy: Any) -> Any:
        found = right(ctx, xp, dy)
        return tuple(fault * g for g in found) if isinstance(found, tuple) else fault * found

    with mock.patch.object(op, "backward", backward):
        found = op.application(inputs, outputs, params, needs).gradients(NUMPY, incoming)
        return check_rule(op, inputs, params, incoming, needs, found, op.inputs)


seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 8)
scales = st.floats(-10, 0).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40, deadline=None)
@given(seeds, sizes, scales)
def test_a_right_rule_is_not_called_wrong(name: str, seed: int, size: int, scale: float) -> None:
    found = judged(name, seed, size, scale)
    assert found.verdict != "wrong", found.reason


NONZERO = ["distance", "length", "abs"]  # no element of their gradients is 0, which a factor would not change


@pytest.mark.parametrize("name", NONZERO)
@settings(max_examples=20, deadline=None)
@given(seeds, sizes, scales)
def test_a_wrong_rule_is_never_called_right(name: str, seed: int, size: int, scale: float) -> None:
    assert judged(name, seed, size, scale, fault=1.5).verdict != "agrees"


@pytest.mark.parametrize("name", NONZERO)
@settings(max_examples=20, deadline=None)
@given(seeds, sizes)
def test_a_wrong_rule_is_noticed_where_no_kink_is_within_a_step(name: str, seed: int, size: int) -> None:
    assert judged(name, seed, size, 100.0, fault=1.001).verdict == "wrong"


def test_a_rule_that_is_wrong_beside_a_kink_is_noticed_too() -> None:
    verdicts = [judged(name, seed, 4, 1e-2, fault=1.5).verdict for name in NONZERO for seed in range(10)]
    assert verdicts.count("wrong") > 20, verdicts
