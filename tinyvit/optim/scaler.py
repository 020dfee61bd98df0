"""The scale of the losses, which keeps gradients in float16 above zero.

(Micikevicius et al., Mixed precision training, 2018.)
"""

from typing import Any

import numpy as np

from ..engine import Tensor
from .optimizers import Optimizer, joint_norm


class LossScaler:
    """Multiplies losses, so that gradients in float16 do not vanish, and divides the gradients again before a step.

    A step whose gradients are not finite is skipped, and the scale halved; after `growth` steps without one it is
    doubled. Where Adam's parameters are float32 on one GPU all of that happens there, and nothing waits for the host.

    Parameters
    ----------
    optimizer : what makes the steps.
    initial : the first scale, a power of two, so that it costs no digits.
    growth : steps until the scale is doubled.
    """

    _scale: float  # these two are as they were where the steps are made on a device
    _good_steps: int

    def __init__(self, optimizer: Optimizer, initial: float = 65536.0, growth: int = 2000) -> None:
        if not initial > 0 or growth < 1:
            raise ValueError(f"LossScaler: initial is {initial} and growth {growth}; they must be above 0")
        self._optimizer, self._growth = optimizer, int(growth)
        self._bundle = optimizer.device_bundle()
        if self._bundle is not None:
            self._bundle["growth"] = self._growth
        self.load_state_dict({"scale": initial, "good_steps": 0})

    @property
    def scale(self) -> float:
        """What losses are multiplied by; asking for it waits for the device."""
        return self._scale if self._bundle is None else self._bundle["scale"]

    @property
    def good_steps(self) -> int:
        """How many steps were made since the scale was changed."""
        return self._good_steps if self._bundle is None else int(self._bundle["good"])

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss * (self._scale if self._bundle is None else Tensor(self._bundle.scale_of_losses()))

    def step(self, clip_norm: float = 0.0) -> float | Tensor:
        """One step by the gradients divided by the scale, unless they are not finite; returns their norm.

        The norm is a tensor on the device where nothing waits for the host.
        """
        if self._bundle is not None:
            self._bundle["max_norm"] = clip_norm
            self._optimizer.step()
            return Tensor(self._bundle.norm())
        gradients = [p.grad for group in self._optimizer.groups for p in group["params"] if p.grad is not None]
        norm = joint_norm(g.data for g in gradients) / self._scale
        if not np.isfinite(norm):
            self._scale, self._good_steps = self._scale / 2, 0
            return norm
        factor = 1 / self._scale
        if 0 < clip_norm < norm:
            factor *= clip_norm / norm
        for g in gradients:
            g.data *= factor
            g.mark_modified()
        self._optimizer.step()
        self._good_steps += 1
        if self._good_steps == self._growth:
            self._scale, self._good_steps = self._scale * 2, 0
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
        if self._bundle is not None:
            self._bundle["scale"], self._bundle["good"] = self._scale, self._good_steps
