"""Products of matrices: matmul, the affine map of a layer, einsum."""

import math
import string
from collections.abc import Sequence
from typing import Any

from ..backend import is_floating
from ..engine import Op, Tensor
from .arguments import as_operand, refuse_arguments
from .constants import as_floating
from .samples import sample
from .teaching import SIGN, Fault, Question


class Matmul(Op):
    """z = x y, stacks of matrices broadcast        dx = dz y^T,  dy = x^T dz"""

    autocast = "narrow"
    saves = ("x for y", "y for x")

    @staticmethod
    def forward(xp, x, y):
        return xp.matmul(x, y)

    def backward(ctx, xp, dz):
        x, y = ctx.saved
        # z = x @ y
        dx = xp.sum_to_shape(xp.matmul(dz, xp.swapaxes(y, -1, -2)), ctx.shapes[0]) if ctx.needs[0] else None
        dy = xp.sum_to_shape(xp.matmul(xp.swapaxes(x, -1, -2), dz), ctx.shapes[1]) if ctx.needs[1] else None
        return dx, dy

    @staticmethod
    def samples():
        yield sample((3, 4), (4, 2))
        yield sample((2, 3, 4), (4, 5))
        yield sample((2, 1, 3, 4), (3, 4, 2))


_BIAS_SIGN = Question(
    "db[{index[0]}] is the sum of column {index[0]} of {incoming} over all rows. Which sign does it have?",
    "db[{index[0]}] = {value:.4g}: the bias is added to every row, so every row's gradient comes back to it.",
    "dbias",
    options=SIGN,
    element=lambda ctx, gradient: (abs(gradient).argmax(),),
)


class Linear(Op):
    """y = x W^T + b        dx = dy W,  dW = dy^T x,  db = sum of dy over all rows"""

    autocast = "narrow"
    saves = ("x for weight", "weight for x")
    kernel = "linear"
    masters = ("weight", "bias")
    letters = ("x: ... C", "weight: K C", "bias: K", "out: ... K")
    fault = Fault(
        right="db = xp.sum(rows, axis=0)",
        wrong="db = xp.mean(rows, axis=0)",
        mistake="the gradient of the bias is averaged over the rows instead of summed",
    )
    questions = (_BIAS_SIGN, _BIAS_SIGN)

    @staticmethod
    def forward(xp, x, weight, bias):
        y = xp.matmul(x, xp.swapaxes(weight, 0, 1))
        return y if bias is None else y + bias

    def backward(ctx, xp, dy):
        x, weight = ctx.saved
        count = math.prod(dy.shape[:-1])
        rows = xp.reshape(dy, (count, dy.shape[-1]))  # (R, out)
        # y = x @ weight.T + bias
        dx = xp.matmul(dy, weight) if ctx.needs[0] else None
        dweight = db = None
        if ctx.needs[1]:
            dweight = xp.matmul(xp.swapaxes(rows, 0, 1), xp.reshape(x, (count, x.shape[-1])))
        if ctx.needs[2]:
            db = xp.sum(rows, axis=0)
        return dx, dweight, db

    @staticmethod
    def samples():
        yield sample((5, 3), (4, 3), (4,))
        yield sample((2, 3, 5), (1, 5), None)
        yield sample((3,), (2, 3), (2,))


# What users call ----------------------------------------------------------------------------------------------------


def matmul(x: Any, y: Any) -> Tensor:
    """The matrix product over the last two axes, leading axes broadcast.

    A vector is a row on the left and a column on the right, and that axis is gone from the result.
    """
    x = x if isinstance(x, Tensor) else as_operand("matmul", "x", x)
    y = y if isinstance(y, Tensor) else as_operand("matmul", "y", y)
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(f"matmul: x has shape {x.shape} and y {y.shape}; both need at least one axis")
    columns, rows = x.shape[-1], y.shape[max(y.ndim - 2, 0)]
    if columns != rows:
        raise ValueError(
            f"matmul: x of shape {x.shape} has {columns} columns, and y of shape {y.shape} has {rows} rows"
        )
    row, column = x.ndim == 1, y.ndim == 1
    z = Matmul.apply(x.reshape(1, -1) if row else x, y.reshape(-1, 1) if column else y)
    if row:
        z = z.reshape(*z.shape[:-2], z.shape[-1])
    return z.reshape(z.shape[:-1]) if column else z


def linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The affine map of the last axis: x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    try:
        _check_linear(x, weight, bias)
    except (AttributeError, TypeError) as error:
        refuse_arguments("linear", error, {"x": x, "weight": weight}, {"bias": bias})
    return Linear.apply(*as_floating(x, weight, bias))


def _check_linear(x: Any, weight: Tensor, bias: Tensor | None) -> None:
    shape = weight.shape
    if len(shape) != 2 or x.shape[-1:] != shape[1:]:
        raise ValueError(f"linear: x has shape {x.shape} and weight {shape}; they must be (..., in) and (out, in)")
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}; it must be {shape[:1]}")


def einsum(spec: str, *operands: Any) -> Tensor:
    """Einstein's summation, as `numpy.einsum`: "bhnd,bhsd->bhns". An index may not repeat within one operand.

    Made of transpose, matmul and sum, two operands at a time from the left, so its gradient is theirs.
    """
    if not isinstance(spec, str):
        raise TypeError(f"einsum: spec is {spec!r}; it must be a text, such as 'ij,jk->ik'")
    operands = tuple(as_operand("einsum", f"operand {i}", a) for i, a in enumerate(operands))
    if len(operands) > 1 and any(is_floating(a.data) for a in operands):
        operands = as_floating(*operands)  # two integers beside it are multiplied first, and could wrap around
    terms, result = _parse(spec, operands)
    labels, x = terms[0], operands[0]
    for i in range(1, len(operands)):
        wanted = set(result).union(*terms[i + 1 :])
        x, labels = _contract(x, labels, operands[i], terms[i], wanted)
    x, labels = _sum_away(x, labels, set(result))
    return x.transpose([labels.index(c) for c in result]) if labels != result else x


def _parse(spec: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The index letters of each operand and of the result, the ellipsis written out as letters."""
    left, arrow, result = spec.partition("->")
    for term in (*left.split(","), result):
        if strange := set(term.replace("...", "", 1)) - set(string.ascii_letters + " "):
            raise ValueError(
                f"einsum: term {term!r} of {spec!r} holds {sorted(strange)}; a term consists of letters and at most "
                "one '...', terms are separated by ',', and '->' comes once, before the result"
            )
    left, result = left.replace(" ", ""), result.replace(" ", "")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {spec!r} has {len(terms)} terms for {len(operands)} operands")
    if not arrow:
        letters = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(letters)
    free = [c for c in string.ascii_letters if c not in spec]
    depth = max((x.ndim - len(t) + 3 for t, x in zip(terms, operands, strict=True) if "..." in t), default=0)
    if depth > 0 and arrow and "..." not in result:
        raise ValueError(f"einsum: the result of {spec!r} lacks the '...' of its terms, which stands for {depth} axes")
    spelled = []
    for term, x in zip(terms, operands, strict=True):
        rest = x.ndim - len(term.replace("...", ""))
        spelled.append(term.replace("...", "".join(free[depth - rest : depth])))
        if len(spelled[-1]) != x.ndim or len(set(spelled[-1])) != x.ndim:
            raise ValueError(f"einsum: term {term!r} must name each of the {x.ndim} axes of its operand once")
    result = result.replace("...", "".join(free[:depth]))
    sizes: dict[str, int] = {}
    for c, n in ((c, n) for t, x in zip(spelled, operands, strict=True) for c, n in zip(t, x.shape, strict=True)):
        if sizes.setdefault(c, n) != n:
            raise ValueError(f"einsum: index {c!r} of {spec!r} has lengths {sizes[c]} and {n}")
    if not set(result) <= set(sizes) or len(set(result)) != len(result):
        raise ValueError(f"einsum: the result of {spec!r} must name indices of the operands, each once")
    return spelled, result


def _sum_away(x: Tensor, labels: str, wanted: set[str]) -> tuple[Tensor, str]:
    """Sum over the axes whose labels are not in `wanted`."""
    axes = tuple(i for i, c in enumerate(labels) if c not in wanted)
    return (x.sum(axis=axes), "".join(c for c in labels if c in wanted)) if axes else (x, labels)


def _contract(x: Tensor, xs: str, y: Tensor, ys: str, wanted: set[str]) -> tuple[Tensor, str]:
    """The product of two operands as one (stacked) matmul: indices in both are batch or contracted, the rest stay."""
    x, xs = _sum_away(x, xs, wanted | set(ys))
    y, ys = _sum_away(y, ys, wanted | set(xs))
    batch = "".join(c for c in xs if c in ys and c in wanted)
    inner = "".join(c for c in xs if c in ys and c not in wanted)
    rows = "".join(c for c in xs if c not in ys)
    columns = "".join(c for c in ys if c not in xs)
    size = dict(zip(xs + ys, x.shape + y.shape, strict=True))
    shape = [tuple(size[c] for c in group) for group in (batch, rows, columns)]
    n_inner = math.prod(size[c] for c in inner)
    x = x.transpose([xs.index(c) for c in batch + rows + inner]).reshape(*shape[0], math.prod(shape[1]), n_inner)
    y = y.transpose([ys.index(c) for c in batch + inner + columns]).reshape(*shape[0], n_inner, math.prod(shape[2]))
    return (x @ y).reshape(shape[0] + shape[1] + shape[2]), batch + rows + columns
