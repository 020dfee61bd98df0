"""Operations as a whole in C: each is a call of a function of `c_text`."""

from typing import Any

from ..functional.activation import Gelu
from .c_arrays import C, CArray
from .c_pieces import literal
from .lower import Operations


class COperations(Operations):
    """Operations that have a function of their own in C: those with weights, and those that take the time."""

    xp: C

    def _is_int8(self, weight: CArray) -> bool:
        return self.xp.is_int8 and weight.array is not None and weight.ndim > 1

    def _weight(self, weight: CArray) -> tuple[bool, list[Any]]:
        """Return whether a weight is kept in 8 bits, and the arguments for it."""
        if not self._is_int8(weight):
            return False, [self.xp.dense(weight)]
        stored = self.xp.weight(weight, "rows")
        return True, [stored.name, f"{stored.name}_scale", stored.unit]

    def linear(self, x: Any, weight: Any, bias: Any) -> CArray:
        xp, x = self.xp, self.xp.dense(x)
        out = xp.new((*x.shape[:-1], weight.shape[0]))
        is_int8, given = self._weight(weight)
        rows = x.size // max(1, x.shape[-1])
        function = "linear_int8" if is_int8 else "linear_float"
        xp.call(function, x, *given, "NULL" if bias is None else bias, out, rows, *weight.shape[::-1])
        return out

    def embedding(self, weight: Any, ids: Any) -> CArray:
        xp, ids = self.xp, self.xp.dense(ids)
        out, (count, width) = xp.new((*ids.shape, weight.shape[-1])), weight.shape
        is_int8, given = self._weight(weight)
        xp.say(f"for (int i = 0; i < {ids.size}; i++) if ((", ids, ")[i] < 0 || (", ids, f")[i] >= {count}) return -1;")
        value = [given[0], "[(int)(", ids, f")[i] * {width} + j]"]
        value += [" * ((float)", given[1], "[(int)(", ids, f")[i]] * {literal(given[2])})"] if is_int8 else []
        loops = f"for (int i = 0; i < {ids.size}; i++) for (int j = 0; j < {width}; j++) "
        xp.say(loops, "(", out, f")[i * {width} + j] = ", *value, ";")
        return out

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float, y_dtype: Any = None) -> CArray:
        xp, x = self.xp, self.xp.dense(x)
        out = xp.new(x.shape)
        xp.call("layer_norm", x, weight, bias, out, x.size // x.shape[-1], x.shape[-1], float(eps))
        return out

    def gelu(self, x: Any, approximate: str = "none") -> CArray:
        if approximate != "none":
            return Gelu.forward(self.xp, x, approximate=approximate)
        return self.xp.each("0.5f * {0} * (1.0f + erff({0} * 0.707106781f))", x)

    def relu(self, x: Any) -> CArray:
        return self.xp.each("({0} < 0 ? 0 : {0})", x)  # NaN stays NaN

    def conv2d(self, x: Any, weight: Any, bias: Any, stride: Any, padding: Any) -> CArray:
        xp, x = self.xp, self.xp.dense(x)
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
        positions = [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]
        out = xp.new((x.shape[0], weight.shape[0], *positions))
        is_int8, given = self._weight(weight)
        numbers = (*x.shape[1:], weight.shape[0], *weight.shape[2:], *positions, *stride, *padding)
        for b in range(x.shape[0]):
            xp.call("conv2d_int8" if is_int8 else "conv2d_float", x[b], *given, bias or "NULL", out[b], *numbers)
        return out

    def attention(
        self, q: Any, k: Any, v: Any, bias: Any, mask: Any, is_causal: bool, scale: float, **without: Any
    ) -> CArray:
        xp = self.xp
        b, h, n, d = q.shape
        s = k.shape[2]
        parts = [x if x.array is None and x.cells.strides[-1] in (0, 1) else xp.dense(x) for x in (q, k, v)]
        # As the heads lie side by side in memory, merging them is a view.
        out = xp.transpose(xp.new((b, n, h, d)), (0, 2, 1, 3))
        shown = [None if x is None else xp.broadcast_to(xp.array(x), (b, h, n, s)) for x in (mask, bias)]
        scores = xp.new((s,))
        for i in range(b):
            given = [a for x in (*parts, out) for a in (x[i], *x[i].cells.strides[:2])]
            for x in shown:
                given += ["NULL", 0, 0, 0] if x is None else [x[i], *x[i].cells.strides]
            xp.call("attention", *given, scores, h, n, s, d, int(is_causal), float(scale))
        return out
