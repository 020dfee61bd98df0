"""tinyvit's kernels called directly, without the engine."""

import numpy as np

from tinyvit import kernels

from ..cases import Case
from ..inputs import LAYER_NORM_EPS, Arrays
from .base import Contender, Task


class Kernels(Contender):
    """The option is the argument `implementation` of the kernels: "numba", "numpy", "numba:v1" ..."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.implementation = option

    def forward(self, case: Case, inputs: Arrays) -> Task:
        forward = getattr(kernels, f"{case.operation}_forward")
        if case.operation == "attention":
            q, k, v = inputs["q"], inputs["k"], inputs["v"]
            return Task(lambda: forward(q, k, v, implementation=self.implementation), lambda result: {"out": result[0]})
        x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
        return Task(
            lambda: forward(x, weight, bias, LAYER_NORM_EPS, implementation=self.implementation),
            lambda result: {"out": result[0]},
        )

    def backward(self, case: Case, inputs: Arrays) -> Task:
        backward = getattr(kernels, f"{case.operation}_backward")
        result, dout = self.forward(case, inputs).run(), inputs["dout"]
        if case.operation == "layer_norm":
            x, weight = inputs["x"], inputs["weight"]
            _, mean, rstd = result
            return Task(
                lambda: backward(dout, x, weight, mean, rstd, implementation=self.implementation),
                lambda grads: dict(zip(("dx", "dweight", "dbias"), grads[:3], strict=True)),
            )
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        b, h, n, d = q.shape
        packed = np.empty((b, n, 3, h, d), q.dtype)  # the gradient of the packed qkv, which the engine passes as well
        views = tuple(packed.transpose(2, 0, 3, 1, 4))
        out, lse = result
        return Task(
            lambda: backward(dout, q, k, v, out, lse, out_grads=views, implementation=self.implementation),
            lambda grads: dict(zip(("dq", "dk", "dv"), grads[:3], strict=True)),
            buffers=(packed,),
        )
