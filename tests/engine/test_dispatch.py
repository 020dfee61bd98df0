"""Choosing the implementation of an operation: kernels attach from outside, through the registry and nothing else."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tinyvit.kernels import registry
from tinyvit.kernels.registry import KernelSpec

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import dispatch
from tinyvit.engine import Op, Tensor

Arrays = dict[str, Any]
FLOAT64 = frozenset({np.dtype(np.float64)})
KERNEL, PLAIN = 7.0, 0.0  # the gradient of softmax(x).sum(), by the fake kernel and by the plain rule


def softmax_forward(x: np.ndarray, *, axis: int = -1, version: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax plus 100 times the version, so that a test can tell which version ran; and one residual."""
    e = np.exp(x)
    return 100 * version + e / e.sum(axis=axis, keepdims=True), np.full(1, KERNEL * version)


def softmax_backward(
    dy: np.ndarray, x: np.ndarray, seven: np.ndarray, *, axis: int = -1, needs: tuple[bool, ...], version: int
) -> tuple[np.ndarray]:
    assert needs == (True,)
    assert seven[0] == KERNEL * version
    return (np.full_like(dy, KERNEL),)


def norm_forward(
    x: np.ndarray, residual: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, eps: float, version: int
) -> tuple[np.ndarray, ...]:
    return x + residual, np.full_like(x, 100), np.ones(2)


def norm_backward(
    dsum: np.ndarray | None,
    dy: np.ndarray | None,
    sum: np.ndarray,
    rstd: np.ndarray,
    *,
    eps: float,
    needs: tuple[bool, ...],
    version: int,
) -> tuple[np.ndarray, ...]:
    assert needs == (True, True, False, False)
    value = KERNEL if dsum is None else -KERNEL
    return tuple(np.full(shape, value) for shape in (sum.shape, sum.shape, sum.shape[-1:], sum.shape[-1:]))


def row(technology: str = "numba", **settings: Any) -> KernelSpec:
    defaults: Any = {"module": "fake_softmax", "dtypes": FLOAT64, "residuals": ("seven",), "keeps": ("x", "seven")}
    return KernelSpec("softmax", technology, **defaults | settings)


@pytest.fixture(autouse=True)
def fake_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that replaces the rows of the registry during one test; the modules they name exist."""
    for name, functions in {
        "fake_softmax": {"forward": softmax_forward, "backward": softmax_backward},
        "fake_norm": {"forward": norm_forward, "backward": norm_backward},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    with tv.use_kernels("auto"):
        yield lambda *rows: monkeypatch.setattr(registry, "SPECS", rows)


def leaf(dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array([[1.0, 2.0, 3.0]], dtype), requires_grad=True)


def served(x: Tensor) -> str:
    """Which implementation computed a softmax; its gradient must come from the same one."""
    y = F.softmax(x)
    (gradient,) = tv.grad(y.sum(), x)
    by = "kernel" if y.numpy().max() > 1 else "plain"
    np.testing.assert_allclose(gradient.numpy(), KERNEL if by == "kernel" else PLAIN, atol=1e-6)
    return by


def test_a_row_in_the_table_is_all_it_takes(fake_kernels: Callable[..., None]) -> None:
    fake_kernels()
    assert served(leaf()) == "plain"
    fake_kernels(row())
    assert served(leaf()) == "kernel"
    assert F.exp(leaf()).numpy().max() < 100  # an operation without a kernel runs plain


def test_several_outputs_and_residuals_are_assigned_to_their_names(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(KernelSpec("add_layer_norm", "numba", "fake_norm", FLOAT64, ("rstd",), ("sum", "rstd")))
    x, one = leaf(), Tensor(np.ones(3))
    total, y = F.add_layer_norm(x, x, one, one, eps=0.5)
    np.testing.assert_array_equal(total.numpy(), 2 * x.numpy())
    np.testing.assert_array_equal(y.numpy(), 100)
    np.testing.assert_array_equal(tv.grad(y.sum(), x, retain_graph=True)[0].numpy(), 2 * KERNEL)  # x is used twice
    np.testing.assert_array_equal(tv.grad(total.sum(), x)[0].numpy(), -2 * KERNEL)


def test_backward_uses_what_forward_used(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())
    x = leaf()
    y = F.softmax(x)
    with tv.use_kernels("numpy"):
        plain = F.softmax(x)
        np.testing.assert_array_equal(tv.grad(y.sum(), x)[0].numpy(), KERNEL)
    np.testing.assert_allclose(tv.grad(plain.sum(), x)[0].numpy(), PLAIN, atol=1e-15)


def test_create_graph_runs_the_plain_rule(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())
    x = leaf()
    y = F.softmax(x)
    (gradient,) = tv.grad((y * np.array([1.0, 0, 0])).sum(), x, create_graph=True)
    assert gradient.requires_grad
    assert (gradient.numpy() != KERNEL).all()


def test_the_automatic_choice_is_the_first_row_that_can_serve(fake_kernels: Callable[..., None]) -> None:
    busy = row("cupy", refuses=lambda inputs, params: "busy")
    fake_kernels(busy, row())
    assert served(leaf()) == "kernel"
    fake_kernels(busy)
    assert served(leaf()) == "plain"
    fake_kernels(row())
    assert served(leaf(np.float32)) == "plain"  # the kernel does not compute in this dtype


def test_the_automatic_choice_skips_a_kernel_that_is_slower_here(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row(is_slower=lambda: "BLAS is faster"), row(is_slower=lambda: None, versions=2))
    x = tv.tensor(np.zeros(2))
    with tv.use_kernels("auto"):
        assert F.softmax(x).data[0] == 200.5
    fake_kernels(row(is_slower=lambda: "BLAS is faster"))
    with tv.use_kernels("auto"):
        assert F.softmax(x).data[0] == 0.5
    with tv.use_kernels("numba"):
        assert F.softmax(x).data[0] == 100.5


def test_a_kernel_that_may_refuse_is_given_inputs_and_parameters_by_name(
    fake_kernels: Callable[..., None],
) -> None:
    seen: list[tuple[Arrays, Arrays]] = []
    fake_kernels(row(refuses=lambda inputs, params: seen.append((dict(inputs), dict(params)))))
    x = leaf()
    F.softmax(x, axis=0)
    assert seen[0][0]["x"] is x.data
    assert seen[0][1] == {"axis": 0}


def test_a_kernel_that_may_refuse_is_asked_about_every_input(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row(refuses=lambda inputs, params: "it is long" if inputs["x"].size > 3 else None))
    for _ in range(2):
        assert served(leaf()) == "kernel"
        np.testing.assert_allclose(F.softmax(np.ones((1, 6))).numpy(), 1 / 6)


def test_an_explicit_request_that_cannot_be_met_raises_with_the_reason(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row("cupy"), row(refuses=lambda inputs, params: "x is too short"))
    with tv.use_kernels("numba"):
        with pytest.raises(RuntimeError, match=r"use_kernels\('numba'\): softmax .*x is too short.*'auto' or 'numpy'"):
            F.softmax(leaf())
        with pytest.raises(RuntimeError, match=r"the inputs are float32, and numba computes in float64"):
            F.softmax(leaf(np.float32))
        assert F.exp(leaf()).shape == (1, 3)  # exp has no Numba kernel, so the plain rule runs
    with tv.use_kernels("numba-cuda"):
        assert served(leaf()) == "plain"


def test_an_explicit_request_tries_every_row_of_its_technology(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row(refuses=lambda inputs, params: "only short rows"), row())
    with tv.use_kernels("numba"):
        assert served(leaf()) == "kernel"


@pytest.mark.parametrize(("name", "version"), [("auto", 3), ("numba", 3), ("numba:v1", 1), ("numba:v9", 3)])
def test_a_choice_may_name_a_version(fake_kernels: Callable[..., None], name: str, version: int) -> None:
    fake_kernels(row(versions=3))
    x = leaf()
    with tv.use_kernels(name):
        y = F.softmax(x)
    assert y.numpy().max() // 100 == version
    np.testing.assert_array_equal(tv.grad(y.sum(), x)[0].numpy(), KERNEL)  # the version that computed the forward pass


def test_the_plain_rule_serves_what_an_optional_kernel_of_the_chosen_technology_cannot(
    fake_kernels: Callable[..., None],
) -> None:
    fake_kernels(row(is_optional=True))
    with tv.use_kernels("numba"):
        assert [served(leaf(dtype)) for dtype in (np.float32, np.float64, np.float32)] == ["plain", "kernel", "plain"]
    fake_kernels(row(is_optional=False))
    with tv.use_kernels("numba"), pytest.raises(RuntimeError, match="softmax cannot be served: the inputs are float32"):
        served(leaf(np.float32))


@pytest.mark.parametrize(
    "kinds", [("float32", "float32"), ("float64", "float64"), ("float16",) * 2, ("float32", "int64")]
)
@pytest.mark.parametrize("choice", ["numpy", "auto", "numba"])
@pytest.mark.parametrize("size", [7, 60_000])
def test_a_sum_of_gradients_has_the_bits_of_numpy(kinds: tuple[str, str], choice: str, size: int) -> None:
    x, y = ((10 * np.random.default_rng(i).standard_normal(size)).astype(kind) for i, kind in enumerate(kinds))
    expected, before = x + y, (x.copy(), y.copy())
    with tv.use_kernels(choice):
        z = dispatch.sum_of(x, y)
    assert z.dtype == expected.dtype
    for found, wanted in zip((z, x, y), (expected, *before), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_kernel_for_large_inputs_is_not_asked_about_small_ones(
    fake_kernels: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_kernels(row())
    for least, by in ((3, "kernel"), (4, "plain")):
        monkeypatch.setattr(Op.registry["softmax"], "kernel_from", least)
        assert served(leaf()) == by


def test_numpy_is_the_plain_rule(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())
    with tv.use_kernels("numpy"):
        assert served(leaf()) == "plain"


def test_use_kernels_works_as_a_call_and_as_a_context_manager(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())
    assert dispatch.current_choice() == "auto"
    tv.use_kernels("numpy")
    assert served(leaf()) == "plain"
    with tv.use_kernels("numba"):
        assert served(leaf()) == "kernel"
        with pytest.raises(ZeroDivisionError), tv.use_kernels("auto"):
            raise ZeroDivisionError
        assert dispatch.current_choice() == "numba"
    assert dispatch.current_choice() == "numpy"
    tv.use_kernels("auto")


@pytest.mark.parametrize(
    "name", ["cuda", "numba:", "numba:v", "numba:vx", "numba:v-1", "numba:v0", "numpy:v1", "auto:v1", None, 1]
)
def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"name is {name!r}; it must be one of auto, numpy, numba, cupy, numba-cuda"):
        tv.use_kernels(name)
    assert dispatch.current_choice() == "auto"
    with pytest.raises(ValueError, match="softmax: technology is 'opencl'"):
        row("opencl")
    with pytest.raises(ValueError, match=r"softmax: dtypes is .*float64.*; it must be a set of numpy\.dtype"):
        row(dtypes=frozenset({"float64"}))
    with pytest.raises(ValueError, match="softmax: versions is 0"):
        row(versions=0)


def test_changing_an_array_that_a_kernel_keeps_is_noticed(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())  # the kernel keeps x, which the plain rule does not save
    x = leaf()
    y = x * 1.0
    loss = F.softmax(y).sum()
    with tv.no_grad():
        y += 1
    with pytest.raises(RuntimeError, match="'x', saved for the backward of softmax, was modified in place"):
        loss.backward()


def test_the_arrays_that_a_kernel_keeps_are_freed_by_backward(fake_kernels: Callable[..., None]) -> None:
    fake_kernels(row())
    x = leaf()
    loss = F.softmax(x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="freed"):
        loss.backward()
