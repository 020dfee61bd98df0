"""What a contender is: a class that turns a case and its inputs into a call that can be timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cases import Case
from ..inputs import Arrays


@dataclass
class Task:
    """One case, ready to run.

    `run()` does the whole of one call: when it returns, the work is done. `outputs(result)` gives what the call
    returned as arrays: "out" of a forward pass, "d" and the operand's name of a backward pass ("dq", "dx"), "loss" of a
    training step, the parameters of an optimizer step. `buffers` are filled with NaN before the first call.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Arrays]
    buffers: tuple[np.ndarray, ...] = ()


class Contender:
    """Base of all contenders. A subclass defines those methods that it can serve.

    Parameters
    ----------
    option : what its row in the table of contenders says.
    """

    dtype = "float32"  # what it computes in: decides how large an error may be

    def __init__(self, option: str) -> None:
        self.option = option

    def prepare(self, case: Case, inputs: Arrays) -> Task:
        """The task of a case, from the inputs that `benchmarks.inputs` drew."""
        step = "product" if case.suite == "gemm" else case.operation
        method = step if case.direction == "step" else case.direction
        return getattr(self, method)(case, inputs)

    def forward(self, case: Case, inputs: Arrays) -> Task:
        """One forward pass of `case.operation`, as in training: what backward needs is kept."""
        raise NotImplementedError(f"has no forward pass of {case.operation}")

    def backward(self, case: Case, inputs: Arrays) -> Task:
        """The gradients of all operands from `dout`; the forward pass is not part of the call."""
        raise NotImplementedError(f"has no backward pass of {case.operation}")

    def product(self, case: Case, inputs: Arrays) -> Task:
        """One matrix product of a linear map: y of x and weight, dx of dout and weight, or dw of dout and x."""
        raise NotImplementedError("has no single products")

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        """One update of all weights of a model by given gradients."""
        raise NotImplementedError("has no AdamW")

    def train(self, case: Case, inputs: Arrays) -> Task:
        """One training step: forward, cross-entropy, backward, AdamW. Returns the loss before the update."""
        raise NotImplementedError("has no training step")

    def inference(self, case: Case, inputs: Arrays) -> Task:
        """The logits of a batch, with nothing kept for a backward pass."""
        raise NotImplementedError("has no inference")
