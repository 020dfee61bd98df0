"""tinyvit's kernels called directly, without the engine around them."""

import numpy as np

from tinyvit import kernels

from ..cases import Case
from ..inputs import LAYER_NORM_EPS, Arrays
from .base import Contender, Task


class Kernels(Contender):
    """option : the `implementation` that the kernels are asked for: "numba", "numpy", "numba:v1" ..."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.chosen = {"implementation": option}

    def forward(self, case: Case, inputs: Arrays) -> Task:
        forward = getattr(kernels, f"{case.operation}_forward")
        if case.operation == "attention":
            q, k, v = inputs["q"], inputs["k"], inputs["v"]
            return Task(lambda: forward(q, k, v, **self.chosen), lambda result: {"out": result[0]})
        x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
        return Task(
            lambda: forward(x, weight, bias, LAYER_NORM_EPS, **self.chosen),
            lambda result: {"out": result[0]},
        )

    def backward(self, case: Case, inputs: Arrays) -> Task:
        backward = getattr(kernels, f"{case.operation}_backward")
        result, dout = self.forward(case, inputs).run(), inputs["dout"]
        if case.operation == "layer_norm":
            x, weight = inputs["x"], inputs["weight"]
            _, mean, rstd = result
            return Task(
                lambda: backward(dout, x, weight, mean, rstd, **self.chosen),
                lambda grads: dict(zip(("dx", "dweight", "dbias"), grads[:3], strict=True)),
            )
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        b, h, n, d = q.shape
        packed = np.empty((b, n, 3, h, d), q.dtype)  # as the engine asks for it: one gradient of the packed qkv
        views = tuple(packed.transpose(2, 0, 3, 1, 4))
        out, lse = result
        return Task(
            lambda: backward(dout, q, k, v, out, lse, out_grads=views, **self.chosen),
            lambda grads: dict(zip(("dq", "dk", "dv"), grads[:3], strict=True)),
            buffers=(packed,),
        )
