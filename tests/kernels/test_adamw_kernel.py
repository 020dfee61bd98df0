"""The fused step of Adam and AdamW against the plain one."""

import copy
from typing import Any

import numpy as np
import pytest
from blocks import CHUNK
from draws import on_drawn
from hypothesis import strategies as st
from tinyvit.kernels import registry

import tinyvit as tv
from tinyvit.engine import Tensor

Array = np.ndarray
STEPS, RATE = 3, 0.01
VERSIONS = next(spec.versions for spec in registry.SPECS if spec.operation == "adamw")


def trained(choice: str, optimizer: Any, starts: list[Array], slopes: list[list[Array | None]], **options: Any) -> Any:
    """Return parameters after some steps, and their moments."""
    params = [Tensor(p.copy("A"), requires_grad=True) for p in starts]
    half = len(params) // 2
    groups = [{"params": params[:half], "weight_decay": 0.3}, {"params": params[half:], "weight_decay": 0.0}]
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        run = optimizer([g for g in groups if g["params"]], lr=RATE, **options)
        for gradients in slopes:
            for p, g in zip(params, gradients, strict=True):
                p.grad = None if g is None else Tensor(g)
            run.step()
    state = run.state_dict()["arrays"]
    return [p.data for p in params] + [state[key][slot] for key in sorted(state) for slot in ("m", "v")]


def as_float64(arrays: list[Array | None]) -> list[Array | None]:
    return [a if a is None else a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("version", [*(pytest.param(v, marks=pytest.mark.slow) for v in range(1, VERSIONS)), VERSIONS])
@on_drawn(20)
def test_a_fused_step_is_as_exact_as_the_plain_one(version: int, dtype: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 7, 33, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]), min_size=1))
    sizes = sizes if len(sizes) < 5 else sizes[:5]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    starts = [rng.standard_normal(n).astype(dtype) for n in sizes]
    slopes: list[list[Array | None]] = []
    for _ in range(STEPS):
        slopes.append([rng.standard_normal(n).astype(dtype) if rng.random() < 0.8 else None for n in sizes])
    if data.draw(st.booleans()):  # matrices, some of them not contiguous
        starts = [np.array(p[: p.size // 3 * 3].reshape(-1, 3), order="F") for p in starts]
        slopes = [[g if g is None else g[: g.size // 3 * 3].reshape(-1, 3) for g in step] for step in slopes]
    if data.draw(st.booleans()) and slopes[0][0] is not None and slopes[0][0].size:
        slopes[0][0].reshape(-1)[0] = data.draw(st.sampled_from([np.nan, np.inf, 1e4, 0.0]))
    optimizer = data.draw(st.sampled_from([tv.optim.Adam, tv.optim.AdamW]))
    arguments = (optimizer, starts, slopes)
    found, plain = trained(f"numba:v{version}", *arguments), trained("numpy", *arguments)
    exact = trained("numpy", optimizer, as_float64(starts), [as_float64(step) for step in slopes])
    unit = np.finfo(dtype).eps / 2
    for y, p, e in zip(found, plain, exact, strict=True):
        assert y.dtype == dtype
        regular = np.isfinite(p)
        np.testing.assert_array_equal(np.isfinite(y), regular)
        if regular.any():
            y, p, e = y[regular], p[regular], e[regular]
            # A step rounds the parameter and about ten steps towards its change, which is a few times the rate.
            floor = STEPS * unit * (4 * np.abs(e).max() + 40 * RATE)
            assert np.abs(y - e).max() <= 2 * np.abs(p - e).max() + floor


def test_gradients_and_initial_arrays_are_not_modified() -> None:
    rng = np.random.default_rng(0)
    starts, slopes = [rng.standard_normal(100)], [[rng.standard_normal(100)]]
    before = slopes[0][0].tobytes(), starts[0].tobytes()
    trained("numba", tv.optim.AdamW, starts, slopes)
    assert (slopes[0][0].tobytes(), starts[0].tobytes()) == before


class Signs(tv.optim.AdamW):
    """An optimizer whose steps have the same length for every gradient."""

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        p -= group["lr"] * np.sign(g)


def test_the_rule_of_a_subclass_is_used() -> None:
    p = Tensor(np.zeros(3, np.float32), requires_grad=True)
    optimizer = Signs([p], lr=0.5)
    p.grad = Tensor(np.array([3, -2, 0], np.float32))
    with tv.use_kernels("auto"):
        optimizer.step()
    np.testing.assert_array_equal(p.data, np.array([-0.5, 0.5, 0], np.float32))


def test_a_parameter_is_updated_where_it_lies_now() -> None:
    def trained(choice: str) -> Array:
        p = Tensor(np.ones(5, np.float32), requires_grad=True)
        optimizer = tv.optim.AdamW([p], lr=0.1)
        with tv.use_kernels(choice):
            for _ in range(3):
                p.grad = Tensor(np.linspace(-1, 1, 5, dtype=np.float32))
                p.data = p.data.copy()
                optimizer.step()
        return p.data

    np.testing.assert_allclose(trained("numba"), trained("numpy"), rtol=1e-6)


@pytest.mark.parametrize("choice", ["auto", "numpy"])
def test_a_copy_has_moments_of_its_own(choice: str) -> None:
    def step(p: Tensor, optimizer: Any) -> None:
        p.grad = Tensor(np.linspace(-1, 1, 5, dtype=np.float32))
        optimizer.step()

    p = Tensor(np.ones(5, np.float32), requires_grad=True)
    optimizer = tv.optim.AdamW([p], lr=0.1)
    with tv.use_kernels(choice):
        step(p, optimizer)
        q, other = copy.deepcopy((p, optimizer))
        step(q, other)
        before = p.data.copy()
        step(p, optimizer)
    assert (before != q.data).any()
    np.testing.assert_array_equal(p.data, q.data)
    mine, others = optimizer.state_dict()["arrays"]["0"], other.state_dict()["arrays"]["0"]
    for slot in ("m", "v"):
        np.testing.assert_array_equal(mine[slot], others[slot])
