"""Reverse-mode automatic differentiation: tensors, operations, the tape they leave behind, and the walk back along it.

It knows no operation by name but `cast`: `tinyvit.functional` defines them, one class each.

Order: tape, tensor, dtypes, op.
"""

from .op import Op
from .tape import Node
from .tensor import Tensor, as_tensor, grad, tensor

__all__ = ["Node", "Op", "Tensor", "as_tensor", "grad", "tensor"]
