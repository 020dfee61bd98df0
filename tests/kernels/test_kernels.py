"""The same tests for every version of every kernel in the registry; a new kernel is tested once it has a row there."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cases import cases_of
from draws import FINITE, SPECIALS, Array, arrays, on_drawn
from hypothesis import strategies as st
from tinyvit.kernels import registry
from tinyvit.kernels.linear.microkernel import PANEL_BYTES
from tinyvit.kernels.linear.operands import CROWDED, FEW
from trial import Trial, applied, comparable, unmodified

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor

SPECS = [spec for spec in registry.SPECS if spec.technology == "numba"]
OPERATIONS = {op.kernel: op for op in Op.registry.values() if op.kernel}
SLOW = pytest.mark.slow
VERSIONS = [
    pytest.param(OPERATIONS[spec.operation], f"numba:v{version}", id=f"{spec.operation}-v{version}", marks=SLOW)
    for spec in SPECS
    if spec.operation in OPERATIONS
    for version in range(1, spec.versions + 1)
]
DTYPES = [  # every version in every one of its dtypes
    (spec, op, v, dtype)
    for spec in SPECS
    if (op := OPERATIONS.get(spec.operation)) is not None
    for v in range(1, spec.versions + 1)
    for dtype in sorted(spec.dtypes, key=str, reverse=True)
]
every_version = pytest.mark.parametrize(("op", "choice"), VERSIONS)


def every_dtype(few: int, all_of_them: int) -> pytest.MarkDecorator:
    """Give a test every version in every one of its dtypes, and how many examples it draws.

    Compiling all of them takes minutes, so the quick tests are of the newest versions in float32, on few examples. The
    slow ones are of all, on all examples.
    """
    return pytest.mark.parametrize(
        ("op", "choice", "dtype", "drawn"),
        [
            pytest.param(op, f"numba:v{v}", dtype.name, drawn, id=f"{dtype}-{spec.operation}-v{v}-{drawn}", marks=marks)
            for spec, op, v, dtype in DTYPES
            for drawn, marks in [(few, ()), (all_of_them, SLOW)]
            if drawn == all_of_them or (v == spec.versions and dtype == np.float32)
        ],
    )


class PoisonedNumpy:
    """NumPy, except that fresh memory is filled with NaN, or with large numbers if the dtype has no NaN."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *args: Any, **kwargs: Any) -> Array:
        return poisoned(np.empty(*args, **kwargs))

    def empty_like(self, *args: Any, **kwargs: Any) -> Array:
        return poisoned(np.empty_like(*args, **kwargs))


def poisoned(x: Array) -> Array:
    if x.dtype == np.uint32:  # it may hold pairs of bfloat16: both are NaN
        x.fill(0xFFFFFFFF)
    else:
        x.fill(np.nan if x.dtype.kind in "fV" else 1 if x.dtype.kind == "b" else np.iinfo(x.dtype).max // 2)
    return x


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within this block the launchers get memory full of NaN. The kernels that they call must be compiled before."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("tinyvit.kernels.") and hasattr(module, "np"):
                stack.enter_context(mock.patch.object(module, "np", PoisonedNumpy()))
        yield


def drawn_trial(data: st.DataObject, op: type[Op], dtype: Any) -> Trial:
    """Draw an application of `op` in which some outputs are used and some gradients are wanted."""
    case = data.draw(cases_of(op, dtype))
    with tv.use_kernels("numpy"), np.errstate(all="ignore"):
        outputs = [(y.shape, y.dtype) for y in applied(op, case.inputs, case.params)]
    wanted = data.draw(st.sets(st.sampled_from([i for i, x in enumerate(case.inputs) if x is not None]), min_size=1))
    used = data.draw(st.sets(st.sampled_from(range(len(outputs))), min_size=1))
    specials = FINITE if case.only_finite else SPECIALS
    upstream = [
        data.draw(arrays(shape, kind, specials=specials)) if i in used else None
        for i, (shape, kind) in enumerate(outputs)
    ]
    return Trial(op, case, [i in wanted for i in range(len(case.inputs))], upstream)


def test_every_kernel_of_the_registry_is_tested() -> None:
    assert {spec.operation for spec in SPECS} <= OPERATIONS.keys() | {"adamw", "clip"}  # tested in test_adamw_kernel.py


@every_dtype(20, 60)
@on_drawn()
def test_a_kernel_is_as_exact_as_the_plain_rule(op: type[Op], choice: str, dtype: str, data: st.DataObject) -> None:
    drawn_trial(data, op, dtype).check(choice)


@every_dtype(5, 15)
@on_drawn()
def test_no_argument_is_modified(op: type[Op], choice: str, dtype: str, data: st.DataObject) -> None:
    trial = drawn_trial(data, op, dtype)
    with unmodified([*trial.case.inputs, *trial.upstream, *trial.case.params.values()]):
        trial.run(choice)


@every_dtype(5, 15)
@on_drawn()
def test_what_is_in_fresh_memory_changes_nothing(op: type[Op], choice: str, dtype: str, data: st.DataObject) -> None:
    trial = drawn_trial(data, op, dtype)
    expected = trial.run(choice)
    with poisoned_memory():
        found = trial.run(choice)
    for y, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(comparable(y), comparable(e))


@every_version
def test_fused_gradients_agree_with_finite_differences(op: type[Op], choice: str) -> None:
    for sample in op.samples():

        def function(*varied: Tensor, sample: Any = sample) -> Any:
            rest = iter(varied)
            return op.apply(*(None if x is None else next(rest) for x in sample.inputs), **sample.params)

        with tv.use_kernels(choice):
            tv.gradcheck(function, [Tensor(x, True) for x in sample.inputs if x is not None], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("choice", [pytest.param("numba:v1", marks=SLOW), "numba:v2"])
def test_layer_norm_of_rows_far_from_zero(choice: str) -> None:
    x = (1000 + np.random.default_rng(0).normal(size=(5, 64))).astype(np.float32)
    with tv.use_kernels(choice):
        y = F.layer_norm(tv.tensor(x), tv.tensor(np.ones(64, np.float32)), tv.tensor(np.zeros(64, np.float32))).numpy()
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    np.testing.assert_allclose(y, exact, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=SLOW)])
@pytest.mark.parametrize("panels", [1, FEW, FEW + 1])
def test_linear_with_rows_of_dy_that_evict_each_other_from_a_cache(dtype: str, panels: int) -> None:
    """Such rows are copied if they are used often. All numbers are small and whole, so every sum is exact."""
    rng = np.random.default_rng(0)
    columns, depth = (size // np.dtype(dtype).itemsize for size in (CROWDED, panels * PANEL_BYTES))
    x, w, dy = (rng.integers(-4, 5, shape).astype(dtype) for shape in [(9, depth), (columns, depth), (9, columns)])
    with tv.use_kernels("numba:v2"):
        xt, wt = tv.tensor(x, requires_grad=True), tv.tensor(w, requires_grad=True)
        dx, dw = tv.grad(F.linear(xt, wt), [xt, wt], tv.tensor(dy))
    np.testing.assert_array_equal(dx.numpy(), dy @ w)
    np.testing.assert_array_equal(dw.numpy(), dy.T @ x)
