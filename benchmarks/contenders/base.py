"""The base class of contenders, which turn a case and its inputs into a call that can be timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cases import Case
from ..inputs import Arrays


@dataclass
class Task:
    """One case, ready to run.

    Attributes
    ----------
    run : makes one call, and returns when all of its work is done.
    outputs : turns the result of `run` into arrays by name: "out" for a forward pass, "dq" or "dx" (the operand) for a
        backward pass, "loss" for a training step, the names of the parameters for an optimizer step.
    buffers : arrays that the calls write; they are filled with NaN before the first call.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Arrays]
    buffers: tuple[np.ndarray, ...] = ()


class Contender:
    """Base of all contenders. A subclass defines the methods that it can serve.

    Parameters
    ----------
    option : from its row in the table of contenders.
    """

    dtype = "float32"  # of its arithmetic; the tolerance depends on it

    def __init__(self, option: str) -> None:
        self.option = option

    def prepare(self, case: Case, inputs: Arrays) -> Task:
        """Make the task of a case, from inputs drawn by `benchmarks.inputs`."""
        step = "product" if case.suite == "gemm" else case.operation
        method = step if case.direction == "step" else case.direction
        return getattr(self, method)(case, inputs)

    def forward(self, case: Case, inputs: Arrays) -> Task:
        """One forward pass of `case.operation` as in training, so that it keeps what backward needs."""
        raise NotImplementedError(f"has no forward pass of {case.operation}")

    def backward(self, case: Case, inputs: Arrays) -> Task:
        """The gradients of all operands, from `dout`; the forward pass is not part of the call."""
        raise NotImplementedError(f"has no backward pass of {case.operation}")

    def product(self, case: Case, inputs: Arrays) -> Task:
        """One matrix product of a linear map: y of x and weight, dx of dout and weight, or dw of dout and x."""
        raise NotImplementedError("has no single products")

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        """One update of all weights of a model by given gradients."""
        raise NotImplementedError("has no AdamW")

    def train(self, case: Case, inputs: Arrays) -> Task:
        """One training step: forward, cross-entropy, backward, AdamW. The call returns the loss before the update."""
        raise NotImplementedError("has no training step")

    def inference(self, case: Case, inputs: Arrays) -> Task:
        """The logits of a batch, without keeping anything for a backward pass."""
        raise NotImplementedError("has no inference")
