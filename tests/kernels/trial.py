"""One application of an operation, forward and backward, by any implementation; and the comparison of results.

The tolerance is derived. With e the result of the plain rule at float64, and all compared results in one dtype,

    |kernel - e|  <=  2 max |plain - e|  +  4 max |moved - e|  +  4 u max |e|

where `plain` is the plain rule in that dtype, `moved` are results of the plain rule at float64 with a random rounding
error of that dtype in every step (`rounding`), and u is its unit roundoff. If `plain` is e itself, as at float64,
`moved` takes its place. For gradients of probabilities that are computed from their logarithm, 4 u grows to
4 u (1 + the largest logarithm), because that is the error of rounding the logarithm. The kernel's result must be
infinite or NaN exactly where `plain` is; which of the two must also agree, except for gradients, and where a rounding
decides it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from cases import Case
from draws import Array
from rounding import Rounded, rounding_to
from tinyvit.kernels.attention.by_query import EXACT

import tinyvit as tv
from tinyvit.engine import Op, Tensor

_MOVES = 3


@dataclass(frozen=True)
class Trial:
    """An application of an operation: its outputs, and the gradients of some inputs from those of some outputs."""

    op: type[Op]
    case: Case
    needs: Sequence[bool]  # of each input
    upstream: Sequence[Array | None]  # gradients of the outputs; None for an unused output

    def run(self, choice: str) -> list[Array]:
        """Return the outputs, then the wanted gradients, by this choice of `use_kernels`."""
        return self._run(choice, self.case.inputs, self.upstream)

    def exactly(self) -> list[Array]:
        """Return the same by the plain rule at float64."""
        return self._run("numpy", _as_float64(self.case.inputs), _as_float64(self.upstream), exact=True)

    def moved(self, dtype: Any, seed: int) -> list[Array]:
        """Return the same with random rounding errors of `dtype`."""
        inputs, upstream = (
            [x if x is None else x.view(Rounded) for x in _as_float64(arrays)]
            for arrays in (self.case.inputs, self.upstream)
        )
        with rounding_to(dtype, seed):
            return [np.asarray(y) for y in self._run("numpy", inputs, upstream, exact=True)]

    def _run(
        self, choice: str, inputs: Sequence[Array | None], upstream: Sequence[Array | None], exact: bool = False
    ) -> list[Array]:
        """Return the same for these inputs; if `exact`, parameters that name a dtype are set to float64."""
        exactly = {name: np.dtype(np.float64) for name in ("dtype", "source", "y_dtype") if name in self.case.params}
        params = self.case.params | exactly if exact else self.case.params
        xs = [x if x is None else Tensor(x, need) for x, need in zip(inputs, self.needs, strict=True)]
        with tv.use_kernels(choice), np.errstate(all="ignore"):
            outputs = applied(self.op, xs, params)
            wanted = [x for x in xs if x is not None and x.requires_grad]
            used = [(y, Tensor(u)) for y, u in zip(outputs, upstream, strict=True) if u is not None]
            gradients = tv.grad([y for y, _ in used], wanted, [u for _, u in used])
        return [t.data for t in (*outputs, *gradients)]

    def check(self, choice: str) -> None:
        """Fail if a kernel's result is further from the exact one than the tolerance."""
        found, plain, exact = self.run(choice), self.run("numpy"), self.exactly()
        dtype = plain[0].dtype
        # Arrays of 16 bits are computed in 32.
        narrow = any(x is not None and x.dtype == ml_dtypes.bfloat16 for x in self.case.inputs)
        computed = np.float32 if narrow else dtype
        moves = [self.moved(computed, seed) for seed in range(_MOVES)]
        for i, (y, p, e) in enumerate(zip(found, plain, exact, strict=True)):
            is_output = i < len(self.op.outputs)
            roundings = 4 if is_output else 4 * (1 + min(self.case.logarithm, EXACT))
            assert_close(self._name(i), y, p, e, [m[i] for m in moves], roundings, alike=is_output)

    def _name(self, i: int) -> str:
        names = [f"d{x}" for x, need in zip(self.op.inputs, self.needs, strict=True) if need]
        return [*self.op.outputs, *names][i]


def applied(op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> list[Tensor]:
    """Return the outputs of an operation as a list."""
    out = op.apply(*inputs, **params)
    return list(out) if isinstance(out, tuple) else [out]


def assert_close(
    name: str, found: Array, plain: Array, exact: Array, moves: list[Array], roundings: float, alike: bool
) -> None:
    """Check an array against the tolerance at the top of this file; unless `alike`, NaN and infinity count as equal."""
    assert (found.shape, found.dtype) == (plain.shape, plain.dtype), name
    unit = float(ml_dtypes.finfo(plain.dtype).eps) / 2
    found, plain = comparable(found), comparable(plain)
    regular = np.isfinite(plain)
    np.testing.assert_array_equal(np.isfinite(found), regular, f"{name}: which elements are finite")
    sure = alike & ~regular & np.logical_and.reduce([_same(m, plain) for m in moves])
    np.testing.assert_array_equal(found[sure], plain[sure], f"{name}: elements that are not finite")
    compared = regular & np.isfinite(exact)
    if not compared.any():
        return
    e = exact[compared]
    plain_error, moved = (max(np.abs(a[compared] - e).max() for a in arrays) for arrays in ([plain], moves))
    tolerance = 2 * (plain_error or moved) + 4 * moved + roundings * unit * np.abs(e).max()
    errors = np.abs(np.where(compared, found, 0) - np.where(compared, exact, 0))
    worst = np.unravel_index(errors.argmax(), errors.shape)
    assert errors[worst] <= tolerance, (
        f"{name}{[int(i) for i in worst]} is {found[worst]!r} and should be {exact[worst]!r}: an error of "
        f"{errors[worst]:.3g}, where {tolerance:.3g} is allowed (the plain rule errs by {plain_error:.3g})"
    )


def comparable(x: Array) -> Array:
    """Return x, converted to float32 if it is bfloat16, because NumPy's comparisons do not know its NaN."""
    return x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x


def _same(a: Array, b: Array) -> Array:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _as_float64(arrays: Sequence[Array | None]) -> list[Array | None]:
    return [x if x is None else np.array(x, np.float64) for x in arrays]


# Side effects -------------------------------------------------------------------------------------------------------


@contextmanager
def unmodified(arrays: Sequence[Any]) -> Iterator[None]:
    """Fail if the memory of any of these arrays, including the memory around a view, is different afterwards."""
    roots = [_root(x) for x in arrays if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in roots]
    yield
    assert [x.tobytes() for x in roots] == before


def _root(x: Array) -> Array:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x
