"""The fused step of Adam and AdamW, and the fused clipping, against the plain ones."""

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
from blocks import CHUNK
from draws import on_drawn
from hypothesis import strategies as st
from tinyvit.kernels import registry

import tinyvit as tv
from tinyvit.engine import Tensor
from tinyvit.optim.bundle import SameArrays
from tinyvit.optim.clipping import Clipping

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


# Clipping -----------------------------------------------------------------------------------------------------------


def clipped(choice: str, gradients: list[Array], limit: float) -> tuple[float, list[Array]]:
    params = [Tensor(np.zeros_like(g), requires_grad=True) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = Tensor(g.copy())
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        norm = tv.optim.clip_grad_norm(params, limit)
    return norm, [p.grad.data for p in params]


@on_drawn(20)
def test_the_fused_clipping_is_exact(data: st.DataObject) -> None:
    choices = st.sampled_from([0, 1, 7, 33, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
    sizes = data.draw(st.lists(choices, min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    power = data.draw(st.sampled_from([-44, -25, 0, 15, 25]))  # squares of the first and the last leave float32
    gradients = [(rng.standard_normal(n) * 10.0**power).astype(np.float32) for n in sizes]
    exact = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
    limit = data.draw(st.sampled_from([0.3, 3.0])) * exact or 1.0
    norm, found = clipped("numba", gradients, limit)
    assert norm == pytest.approx(exact, rel=1e-12)
    for g, y in zip(gradients, found, strict=True):
        expected = g if exact <= limit else g * (limit / exact)
        np.testing.assert_allclose(y, expected, rtol=2e-7, atol=2e-45)


def test_gradients_whose_norm_is_not_finite_are_not_scaled() -> None:
    for bad in (np.nan, np.inf):
        gradients = [np.ones(3, np.float32), np.array([bad, 4], np.float32)]
        norm, found = clipped("numba", gradients, 0.5)
        assert not np.isfinite(norm)
        for g, y in zip(gradients, found, strict=True):
            np.testing.assert_array_equal(g, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", [(slice(None),), (slice(None, None, 2),), (slice(None, None, -1),)])
def test_gradients_that_the_kernel_cannot_reach_are_clipped_too(dtype: str, form: tuple[slice]) -> None:
    numbers = np.arange(1, 25, dtype=dtype).reshape(4, 6)
    for gradient in (numbers[form], numbers.T[form]):
        exact = np.linalg.norm(gradient.astype(np.float64))
        place = Tensor(np.zeros(gradient.shape, dtype), requires_grad=True)
        place.grad = Tensor(gradient)
        expected = gradient.astype(np.float64) / exact
        with tv.use_kernels("auto"):
            assert tv.optim.clip_grad_norm(place, 1.0) == pytest.approx(exact, rel=1e-2)
        np.testing.assert_allclose(place.grad.numpy().astype(np.float64), expected, rtol=1e-2)
        numbers[...] = np.arange(1, 25, dtype=dtype).reshape(4, 6)


def test_gradients_at_the_same_places_are_read_again_and_others_are_noticed() -> None:
    def run(choice: str) -> tuple[list[float], list[Array]]:
        rng = np.random.default_rng(5)
        params = [Tensor(np.ones(n, np.float32), requires_grad=True) for n in (5, 40, 3)]
        places = [Tensor(np.zeros(p.shape, np.float32)) for p in params]
        optimizer, clip, norms = tv.optim.AdamW(params, lr=0.1), Clipping(params), []
        with tv.use_kernels(choice):
            for step in range(12):
                for i, (p, place) in enumerate(zip(params, places, strict=True)):
                    place.data[...] = rng.standard_normal(p.shape)
                    p.grad = place.copy() if step in (4, 8) and i == 1 else place
                params[2].grad = None if step in (6, 7, 9) else params[2].grad
                if step == 10:
                    params[0].data = params[0].data.copy()
                before = [p.memory.version for p in params]
                norms.append(clip(1.0))
                optimizer.step()
                changed = [p.memory.version > version for p, version in zip(params, before, strict=True)]
                assert changed == [p.grad is not None for p in params]
        return norms, [p.data for p in params]

    (found, ours), (expected, plain) = run("numba"), run("numpy")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for y, p in zip(ours, plain, strict=True):
        np.testing.assert_allclose(y, p, rtol=1e-5)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_parameter_whose_gradient_is_gone_stays_as_it_is(others: int) -> None:
    params = [Tensor(np.ones(50_000, np.float32), requires_grad=True) for _ in range(1 + others)]
    optimizer, clip = tv.optim.AdamW(params, lr=0.1, weight_decay=0), Clipping(params)
    for p in params:
        p.grad = Tensor(np.ones(p.shape, np.float32))
    for _ in range(2):  # so that arrays at the same places are noticed
        clip(1e9)
        optimizer.step()
    before, params[0].grad = [p.numpy().copy() for p in params], None
    gc.collect()
    assert clip(1e9) == pytest.approx(np.sqrt(50_000 * others))
    optimizer.step()
    assert [bool((p.numpy() != b).all()) for p, b in zip(params, before, strict=True)] == [False] + [True] * others
    np.testing.assert_array_equal(params[0].numpy(), before[0])


def test_arrays_are_known_from_their_second_time_on_until_others_come() -> None:
    first, second, third = (np.ones(2) for _ in range(3))
    same = SameArrays()
    for arrays, are_known in [
        ((first, second), False),
        ((first, second), False),
        ((first, second), True),
        ((first, third), False),
        ((first, second), False),
        ((first, second), True),
        ((third, second), False),
        ((first, second), False),
    ]:
        assert same.are(arrays) == are_known
        if not are_known:
            same.note(arrays)
    assert not SameArrays().are([])


@pytest.mark.usefixtures("few_objects")
def test_the_gradients_of_the_last_step_are_not_kept_alive() -> None:
    p = Tensor(np.ones(5, np.float32), requires_grad=True)
    optimizer, clip = tv.optim.AdamW([p], lr=0.1), Clipping([p])
    p.grad = Tensor(np.ones(5, np.float32))
    lives = weakref.ref(p.grad.data)
    for _ in range(2):
        clip(1.0)
        optimizer.step()
    p.grad = None
    gc.collect()
    assert lives() is None
