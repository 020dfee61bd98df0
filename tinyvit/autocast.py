"""Mixed precision: which operations compute in 16 bits.

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

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
}
# What computes in the dtype of `autocast`, by the names of the operations.
NARROW = frozenset({"linear", "linear_gelu", "matmul", "conv2d", "attention", "gelu", "bias_gelu"})
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
