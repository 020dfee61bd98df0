"""Verification: the outputs of a contender against those of the plain path in float64.

The error of an output is its largest deviation, relative to the largest magnitude of the reference. The tolerance is
derived: twice the error of the plain path in float32, plus some roundings in the contender's own dtype: more in
float32, where the order of a sum matters; fewer in bfloat16, which only stores values summed in float32, and with
weights and activations of 8 bits, of which onnxruntime's quantizer uses 7. NaN fails.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .cases import Case
from .inputs import DROPOUT_P, Arrays

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "int8": 2.0**-6}
_ROUNDINGS = {"float32": 16, "bfloat16": 4, "int8": 4}
_LOSS = {"float32": 1e-4, "bfloat16": 3e-2}  # for losses after some steps, whose updates magnify roundings


class WrongOutputError(Exception):
    """What a contender returned breaks its contract, so its values cannot even be compared; the message says how."""


class Deviation(NamedTuple):
    """The error of an output, and its tolerance."""

    error: float
    allowed: float

    @property
    def is_small(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def comparable(case: Case, inputs: Arrays, outputs: Arrays) -> Arrays:
    """Bring outputs into a form in which all right answers agree.

    Every library draws other random bits for dropout, so dropped values are replaced by what they would have been, and
    the share of kept values becomes an output of its own.
    """
    if case.operation != "dropout":
        return outputs
    (name,) = outputs
    given = inputs["x" if case.direction == "forward" else "dout"]
    values = np.asarray(outputs[name], np.float64)
    kept = values != 0
    return {
        name: np.where(kept, values, given.astype(np.float64) / (1 - DROPOUT_P)),
        "kept": np.asarray(kept.mean()),
    }


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest |actual - expected| over the largest |expected|; NaN if any value is NaN, inf for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    scale = max(float(np.abs(expected).max(initial=0)), np.finfo(np.float64).tiny)
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0)) / scale


def allowed(case: Case, name: str, plain: float, dtype: str, size: int) -> float:
    """The tolerance of an output for which the error of the plain path in float32 is `plain`."""
    if case.operation == "train":
        return _LOSS[dtype]
    if name == "kept":  # the difference of two random shares: five standard deviations of each
        return 10 * (DROPOUT_P * (1 - DROPOUT_P) / size) ** 0.5
    return 2 * plain + _ROUNDINGS[dtype] * EPSILON[dtype]


def verify(
    case: Case, inputs: Arrays, outputs: Arrays, expected: Arrays, plain: Mapping[str, float], dtype: str
) -> dict[str, Deviation]:
    """The deviation of every output; KeyError if their names are not those of `expected`."""
    outputs = comparable(case, inputs, outputs)
    if outputs.keys() != expected.keys():
        raise KeyError(f"outputs are {sorted(outputs)}; they must be {sorted(expected)}")
    size = max(array.size for array in expected.values())
    return {
        name: Deviation(deviation(outputs[name], answer), allowed(case, name, plain[name], dtype, size))
        for name, answer in expected.items()
    }
