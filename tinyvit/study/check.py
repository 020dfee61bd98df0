"""A numeric check beside each step: the gradient of one operation against central differences at float64.

What is differentiated is s(x) = <dy, forward(x)>, the scalar whose gradient the rule must give. Two differences, of
steps h and h / 2, tell how exact the numeric value is: the rule may miss it by what they miss each other, and by the
rounding error of s over h. So a tolerance is never guessed, and where there is nothing to see (a gradient below the
rounding error, a kink) the verdict is "unclear", not "wrong".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Op
from ..backend import NUMPY
from .recording import Backward

STEP = 1e-4
CURVE = tuple(10.0**-k for k in range(1, 12))  # steps of the curve of error over step
_SEED = 7


@dataclass(frozen=True)
class Row:
    """One number that was checked.

    Attributes
    ----------
    input : name of the input.  index : of its element; None for the slope along a random direction.
    as_run : what ran gave, in its own dtype and by its own kernel.  rule : the plain rule at float64.
    numeric : the central difference.  tolerance : how far rule and numeric may be apart.
    verdict : "agrees", "wrong", or "unclear" (nothing can be said: too small, or a kink).
    """

    input: str
    index: tuple[int, ...] | None
    as_run: float
    rule: float
    numeric: float
    tolerance: float
    verdict: str

    @property
    def error(self) -> float:
        """Relative difference of rule and numeric."""
        scale = max(abs(self.rule), abs(self.numeric))
        return abs(self.rule - self.numeric) / scale if scale else 0.0


@dataclass(frozen=True)
class Check:
    """The check of one gradient rule.

    Attributes
    ----------
    rows : what was compared.
    curve : (step, relative error) of the first row: too large a step errs by curvature, too small a one by rounding.
    as_run_error : largest |as run - rule at float64| of any element, over the largest gradient of that input.
    verdict : "wrong" if any row is, or if what ran is not what the rule gives; else "agrees" if any row does.
    reason : what is wrong, in a sentence; empty if nothing is.
    """

    rows: tuple[Row, ...]
    curve: tuple[tuple[float, float], ...]
    as_run_error: float
    verdict: str
    reason: str


def check(backward: Backward, elements: int = 4) -> Check | None:
    """Check one recorded gradient rule on the numbers it ran on; None if the trace did not keep them."""
    entry = backward.entry
    arrays = [v.array if hasattr(v, "array") else v for v in entry.inputs]
    incoming = [None if v is None else v.array for v in backward.incoming]
    found = [None if v is None else v.array for v in backward.outgoing]
    values = [v for v in (*entry.inputs, *backward.incoming, *backward.outgoing) if hasattr(v, "array")]
    if any(v.array is None for v in values):
        return None
    names = [entry.input_name(i) for i in range(len(entry.inputs))]
    return check_rule(entry.op, arrays, entry.params, incoming, entry.needs, found, names, elements)


def check_rule(
    op: type[Op],
    inputs: Sequence[Any],
    params: dict[str, Any],
    incoming: Sequence[Any],
    needs: Sequence[bool],
    found: Sequence[Any],
    names: Sequence[str],
    elements: int = 4,
) -> Check:
    """Check the gradient rule of `op` on arrays.

    Parameters
    ----------
    incoming : gradients of the outputs, None for one that nobody used.
    found : gradients of the inputs as they were computed when it ran, None where none is wanted.
    elements : how many of each input to check by themselves: the largest gradient, the median, the smallest, any.
    """
    subject = _Subject(op, inputs, params, incoming, needs)
    if not subject.is_finite():
        return Check((), (), np.inf, "unclear", "the numbers that went in are not all finite")
    gradients = subject.gradients()
    rng = np.random.default_rng(_SEED)
    rows: list[Row] = []
    worst = 0.0
    for i, need in enumerate(needs):
        if not need:
            continue
        rule, run = gradients[i], np.asarray(found[i], np.float64)
        if rule.size == 0:
            continue
        scale = max(float(np.abs(rule).max()), float(np.abs(run).max()))
        apart = float(np.abs(run - rule).max()) / scale if scale else 0.0
        worst = max(worst, apart if np.isfinite(apart) else np.inf)
        for flat in _chosen(rule, elements, rng):
            direction = np.zeros(rule.shape)
            direction.flat[flat] = 1
            index = tuple(int(k) for k in np.unravel_index(flat, rule.shape))
            rows.append(subject.row(names[i], i, index, direction, rule, run))
        along = rng.standard_normal(rule.shape)
        rows.append(subject.row(names[i], i, None, along, rule, run))
    exact = np.dtype(found[next(i for i, n in enumerate(needs) if n)].dtype)
    verdict, reason = _judged(op, rows, worst, exact)
    curve = subject.curve(rows[0], needs, gradients) if rows else ()
    return Check(tuple(rows), curve, worst, verdict, reason)


def _chosen(rule: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Flat indices of the largest gradient, the median, the smallest, then random ones; each once."""
    order = np.argsort(-np.abs(rule), axis=None, kind="stable")
    picks = [order[0], order[order.size // 2], order[-1], *rng.integers(rule.size, size=max(count - 3, 0))]
    return list(dict.fromkeys(int(p) for p in picks))[:count]


def _judged(op: type[Op], rows: Sequence[Row], as_run_error: float, dtype: np.dtype) -> tuple[str, str]:
    wrong = [row for row in rows if row.verdict == "wrong"]
    if wrong:
        row = max(wrong, key=lambda row: row.error)
        place = "along a random direction" if row.index is None else f"at {list(row.index)}"
        return "wrong", (
            f"the gradient of {row.input} by the rule of {op.name} is {row.rule:.6g} {place}; "
            f"finite differences give {row.numeric:.6g}"
        )
    allowed = {"float64": 1e-9, "float32": 2e-3}.get(dtype.name, 0.2)
    if not as_run_error <= allowed:
        return (
            "wrong",
            f"what ran for {op.name} differs from its rule at float64 by {as_run_error:.2g} of the largest gradient",
        )
    return ("agrees" if any(row.verdict == "agrees" for row in rows) else "unclear"), ""


class _Subject:
    """One application of an operation at float64: s(x) = <dy, forward(x)>, and the rule's gradient of it."""

    def __init__(self, op: Any, inputs: Any, params: dict[str, Any], incoming: Any, needs: Any) -> None:
        self.op, self.needs = op, needs
        self.params = {k: np.dtype(np.float64) if isinstance(v, np.dtype) else v for k, v in params.items()}
        self.inputs = [_double(x) for x in inputs]
        self.incoming = [_double(g) for g in incoming]
        self.outputs = self._forward(self.inputs)
        terms = [np.abs(g * y).sum() for g, y in zip(self.incoming, self.outputs, strict=True) if g is not None]
        self._magnitude = float(sum(terms))

    def is_finite(self) -> bool:
        given = [g for g in (*self.incoming, *(x for x in self.inputs if hasattr(x, "dtype"))) if g is not None]
        return all(np.isfinite(g).all() for g in given)

    def _forward(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            out = self.op.forward(NUMPY, *inputs, **self.params)
        return [np.asarray(y) for y in (out if isinstance(out, tuple) else (out,))]

    def gradients(self) -> list[Any]:
        ctx = self.op()
        ctx.__dict__.update(self.params)
        ctx.shapes = [np.shape(x) if x is not None else () for x in self.inputs]
        ctx.needs = tuple(self.needs)
        saved = [self.inputs[s] if s >= 0 else self.outputs[~s] for s, _ in self.op._sources]
        pairs = zip(saved, self.op._sources, strict=True)
        ctx.saved = [a if reader is None or self.needs[reader] else None for a, (_, reader) in pairs]
        with np.errstate(all="ignore"):
            grads = ctx.backward(NUMPY, *self.incoming)
        return [None if g is None else np.asarray(g) for g in (grads if isinstance(grads, tuple) else (grads,))]

    def _slopes(self, i: int, direction: np.ndarray, step: float) -> tuple[float, float]:
        """The slopes of s along `direction` of input i, to the one side and to the other."""
        slopes = []
        for sign in (1, -1):
            moved = list(self.inputs)
            moved[i] = self.inputs[i] + sign * step * direction
            with np.errstate(all="ignore"):
                change = [
                    float(np.sum(g * (y - z)))
                    for g, y, z in zip(self.incoming, self._forward(moved), self.outputs, strict=True)
                    if g is not None
                ]
            slopes.append(sum(change) / (sign * step))
        return slopes[0], slopes[1]

    def difference(self, i: int, direction: np.ndarray, step: float) -> float:
        """The central difference of s along `direction` of input i."""
        return sum(self._slopes(i, direction, step)) / 2

    def row(
        self, name: str, i: int, index: tuple[int, ...] | None, direction: np.ndarray, rule: np.ndarray, run: np.ndarray
    ) -> Row:
        step = STEP * max(1.0, float(np.abs(self.inputs[i]).max()))
        if index is None:
            step /= max(1.0, float(np.abs(direction).max()))
        by_rule, as_run = float(np.sum(rule * direction)), float(np.sum(run * direction))
        wide, narrow = (self._slopes(i, direction, h) for h in (step, step / 2))
        coarse, numeric = sum(wide) / 2, sum(narrow) / 2
        bends = [abs(right - left) for right, left in (wide, narrow)]
        rounding = 8 * np.finfo(np.float64).eps * max(self._magnitude, abs(by_rule)) / step
        tolerance = 4 * abs(coarse - numeric) + rounding
        if bends[1] > tolerance and bends[1] > 0.75 * bends[0]:  # a curve bends half as much over half the step
            verdict = "unclear"
        elif not (np.isfinite(by_rule) and np.isfinite(numeric)):
            verdict = "unclear" if np.isfinite(by_rule) else "wrong"
        elif abs(by_rule - numeric) > tolerance:
            verdict = "wrong"
        else:  # something so far below the tolerance could be anything
            verdict = "agrees" if max(abs(by_rule), abs(numeric)) > 10 * tolerance or by_rule == numeric else "unclear"
        return Row(name, index, as_run, by_rule, numeric, tolerance, verdict)

    def curve(self, row: Row, needs: Sequence[bool], gradients: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        """The relative error of the difference for the element of `row`, over the size of the step."""
        i = next(i for i, need in enumerate(needs) if need)
        direction = np.zeros(gradients[i].shape)
        direction[row.index] = 1
        slope = float(gradients[i][row.index])
        errors = [abs(self.difference(i, direction, h) - slope) / (abs(slope) or 1.0) for h in CURVE]
        return tuple((h, e) for h, e in zip(CURVE, errors, strict=True) if np.isfinite(e))


def _double(x: Any) -> Any:
    return x.astype(np.float64) if hasattr(x, "dtype") and x.dtype.kind in "fV" else x
