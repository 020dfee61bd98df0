"""The scale of the losses in float16, which keeps small gradients from becoming zero.

(Micikevicius et al., Mixed precision training, 2018.)
"""

from typing import Any

import numpy as np

from ..backend.checks import integer, number
from ..engine import Tensor
from .clipping import joint_norm, scale_in_place
from .optimizers import Optimizer
from .parameters import require_keys


class LossScaler:
    """Multiply losses so that gradients in float16 do not vanish, and divide the gradients again before a step.

    If the gradients are not finite, the step is skipped and the scale is halved; after `growth` steps without such
    gradients it is doubled. If Adam's parameters are float32 on one GPU, all of this happens there, and nothing waits
    for the host.

    Parameters
    ----------
    optimizer : the optimizer whose steps are scaled.
    initial : the first scale, a power of two, so that scaling is exact.
    growth : the number of steps after which the scale is doubled.
    """

    _scale: float  # the device has the current values of these two if it makes the steps
    _good_steps: int

    def __init__(self, optimizer: Optimizer, initial: float = 65536.0, growth: int = 2000) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"LossScaler: optimizer is a {type(optimizer).__name__}; give a tinyvit.optim optimizer")
        if not number("LossScaler: initial", initial) > 0 or integer("LossScaler: growth", growth) < 1:
            raise ValueError(f"LossScaler: initial is {initial} and growth {growth}; they must be above 0")
        self._optimizer, self._growth = optimizer, int(growth)
        self._bundle = optimizer.device_bundle()
        if self._bundle is not None:
            self._bundle["growth"] = self._growth
        self.load_state_dict({"scale": initial, "good_steps": 0})

    @property
    def scale(self) -> float:
        """The factor of the losses; reading it waits for the device."""
        return self._scale if self._bundle is None else self._bundle["scale"]

    @property
    def good_steps(self) -> int:
        """The number of steps since the scale was changed."""
        return self._good_steps if self._bundle is None else int(self._bundle["good"])

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on."""
        return loss * (self._scale if self._bundle is None else Tensor(self._bundle.scale_of_losses()))

    def step(self, clip_norm: float = 0.0) -> float | Tensor:
        """Make one step with the gradients divided by the scale, unless they are not finite; return their norm.

        The norm is a tensor on the device if the step is made there.
        """
        if not number("LossScaler: clip_norm", clip_norm) >= 0:
            raise ValueError(f"LossScaler: clip_norm is {clip_norm}; it must be above 0, or 0 for no clipping")
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
            scale_in_place(g.data, factor)
            g.mark_modified()
        self._optimizer.step()
        self._good_steps += 1
        if self._good_steps == self._growth:
            self._scale, self._good_steps = self._scale * 2, 0
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the number of steps since it was changed."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`. Raises ValueError if scale or count is missing or out of range."""
        require_keys("LossScaler", state, ("scale", "good_steps"))
        scale, good_steps = (number(f"LossScaler: {key}", state[key]) for key in ("scale", "good_steps"))
        if not 0 < scale < float("inf") or not (good_steps >= 0 and good_steps.is_integer()):
            raise ValueError(
                f"LossScaler: scale is {state['scale']} and good_steps {state['good_steps']}; scale must be finite and "
                "above 0, good_steps at least 0"
            )
        self._scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
        if self._bundle is not None:
            self._bundle["scale"], self._bundle["good"] = self._scale, self._good_steps
