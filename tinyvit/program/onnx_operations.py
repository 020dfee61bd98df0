"""Operations that are written as a whole in ONNX."""

from typing import Any

import numpy as np

from ..functional.activation import Gelu
from .lower import Operations
from .onnx_arrays import Onnx, OnnxArray


class OnnxOperations(Operations):
    """Operations that ONNX has as a whole, and attention, whose masks ONNX needs in another form."""

    xp: Onnx

    def __init__(self, xp: Onnx) -> None:
        super().__init__(xp)
        self._turned: dict[int, OnnxArray] = {}  # transposed weights, by the ids of their arrays

    def linear(self, x: Any, weight: Any, bias: Any) -> OnnxArray:
        xp, shape = self.xp, (*x.shape[:-1], weight.shape[0])
        if x.ndim == 2:
            given = [x, weight] if bias is None else [x, weight, bias]
            return xp.node("Gemm", given, shape, x.dtype, transB=1)
        y = xp.node("MatMul", [x, self._transposed(weight)], shape, x.dtype)
        return y if bias is None else y + bias

    def _transposed(self, weight: Any) -> Any:
        if weight.array is None:
            return self.xp.swapaxes(weight, 0, 1)
        key = id(weight.array)
        if key not in self._turned:  # two maps may share a weight
            self._turned[key] = self.xp.constant(np.ascontiguousarray(weight.array.T), f"{weight.name}.T")
        return self._turned[key]

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float, y_dtype: Any = None) -> OnnxArray:
        xp = self.xp
        return xp.node("LayerNormalization", [x, weight, bias], x.shape, x.dtype, axis=-1, epsilon=float(eps))

    def gelu(self, x: Any, approximate: str = "none") -> OnnxArray:
        if approximate != "none":
            return Gelu.forward(self.xp, x, approximate=approximate)
        # In this order runtimes recognize it and run one kernel for all of it.
        return x * (self.xp.erf(x / float(np.sqrt(2))) + 1) * 0.5

    def softmax(self, x: Any, axis: int = -1) -> OnnxArray:
        return self.xp.node("Softmax", [x], x.shape, x.dtype, axis=axis)

    def log_softmax(self, x: Any, axis: int = -1) -> OnnxArray:
        return self.xp.node("LogSoftmax", [x], x.shape, x.dtype, axis=axis)

    def relu(self, x: Any) -> OnnxArray:
        return self.xp.node("Relu", [x], x.shape, x.dtype)

    def take_rows(self, x: Any, rows: Any) -> OnnxArray:
        return self.xp.take_rows(x, rows)

    def conv2d(self, x: Any, weight: Any, bias: Any, stride: Any, padding: Any) -> OnnxArray:
        given = [x, weight] if bias is None else [x, weight, bias]
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
        shape = (x.shape[0], weight.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))
        return self.xp.node("Conv", given, shape, x.dtype, strides=list(stride), pads=[*padding, *padding])

    def max_pool2d(self, x: Any, window: Any, stride: Any, padding: Any) -> OnnxArray:
        return self._pooled("MaxPool", x, window, stride, padding)

    def avg_pool2d(self, x: Any, window: Any, stride: Any, padding: Any) -> OnnxArray:
        return self._pooled("AveragePool", x, window, stride, padding, count_include_pad=1)

    def _pooled(self, kind: str, x: Any, window: Any, stride: Any, padding: Any, **options: Any) -> OnnxArray:
        sizes = zip(x.shape[2:], window, stride, padding, strict=True)
        shape = (*x.shape[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))
        where = {"kernel_shape": list(window), "strides": list(stride), "pads": [*padding, *padding]}
        return self.xp.node(kind, [x], shape, x.dtype, **where, **options)

    def attention(
        self, q: Any, k: Any, v: Any, bias: Any, mask: Any, is_causal: bool, scale: float, **without: Any
    ) -> OnnxArray:
        xp = self.xp
        scores = xp.matmul(q * scale, xp.swapaxes(k, -1, -2))
        scores = scores if bias is None else scores + bias
        if is_causal:
            causal = xp.arange(k.shape[-2])[None] <= xp.arange(q.shape[-2])[:, None]
            mask = causal if mask is None else xp.logical_and(mask, causal)
        if mask is None:
            return xp.matmul(self.softmax(scores), v)
        # A finite number in the place of -inf, and zeros afterwards: a query that sees no key has weights of 0.
        lowest = float(np.finfo(scores.dtype).min) / 2
        weights = self.softmax(xp.where(mask, scores, lowest))
        return xp.matmul(xp.where(mask, weights, 0.0), v)
