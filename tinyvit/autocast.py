"""Mixed precision: which operations compute in 16 bits, and the scale that keeps gradients in float16 above zero.

Parameters, residual sums, statistics, softmax, losses and the optimizer stay float32. (Micikevicius et al., Mixed
precision training, 2018.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import BFLOAT16
from .engine import autograd
from .engine.autograd import Op, Tensor
from .functional import cast
from .kernels.cpu import two_processes
from .optim import Optimizer, joint_norm

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
}
# What computes in the dtype of `autocast`, by the names of the operations.
NARROW = frozenset({"linear", "matmul", "conv2d", "attention", "gelu", "bias_gelu"})
# What needs the range or the digits of float32: statistics, exponentials, sums, losses.
WIDE = frozenset(
    {"layer_norm", "add_layer_norm", "softmax", "log_softmax", "logsumexp", "cross_entropy", "mse_loss"}
    | {"binary_cross_entropy_with_logits", "sum", "mean", "var", "cumsum", "exp", "log", "power"}
)


class autocast:
    """Within this block, operations of the table `NARROW` compute in `dtype`; gradients come back in float32.

    All others take what they are given, and float32 where that differs or where they are in the table `WIDE`. float64
    is left alone. As a call it lasts; as a `with` block it ends there.

    Parameters
    ----------
    dtype : {"bfloat16", "float16", "float32"}
        "float32" changes nothing.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"autocast: dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self._before = autograd.adapt_inputs, two_processes.expected
        autograd.adapt_inputs = None if dtype == "float32" else _Adapter(DTYPES[dtype])
        two_processes.expected = dtype if dtype == "bfloat16" else None

    def __enter__(self) -> "autocast":
        return self

    def __exit__(self, *_: object) -> None:
        autograd.adapt_inputs, two_processes.expected = self._before


class _Adapter:
    """Brings the inputs of an operation to one dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __call__(self, op: type[Op], inputs: Sequence[Any]) -> Sequence[Any]:
        if op.mixes and self.dtype == BFLOAT16 and _is_on_cpu(inputs[0]):
            # The operation itself rounds, or widens, those of its inputs that may mix.
            own = self.dtype if op.name in NARROW else DTYPES["float32"]
            pairs = zip(op.inputs, inputs, strict=False)
            return tuple([x if name in op.mixes else _narrowed(x, own) for name, x in pairs])
        met = {x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype in _MIXED}
        if not met:
            return inputs
        if op.name in NARROW:
            dtype = self.dtype
        elif op.name in WIDE or len(met) > 1:
            dtype = DTYPES["float32"]
        else:
            return inputs
        return [_narrowed(x, dtype) for x in inputs]


_MIXED = frozenset(DTYPES.values())


def _narrowed(x: Any, dtype: Any) -> Any:
    return cast(x, dtype) if isinstance(x, Tensor) and x.dtype in _MIXED and x.dtype != dtype else x


def _is_on_cpu(x: Any) -> bool:
    return isinstance(x, Tensor) and type(x.data) is np.ndarray and x.dtype in _MIXED


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
