"""HIPS autograd, the classic engine in Python: it differentiates plain NumPy code."""

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.scipy.special import erf

from ..cases import Case
from ..inputs import LEARNING_RATE, WEIGHT_DECAY, Arrays, weights_of
from .base import Contender, Task
from .functional_vit import adamw, vit_logits, vit_loss


class HipsAutograd(Contender):
    """The option is ignored."""

    def train(self, case: Case, inputs: Arrays) -> Task:
        weights = weights_of(inputs)
        m, v = ({name: np.zeros_like(array) for name, array in weights.items()} for _ in range(2))
        images, one_hot = inputs["images"], np.eye(case.model.classes, dtype=np.float32)[inputs["labels"]]
        loss_and_gradients = value_and_grad(lambda p: vit_loss(anp, erf, p, images, one_hot, case.model))
        steps = 0

        def run() -> float:
            nonlocal steps
            steps += 1
            loss, gradients = loss_and_gradients(weights)
            for name, g in gradients.items():
                weights[name], m[name], v[name] = adamw(
                    np, weights[name], g, m[name], v[name], steps, LEARNING_RATE, WEIGHT_DECAY
                )
            return float(loss)

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def inference(self, case: Case, inputs: Arrays) -> Task:
        weights, images = weights_of(inputs), inputs["images"]
        return Task(lambda: vit_logits(anp, erf, weights, images, case.model), lambda out: {"out": out})
