"""Reverse-mode automatic differentiation: tensors, operations, the tape they leave behind, and the walk back along it.

It knows no operation by name but `cast`: `tinyvit.functional` defines them, one class each. Finite differences, which
check gradients, are in `tinyvit.study.check`.

Order: tape, tensor, gradient, dtypes, op.
"""

from .gradient import grad
from .op import Op
from .tape import Node
from .tensor import Tensor, as_tensor, tensor

__all__ = ["Node", "Op", "Tensor", "as_tensor", "grad", "tensor"]
