"""Lion: steps of one size in every coordinate, whose signs come from an average of gradients."""

from typing import Any

import numpy as np

from ..backend import Array
from .optimizers import Optimizer, Parameters


class Lion(Optimizer):
    """p <- p - lr (sign(b1 m + (1-b1) g) + weight_decay p),  then m <- b2 m + (1-b2) g

    It keeps one array for each parameter. A good learning rate is 3 to 10 times smaller than that of AdamW, and
    `weight_decay` as many times larger. (Chen et al., Symbolic discovery of optimization algorithms, 2023,
    algorithm 2.)
    """

    slots = ("m",)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]
        m = kept["m"]
        direction = np.sign(b1 * m + (1 - b1) * g)
        if decay:
            p *= 1 - lr * decay
        p -= lr * direction
        m *= b2
        m += (1 - b2) * g
