"""The numeric check: the gradient of one operation against central differences at float64.

The check differentiates s(x) = <dy, forward(x)>, the scalar whose gradient the rule must return. Differences of several
steps h show how exact the numeric value is: the rule may differ from it by as much as they differ among each other,
plus the rounding error of s divided by h. The tolerance is therefore never guessed. Where the differences can prove
nothing (a gradient below the rounding error, a kink), the verdict is "unclear", not "wrong". A rule is called wrong
only if smaller steps, down to the rounding error, find no kink that explains it.

What ran, in a narrower dtype or by a kernel, is compared with the rule at float64. It may differ by as much as the
plain rule in that dtype does, plus the change that results if every input changes by its own rounding error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...backend import NUMPY
from ...backend.words import counted
from ...engine import Op
from ..record.records import Backward

STEP = 1e-4
_PARTS = (1.0, 0.7, 0.5)  # fractions of a step; their differences must agree with each other
_SMALLER = 10  # how many times a step is divided by 10 before a rule is called wrong
CURVE = tuple(10.0**-k for k in range(1, 12))  # steps at which the error is plotted
_SEED = 7
_UNITS = (2.0**-40, 2.0**-32)  # relative changes of the inputs, to measure the effect of a rounding error
# Of each dtype, the largest number and the smallest step between numbers.
_RANGE = {
    "float64": (1.7e308, 5e-324),
    "float32": (3.4e38, 1.5e-45),
    "bfloat16": (3.3e38, 1e-40),
    "float16": (65504.0, 6e-8),
}


@dataclass(frozen=True)
class Row:
    """One number that was checked.

    Attributes
    ----------
    input : name of the input.  index : its element; None for the slope along a random direction.
    as_run : the gradient that ran, in its own dtype and by its own kernel.  rule : the plain rule at float64.
    numeric : the central difference.  tolerance : the largest difference allowed between rule and numeric.
    verdict : "agrees", "wrong", or "unclear" (the gradient is too small, or there is a kink).
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
        """Relative difference between rule and numeric."""
        scale = max(abs(self.rule), abs(self.numeric))
        return abs(self.rule - self.numeric) / scale if scale else 0.0


@dataclass(frozen=True, repr=False)
class Check:
    """The check of one gradient rule.

    Attributes
    ----------
    rows : the numbers that were compared.
    curve : (step, relative error) for the first row. Curvature causes the error of large steps, rounding that of small
        ones.
    as_run_error : largest |as run - rule at float64| of any element, divided by the largest gradient of that input.
    verdict : "wrong" if any row is, or if what ran differs from the rule; "agrees" if any row does; else "unclear".
    reason : what is wrong, or a remark, in a sentence; empty if there is nothing to say.
    """

    rows: tuple[Row, ...]
    curve: tuple[tuple[float, float], ...]
    as_run_error: float
    verdict: str
    reason: str

    def __repr__(self) -> str:
        numbers = counted(len(self.rows), "numbers")
        return f"Check: {self.verdict}, {numbers}" + (f"; {self.reason}" if self.reason else "")


def check(backward: Backward, elements: int = 4, op: type[Op] | None = None) -> Check | None:
    """Check one recorded gradient rule on the arrays it ran on; None if the trace did not store them.

    The rule is that of `op`, by default of the operation that ran.
    """
    entry = backward.entry
    arrays = [v.array if hasattr(v, "array") else v for v in entry.inputs]
    incoming = [None if v is None else v.array for v in backward.incoming]
    found = [None if v is None else v.array for v in backward.outgoing]
    values = [v for v in (*entry.inputs, *backward.incoming, *backward.outgoing) if hasattr(v, "array")]
    if any(v.array is None for v in values):
        return None
    names = [entry.input_name(i) for i in range(len(entry.inputs))]
    return check_rule(op or entry.op, arrays, entry.params, incoming, entry.needs, found, names, elements)


@np.errstate(all="ignore")
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
    incoming : gradients of the outputs; None for an output that nobody used.
    needs : for each input, whether its gradient is wanted.
    found : gradients of the inputs as they were computed when the rule ran; None where none is wanted.
    names : of the inputs.
    elements : how many elements of each input to check: the largest gradient, the median, the smallest, then random.
    """
    application = _Application(op, inputs, params, incoming, needs)
    if not application.is_finite():
        return Check((), (), np.inf, "unclear", "the inputs are not all finite")
    gradients = application.gradients()
    sensitivity = application.sensitivity(gradients)
    wanted = [i for i, need in enumerate(needs) if need and gradients[i].size]
    rng = np.random.default_rng(_SEED)
    rows: list[Row] = []
    for i in wanted:
        rule, run = gradients[i], np.asarray(found[i], np.float64)
        noise = sensitivity[i] * _rounding_unit(np.dtype(np.float64))
        for flat in _elements(rule, elements, rng):
            index = tuple(int(k) for k in np.unravel_index(flat, rule.shape))
            rows.append(application.row(names[i], i, index, rule, run, noise, rng))
        rows.append(application.row(names[i], i, None, rule, run, noise, rng))
    if not rows:
        return Check((), (), 0.0, "unclear", "there is no element to check")
    dtype = found[wanted[0]].dtype
    narrow = _Application(op, inputs, params, incoming, needs, np.promote_types(dtype, np.float32)).gradients()
    errors = (_run_error(gradients[i], found[i], narrow[i], sensitivity[i]) for i in wanted)
    worst = max(errors, key=lambda error: (error[0] > error[1], error[0]))
    verdict, reason = _judged(op, rows, *worst, dtype)
    return Check(tuple(rows), application.curve(rows[0], wanted[0], gradients[wanted[0]]), worst[0], verdict, reason)


def _rounding_unit(dtype: np.dtype) -> float:
    return {2: 2.0**-8, 4: 2.0**-23, 8: 2.0**-52}[dtype.itemsize]


def _run_error(rule: np.ndarray, found: Any, narrow: np.ndarray, sensitivity: np.ndarray) -> tuple[float, float]:
    """The difference between what ran and the rule, and the one allowed, both relative to the largest gradient."""
    largest, least = _RANGE[found.dtype.name]
    counts = np.abs(rule) < largest  # values that are not finite, or outside the range of the dtype, cannot be compared
    scale = max(float(np.abs(rule[counts]).max(initial=0)), least)
    run, rounded = (np.asarray(x.astype(found.dtype), np.float64) for x in (found, narrow))
    apart, rounding = (float(np.abs(x - rule)[counts].max(initial=0)) / scale for x in (run, rounded))
    unit = _rounding_unit(found.dtype)
    moves = unit * float(sensitivity[counts].max(initial=0)) / scale
    explained = moves + (rounding if np.isfinite(rounding) else 0.0)
    return np.inf if np.isnan(apart) else apart, 4 * explained + 64 * unit + least / scale


def _elements(rule: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Flat indices of the largest gradient, the median, the smallest, then of random ones; each once."""
    order = np.argsort(-np.abs(rule), axis=None, kind="stable")
    picks = [order[0], order[order.size // 2], order[-1], *rng.integers(rule.size, size=max(count - 3, 0))]
    return list(dict.fromkeys(int(p) for p in picks))[:count]


def _judged(op: type[Op], rows: Sequence[Row], as_run_error: float, allowed: float, dtype: np.dtype) -> tuple[str, str]:
    wrong = [row for row in rows if row.verdict == "wrong"]
    if wrong:
        row = max(wrong, key=lambda row: row.error)
        place = "along a random direction" if row.index is None else f"at {list(row.index)}"
        return "wrong", (
            f"the gradient of {row.input} by the rule of {op.name} is {row.rule:.6g} {place}; "
            f"finite differences give {row.numeric:.6g}"
        )
    if not as_run_error <= allowed:
        return (
            "wrong",
            f"what ran for {op.name} differs from its rule at float64 by {as_run_error:.2g} of the largest gradient; "
            f"rounding to {dtype} explains only {allowed:.2g}",
        )
    if not any(row.verdict == "agrees" for row in rows):
        return "unclear", ""
    if as_run_error > 0.02:
        return "agrees", (
            f"the rule agrees; what ran differs by {as_run_error:.2g} of the largest gradient, which is the rounding "
            f"error of {dtype}: large terms cancel, or the numbers are below its range"
        )
    return "agrees", ""


class _Estimate(NamedTuple):
    """A central difference, what it may be off by, rounding alone, and how far the one-sided slopes of it differ."""

    numeric: float
    tolerance: float
    rounding: float
    bend_of_whole: float  # with the whole step
    bend: float  # with half of it

    @property
    def is_kink(self) -> bool:
        """Half the step halves the bend of a smooth function, but not that of a kink."""
        return self.bend > self.tolerance and self.bend > 0.75 * self.bend_of_whole

    def verdict(self, by_rule: float) -> str:
        """Judge the rule."""
        if self.is_kink or not np.isfinite([self.numeric, self.tolerance]).all():  # not finite: a step left the domain
            return "unclear"
        if not abs(by_rule - self.numeric) <= self.tolerance:
            return "wrong"
        # A gradient below the tolerance proves nothing.
        is_clear = max(abs(by_rule), abs(self.numeric)) > 10 * self.tolerance or by_rule == self.numeric
        return "agrees" if is_clear else "unclear"


class _Application:
    """One application of an operation: s(x) = <dy, forward(x)>, and its gradient by the rule."""

    def __init__(
        self, op: Any, inputs: Any, params: dict[str, Any], incoming: Any, needs: Any, dtype: Any = np.float64
    ) -> None:
        self.op, self.needs = op, needs
        self.params = {k: np.dtype(dtype) if isinstance(v, np.dtype) else v for k, v in params.items()}
        self.inputs = [_cast(x, dtype) for x in inputs]
        self.incoming = [_cast(g, dtype) for g in incoming]
        self.outputs = self._forward(self.inputs)
        terms = [np.abs(g * y).sum() for g, y in zip(self.incoming, self.outputs, strict=True) if g is not None]
        self._magnitude = float(sum(terms))

    def is_finite(self) -> bool:
        given = [g for g in (*self.incoming, *(x for x in self.inputs if hasattr(x, "dtype"))) if g is not None]
        return all(np.isfinite(g).all() for g in given)

    def _forward(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        return [np.asarray(y) for y in self.op.run(NUMPY, inputs, self.params)]

    def gradients(self, rng: np.random.Generator | None = None, unit: float = 0.0) -> list[Any]:
        """The rule's gradients; with `rng`, after each number that it reads was changed by up to `unit` of itself."""

        def given(x: Any) -> Any:
            if rng is None or not hasattr(x, "dtype") or x.dtype.kind != "f":
                return x
            return x * (1 + unit * rng.uniform(-1, 1, np.shape(x)))

        application = self.op.application(self.inputs, self.outputs, self.params, self.needs).mapped(given)
        grads = application.gradients(NUMPY, [given(g) for g in self.incoming])
        return [None if g is None else np.asarray(g) for g in grads]

    def sensitivity(self, gradients: Sequence[Any]) -> list[Any]:
        """The change of each gradient element, divided by the relative change of the numbers that the rule reads.

        0 where it jumps, as when the maximum moves to another element: rounding errors do not explain that.
        """
        small, large = (self.gradients(np.random.default_rng(_SEED), unit) for unit in _UNITS)
        found: list[Any] = []
        for gradient, a, b in zip(gradients, small, large, strict=True):
            if gradient is None or not gradient.size:
                found.append(None)
                continue
            moved, further = (np.nan_to_num(np.abs(x - gradient), nan=0.0, posinf=0.0) for x in (a, b))
            jumps = further.max() < 16 * moved.max()
            found.append(np.zeros_like(moved) if jumps else moved / _UNITS[0])
        return found

    def _slopes(self, i: int, direction: np.ndarray, step: float) -> tuple[float, float]:
        """The one-sided slopes of s along `direction` of input i."""
        slopes = []
        for sign in (1, -1):
            moved = list(self.inputs)
            moved[i] = self.inputs[i] + sign * step * direction
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
        self,
        name: str,
        i: int,
        index: tuple[int, ...] | None,
        rule: np.ndarray,
        run: np.ndarray,
        noise: np.ndarray,
        rng: np.random.Generator,
    ) -> Row:
        """The check of element `index` of the gradient of input i, or of its slope along a random direction."""
        step = STEP * max(1.0, float(np.abs(self.inputs[i]).max()))
        if index is None:
            direction = rng.standard_normal(rule.shape)
            step /= max(1.0, float(np.abs(direction).max()))
            by_rule, as_run = float(np.sum(rule * direction)), float(np.sum(run * direction))
            own_error = float(np.linalg.norm(noise * direction))
        else:
            direction = np.zeros(rule.shape)
            direction[index] = 1
            by_rule, as_run, own_error = float(rule[index]), float(run[index]), float(noise.max())
        found = self._estimate(i, direction, step, by_rule, own_error)
        verdict = found.verdict(by_rule)
        if verdict == "wrong" and (nearer := self._near_a_kink(found, i, direction, step, by_rule, own_error)):
            found, verdict = nearer, nearer.verdict(by_rule)
        return Row(name, index, as_run, by_rule, found.numeric, found.tolerance, verdict)

    def _estimate(self, i: int, direction: np.ndarray, step: float, by_rule: float, own_error: float) -> "_Estimate":
        """The central difference of s along `direction` of input i by steps of this size, and how exact it is."""
        slopes = [self._slopes(i, direction, part * step) for part in _PARTS]
        differences = [sum(pair) / 2 for pair in slopes]
        bends = [abs(right - left) for right, left in slopes]
        rounding = 8 * np.finfo(np.float64).eps * max(self._magnitude, abs(by_rule)) / step
        tolerance = 4 * (max(differences) - min(differences)) + 4 * own_error + rounding
        return _Estimate(differences[-1], tolerance, rounding, bends[0], bends[-1])

    def _near_a_kink(
        self, first: "_Estimate", i: int, direction: np.ndarray, step: float, by_rule: float, own_error: float
    ) -> "_Estimate | None":
        """The estimate by smaller steps that shows a kink within reach of the first one; None if there is none.

        Several kinks may cancel in one difference, so that it seems exact. With steps shorter than the distance of the
        nearest kink the difference is what the rule says; at a kink the one-sided slopes stay as far apart as rule and
        difference are.
        """
        apart = abs(by_rule - first.numeric)
        for _ in range(_SMALLER):
            step /= 10
            found = self._estimate(i, direction, step, by_rule, own_error)
            if not found.rounding < apart:
                return None
            explains = abs(by_rule - found.numeric) <= found.tolerance < 0.1 * apart
            if explains or (found.is_kink and found.bend > apart):
                return found
        return None

    def curve(self, row: Row, i: int, gradient: np.ndarray) -> tuple[tuple[float, float], ...]:
        """(step, relative error of the central difference) for the element of `row`, of input i."""
        direction = np.zeros(gradient.shape)
        direction[row.index] = 1
        slope = float(gradient[row.index])
        errors = [abs(self.difference(i, direction, h) - slope) / (abs(slope) or 1.0) for h in CURVE]
        return tuple((h, e) for h, e in zip(CURVE, errors, strict=True) if np.isfinite(e))


def _cast(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if hasattr(x, "dtype") and x.dtype.kind in "fV" else x
